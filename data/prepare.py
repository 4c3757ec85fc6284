"""
Turn any text into a dataset: data/NAME with train.bin and val.bin (token ids, uint16) and meta.json.

    python data/prepare.py --input=my_novel.txt    one text: its first 90% is for training, the rest for validation
    python data/prepare.py --input=essays          a folder of .txt and .md files, and of .jsonl files
    python data/prepare.py --input="mail/*.txt"    all files that match a pattern (in quotes)
    zcat big.txt.gz | python data/prepare.py --input=- --dataset=big

Texts are UTF-8 and may be larger than memory. Each line of a .jsonl file is one text: {"text": "Once upon a time"}.
If there are several texts, each goes to one split as a whole and ends with <|endoftext|> (with --encoding=char, a line
end). Empty texts and exact copies are left out.
"""

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from array import array
from collections import Counter
from functools import partial
from itertools import groupby
from operator import itemgetter

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, ".."))

from configurator import UserError, configure, replacing, replacing_all, run, standard_input  # noqa: E402

import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from tokenizer import ENCODINGS, CharTokenizer, GPT2Tokenizer  # noqa: E402

# -----------------------------------------------------------------------------
input: str | None = None  # a text file, a folder of .txt, .md and .jsonl files, a pattern, or - for standard input
dataset: str | None = None  # the name of the dataset, a folder in data/; None takes the input's name
encoding = "gpt2"  # gpt2 (byte pairs) or char (characters)
val_fraction = 0.1  # the fraction of the text that is for validation
clean = False  # remove what only transcripts have: spoken chapter numbers and doubled white space
# -----------------------------------------------------------------------------

EXTENSIONS = (".txt", ".md", ".jsonl")
SPLITS = ("train", "val")
MIN_TOKENS = 65  # in each split: one window of the smallest config's block_size, and its last target
BLOCK_CHARS = 2**18  # characters read at a time
CONTROL_CHARS = re.compile(r"[\0-\x08\x0e-\x1a\x1c-\x1f]")  # rare in text, common in binary files


def count(number, noun):
    """A number and a noun, singular or plural: count(1, "file") is "1 file", count(2000, "file") is "2,000 files"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


# -----------------------------------------------------------------------------
# from files to documents; each document is an iterable of blocks, which are strings


def find_files(path):
    """
    List the files that `path` names: a folder's texts, a pattern's matches, or else the path itself.

    Hidden files are skipped, and part 2 comes before part 10. Raises UserError if a folder or a pattern has no files.
    """
    if os.path.isdir(path):
        walk = os.walk(path, onerror=raise_unreadable)
        found = [os.path.join(folder, name) for folder, _, names in walk for name in names]
        found = [f for f in found if not re.search(r"(^|[/\\])\.", os.path.relpath(f, path))]
        files = [f for f in found if f.lower().endswith(EXTENSIONS)]
        texts, others = count(len(files), "text"), count(len(found) - len(files), "other file")
        print(f"{path!r} has {texts} ({', '.join(EXTENSIONS)}) and {others}")
    elif glob.has_magic(path) and not os.path.exists(path):
        files = [f for f in glob.glob(path, recursive=True) if os.path.isfile(f)]
        print(f"{path!r} matches {count(len(files), 'file')}")
    else:
        return [path]
    if not files:
        kinds = ", ".join(EXTENSIONS)
        raise UserError(f"there is no text in {path!r}: name a file, a folder of {kinds} files, or a pattern")
    return sorted(files, key=lambda f: [int(t) if t.isdecimal() else t.lower() for t in re.split(r"(\d+)", f)])


def raise_unreadable(failure):
    raise UserError(f"cannot read {failure.filename!r}: {failure.strerror}")


def read_documents(files, bar):
    """
    Yield each document in the files as an iterable of blocks, and advance the progress bar by the bytes read.

    Files are read while their blocks are consumed, and UserError is raised then for a file that is not readable text.
    """
    bytes_done = 0
    for path in files:
        if path.lower().endswith(".jsonl"):
            for number, line in enumerate(read_blocks(path, bar, "utf-8-sig", by_line=True), 1):
                if not line.isspace():
                    yield [parse_json_line(line, f"{path!r}, line {number:,}")]
        else:  # nanoGPT keeps the byte order mark of a single text; among several texts it would be noise
            yield read_blocks(path, bar, "utf-8" if len(files) == 1 else "utf-8-sig")
        bytes_done += os.path.getsize(path) if os.path.exists(path) else 0
        bar.update(bytes_done - bar.n)


def parse_json_line(line, where):
    """The text in a line of a .jsonl file. Raises UserError, which begins with `where`, if it has none."""
    try:
        text = json.loads(line)["text"]
        return text.encode("utf-8", errors="replace").decode("utf-8")  # JSON allows lone surrogates, UTF-8 does not
    except (ValueError, RecursionError) as failure:
        why = str(failure).partition(":")[0]
        raise UserError(f'{where} is not JSON ({why}): it should be like {{"text": "Once upon a time"}}') from None
    except (KeyError, TypeError, AttributeError):
        raise UserError(f'{where} has no "text" that is a string, but {line.strip():.60}') from None


def read_blocks(path, bar, encoding, by_line=False):
    """Yield the text of a file in blocks of BLOCK_CHARS characters or in lines. Raises UserError if it is not UTF-8."""
    bytes_before = bar.n
    try:
        with open(path, encoding=encoding) as f:
            try:
                for i, text in enumerate(iter(f.readline if by_line else partial(f.read, BLOCK_CHARS), "")):
                    if i == 0 and len(CONTROL_CHARS.findall(text)) > len(text) / 9:
                        raise UserError(f"{path!r} is not UTF-8 text, but a binary file or UTF-16")
                    bar.update(bytes_before + f.buffer.tell() - bar.n)
                    yield text
            except UnicodeDecodeError as failure:
                byte = f.buffer.tell() - len(failure.object) + failure.start  # failure.object is the last chunk read
                hint = encoding_hint(failure.object)
                raise UserError(f"the text {path!r} is not UTF-8 (byte {byte}), {hint}") from None
    except OSError as failure:
        raise UserError(f"cannot read the text {path!r}: {failure.strerror}") from None


def encoding_hint(data):
    """The end of an error message about bytes that are not UTF-8: what they seem to be, and what to do."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        name = code = "UTF-32" if data.startswith(b"\xff\xfe\0\0") else "UTF-16"
    elif b"\0" in data:
        return "but a binary file: save its contents as plain text first"
    elif re.search(rb"[\x81\x8d\x8f\x90\x9d]", data):  # bytes that Windows-1252 leaves undefined
        return "and its encoding is not recognised: save it as UTF-8 first"
    else:
        name, code = "Windows-1252 or Latin-1", "WINDOWS-1252"
    return f"but seems to be {name}: save it as UTF-8 first, or run 'iconv -f {code} -t UTF-8 OLD > NEW'"


