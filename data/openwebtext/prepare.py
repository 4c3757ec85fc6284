"""
Turn OpenWebText, or your own documents, into train.bin and val.bin (token ids, uint16) and meta.json, in this folder.

Each document ends with <|endoftext|>. One document in 2000 is for validation. The order of the documents, the split and
the bytes of the files are the same as nanoGPT's. README.md says how much time and disk space OpenWebText takes.
"""

import glob
import json
import os
import re
import signal
import sys
from collections import deque
from concurrent.futures import ProcessPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, ".."), os.path.join(HERE, "..", "..")]
sys.dont_write_bytecode = True  # data/__pycache__ would look like a dataset

import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from configurator import UserError, check_installed, configure, first_line, replacing_all, run  # noqa: E402
from prepare import print_sizes  # noqa: E402
from tokenizer import gpt2_tokenizer  # noqa: E402

# -----------------------------------------------------------------------------
data_files: str | None = None  # your own parquet, jsonl or text files (a pattern, in quotes); None is OpenWebText
num_proc = os.cpu_count() or 1  # processes that read and tokenize
# -----------------------------------------------------------------------------

OPENWEBTEXT = "Skylion007/openwebtext"
REVISIONS = ("main", "refs/pr/22")  # main still holds a loading script; refs/pr/22 has the same data as parquet
DOCUMENTS = 8_013_769
BUILDERS = {"parquet": "parquet", "jsonl": "json", "json": "json", "txt": "text", "md": "text"}
BATCH = 100  # documents that a process tokenizes at a time


def root_cause(failure):
    """The first line of the original error: `datasets` wraps it in others that only say that something failed."""
    while failure.__cause__:
        failure = failure.__cause__
    return first_line(failure)


def load_openwebtext():
    """
    OpenWebText as a datasets.Dataset, from the Hugging Face Hub or from the cache of an earlier download.

    Raises UserError if no revision can be loaded with the number of documents that nanoGPT's has.
    """
    from datasets import load_dataset

    tried = []
    for revision in REVISIONS:
        try:
            documents = load_dataset(OPENWEBTEXT, revision=revision, split="train")
        except Exception as failure:  # many types, from the network, the Hub, the disk and the files
            tried.append(f"{revision}: {root_cause(failure)}")
            continue
        if len(documents) == DOCUMENTS:
            return documents
        tried.append(f"{revision}: expected {DOCUMENTS:,} documents, found {len(documents):,}")
    raise UserError(
        f"cannot load {OPENWEBTEXT} ({'; '.join(tried)}): the first run needs a network; or name files that you have "
        "with --data_files='folder/*.parquet'"
    )


def load_files():
    """
    The documents in local files as a datasets.Dataset. A row of parquet, a line of jsonl or a text file is a document.

    Raises UserError if the files are of no kind or of several, cannot be read, or do not hold two documents with text.
    """
    from datasets import load_dataset

    paths = sorted(glob.glob(os.path.expanduser(data_files), recursive=True))
    kinds = {re.sub(r"\.(gz|zst|xz|bz2)$", "", path.lower()).rpartition(".")[2] for path in paths}
    builders = {BUILDERS.get(kind) for kind in kinds}
    if len(builders) != 1 or None in builders:
        found = f"has {', '.join(sorted(kinds))} files" if paths else "matches no file"
        raise UserError(f"--data_files={data_files} {found}: it should match files of one kind, {', '.join(BUILDERS)}")
    builder = builders.pop()
    by_file = {"sample_by": "document"} if builder == "text" else {}
    try:
        exact = [glob.escape(path) for path in paths]  # `datasets` expands patterns too
        documents = load_dataset(builder, data_files=exact, split="train", **by_file)
    except Exception as failure:  # many types, from the files and the disk
        raise UserError(f"cannot read --data_files={data_files}: {root_cause(failure)}") from None
    column = documents.features.get("text")
    if getattr(column, "dtype", None) not in ("string", "large_string"):
        found = f"{documents.column_names}" if column is None else f"a 'text' that is {column}"
        raise UserError(f"--data_files={data_files} has {found}: it should have a column 'text' of strings")
    if len(documents) < 2:
        raise UserError(f"--data_files={data_files} has fewer than two documents, and one of two is for validation")
    if nulls := documents.data.column("text").null_count:
        raise UserError(f"--data_files={data_files}: 'text' is missing in {nulls:,} of {len(documents):,} documents")
    return documents


