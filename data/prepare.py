"""
Turn any text into a dataset: data/NAME with train.bin and val.bin (token ids, uint16) and meta.json.

    python data/prepare.py --input=my_novel.txt    one text: the first 90% is for training, the rest for validation
    python data/prepare.py --input=essays          a folder of them: .txt and .md files, and the lines of .jsonl files
    python data/prepare.py --input="mail/*.txt"    all that a pattern, in quotes, stands for
    zcat big.txt.gz | python data/prepare.py --input=- --dataset=big

Texts are UTF-8, and may be larger than the memory; a line of a .jsonl file holds one as {"text": "Once upon a time"}.
Of several texts each goes to one split as a whole, and ends with <|endoftext|> (or a line end, with --encoding=char);
empty ones and exact copies are left out.
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

from configurator import UserError, configure, replacing, run  # noqa: E402

import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from tokenizer import ENCODINGS, CharTokenizer, GPT2Tokenizer  # noqa: E402

# -----------------------------------------------------------------------------
input: str | None = None  # a text file, a folder of .txt, .md and .jsonl files, a pattern, or - for standard input
dataset: str | None = None  # its name, the folder in data/; None takes the input's
encoding = "gpt2"  # gpt2 (byte pairs) or char (characters)
val_fraction = 0.1  # the part of the text that is for validation
clean = False  # take out what a transcript has and a book has not: spoken chapter numbers, doubled white space
# -----------------------------------------------------------------------------

KINDS = (".txt", ".md", ".jsonl")
SPLITS = ("train", "val")
MINIMUM = 65  # tokens in a split: one window of the smallest config's block_size, and its target
BLOCK = 2**18  # characters that are read at a time
CONTROL = re.compile(r"[\0-\x08\x0e-\x1a\x1c-\x1f]")  # characters that texts have few of

# -----------------------------------------------------------------------------
# from files to documents: each an iterable of blocks of text


def find_files(path):
    """The files in a folder or of a pattern, hidden ones not, part 2 before part 10; or else the path itself."""
    if os.path.isdir(path):
        found = [os.path.join(folder, name) for folder, _, names in os.walk(path, onerror=refuse) for name in names]
        found = [f for f in found if not re.search(r"(^|[/\\])\.", os.path.relpath(f, path))]
        files = [f for f in found if f.lower().endswith(KINDS)]
        print(f"{path!r} has {len(files):,} texts ({', '.join(KINDS)}) and {len(found) - len(files):,} other files")
    elif glob.has_magic(path) and not os.path.exists(path):
        files = [f for f in glob.glob(path, recursive=True) if os.path.isfile(f)]
        print(f"{path!r} stands for {len(files):,} files")
    else:
        return [path]
    if not files:
        raise UserError(
            f"there is no text in {path!r}: name a file, a folder of {', '.join(KINDS)} files, or a pattern"
        )
    return sorted(files, key=lambda f: [int(t) if t.isdecimal() else t.lower() for t in re.split(r"(\d+)", f)])


def refuse(failure):
    raise UserError(f"cannot read {failure.filename!r}: {failure.strerror}")


def documents(files, bar):
    """Each text in the files as an iterable of blocks. Raises UserError, while it is read, for what is none."""
    done = 0
    for path in files:
        if path.lower().endswith(".jsonl"):
            for number, line in enumerate(read(path, bar, "utf-8-sig", lines=True), 1):
                if not line.isspace():
                    yield [text_of(line, f"{path!r}, line {number:,}")]
        else:  # a single text keeps its byte order mark, as nanoGPT has it; inside a corpus it would be noise
            yield read(path, bar, "utf-8" if len(files) == 1 else "utf-8-sig")
        done += os.path.getsize(path) if os.path.exists(path) else 0
        bar.update(done - bar.n)


def text_of(line, where):
    """The text of a line of JSON."""
    try:
        text = json.loads(line)["text"]
        return text.encode("utf-8", errors="replace").decode("utf-8")  # JSON can spell what UTF-8 cannot
    except (ValueError, RecursionError) as failure:
        why = str(failure).partition(":")[0]
        raise UserError(f'{where} is not JSON ({why}): it should be like {{"text": "Once upon a time"}}') from None
    except (KeyError, TypeError, AttributeError):
        raise UserError(f'{where} has no "text" that is a string, but {line.strip():.60}') from None


def read(path, bar, encoding, lines=False):
    """The text of a file, in blocks or lines."""
    begun = bar.n
    try:
        with open(path, encoding=encoding) as f:
            try:
                for i, text in enumerate(iter(f.readline if lines else partial(f.read, BLOCK), "")):
                    if i == 0 and len(CONTROL.findall(text)) > len(text) / 9:
                        raise UserError(f"{path!r} is not a text in UTF-8, but a binary file or UTF-16")
                    bar.update(begun + f.buffer.tell() - bar.n)
                    yield text
            except UnicodeDecodeError as failure:
                byte = f.buffer.tell() - len(failure.object) + failure.start  # the object is what was read last
                what = but_what(failure.object)
                raise UserError(f"the text {path!r} is not UTF-8 (byte {byte}), {what}") from None
    except OSError as failure:
        raise UserError(f"cannot read the text {path!r}: {failure.strerror}") from None


def but_what(data):
    """A guess at bytes that are not UTF-8, and what to do."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        name = code = "UTF-32" if data.startswith(b"\xff\xfe\0\0") else "UTF-16"
    elif b"\0" in data:
        return "but a binary file: save its words as plain text first"
    elif re.search(rb"[\x81\x8d\x8f\x90\x9d]", data):  # which Windows-1252 does not have
        return "nor anything else that can be recognised: save it as UTF-8 first"
    else:
        name, code = "Windows-1252 or Latin-1", "WINDOWS-1252"
    return f"but seems to be {name}: save it as UTF-8 first, or 'iconv -f {code} -t UTF-8 OLD > NEW'"


