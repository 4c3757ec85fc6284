"""
Turn OpenWebText, or documents of yours, into train.bin and val.bin (token ids, uint16) and meta.json, in this folder.

Each document ends with <|endoftext|>. One document in 2000 is for validation; which ones, and the order of all of them,
is nanoGPT's, and so are the bytes. See README.md for the time and the room on the disk that OpenWebText takes.
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
sys.path.insert(0, os.path.join(HERE, "..", ".."))

import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from configurator import UserError, check_installed, configure, first_line, replacing, run  # noqa: E402
from tokenizer import GPT2Tokenizer  # noqa: E402

# -----------------------------------------------------------------------------
data_files: str | None = None  # parquet, jsonl or text files of yours (a glob, in quotes); None is OpenWebText
num_proc = os.cpu_count() or 1  # processes that read and tokenize
# -----------------------------------------------------------------------------

OPENWEBTEXT = "Skylion007/openwebtext"
REVISIONS = ("main", "refs/pr/22")  # the second is the parquet form, for as long as the first holds a loading script
DOCUMENTS = 8_013_769
BUILDERS = {"parquet": "parquet", "jsonl": "json", "json": "json", "txt": "text", "md": "text"}
PART = 100  # documents that a process tokenizes at a time


def root_cause(failure):
    """The first line of what began it: `datasets` wraps what goes wrong in errors that only say that something did."""
    while failure.__cause__:
        failure = failure.__cause__
    return first_line(failure)


def load_openwebtext():
    """OpenWebText as a datasets.Dataset, from the Hugging Face Hub or the cache of what came from there before."""
    from datasets import load_dataset

    tried = []
    for revision in REVISIONS:
        try:
            documents = load_dataset(OPENWEBTEXT, revision=revision, split="train")
        except Exception as failure:  # of the network, the Hub, the disk and the files, of many kinds
            tried.append(f"{revision}: {root_cause(failure)}")
            continue
        if len(documents) == DOCUMENTS:
            return documents
        tried.append(f"{revision}: {len(documents):,} documents, and not {DOCUMENTS:,}")
    raise UserError(
        f"cannot load {OPENWEBTEXT} ({'; '.join(tried)}): it needs a network once, or name files that you have: "
        "--data_files='folder/*.parquet'"
    )


def load_files():
    """The documents of local files as a datasets.Dataset: one a row of parquet, a line of jsonl, or a text file."""
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
        exact = [glob.escape(path) for path in paths]  # `datasets` reads them as patterns once more
        documents = load_dataset(builder, data_files=exact, split="train", **by_file)
    except Exception as failure:  # of the files and of the disk, of many kinds
        raise UserError(f"cannot read --data_files={data_files}: {root_cause(failure)}") from None
    column = documents.features.get("text")
    if getattr(column, "dtype", None) not in ("string", "large_string"):
        found = f"{documents.column_names}" if column is None else f"a 'text' that is {column}"
        raise UserError(f"--data_files={data_files} has {found}: it should have a column 'text' of strings")
    if empty := documents.data.column("text").null_count:
        raise UserError(f"--data_files={data_files}: {empty:,} of {len(documents):,} documents have no 'text'")
    if len(documents) < 2:
        raise UserError(f"--data_files={data_files} has {len(documents)} documents: two are needed, one for validation")
    return documents


class Words(dict):
    """
    Token ids, as bytes, of words with a space before them. GPT-2's tokens have a space at their beginnings only (but
    for three, that have "\\xa0 " too), so that the ids of a text are those of its words. Each is encoded when first
    asked for and then remembered, up to a limit, which is faster than tiktoken on whole texts.
    """

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def encoded(self, text):
        return np.array(self.tokenizer.encode(text), dtype="<u2").tobytes()

    def __missing__(self, word):
        ids = self.encoded(" " + word)
        if len(word) < 32 and len(self) < 2**19:  # memory stays flat
            self[word] = ids
        return ids

    def document(self, text):
        """The ids of a text and of <|endoftext|>, as bytes."""
        first, *rest = [text] if "\xa0 " in text else text.split(" ")
        end = np.array([self.tokenizer.end_of_text], dtype="<u2").tobytes()
        return self.encoded(first) + b"".join(map(self.__getitem__, rest)) + end


def start(documents_by_split):
    """What each process needs before it can tokenize."""
    global splits, words
    splits, words = documents_by_split, Words(GPT2Tokenizer())


def start_worker(documents_by_split):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the first one ends the others
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    start(documents_by_split)


def tokenize(split, first):
    """Ids, as bytes, and number of UTF-8 bytes of PART documents, from the `first` on; <|endoftext|> behind each."""
    texts = splits[split][first : first + PART]["text"]
    return b"".join(map(words.document, texts)), sum(len(text.encode("utf-8")) for text in texts)


def in_order(pool, split, firsts):
    """The results of `tokenize`, in order; only a few parts are under way at a time, so that memory stays flat."""
    pending = deque()
    for first in firsts:
        pending.append(pool.submit(tokenize, split, first))
        if len(pending) > 4 * num_proc:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def write(f, split, documents, pool):
    """Write a split's ids to a binary file; returns the counts that meta.json has. Without a pool, in this process."""
    counts = {"tokens": 0, "bytes": 0}
    firsts = range(0, len(documents), PART)
    parts = in_order(pool, split, firsts) if pool else (tokenize(split, first) for first in firsts)
    with tqdm(total=len(documents), unit="doc", desc=split, disable=not sys.stderr.isatty()) as bar:
        for ids, size in parts:
            f.write(ids)
            counts["tokens"] += len(ids) // 2
            counts["bytes"] += size
            bar.update(min(PART, len(documents) - bar.n))
    return counts


def write_all(documents, pool):
    """Write train.bin, val.bin and meta.json, or none of them; returns the meta."""
    meta = GPT2Tokenizer().meta()
    with (
        replacing(os.path.join(HERE, "meta.json")) as meta_file,
        replacing(os.path.join(HERE, "val.bin")) as val_file,
        replacing(os.path.join(HERE, "train.bin")) as train_file,
    ):
        meta["train"] = write(train_file, "train", documents["train"], pool)
        meta["val"] = write(val_file, "val", documents["val"], pool)
        meta_file.write(json.dumps(meta, indent=1).encode("utf-8"))
        for f in (train_file, val_file, meta_file):  # a full disk shows here, before the first file takes its place
            f.flush()
            os.fsync(f.fileno())
    return meta


def main():
    configure(globals())
    check_installed("datasets")
    if num_proc < 1:
        raise UserError(f"--num_proc={num_proc} should be at least 1")
    import datasets

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no process and no temporary file stays behind
    datasets.utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    documents = load_openwebtext() if data_files is None else load_files()
    try:
        parts = documents.train_test_split(test_size=0.0005, seed=2357, shuffle=True)
        parts = {"train": parts["train"], "val": parts["test"]}
        print(f"{len(documents):,} documents, {len(parts['val']):,} of them for validation", flush=True)
        if num_proc == 1:
            start(parts)
            meta = write_all(parts, None)
        else:
            with ProcessPoolExecutor(num_proc, initializer=start_worker, initargs=(parts,)) as pool:
                meta = write_all(parts, pool)
    except (OSError, RuntimeError) as failure:  # a full disk; a process that the system killed
        raise UserError(f"cannot tokenize ({root_cause(failure)}): is there room on the disk and in memory?") from None
    for split in parts:
        print(f"{split} has {meta[split]['tokens']:,} tokens ({meta[split]['bytes']:,} bytes of text)")


if __name__ == "__main__":
    run(main)