class TokenCache(dict):
    """
    Maps a word to the token ids of the word with a space before it, as bytes.

    In GPT-2's vocabulary a space only occurs at the start of a token (three tokens also contain "\\xa0 "). The ids of a
    text are therefore the ids of its words, one word after the other. A word is encoded when it is first looked up and
    then kept, which is faster than running tiktoken on whole texts.
    """

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def encode(self, text):
        return np.array(self.tokenizer.encode(text), dtype="<u2").tobytes()

    def __missing__(self, word):
        ids = self.encode(" " + word)
        if len(word) < 32 and len(self) < 2**19:  # bound the memory
            self[word] = ids
        return ids

    def encode_document(self, text):
        """The ids of a text and of <|endoftext|>, as bytes."""
        first, *rest = [text] if "\xa0 " in text else text.split(" ")
        end = np.array([self.tokenizer.end_of_text], dtype="<u2").tobytes()
        return self.encode(first) + b"".join(map(self.__getitem__, rest)) + end


def init_tokenizing(splits):
    """Set the globals that `tokenize` reads. `splits` maps "train" and "val" to a datasets.Dataset."""
    global documents_by_split, token_cache
    documents_by_split, token_cache = splits, TokenCache(gpt2_tokenizer())


def init_worker(splits):
    """Set up a process of the pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process: the main one ends the others
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    init_tokenizing(splits)


def tokenize(split, start):
    """The ids of a batch of documents, from number `start` on, as bytes, and the number of bytes of their text."""
    texts = documents_by_split[split][start : start + BATCH]["text"]
    return b"".join(map(token_cache.encode_document, texts)), sum(len(text.encode("utf-8")) for text in texts)


def tokenize_in_order(pool, split, starts):
    """Yield the results of `tokenize` in order. Only a few batches are pending at a time, to bound the memory."""
    pending = deque()
    for start in starts:
        pending.append(pool.submit(tokenize, split, start))
        if len(pending) > 4 * num_proc:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def write_split(f, split, documents, pool):
    """Write a split's ids to a binary file. Returns its token and byte counts. Without a pool, this process does it."""
    counts = {"tokens": 0, "bytes": 0}
    starts = range(0, len(documents), BATCH)
    batches = tokenize_in_order(pool, split, starts) if pool else (tokenize(split, start) for start in starts)
    with tqdm(total=len(documents), unit="doc", desc=split, disable=not sys.stderr.isatty()) as bar:
        for ids, size in batches:
            f.write(ids)
            counts["tokens"] += len(ids) // 2
            counts["bytes"] += size
            bar.update(min(BATCH, len(documents) - bar.n))
    return counts


def write_dataset(splits, pool):
    """Write train.bin, val.bin and meta.json, or none of them. Returns the contents of meta.json."""
    meta = gpt2_tokenizer().meta()
    paths = [os.path.join(HERE, name) for name in ("train.bin", "val.bin", "meta.json")]
    with replacing_all(paths) as [train_file, val_file, meta_file]:
        meta["train"] = write_split(train_file, "train", splits["train"], pool)
        meta["val"] = write_split(val_file, "val", splits["val"], pool)
        meta_file.write(json.dumps(meta, indent=1).encode("utf-8"))
    return meta


def main():
    configure(globals(), positional="data_files")
    check_installed("datasets")
    if num_proc < 1:
        raise UserError(f"--num_proc={num_proc} should be at least 1")
    import datasets

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end like Ctrl-C, which cleans up
    datasets.utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    documents = load_openwebtext() if data_files is None else load_files()
    try:
        splits = documents.train_test_split(test_size=0.0005, seed=2357, shuffle=True)
        splits = {"train": splits["train"], "val": splits["test"]}
        print(f"{len(documents):,} documents, {len(splits['val']):,} of them for validation", flush=True)
        if num_proc == 1:
            init_tokenizing(splits)
            meta = write_dataset(splits, None)
        else:
            with ProcessPoolExecutor(num_proc, initializer=init_worker, initargs=(splits,)) as pool:
                meta = write_dataset(splits, pool)
    except (OSError, RuntimeError) as failure:  # a full disk; a process that the system killed
        raise UserError(f"cannot tokenize ({root_cause(failure)}): is there room on the disk and in memory?") from None
    print_sizes(meta)


if __name__ == "__main__":
    run(main)