# -----------------------------------------------------------------------------
# from documents to pieces

# GPT-2 begins a new token wherever white space follows something else, and looks no further than that: cut there, the
# pieces give the ids of the whole. (\x1c to \x1f are white space to Python alone, but no token joins them to anything.)
WORD = re.compile(r".*\S(?=\s)", re.DOTALL)
LINE = re.compile(r".*\n(?=\S)", re.DOTALL)  # nothing that is cleaned reaches beyond

NUMBERS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred and"
).replace(" ", "|")
CHAPTER = re.compile(rf"^Chapter (?:\d+|(?:{NUMBERS})(?:[ -](?:{NUMBERS}))*)[.:,]\s+", re.IGNORECASE | re.MULTILINE)


def recut(blocks, place):
    """The same text in blocks that end at the last `place` in each; where there is none, the next is added."""
    rest = []
    for block in blocks:
        if found := place.match(block):
            yield "".join(rest) + found[0]
            rest = [block[found.end() :]]
        else:
            rest.append(block)
        # a run of a million blanks would be too much for tiktoken
        if sum(map(len, rest)) > 2 * BLOCK and all(map(str.isspace, rest)):
            yield "".join(rest)
            rest = []
    if any(rest):
        yield "".join(rest)


def cleaned(blocks, taken):
    """The text without chapter numbers at the beginnings of lines and without doubled white space; counts them."""
    for i, block in enumerate(recut(blocks, LINE)):
        block, chapters = CHAPTER.subn("", block if i else block.lstrip("\ufeff"))
        block, blanks = re.subn(r"[ \t]{2,}|\t", " ", block)
        block, lines = re.subn(r"\n{3,}", "\n\n", block)
        taken.update(chapters=chapters, blanks=blanks + lines)
        yield block


def split_at(blocks, middle):
    """(split, block) of a text of which the first `middle` characters are for training."""
    for block in blocks:
        head, tail = block[:middle], block[middle:]
        middle -= len(head)
        yield from ((split, part) for split, part in enumerate((head, tail)) if part)


# -----------------------------------------------------------------------------
# which document goes where