# -----------------------------------------------------------------------------
# blocks that can be cleaned and encoded one by one

# GPT-2 starts a new token wherever white space follows a character that is not white space, and its pattern looks no
# further ahead. Blocks that end there give the same ids as the whole text. (Only Python counts \x1c to \x1f as white
# space. Cutting before them is safe too, since no token joins them to other characters.)
WHOLE_WORDS = re.compile(r".*\S(?=\s)", re.DOTALL)
WHOLE_LINES = re.compile(r".*\n(?=\S)", re.DOTALL)  # no pattern in `clean_blocks` matches across such a line end

NUMBER_WORDS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred and"
).replace(" ", "|")
NUMBER = rf"(?:\d+|(?:{NUMBER_WORDS})(?:[ -](?:{NUMBER_WORDS}))*)"
CHAPTER = re.compile(rf"^Chapter {NUMBER}[.:,]\s+", re.IGNORECASE | re.MULTILINE)


def rechunk(blocks, pattern):
    """
    Yield the same text in blocks that end where `pattern`, WHOLE_WORDS or WHOLE_LINES, last matches in each block.

    A block without a match is joined to the next one.
    """
    rest = []
    for block in blocks:
        if match := pattern.match(block):
            yield "".join(rest) + match[0]
            rest = [block[match.end() :]]
        else:
            rest.append(block)
        # tiktoken fails on a run of a million blanks, so a long run is cut in any case
        if sum(map(len, rest)) > 2 * BLOCK_CHARS and all(map(str.isspace, rest)):
            yield "".join(rest)
            rest = []
    if any(rest):
        yield "".join(rest)


def clean_blocks(blocks, removed):
    """
    Yield the text without chapter numbers at the beginning of lines and without doubled white space.

    `removed` is a Counter: what was taken out is added to its "chapters" and "blanks".
    """
    for i, block in enumerate(rechunk(blocks, WHOLE_LINES)):
        block, chapters = CHAPTER.subn("", block if i else block.lstrip("\ufeff"))
        block, blanks = re.subn(r"[ \t]{2,}|\t", " ", block)
        block, lines = re.subn(r"\n{3,}", "\n\n", block)
        removed.update(chapters=chapters, blanks=blanks + lines)
        yield block


