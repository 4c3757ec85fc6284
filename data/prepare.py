"""
Turn any text into a dataset: data/NAME with train.bin and val.bin (token ids, uint16) and meta.json.

    python data/prepare.py --input=my_novel.txt    one text: its first 90% is for training, the rest for validation
    python data/prepare.py --input=essays          a folder of .txt and .md files, and of .jsonl files
    python data/prepare.py --input="mail/*.txt"    all files that match a pattern (in quotes)
    python data/prepare.py --input=my_novel.txt --encoding=bpe    with a vocabulary learnt from its training part
    zcat big.txt.gz | python data/prepare.py --input=- --dataset=big

Texts are UTF-8 and may be larger than memory. Each line of a .jsonl file is one text: {"text": "Once upon a time"}.
After <|endoftext|> in a text a new document begins. If there are several documents, each goes to one split as a whole
and ends with <|endoftext|> (with --encoding=char, a line end). Empty ones and exact copies are left out.
"""

import contextlib
import glob
import hashlib
import json
import math
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

from configurator import UserError, configure, data_folder, replacing, replacing_all, run  # noqa: E402
from configurator import standard_input  # noqa: E402

import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from tokenizer import ENCODINGS, END_OF_TEXT, MAX_VOCAB, TokensTokenizer, gpt2_tokenizer  # noqa: E402
from tokenizer import learn_tokenizer, make_tokenizer, read_meta, read_tokenizer  # noqa: E402

# -----------------------------------------------------------------------------
input: str | None = None  # a text file, a folder of .txt, .md and .jsonl files, a pattern, or - for standard input
dataset: str | None = None  # the name of the dataset, a folder in data/; None takes the input's name
encoding = "gpt2"  # gpt2 (its byte pairs), bpe (byte pairs learnt from this text) or char (characters)
vocab_size: int | None = None  # of --encoding=bpe: the number of token ids; None goes by the size of the text
tokenizer: str | None = None  # a dataset, as data/other, or a folder of export.py, whose vocabulary is to be used
val_fraction = 0.1  # the fraction of the text that is for validation
clean = False  # remove what only transcripts have: spoken chapter numbers and doubled white space
split_documents = True  # begin a new document after each <|endoftext|>; False: it is plain text
# -----------------------------------------------------------------------------

EXTENSIONS = (".txt", ".md", ".jsonl")
UNREADABLE = (".doc", ".docx", ".epub", ".htm", ".html", ".mobi", ".odt", ".pdf", ".rtf")  # texts in other formats
SPLITS = ("train", "val")
MIN_TOKENS = 65  # in each split: one window of the smallest config's block_size, and its last target
BLOCK_CHARS = 2**18  # characters read at a time
LEARN_CHARS = 2**26  # of the training text, at most, from which byte pairs are learnt
CONTROL_CHARS = re.compile(r"[\0-\x08\x0e-\x1a\x1c-\x1f]")  # rare in text, common in binary files


def count(number, noun):
    """A number and a noun, singular or plural: count(1, "file") is "1 file", count(2000, "file") is "2,000 files"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


# -----------------------------------------------------------------------------
# from files to texts; each text is an iterable of blocks, which are strings


def find_files(path):
    """
    List the files that `path` names: a folder's texts, a pattern's matches, or else the path itself.

    Hidden files are skipped, and part 2 comes before part 10. Raises UserError if a folder or a pattern has no files.
    """
    if os.path.isdir(path):
        found = list(walk(path))
        files = [f for f in found if f.lower().endswith(EXTENSIONS) and not is_special(f)]
        texts, others = count(len(files), "text file"), count(len(found) - len(files), "other file")
        print(f"{path!r} has {texts} ({', '.join(EXTENSIONS)}) and {others}")
        print_unreadable(sorted(f for f in found if f.lower().endswith(UNREADABLE)))
    elif glob.has_magic(path) and not os.path.exists(path):
        files = [f for f in glob.glob(path, recursive=True) if os.path.isfile(f)]
        print(f"{path!r} matches {count(len(files), 'file')}")
    else:
        return [path]
    if not files:
        kinds = ", ".join(EXTENSIONS)
        raise UserError(f"there is no text in {path!r}: name a file, a folder of {kinds} files, or a pattern")
    return sorted(files, key=lambda f: [int(t) if t.isdecimal() else t.lower() for t in re.split(r"(\d+)", f)])


def walk(folder):
    """Yield the files in a folder and below, but for hidden ones. Links to folders are followed, each folder once."""
    seen = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, onerror=raise_unreadable, followlinks=True):
        new = {}
        for name in sorted(folders):
            if not name.startswith("."):
                new.setdefault(os.path.realpath(os.path.join(parent, name)), name)
        folders[:] = [name for real, name in new.items() if real not in seen]  # os.walk goes on into these
        seen.update(new)
        yield from (os.path.join(parent, name) for name in names if not name.startswith("."))


def is_special(path):
    """Whether a path is a pipe or a device, which may block for ever, and cannot be read twice."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def print_unreadable(files):
    """Name the files that were left out although they hold text."""
    if files:
        more = f" and {len(files) - 10:,} more" if len(files) > 10 else ""
        print(f"left out {', '.join(map(repr, files[:10]))}{more}: save as .txt what should be read")