def survey(texts, with_chars):
    """A hash and the number of characters of each text, (texts,) each; and all characters there are, if wanted."""
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
    The split of each document: 0 train, 1 val, -1 none, for empty ones and copies. In the order of their hashes, which
    is random and the same every time, whatever the files are called, those go to val that still fit into its share.
    """
    splits = np.full(len(hashes), -1)
    order = np.unique(hashes, return_index=True)[1]
    order = order[sizes[order] > 0]
    splits[order] = 0
    if len(order) > 1:
        room = sizes[order].sum() * val_fraction
        for i in order.tolist():
            if sizes[i] <= room:
                splits[i], room = 1, room - sizes[i]
        if not splits.any():
            splits[order[sizes[order].argmin()]] = 1
    return splits


# -----------------------------------------------------------------------------
# all of it


def prepare(files, folder, encoding, val_fraction, clean):
    """Write train.bin, val.bin and meta.json of the texts in `files` to `folder`. Returns the meta."""
    if encoding not in ENCODINGS:
        raise UserError(f"--encoding={encoding} is unknown: it may be {' or '.join(ENCODINGS)}")
    if not 0 < val_fraction < 1:
        raise UserError(f"--val_fraction={val_fraction} should be between 0 and 1, as 0.1 is")
    if files != ["-"]:
        return write_dataset(files, folder, encoding, val_fraction, clean)
    with tempfile.TemporaryDirectory() as temporary:
        path = os.path.join(temporary, "standard input")  # a file can be read twice
        with replacing(path) as f:
            shutil.copyfileobj(sys.stdin.buffer, f)
        return write_dataset([path], folder, encoding, val_fraction, clean)


def write_dataset(files, folder, encoding, val_fraction, clean):
    """What `prepare` does once its arguments are in order: it reads all texts, and then once more to encode them."""
    total = sum(os.path.getsize(path) for path in files if os.path.exists(path))
    taken = Counter()

    def texts(doing):
        terminal = sys.stderr.isatty()
        with tqdm(total=total, unit="B", unit_scale=True, desc=doing, leave=False, disable=not terminal) as bar:
            for blocks in documents(files, bar):
                yield cleaned(blocks, taken) if clean else blocks

    hashes, sizes, chars = survey(texts("reading"), with_chars=encoding == "char")
    splits = choose_splits(hashes, sizes, val_fraction)
    train, val, left_out = (int((splits == split).sum()) for split in (0, 1, -1))
    if clean:
        print(f"took out {taken['chapters']:,} spoken chapter numbers and {taken['blanks']:,} runs of white space")
    several = train + val > 1
    if several:
        print(f"{train:,} documents to train on, {val:,} to validate")
    if left_out:
        print(f"left out {left_out:,} documents: copies of others, or empty")
    middle = None if several else int(sizes.max(initial=0) * (1 - val_fraction))

    what = repr(files[0]) if len(files) == 1 else f"the text of {len(files):,} files"
    chars = sorted(chars | {"\n"} if several else chars)
    if len(chars) > 2**16:
        raise UserError(f"{what} has {len(chars):,} different characters, and uint16 counts 65,536 of them")
    tokenizer = GPT2Tokenizer() if encoding == "gpt2" else CharTokenizer("".join(chars))
    meta = tokenizer.meta() | {split: {"tokens": 0, "bytes": 0} for split in SPLITS}
    with (
        replacing(os.path.join(folder, "meta.json")) as meta_file,
        replacing(os.path.join(folder, "val.bin")) as val_file,
        replacing(os.path.join(folder, "train.bin")) as train_file,
    ):
        for split, ids, size in encoded(texts("encoding"), splits.tolist(), middle, tokenizer):
            (train_file, val_file)[split].write(np.array(ids, dtype="<u2").tobytes())
            meta[SPLITS[split]]["tokens"] += len(ids)
            meta[SPLITS[split]]["bytes"] += size
        for split in SPLITS:
            if (tokens := meta[split]["tokens"]) < MINIMUM:
                whole = " (a document is never divided: one file of them all would be)" if several else ""
                raise UserError(f"{what} is too short: {split} would have {tokens} tokens, and needs {MINIMUM}{whole}")
        meta_file.write(json.dumps(meta, indent=1).encode("utf-8"))
        for f in (train_file, val_file, meta_file):  # a full disk shows here, before the first file takes its place
            f.flush()
            os.fsync(f.fileno())
    for split in SPLITS:
        print(f"{split} has {meta[split]['tokens']:,} tokens ({meta[split]['bytes']:,} bytes of text)")
    return meta


def encoded(texts, splits, middle, tokenizer):
    """(split, token ids, bytes of text), piece by piece; `middle` is where a single text is divided, else None."""
    for split, blocks in zip(splits, texts):
        if split < 0:
            continue
        parts = ((split, block) for block in blocks) if middle is None else split_at(blocks, middle)
        for part, group in groupby(parts, key=itemgetter(0)):
            for piece in recut((block for _, block in group), WORD):
                yield part, tokenizer.encode(piece), len(piece.encode("utf-8"))
        if middle is None:
            end = tokenizer.end_of_text
            yield (split, tokenizer.encode("\n"), 1) if end is None else (split, [end], 0)


def folder_for(name, path):
    """The folder of the dataset `name`, or where that is None, of the one that is called as the input is."""
    if name is None:
        path = os.path.abspath(path)
        while glob.has_magic(os.path.basename(path)) and not os.path.exists(path):
            path = os.path.dirname(path)
        stem = os.path.basename(path) if os.path.isdir(path) else os.path.splitext(os.path.basename(path))[0]
        name = re.sub(r"[^a-z0-9_]+", "-", stem.lower()).strip("-_")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UserError(f"{name!r} cannot be a dataset's name: give one of letters and digits with --dataset=NAME")
    folder = os.path.join(HERE, name)
    other = "choose another name with --dataset=NAME"
    if os.path.exists(os.path.join(folder, "prepare.py")):
        raise UserError(f"data/{name} has a prepare.py of its own: run that, or {other}")
    if os.path.exists(os.path.join(folder, "train.bin")) and not os.path.exists(os.path.join(folder, "meta.json")):
        raise UserError(f"data/{name} has a train.bin that was not made here, and would be lost: {other}")
    return folder


def main():
    configure(globals())
    if input is None:
        raise UserError("what should be prepared? --input=PATH names a text file, a folder of texts, or a pattern")
    if input == "-" and dataset is None:
        raise UserError("what is read from standard input needs a name: give it with --dataset=NAME")
    folder = folder_for(dataset, input)
    name = os.path.basename(folder)
    files = find_files(input)
    if os.path.exists(os.path.join(folder, "meta.json")):
        print(f"data/{name} was prepared before, and is replaced")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as failure:
        raise UserError(f"cannot make the folder {folder!r}: {failure.strerror}") from None
    try:
        meta = prepare(files, folder, encoding, val_fraction, clean)
    finally:
        with contextlib.suppress(OSError):  # it is not empty
            os.rmdir(folder)
    config = "train_hitchikers_cpu.py" if meta["train"]["bytes"] < 10**6 else "train_hitchikers.py"
    print(f"next: python train.py config/{config} --dataset={name} --out_dir=out-{name}")


if __name__ == "__main__":
    run(main)