def split_at(blocks, train_chars):
    """Yield (split, block) for a single text: its first `train_chars` characters are split 0, the rest split 1."""
    for block in blocks:
        train, val = block[:train_chars], block[train_chars:]
        train_chars -= len(train)
        yield from ((split, part) for split, part in enumerate((train, val)) if part)


# -----------------------------------------------------------------------------
# the split of each document


def scan(texts, with_chars):
    """
    Read every text once.

    Returns a hash and the number of characters of each text, two arrays of shape (texts,), and the set of all
    characters (empty unless `with_chars`).
    """
    hashes, sizes, chars = array("Q"), array("q"), set()
    for blocks in texts:
        digest, size = hashlib.blake2b(digest_size=8), 0
        for block in blocks:
            digest.update(block.encode("utf-8"))
            size += len(block)
            chars.update(block if with_chars else "")
        hashes.append(int.from_bytes(digest.digest(), "little"))
        sizes.append(size)
    return np.array(hashes), np.array(sizes), chars


def choose_splits(hashes, sizes, val_fraction):
    """
    The split of each document, an array of shape (documents,): 0 for train, 1 for val, -1 if it is empty or a copy.

    Documents are visited in the order of their hashes. It is random, but the same every time, whatever the files are
    called. A document goes to val if it fits into what is left of val's share. If none fits, the smallest goes there.
    """
    splits = np.full(len(hashes), -1)
    order = np.unique(hashes, return_index=True)[1]
    order = order[sizes[order] > 0]
    splits[order] = 0
    if len(order) > 1:
        val_chars_left = sizes[order].sum() * val_fraction
        for i in order.tolist():
            if sizes[i] <= val_chars_left:
                splits[i] = 1
                val_chars_left -= sizes[i]
        if not (splits == 1).any():
            splits[order[sizes[order].argmin()]] = 1
    return splits


def print_splits(splits):
    """Print how many documents each split has, unless there is only one, and how many are left out."""
    train, val, left_out = (int((splits == split).sum()) for split in (0, 1, -1))
    if train + val > 1:
        print(f"{count(train, 'document')} for training, {val:,} for validation")
    if left_out:
        print(f"left out {count(left_out, 'empty or duplicate document')}")


# -----------------------------------------------------------------------------
# reading, encoding and writing


def prepare(files, folder, encoding, val_fraction, clean):
    """
    Write train.bin, val.bin and meta.json to `folder`.

    `files` is a list of paths, or ["-"] for standard input; the other arguments are as the options above. Returns the
    contents of meta.json as a dict. Raises UserError if an argument or a text is unusable; earlier files then stay.
    """
    if encoding not in ENCODINGS:
        raise UserError(f"--encoding={encoding} is unknown: it may be {' or '.join(ENCODINGS)}")
    if not 0 < val_fraction < 1:
        raise UserError(f"--val_fraction={val_fraction} should be between 0 and 1, for example 0.1")
    if files != ["-"]:
        return write_dataset(files, folder, encoding, val_fraction, clean)
    with tempfile.TemporaryDirectory() as temporary:
        path = os.path.join(temporary, "standard input")  # the text is read twice, which standard input does not allow
        with replacing(path) as f:
            shutil.copyfileobj(standard_input(), f)
        return write_dataset([path], folder, encoding, val_fraction, clean)


def write_dataset(files, folder, encoding, val_fraction, clean):
    """Do what `prepare` promises, with checked arguments: read all texts to choose splits, then again to encode."""
    removed = Counter()
    hashes, sizes, chars = scan(read_texts(files, clean, removed, "reading"), with_chars=encoding == "char")
    splits = choose_splits(hashes, sizes, val_fraction)
    if clean:
        chapters, blanks = count(removed["chapters"], "spoken chapter number"), count(removed["blanks"], "run")
        print(f"took out {chapters} and {blanks} of white space")
    print_splits(splits)
    single_text = (splits >= 0).sum() <= 1
    train_chars = int(sizes.max(initial=0) * (1 - val_fraction)) if single_text else None

    source = repr(files[0]) if len(files) == 1 else f"the text of {len(files):,} files"
    chars = sorted(chars if single_text else chars | {"\n"})
    if len(chars) > 2**16:
        raise UserError(f"{source} has {len(chars):,} different characters, but a uint16 can only number 65,536")
    tokenizer = GPT2Tokenizer() if encoding == "gpt2" else CharTokenizer("".join(chars))
    meta = tokenizer.meta() | {split: {"tokens": 0, "bytes": 0} for split in SPLITS}
    paths = [os.path.join(folder, name) for name in ("train.bin", "val.bin", "meta.json")]
    with replacing_all(paths) as [train_file, val_file, meta_file]:
        texts = read_texts(files, clean, Counter(), "encoding")
        for split, ids, size in encode_texts(texts, splits.tolist(), train_chars, tokenizer):
            (train_file, val_file)[split].write(np.array(ids, dtype="<u2").tobytes())
            meta[SPLITS[split]]["tokens"] += len(ids)
            meta[SPLITS[split]]["bytes"] += size
        for split in SPLITS:
            if (tokens := meta[split]["tokens"]) < MIN_TOKENS:
                tip = "" if single_text else " (a document is never divided, but one file with all of them would be)"
                found = count(tokens, "token")
                raise UserError(f"{source} is too short: {split} would have {found}, but needs {MIN_TOKENS}{tip}")
        meta_file.write(json.dumps(meta, indent=1).encode("utf-8"))
    print_sizes(meta)
    return meta