def raise_unreadable(failure):
    raise UserError(f"cannot read {failure.filename!r}: {failure.strerror}")


def read_files(files, bar):
    """
    Yield each text in the files as an iterable of blocks, and advance the progress bar by the bytes read.

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


def read_blocks(path, bar, codec, by_line=False):
    """Yield the text of a file in blocks of BLOCK_CHARS characters or in lines. Raises UserError if it is not UTF-8."""
    bytes_before = bar.n
    try:
        with open(path, encoding=codec) as f:
            try:
                for i, text in enumerate(iter(f.readline if by_line else partial(f.read, BLOCK_CHARS), "")):
                    if i == 0 and len(CONTROL_CHARS.findall(text)) > len(text) / 9:
                        what = "is not UTF-8 text, but a binary file or UTF-16"
                        raise NotText(path, what, "save its text as UTF-8 first")
                    bar.update(bytes_before + f.buffer.tell() - bar.n)
                    yield text
            except UnicodeDecodeError as failure:
                byte = f.buffer.tell() - len(failure.object) + failure.start  # failure.object is the last chunk read
                raise NotText(path, *describe_failure(path, byte, failure)) from None
    except OSError as failure:
        raise NotText(path, f"cannot be read ({failure.strerror})", "check its name and permissions") from None


class NotText(UserError):
    """A file that is not UTF-8, or cannot be read: `what` is wrong with it, and what to do."""

    def __init__(self, path, what, advice):
        super().__init__(f"the text {path!r} {what}: {advice}")
        self.path, self.what, self.advice = path, what, advice


BROKEN = re.compile("[\udc80-\udcff]+")  # how errors="surrogateescape" shows bytes that are not UTF-8
BEYOND_ASCII = re.compile("[^\0-\x7f\udc80-\udcff]")
SURROGATE = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")


def describe_failure(path, byte, failure):
    """What a file is, given the UnicodeDecodeError at one of its bytes, and what to do: two parts of a message."""
    data = failure.object
    surrogate = SURROGATE.match(data, failure.start)
    places, broken, whole, line = count_broken(path)
    # text in an older encoding has hardly a character that happens to be whole in UTF-8
    if surrogate or 4 * whole >= broken:
        where = f"byte {byte}, line {line:,}"
        where = f"{where}, where it ends" if failure.reason == "unexpected end of data" else where
        why = ", half of a character that was saved as two (a surrogate)" if surrogate else ""
        what = f"is UTF-8 but for {count(places, 'place')}, {'the first ' if places > 1 else ''}at {where}{why}"
        return what, f"mend or remove what is there{iconv('-c -f UTF-8', ', which removes it')}"
    what = f"is not UTF-8 (byte {byte})"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        name = code = "UTF-32" if data.startswith(b"\xff\xfe\0\0") else "UTF-16"
    elif data.startswith(b"\x1f\x8b"):
        return f"{what}, but compressed", "unpack it first, as zcat does"
    elif b"\0" in data or data.startswith(b"%PDF"):
        return f"{what}, but a binary file", "save its contents as plain text first"
    elif re.search(rb"[\x81\x8d\x8f\x90\x9d]", data):  # bytes that Windows-1252 leaves undefined
        return f"{what}, and its encoding is not recognised", "save it as UTF-8 first"
    else:
        name, code = "Windows-1252 or Latin-1", "WINDOWS-1252"
    return f"{what}, but seems to be {name}", f"save it as UTF-8 first{iconv(f'-f {code}')}"


def iconv(options, effect=""):
    """The end of an advice, on systems that have iconv."""
    return "" if sys.platform == "win32" else f", or run 'iconv {options} -t UTF-8 OLD > NEW'{effect}"


def count_broken(path):
    """
    In how many places a file is not UTF-8, and in how many bytes; how many of its characters beyond ASCII are; and the
    line of the first such place.
    """
    places = broken = whole = 0
    line = 1
    with open(path, encoding="utf-8", errors="surrogateescape") as f:
        for text in iter(partial(f.read, BLOCK_CHARS), ""):
            found = BROKEN.findall(text)
            if not places:
                line += text.count("\n", 0, BROKEN.search(text).start() if found else len(text))
            places, broken = places + len(found), broken + sum(map(len, found))
            whole += len(BEYOND_ASCII.findall(text))
    return places, broken, whole, line


def name_all(files, first):
    """The error that names all of the files that cannot be read as text, given the one for the first of them."""
    mistakes = []
    for path in files:
        try:
            for _ in read_blocks(path, tqdm(disable=True), "utf-8"):
                pass
        except NotText as mistake:
            mistakes.append(mistake)
    if len(mistakes) < 2:
        return first
    advice = {mistake.advice for mistake in mistakes}
    names = "; ".join(f"{mistake.path!r} {mistake.what}" for mistake in mistakes)
    return UserError(f"{names}: {advice.pop() if len(advice) == 1 else 'mend each of them first'}")


# -----------------------------------------------------------------------------
# documents in one text, between which stands <|endoftext|>


def cut_at_ends(blocks, found):
    """
    Yield each document in the blocks of a text, as an iterable of blocks. `found` is a Counter: its "ends" counts
    <|endoftext|>. That, and white space after it, is in no document. A text without any document is an empty one.
    """
    empty = True
    for _, group in groupby(number_documents(blocks, found), key=itemgetter(0)):
        empty = False
        yield (block for _, block in group)
    if empty:
        yield []


def number_documents(blocks, found):
    """Yield (number of the document, block) for the blocks of a text."""
    number, begun = 0, True
    for piece in find_ends(blocks):
        if piece == END_OF_TEXT:
            found["ends"] += 1
            number, begun = number + 1, False
        elif piece := piece if begun else piece.lstrip():
            begun = True
            yield number, piece


def find_ends(blocks):
    """Yield the same text, each <|endoftext|> as a piece of its own, even where it lies across blocks."""
    rest = ""
    for block in blocks:
        *ended, rest = (rest + block).split(END_OF_TEXT)
        for piece in ended:
            yield from (piece, END_OF_TEXT)
        yield rest[: -len(END_OF_TEXT) + 1]
        rest = rest[-len(END_OF_TEXT) + 1 :]  # what may be the beginning of one
    yield rest


def count_ends(blocks, found):
    """Yield the same blocks, and count <|endoftext|> in `found`."""
    rest = ""
    for block in blocks:
        found["ends"] += (rest + block).count(END_OF_TEXT)
        rest = (rest + block)[-len(END_OF_TEXT) + 1 :]
        yield block


# -----------------------------------------------------------------------------
# blocks that can be cleaned and encoded one by one

# GPT-2 starts a new token wherever white space follows a character that is not white space, and its pattern looks no
# further ahead. Blocks that end there give the same ids as the whole text. (Only Python counts \x1c to \x1f as white
# space: a learnt token may join them to the characters before.)
WHOLE_WORDS = re.compile(r".*\S(?=[^\S\x1c-\x1f])", re.DOTALL)
WHOLE_LINES = re.compile(r".*\n(?=\S)", re.DOTALL)  # no pattern in `clean_blocks` matches across such a line end

CHAPTER_WORDS = "Chapter Kapitel Chapitre Capítulo Capitolo Hoofdstuk Rozdział Глава".split()
ANY_CASE = "|".join(f"{word}|{word.lower()}|{word.upper()}" for word in CHAPTER_WORDS)  # faster than (?i:...)
UNITS = "one|two|three|four|five|six|seven|eight|nine"
TEENS = "ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen"
TENS = "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
BELOW_100 = rf"(?:(?:{TENS})(?:[ -](?:{UNITS}))?|{TEENS}|{UNITS})"
IN_WORDS = rf"(?i:(?:{UNITS}|a)[ -]hundred(?:(?:[ -]and)?[ -]{BELOW_100})?|{BELOW_100})"
IN_DIGITS = rf"\d{{1,2}}00 and (?:\d{{1,2}}|{BELOW_100})|\d{{1,4}}"  # Whisper writes 100 and one, too
ROMAN = r"(?=[CLXVI])C{0,3}(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})"
NUMBERED = rf"({ANY_CASE}) (?:{IN_DIGITS}|{IN_WORDS}|{ROMAN})\b"
CHAPTER = re.compile(rf"{NUMBERED}(\.\.\.|[.…:,]| ?[-–—])?(\s+)")  # a heading, if is_heading() says so

SENTENCE_END = re.compile(r"[.!?…][\"'”’“»)\]]*[ \t]+$")
# An abbreviation, or another chapter's number: then the next is of a list, or the answer to a question.
NO_SENTENCE_END = re.compile(rf"(?:\b(?:e\.g|i\.e|[Cc]f|[Vv]iz|[Vv]ol)\.[ \t]+|(?<!nd of ){NUMBERED}\W+)$")
NO_TITLE = re.compile(  # Chapter 3, verse 16; Chapter 5. Chapter 6.
    rf"(?:(?:vers\w*|sections?|pages?|paragraphs?|articles?|Abs\w+|Artikel|Seite) (?:\d|[ivx]+\b)|{NUMBERED})",
    re.IGNORECASE,
)
ASIDE = re.compile(  # Chapter 4, however, was; Chapter 4, the Provost said.
    r"(?:however|though|too|which|please|perhaps|maybe|of course|I (?:think|believe|suppose|mean)"
    r"|(?:\w+ ){0,2}(?:said|says|asked|answered|replied))\b"
)
SHORT_TITLE = re.compile(r"[^,.!?\n]{1,80}[.!?]")


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


def is_heading(match):
    """
    Whether a CHAPTER is a heading that was read out, and not a part of a sentence. What may be either is none.

    Headings are at the beginning of a line or after a sentence. If no punctuation follows, a capital does: "Chapter 4 A
    theft", but not "Chapter 4 was good". Only the line decides, so it does not matter where a text is cut into blocks.
    """
    word, mark, gap = match.groups()
    before = match.string[max(match.start() - 60, 0) : match.start()].rpartition("\n")[2]
    after = match.string[match.end() : match.end() + 100]
    begins_line = before == ""
    if "\n" in gap:
        return begins_line and (mark is not None or word[0].isupper())
    if NO_TITLE.match(after) or not (begins_line or ends_sentence(before) and word[0].isupper()):
        return False
    if mark == ",":
        return not ASIDE.match(after) and (begins_line or SHORT_TITLE.match(after) is not None)
    if mark in (".", "...", "…") or begins_line and mark == ":":
        return True
    first = after.lstrip("\"'“‘„«¿¡")[:2]
    capital = first[:1].isupper() and not first[1:].isupper()  # in a text of capitals they say nothing
    if mark is None and re.match(r"I\b", after):  # Chapter 4 I liked
        return word.isupper()
    return capital and word[0].isupper()


def ends_sentence(before):
    """Whether a sentence ends where `before` does, the part of a line before a CHAPTER."""
    return SENTENCE_END.search(before) and not NO_SENTENCE_END.search(before)


def clean_chapters(text, found):
    """The text without the numbers of chapters that were read out. Their number is added to `found`."""

    def replacement(match):
        heading = is_heading(match)
        found["chapters"] += heading
        return "" if heading else match[0]

    return CHAPTER.sub(replacement, text)


def clean_blocks(blocks, found):
    """
    Yield the text without the numbers of chapters that were read out and without doubled white space.

    `found` is a Counter: what was taken out is added to its "chapters" and "blanks".
    """
    for i, block in enumerate(rechunk(blocks, WHOLE_LINES)):
        block = clean_chapters(block if i else block.lstrip("\ufeff"), found)
        block, blanks = re.subn(r"[ \t]{2,}|\t", " ", block)
        block, lines = re.subn(r"\n{3,}", "\n\n", block)
        found["blanks"] += blanks + lines
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


def print_found(found, documents, clean, split_documents):
    """Print what was taken out, and how many documents <|endoftext|> made."""
    if clean:
        chapters, blanks = count(found["chapters"], "spoken chapter number"), count(found["blanks"], "run")
        print(f"took out {chapters} and {blanks} of white space")
    if found["ends"]:
        result = f"makes {count(documents, 'document')}" if split_documents else "stays plain text, as in nanoGPT"
        print(f"found {END_OF_TEXT} {count(found['ends'], 'time')}, which {result}")


def print_splits(splits):
    """Print how many documents each split has, unless there is only one, and how many are left out."""
    train, val, left_out = (int((splits == split).sum()) for split in (0, 1, -1))
    if train + val > 1:
        print(f"{count(train, 'document')} for training, {val:,} for validation")
    if left_out:
        print(f"left out {count(left_out, 'empty or duplicate document')}")


# -----------------------------------------------------------------------------
# reading, encoding and writing


def prepare(files, folder, input, encoding, vocab_size, tokenizer, val_fraction, clean, split_documents):
    """
    Write train.bin, val.bin and meta.json to `folder`.

    `files` is a list of paths, or ["-"] for standard input; the other arguments are as the options above. Returns the
    contents of meta.json as a dict. Raises UserError if an argument or a text is unusable; earlier files then stay.
    """
    if encoding not in ENCODINGS:
        raise UserError(f"--encoding={encoding} is unknown: it may be {', '.join(ENCODINGS[:-1])} or {ENCODINGS[-1]}")
    if not 0 < val_fraction < 1:
        raise UserError(f"--val_fraction={val_fraction} should be between 0 and 1, for example 0.1")
    if vocab_size is not None and not 257 <= vocab_size <= MAX_VOCAB:
        limits = f"at least 257, the bytes and {END_OF_TEXT}, and at most {MAX_VOCAB}, which a uint16 can number"
        raise UserError(f"--vocab_size={vocab_size} should be {limits}")
    if vocab_size is not None and tokenizer is not None:
        raise UserError(f"--vocab_size={vocab_size} is that of --tokenizer={tokenizer}: leave it out")
    if vocab_size is not None and encoding != "bpe":
        raise UserError(f"--vocab_size={vocab_size} is for a vocabulary that is learnt: add --encoding=bpe")
    if tokenizer is not None:
        known = known_tokenizer(tokenizer, encoding)
    else:
        known = gpt2_tokenizer() if encoding == "gpt2" else None  # the others are made from the text
    for path in files:
        if is_special(path):
            raise UserError(f"{path!r} is a pipe or a device, and no file: --input=- reads from standard input")
    how = folder, known, encoding, vocab_size, val_fraction, clean, split_documents
    if files != ["-"]:
        return write_dataset(files, *how, input=os.path.abspath(input or files[0]))
    with tempfile.TemporaryDirectory() as temporary:
        path = os.path.join(temporary, "text")  # it is read more than once, which standard input does not allow
        with replacing(path) as f:
            shutil.copyfileobj(standard_input(), f)
        try:
            return write_dataset([path], *how, input=None)
        except UserError as mistake:
            named = str(mistake).replace(f"the text {path!r}", "standard input").replace(repr(path), "standard input")
            raise UserError(named) from None


def known_tokenizer(path, encoding):
    """The tokenizer of another dataset, or of a folder of export.py. Raises UserError for one that cannot be used."""
    folders = [os.path.dirname(path) if os.path.isfile(path) else path]
    if os.path.dirname(os.path.normpath(path)) in ("", "data"):  # data/NAME is found beside the scripts
        folders.append(data_folder(os.path.basename(os.path.normpath(path))))
    names = ("meta.json", "meta.pkl", "tokenizer.json")
    folder = next((f for f in folders if any(os.path.exists(os.path.join(f, name)) for name in names)), None)
    if folder is None or not path:
        kinds = "of a dataset, as data/other (with meta.json), or one that export.py wrote (with tokenizer.json)"
        raise UserError(f"--tokenizer={path} has no vocabulary: it should be the folder {kinds}")
    try:
        exported = os.path.exists(os.path.join(folder, "tokenizer.json"))
        meta = read_tokenizer(folder).meta() if exported else read_meta(folder)
    except (OSError, ValueError) as failure:
        raise UserError(f"--tokenizer={path}: {failure}") from None
    if encoding not in ("gpt2", meta["encoding"]):
        raise UserError(f"--encoding={encoding} is not that of --tokenizer={path}, {meta['encoding']}: leave it out")
    if meta["encoding"] == "tokens":  # a block of words may end within a token, and a split of a text too
        raise UserError(f"--tokenizer={path} has tokens of its own: it should have byte pairs or characters")
    print(f"encoding as {folder} is: {meta['encoding']}, {meta['vocab_size']:,} token ids")
    return make_tokenizer(meta)


def write_dataset(files, folder, tokenizer, encoding, vocab_size, val_fraction, clean, split_documents, input):
    """
    Do what `prepare` promises, with checked arguments: read all texts to choose splits, then again to encode, and for
    a `tokenizer` of None once more between, to make one.
    """
    found = Counter()
    texts = read_texts(files, clean, split_documents, found, "reading")
    try:
        hashes, sizes, chars = scan(texts, with_chars=encoding == "char" and not tokenizer)
    except NotText as mistake:
        raise name_all(files, mistake) from None
    splits = choose_splits(hashes, sizes, val_fraction)
    print_found(found, len(sizes), clean, split_documents)
    print_splits(splits)
    single_text = (splits >= 0).sum() <= 1
    train_chars = int(sizes.max(initial=0) * (1 - val_fraction)) if single_text else None

    def blocks(title):
        texts = read_texts(files, clean, split_documents, Counter(), title)
        return cut_texts(texts, splits.tolist(), train_chars)

    source = repr(files[0]) if len(files) == 1 else f"the text of {len(files):,} files"
    if tokenizer is None and encoding == "char":
        chars = sorted(chars if single_text else chars | {"\n"})
        if len(chars) > MAX_VOCAB:
            raise UserError(f"{source} has {len(chars):,} different characters, but a uint16 can only number 65,536")
        tokenizer = TokensTokenizer("".join(chars))
    elif tokenizer is None:
        tokenizer = learn(blocks("learning"), train_chars or int(sizes[splits == 0].sum()), vocab_size)
    options = {"val_fraction": val_fraction, "clean": clean, "split_documents": split_documents}
    meta = tokenizer.meta() | {split: {"tokens": 0, "bytes": 0} for split in SPLITS}
    meta["options"] = options | ({"input": input} if input else {})
    paths = [os.path.join(folder, name) for name in ("train.bin", "val.bin", "meta.json")]
    with replacing_all(paths) as [train_file, val_file, meta_file]:
        for split, ids, size in encode_blocks(blocks("encoding"), tokenizer):
            (train_file, val_file)[split].write(np.array(ids, dtype="<u2").tobytes())
            meta[SPLITS[split]]["tokens"] += len(ids)
            meta[SPLITS[split]]["bytes"] += size
        for split in SPLITS:
            if (tokens := meta[split]["tokens"]) < MIN_TOKENS:
                instead = "--split_documents=False reads all as one" if found["ends"] else "one file with all would be"
                tip = "" if single_text else f" (a document is never divided, but {instead})"
                size = count(tokens, "token")
                raise UserError(f"{source} is too short: {split} would have {size}, but needs {MIN_TOKENS}{tip}")
        # a line for each key, since the merges are many
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in meta.items()]
        meta_file.write(("{" + ",\n ".join(lines) + "}\n").encode("utf-8"))
    print_sizes(meta)
    return meta


def read_texts(files, clean, split_documents, found, title):
    """
    Yield each document as an iterable of blocks, under a progress bar with a title. `found` is a Counter of what
    cleaning and splitting find.
    """
    total = sum(os.path.getsize(path) for path in files if os.path.exists(path))
    terminal = sys.stderr.isatty()
    with tqdm(total=total, unit="B", unit_scale=True, desc=title, leave=False, disable=not terminal) as bar:
        for text in read_files(files, bar):
            for blocks in cut_at_ends(text, found) if split_documents else [count_ends(text, found)]:
                yield clean_blocks(blocks, found) if clean else blocks


def cut_texts(texts, splits, train_chars):
    """
    Yield (split, block) for texts, in blocks of whole words that can be encoded one by one.

    `splits` has the split of each text. A single text is divided after `train_chars` characters instead; if there are
    several, `train_chars` is None, and the block after the last one of each text is None.
    """
    for split, blocks in zip(splits, texts):
        if split < 0:
            continue
        labelled = ((split, block) for block in blocks) if train_chars is None else split_at(blocks, train_chars)
        for part, group in groupby(labelled, key=itemgetter(0)):
            for block in rechunk((block for _, block in group), WHOLE_WORDS):
                yield part, block
        if train_chars is None:
            yield split, None


def encode_blocks(blocks, tokenizer):
    """Yield (split, token ids, bytes of text) for the blocks that `cut_texts` yields."""
    end = tokenizer.end_of_text
    for split, block in blocks:
        if block is not None:
            yield split, tokenizer.encode(block), len(block.encode("utf-8"))
        else:
            yield (split, tokenizer.encode("\n"), 1) if end is None else (split, [end], 0)


def learn(blocks, train_chars, vocab_size):
    """
    The tokenizer of byte pairs learnt from the training part of the blocks that `cut_texts` yields: from all of its
    `train_chars` characters, or where they are many from blocks spread evenly over it.
    """
    seen = taken = 0

    def evenly_spread():
        nonlocal seen, taken
        for split, block in blocks:
            if split == 0 and block is not None:
                if taken * train_chars <= seen * LEARN_CHARS:
                    taken += len(block)
                    yield block
                seen += len(block)

    wanted = vocab_size or usual_vocab_size(train_chars)
    print(f"learning a vocabulary of up to {wanted:,} token ids")
    tokenizer = learn_tokenizer(evenly_spread(), wanted)
    print(f"learnt a vocabulary of {tokenizer.vocab_size:,} from {taken:,} of {seen:,} characters of training text")
    if vocab_size and tokenizer.vocab_size < vocab_size:
        print(f"for --vocab_size={vocab_size} the text repeats too few pairs of tokens")
    return tokenizer


def usual_vocab_size(train_chars):
    """The vocabulary for a training text of so many characters. docs/own-data.md has the measurements."""
    return min(max(64 * math.ceil(6 * math.sqrt(train_chars) / 64), 512), 2**15)


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
        if not name:
            raise UserError(f"no dataset can be named after {stem!r}: name it in letters a to z with --dataset=NAME")
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
    config = configure(globals(), positional="input")
    if input is None:
        raise UserError("what should be prepared? --input=PATH names a text file, a folder of texts, or a pattern")
    if input == "-" and dataset is None:
        raise UserError("a dataset read from standard input needs a name: give it with --dataset=NAME")
    folder = dataset_folder(config.pop("dataset"), input)
    name = os.path.basename(folder)
    files = find_files(input)
    if os.path.exists(os.path.join(folder, "meta.json")):
        print(f"data/{name} was prepared before and will be replaced")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as failure:
        raise UserError(f"cannot make the folder {folder!r}: {failure.strerror}") from None
    try:
        meta = prepare(files, folder, **config)
    finally:
        with contextlib.suppress(OSError):  # after a mistake a new folder is empty; one with a dataset stays
            os.rmdir(folder)
    small = "train_demo.py" if meta["encoding"] == "bpe" else "train_hitchikers_cpu.py"
    config = small if meta["train"]["bytes"] < 10**6 else "train_hitchikers.py"
    print(f"next: python train.py config/{config} --dataset={name} --out_dir=out-{name}")


if __name__ == "__main__":
    run(main)