def read_texts(files, clean, removed, title):
    """Yield each text as an iterable of blocks, cleaned if `clean`, under a progress bar with a title."""
    total = sum(os.path.getsize(path) for path in files if os.path.exists(path))
    terminal = sys.stderr.isatty()
    with tqdm(total=total, unit="B", unit_scale=True, desc=title, leave=False, disable=not terminal) as bar:
        for blocks in read_documents(files, bar):
            yield clean_blocks(blocks, removed) if clean else blocks


def encode_texts(texts, splits, train_chars, tokenizer):
    """
    Yield (split, token ids, bytes of text) block by block.

    `splits` has the split of each text. A single text is divided after `train_chars` characters instead; if there are
    several, `train_chars` is None and each text is followed by an end.
    """
    for split, blocks in zip(splits, texts):
        if split < 0:
            continue
        labelled = ((split, block) for block in blocks) if train_chars is None else split_at(blocks, train_chars)
        for part, group in groupby(labelled, key=itemgetter(0)):
            for block in rechunk((block for _, block in group), WHOLE_WORDS):
                yield part, tokenizer.encode(block), len(block.encode("utf-8"))
        if train_chars is None:
            end = tokenizer.end_of_text
            yield (split, tokenizer.encode("\n"), 1) if end is None else (split, [end], 0)


def print_sizes(meta):
    """Print the size of each split, given the contents of meta.json."""
    for split in SPLITS:
        tokens, size = count(meta[split]["tokens"], "token"), count(meta[split]["bytes"], "byte")
        print(f"{split} has {tokens} ({size} of text)")


# -----------------------------------------------------------------------------


def dataset_folder(name, path):
    """
    The folder of the dataset `name`, which defaults to a name made from the input's `path`.

    Raises UserError if the name cannot be used, or if the folder holds a dataset that this script did not make.
    """
    if name is None:
        path = os.path.abspath(path)
        while glob.has_magic(os.path.basename(path)) and not os.path.exists(path):
            path = os.path.dirname(path)
        stem = os.path.basename(path) if os.path.isdir(path) else os.path.splitext(os.path.basename(path))[0]
        name = re.sub(r"[^a-z0-9_]+", "-", stem.lower()).strip("-_")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UserError(f"{name!r} cannot be a dataset's name: choose letters and digits with --dataset=NAME")
    folder = os.path.join(HERE, name)
    advice = "choose another name with --dataset=NAME"
    if os.path.exists(os.path.join(folder, "prepare.py")):
        raise UserError(f"data/{name} has a prepare.py of its own: run that, or {advice}")
    if os.path.exists(os.path.join(folder, "train.bin")) and not os.path.exists(os.path.join(folder, "meta.json")):
        raise UserError(f"data/{name} has a train.bin that this script did not make and would overwrite: {advice}")
    return folder


def main():
    configure(globals(), positional="input")
    if input is None:
        raise UserError("what should be prepared? --input=PATH names a text file, a folder of texts, or a pattern")
    if input == "-" and dataset is None:
        raise UserError("a dataset read from standard input needs a name: give it with --dataset=NAME")
    folder = dataset_folder(dataset, input)
    name = os.path.basename(folder)
    files = find_files(input)
    if os.path.exists(os.path.join(folder, "meta.json")):
        print(f"data/{name} was prepared before and will be replaced")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as failure:
        raise UserError(f"cannot make the folder {folder!r}: {failure.strerror}") from None
    try:
        meta = prepare(files, folder, encoding, val_fraction, clean)
    finally:
        with contextlib.suppress(OSError):  # after a mistake a new folder is empty; one with a dataset stays
            os.rmdir(folder)
    config = "train_hitchikers_cpu.py" if meta["train"]["bytes"] < 10**6 else "train_hitchikers.py"
    print(f"next: python train.py config/{config} --dataset={name} --out_dir=out-{name}")


if __name__ == "__main__":
    run(main)
