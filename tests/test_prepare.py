"""
What data/hitchikersguide/prepare.py promises, and the mistakes that it and data/prepare.py report.

The scripts run on copies, so that the repository's own data stays as it is.
"""

import gzip
import hashlib
import importlib.util
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import plain_merges, status_of

from tokenizer import gpt2_tokenizer, make_tokenizer, read_meta

ROOT = Path(__file__).resolve().parent.parent
HERE = Path("data", "hitchikersguide")
NOVEL = "data/hitchikersguide/prepare.py"
ANY = "data/prepare.py"
WRITTEN = ("train.bin", "val.bin", "meta.json")
PROSE = "The kettle had opinions, and on Thursdays it aired them. " * 100

gpt2 = gpt2_tokenizer()  # tests/test_tokenizer.py shows that its ids are tiktoken's own


@pytest.fixture
def house(tmp_path):
    """The scripts and the novel, laid out as in the repository. Returns the novel's folder."""
    (tmp_path / "house" / HERE).mkdir(parents=True)
    for name in ("configurator.py", "tokenizer.py", ANY, NOVEL, HERE / "transcriptions.txt"):
        shutil.copy(ROOT / name, tmp_path / "house" / name)
    return tmp_path / "house" / HERE


@pytest.fixture
def run_script(house, tmp_path, monkeypatch, capsys):
    """run_script(NOVEL, "--key=value", ...) runs a copy in this process; returns status, output and error output."""

    def call(name, *arguments):
        monkeypatch.setattr(sys, "argv", ["prepare.py", *arguments])
        monkeypatch.setattr(sys, "path", sys.path[:])  # the script adds folders
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        spec = importlib.util.spec_from_file_location("prepare_copy", tmp_path / "house" / name)
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        return (status_of(script), *capsys.readouterr())

    return call


@pytest.fixture
def prepare(house, run_script):
    """prepare("--key=value", ..., text=None) prepares the novel, or `text` in its place."""

    def call(*arguments, text=None):
        if text is not None:
            (house / "transcriptions.txt").write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        return run_script(NOVEL, *arguments)

    return call


def ids_in(folder):
    return [np.frombuffer((folder / f"{split}.bin").read_bytes(), dtype="<u2").tolist() for split in ("train", "val")]


def text_in(folder):
    """The text that the ids and meta.json decode to."""
    tokenizer = make_tokenizer(read_meta(folder))
    return b"".join(tokenizer.decode_bytes(ids) for ids in ids_in(folder)).decode("utf-8")


def nanogpts_split(text):
    """The first 90% of the characters, and the rest."""
    n = len(text)
    return text[: int(n * 0.9)], text[int(n * 0.9) :]


# -----------------------------------------------------------------------------
# the novel


def test_the_novel_is_unchanged_byte_for_byte():
    content = (ROOT / HERE / "transcriptions.txt").read_bytes()
    assert hashlib.sha256(content).hexdigest() == "2a73aaf4505286ff1d1a1eca6d69bcba38b825aa436e6b6838133927f11e4f8e"


def test_without_cleaning_the_tokens_are_nanogpts_own(prepare, house):
    status, out, err = prepare("--clean=False")
    train, val = nanogpts_split((house / "transcriptions.txt").read_text(encoding="utf-8"))
    assert (status, err) == (0, "") and "took out" not in out
    assert ids_in(house) == [gpt2.bpe.encode_ordinary(train), gpt2.bpe.encode_ordinary(val)]


def test_by_default_all_80_chapter_numbers_are_removed_and_nothing_else(prepare, house):
    status, out, err = prepare()
    assert (status, err) == (0, "")
    assert "took out 80 spoken chapter numbers" in out
    lines = (house / "transcriptions.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) == 80 and all(line.startswith("Chapter ") for line in lines)
    assert text_in(house) == "".join(line.partition(". ")[2] for line in lines)


def test_it_works_from_any_folder_and_needs_no_other_files(house, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    # -I keeps the current folder and PYTHONPATH off sys.path, so that the copies are imported
    command = [sys.executable, "-I", house / "prepare.py"]
    result = subprocess.run(command, cwd=tmp_path / "elsewhere", capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert os.listdir(tmp_path / "elsewhere") == []
    assert {*WRITTEN, "prepare.py", "transcriptions.txt"} == {path.name for path in house.iterdir()} - {"__pycache__"}
    train, val = ids_in(house)
    assert len(train) > 100_000 and f"train has {len(train):,} tokens" in result.stdout
    assert len(val) > 10_000 and f"val has {len(val):,} tokens" in result.stdout


# -----------------------------------------------------------------------------
# what is written


@pytest.mark.parametrize("encoding", ["gpt2", "bpe", "char"])
def test_the_bin_files_are_little_endian_uint16_and_nothing_else(prepare, house, encoding):
    assert prepare(f"--encoding={encoding}", "--clean=False", text=PROSE)[0] == 0
    train, val = nanogpts_split(PROSE)
    tokenizer = make_tokenizer(read_meta(house))
    for split, part in (("train", train), ("val", val)):
        expected = b"".join(i.to_bytes(2, "little") for i in tokenizer.encode(part))
        assert (house / f"{split}.bin").read_bytes() == expected
        assert encoding == "char" or max(tokenizer.encode(part)) > 255  # else either order of bytes would do


@pytest.mark.parametrize("encoding", ["gpt2", "bpe", "char"])
def test_meta_json_counts_the_tokens_and_bytes_of_each_split(prepare, house, encoding):
    text = "Größe, 東京 🙂! " * 200
    status, out, _ = prepare(f"--encoding={encoding}", "--clean=False", text=text)
    train, val = nanogpts_split(text)
    meta = json.loads((house / "meta.json").read_text(encoding="utf-8"))
    expected = {"encoding": "gpt2", "vocab_size": 50257}
    if encoding == "char":
        expected = {"encoding": "char", "vocab_size": len(set(text)), "chars": "".join(sorted(set(text)))}
    if encoding == "bpe":
        merges = plain_merges(train, 65536)
        expected = {"encoding": "bpe", "vocab_size": 257 + len(merges), "merges": merges}
    for split, part, ids in zip(("train", "val"), (train, val), ids_in(house)):
        expected[split] = {"tokens": len(ids), "bytes": len(part.encode("utf-8"))}
        assert f"{split} has {len(ids):,} tokens ({expected[split]['bytes']:,} bytes of text)" in out
    options = {"val_fraction": 0.1, "clean": False, "split_documents": False}
    expected["options"] = options | {"input": str(house / "transcriptions.txt")}
    assert status == 0 and meta == expected


@pytest.mark.parametrize("encoding", ["bpe", "char"])
def test_any_text_makes_the_round_trip(prepare, house, encoding):
    text = 'Größe, 東京 🙂, "quoted"\\ \u2028 \0\x1c tab\t\n' * 100
    assert prepare(f"--encoding={encoding}", "--clean=False", text=text)[0] == 0
    assert text_in(house) == text
    assert encoding == "bpe" or sum(map(len, ids_in(house))) == len(text)


@pytest.mark.slow
def test_the_novels_own_byte_pairs_say_it_in_fewer_tokens_than_gpt2s(prepare, house):
    assert prepare()[0] == 0
    text, [train, val] = text_in(house), ids_in(house)
    status, out, err = prepare("--encoding=bpe", "--vocab_size=4096")
    assert (status, err) == (0, "") and "learnt a vocabulary of 4,096 from " in out and "took out 80 spoken" in out
    assert text_in(house) == text and read_meta(house)["vocab_size"] == 4096
    assert all(len(ids) < 1.1 * len(theirs) and max(ids) < 4095 for ids, theirs in zip(ids_in(house), (train, val)))
    merges = read_meta(house)["merges"]
    assert prepare("--encoding=bpe", "--vocab_size=300")[0] == 0
    assert read_meta(house)["merges"] == merges[:43] == plain_merges(text[: int(len(text) * 0.9)], 300)


def test_input_reads_another_text(prepare, house, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine=1.txt").write_text(PROSE, encoding="utf-8")
    assert prepare("--input=mine=1.txt")[0] == 0  # relative to the current folder, like all of the user's paths
    assert text_in(house) == PROSE
    assert (house / "train.bin").exists() and not (tmp_path / "train.bin").exists()


@pytest.mark.parametrize("encoding", ["gpt2", "bpe"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_input_reads_standard_input_as_it_reads_a_file(prepare, house, tmp_path, monkeypatch, end, encoding):
    text = f"Chapter One. {PROSE}{end}{end}{end}Chapter Two. {PROSE}{end}".encode()
    (tmp_path / "file.txt").write_bytes(text)
    written = []
    for source in (str(tmp_path / "file.txt"), "-"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        assert prepare(f"--input={source}", f"--encoding={encoding}")[0] == 0
        written.append([*ids_in(house), read_meta(house)])
    assert written[0][-1]["options"].pop("input") == str(tmp_path / "file.txt")  # standard input has no name
    assert written[0] == written[1]


@pytest.mark.parametrize("encoding", ["gpt2", "bpe", "char"])
def test_preparing_again_gives_the_same_files(prepare, house, encoding):
    written = []
    for _ in range(2):
        assert prepare(f"--encoding={encoding}", text=PROSE)[0] == 0
        written.append([(house / name).read_bytes() for name in WRITTEN])
    assert written[0] == written[1]


# -----------------------------------------------------------------------------
# cleaning


@pytest.fixture
def clean(prepare):
    """`prepare` with --encoding=char, which is faster: it need not load GPT-2's byte pairs."""
    return partial(prepare, "--encoding=char")


@pytest.mark.parametrize(
    "heading",
    [
        "Chapter One.",
        "Chapter 1.",
        "Chapter 12:",
        "CHAPTER NINE.",
        "chapter nineteen,",
        "Chapter Twenty-one.",
        "Chapter Twenty One.",
        "Chapter Ninety-Nine:",
        "Chapter One Hundred.",
        "Chapter One Hundred and Forty-two.",
    ],
)
@pytest.mark.parametrize("gap", [" ", "\n", "\n\n"])
def test_a_chapter_number_is_removed_in_every_form_that_people_speak(clean, house, heading, gap):
    status, out, _ = clean(text=f"{heading}{gap}{PROSE}\n{heading}{gap}{PROSE}\n")
    assert status == 0 and "took out 2 spoken chapter numbers" in out
    assert text_in(house) == f"{PROSE.rstrip()} \n{PROSE.rstrip()} \n"


@pytest.mark.parametrize(
    "line",
    [
        "Chapter One was the best of them.",
        "Chapter Two of his memoirs, however, was not.",
        "Chapter and verse, he said.",
        "Chapter Onerous. It was.",
        "Chapters One. Two. Three.",
        "He had read as far as Chapter One. Then he slept.",
        '"Chapter One. The village," he read.',
        "One. Two. Three.",
        "Chapter. One.",
    ],
)
def test_other_lines_that_mention_chapters_stay(clean, house, line):
    status, out, _ = clean(text=f"{line}\n{PROSE}\n{line}\n")
    assert status == 0 and "took out 0 spoken chapter numbers" in out
    assert text_in(house) == f"{line}\n{PROSE}\n{line}\n"


HEADINGS = [  # a line, what remains of it; those with a * are what Whisper's tiny.en wrote of a spoken heading
    # a number with a full stop, colon, comma or dash after it
    ("Chapter 4. Outside the universe it is warm.", "Outside the universe it is warm."),
    ("Chapter 4. outside the universe it is warm.", "outside the universe it is warm."),
    ("Chapter 4... Outside the universe it is warm.", "Outside the universe it is warm."),
    ("Chapter 4… Outside the universe it is warm.", "Outside the universe it is warm."),
    ("Chapter 4: The theft. It was night.", "The theft. It was night."),
    ("Chapter 4 - The theft. It was night.", "The theft. It was night."),
    ("Chapter 4 – The theft. It was night.", "The theft. It was night."),
    ("Chapter 4 — The theft. It was night.", "The theft. It was night."),
    ("Chapter 5, in which nothing happens, of all the things", "in which nothing happens, of all the things"),  # *
    ("Chapter 80, the village. Vanity takes people", "the village. Vanity takes people"),  # *
    ("Chapter 9. It's against the law,\" said Nipans.", "It's against the law,\" said Nipans."),  # *
    ("Chapter 61. 100 Spoons. Nobody ever built", "100 Spoons. Nobody ever built"),  # *
    ("Chapter 12. However, he slept.", "However, he slept."),
    ("Chapter 12. June 1943. It rained.", "June 1943. It rained."),
    ("Chapter One Hundred. Chapters end.", "Chapters end."),
    ("CHAPTER IV. THE THEFT", "THE THEFT"),
    ("Chapter XLII. The theft.", "The theft."),
    ("Chapter I. The theft.", "The theft."),
    # a number without punctuation, and a capital
    ("Chapter 4 Outside the universe it is about as warm", "Outside the universe it is about as warm"),  # *
    ("Chapter 36 A theft", "A theft"),
    ("Chapter 1 The village of lower Wexley has one hill", "The village of lower Wexley has one hill"),  # *
    ("CHAPTER 33 It rains. Mr. Troy was waits in Mr. El", "It rains. Mr. Troy was waits in Mr. El"),  # *
    ("CHAPTER XXII All the King's Clocks I knew him", "All the King's Clocks I knew him"),  # *
    ("CHAPTER X I am sent for. On Friday evening", "I am sent for. On Friday evening"),  # *
    ('Chapter 9 "It\'s against the law," she said.', '"It\'s against the law," she said.'),
    ("Chapter 30 Arthur comes home. A woman of 52", "Arthur comes home. A woman of 52"),
    ("Chapter 100 and 1 Arthur comes home.", "Arthur comes home."),  # *
    ("Chapter I The village has one hill.", "The village has one hill."),
    ("Chapter Two They did not run.", "They did not run."),
    ("Chapter Four Two Men Came", "Two Men Came"),
    ("Chapter One One Hundred Spoons", "One Hundred Spoons"),
    # after a sentence, where a whole book is one line
    ("He left the desk. Chapter 21. all the clerks", "He left the desk. all the clerks"),
    ("He left the desk. Chapter Twenty-one. All the clerks", "He left the desk. All the clerks"),
    ('"He left the desk." Chapter 21. All the clerks', '"He left the desk." All the clerks'),
    ("“He left the desk?” Chapter 21. All the clerks", "“He left the desk?” All the clerks"),
    ("Had he left the desk? Chapter 21. All the clerks", "Had he left the desk? All the clerks"),
    ("He left the desk… Chapter 21: All the clerks", "He left the desk… All the clerks"),
    ("He left the desk! Chapter 21 - All the clerks", "He left the desk! All the clerks"),
    ("End of Chapter 20. Chapter 21. All the clerks", "End of Chapter 20. All the clerks"),
    ("by their shoes accordingly. CHAPTER 2 If theft", "by their shoes accordingly. If theft"),  # *
    ("what it told them. CHAPTER XII Of cats and kettles", "what it told them. Of cats and kettles"),  # *
    ("in the parliament. Chapter 20, Athft. I don't know,", "in the parliament. Athft. I don't know,"),  # *
    ("half past 4 until 5. Chapter 100 and 1 Arthur comes", "half past 4 until 5. Arthur comes"),  # *
    ('as the others." CHAPTER XXI The first rule of the', 'as the others." The first rule of the'),  # *
    (
        "the newspapers about it. Chapter 22, all the king's clocks. I",
        "the newspapers about it. all the king's clocks. I",
    ),  # *
    ("until five. Chapter 100 and one, Arthur comes home. The", "until five. Arthur comes home. The"),  # *
    ('a string for middle C." Chapter 21. All the clerks', 'a string for middle C." All the clerks'),
    ("It was I. Chapter 21. All the clerks", "It was I. All the clerks"),
    ("One. Chapter 1. Two. Chapter 2. Three.", "One. Two. Three."),
    # other languages
    ("Kapitel 4. Außerhalb des Universums", "Außerhalb des Universums"),
    ("Kapitel 4 Außerhalb des Universums", "Außerhalb des Universums"),
    ("Chapitre 4. Hors de l'univers", "Hors de l'univers"),
    ("CHAPITRE IV À l'aube", "À l'aube"),
    ("Capítulo 4. Fuera del universo", "Fuera del universo"),
    ("Capítulo 4 ¿Quién es?", "¿Quién es?"),
    ("Capitolo 4, Fuori dall'universo. Era notte.", "Fuori dall'universo. Era notte."),
    ("Hoofdstuk 4. Buiten het heelal", "Buiten het heelal"),
    ("Rozdział 4 Świat", "Świat"),
    ("Глава 4. Вне вселенной", "Вне вселенной"),
    ("Он ушёл. Глава IV Вне вселенной", "Он ушёл. Вне вселенной"),
]


def test_chapter_numbers_are_removed_as_whisper_writes_them_and_titles_stay(clean, house):
    lines, remain = zip(*HEADINGS)
    status, out, _ = clean(text="\n".join([*lines, PROSE]))
    assert text_in(house).split("\n") == [*remain, PROSE]
    numbers = sum(len(line) > len(rest) for line, rest in HEADINGS)
    assert status == 0 and f"took out {numbers + 1} spoken chapter numbers" in out  # one line has two


@pytest.mark.parametrize("gap", ["\n", "\n\n", " \n"])
@pytest.mark.parametrize("heading", ["Chapter 4", "CHAPTER IV", "Chapter Four", "Kapitel 4", "Chapter 4,"])
def test_a_chapter_number_that_is_a_line_of_its_own_is_removed(clean, house, heading, gap):
    status, out, _ = clean(text=f"It rained.\n{heading}{gap}outside {PROSE}")
    assert status == 0 and "took out 1 spoken chapter number " in out
    assert text_in(house) == f"It rained.\noutside {PROSE}"


MENTIONS = [
    # at the beginning of a line
    "Chapter One was the best of the book",
    "Chapter 4 was the best of the book.",
    "Chapter 4 is long. Chapter 5 is not.",
    "Chapter 4 I liked best.",
    "Chapter 4 I'd rather forget.",
    "chapter 7 Arthur never understood.",
    "Chapter 47 of Cats and Kettles is dull.",
    "Chapter I wrote last is the worst.",
    "Chapter I of the book is the worst.",
    "Chapter V is the worst.",
    "Chapter XIX and all that.",
    "CHAPTER 4 WAS THE BEST OF THE BOOK",
    "CHAPTER ONE WAS THE BEST OF THE BOOK",
    "Chapter 3, verse 16 is the one.",
    "Chapter 3, Verse XVI is the one.",
    "Chapter 3 Section 2 is the one.",
    "Chapter 7, which I liked, is short.",
    "Chapter 7, I think, is short.",
    "Chapter 7, said Maud. He opened it.",
    "Chapter 7, however, is short.",
    "Chapter 7 - which I liked - is short.",
    "Chapter 4-5 The end",
    "Chapter 4.5. The half",
    "Chapter 12a. The half",
    "Chapter 4th. The half",
    "Chapter 4's end. The rest is lost.",
    "Chapter 4? The one with the kettle.",
    "chapter 4",
    "Chapter House 4. The abbey.",
    "Chapter Oneida. The lake.",
    "Chapter Vivid. The lake.",
    "Chapters 4 and 5. The end.",
    "Chapter IIII. The clock.",
    "Kapitel 4 handelt von Katzen.",
    "Kapitel 4 Absatz 2 gilt.",
    "Chapitre 4 est le plus beau.",
    "Capítulo 4 es el mejor.",
    "Capitolo I ragazzi.",
    "Hoofdstuk 4 gaat over katten.",
    "Rozdział 4 i 5 są krótkie.",
    "Глава 4 была лучшей.",
    # in a line
    "He said as I said in chapter 4. Then he slept.",
    "He slept, as I said in chapter 4",
    "See Chapter 21. It is long.",
    "See: Chapter 21. It is long.",
    "Read it. Chapter 21 is long.",
    "Read it. chapter 21. It is long.",
    "Read it. Chapter 21",
    "Read it. Chapter 21.",
    "Is it in Chapter 4? Chapter 5. Maybe.",
    "Is it in Chapter Forty Two? Chapter Five. Maybe.",
    '"In Chapter 4?" "Chapter 5. Maybe."',
    "He read on. Chapter 4. Chapter 5. Chapter 6. Then he slept.",
    "See e.g. Chapter 21. It is long.",
    "Read it, cf. Chapter 21. It is long.",
    "Read Vol. Chapter 21. It is long.",
    "The parts. Chapter 1, Introduction, explains them.",
    "The parts. Chapter 1, we think, explains them.",
    "Where is it? Chapter 4, the Provost said. Then he slept.",
    "Where is it? Chapter 4, please. Then he slept.",
    "A reading of John. Chapter 3. Verses 1 to 17.",
    "He liked it. Chapter 4 I read twice.",
    "I LIKE IT. CHAPTER 4 WAS THE BEST.",
    "The best (Chapter 4. The theft) is short.",
    'He read: "Chapter 4. The theft," and slept.',
    "the desk Chapter 21. All the clerks",
    "the desk, Chapter 21. All the clerks",
    "Subchapter 4. It. Subchapter 5. It.",
    "Er las. Kapitel 4 handelt von Katzen.",
    "Siehe Kapitel 4. Es ist lang.",
]


def test_lines_that_may_mention_a_chapter_in_a_sentence_stay_untouched(clean, house):
    text = "\n".join([*MENTIONS, PROSE])
    status, out, _ = clean(text=text)
    assert text_in(house).split("\n") == text.split("\n") and len(MENTIONS) >= 40
    assert status == 0 and "took out 0 spoken chapter numbers" in out


def test_the_novel_in_one_line_loses_the_same_chapter_numbers_as_in_80(clean, house):
    lines = (house / "transcriptions.txt").read_text(encoding="utf-8").splitlines()
    status, out, _ = clean(text=" ".join(lines))  # more than a block
    assert status == 0 and "took out 80 spoken chapter numbers" in out
    assert text_in(house) == " ".join(line.partition(". ")[2] for line in lines)


def test_doubled_white_space_is_removed_and_counted(clean, house):
    status, out, _ = clean(text=f"{PROSE}one  two\tthree \t four\n\n\n\nfive\n\nsix\nseven")
    assert status == 0 and "0 spoken chapter numbers and 4 runs of white space" in out
    assert text_in(house) == f"{PROSE}one two three four\n\nfive\n\nsix\nseven"


def test_a_byte_order_mark_does_not_hide_the_first_chapter_number(clean, house):
    status, out, _ = clean(text=b"\xef\xbb\xbf" + f"Chapter One. {PROSE}".encode())
    assert status == 0 and "took out 1 spoken chapter number and 0 runs of white space" in out
    assert text_in(house) == PROSE


def test_without_cleaning_everything_stays(clean, house):
    text = f"\ufeffChapter One.  {PROSE}\n\n\n\tChapter 2. {PROSE}"
    assert clean("--clean=False", text=text)[0] == 0
    assert text_in(house) == text


@pytest.mark.parametrize("cleaning", [True, False])
def test_windows_line_ends_give_the_same_ids_as_unix_ones(clean, house, cleaning):
    lines = [f"Chapter One. {PROSE}", f"Chapter Two. {PROSE}", ""]
    assert clean(f"--clean={cleaning}", text="\r\n".join(lines))[0] == 0
    windows = ids_in(house)
    assert clean(f"--clean={cleaning}", text="\n".join(lines))[0] == 0
    assert ids_in(house) == windows


# -----------------------------------------------------------------------------
# mistakes


GOOD = '{"text": "good"}\n'
LATIN = PROSE.encode() + b"caf\xe9"
GREEK = ("ὁ λύχνος ἔχει γνώμας, καὶ τῇ πέμπτῃ λέγει αὐτάς.\n").encode() * 400
SURROGATES = "\ud83d\ude42".encode("utf-8", "surrogatepass")
MANY = "".join(map(chr, range(0xE000, 0x1F000)))

MISTAKES = [  # script, file, its contents, arguments, part of the message
    # what to read
    (ANY, None, "", "", "--input=PATH"),
    (ANY, "a.txt", PROSE, "--input=", "the text '' cannot be read"),
    (ANY, "a.txt", PROSE, "--input=none.txt", "the text 'none.txt' cannot be read"),
    (NOVEL, "a.txt", PROSE, "--input=none.txt", "the text 'none.txt' cannot be read"),
    (NOVEL, "a.txt", PROSE, "--input=.", "the text '.' cannot be read"),
    (ANY, "a.txt", PROSE, "--input=-", "--dataset=NAME"),
    (ANY, "a.txt", PROSE, "--input=b*.txt", "no text in 'b*.txt'"),
    (ANY, "folder/a.doc", PROSE, "--input=folder", "no text in 'folder'"),
    # options
    (ANY, "a.txt", PROSE, "--input=a.txt --encoding=gpt4", "--encoding=gpt4 is unknown: it may be gpt2, bpe or char"),
    (NOVEL, "a.txt", PROSE, "--input=a.txt --encoding=gpt4", "--encoding=gpt4 is unknown: it may be gpt2, bpe or char"),
    (ANY, "a.txt", PROSE, "--input=a.txt --encoding=bpe --vocab_size=256", "--vocab_size=256 should be at least 257"),
    (NOVEL, "a.txt", PROSE, "--input=a.txt --encoding=bpe --vocab_size=-1", "--vocab_size=-1 should be at least 257"),
    (
        ANY,
        "a.txt",
        PROSE,
        "--input=a.txt --encoding=bpe --vocab_size=65537",
        "at most 65536, which a uint16 can number",
    ),
    (
        ANY,
        "a.txt",
        PROSE,
        "--input=a.txt --vocab_size=300",
        "--vocab_size=300 is for a vocabulary that",
    ),
    (
        NOVEL,
        "a.txt",
        PROSE,
        "--input=a.txt --encoding=char --vocab_size=300",
        "--vocab_size=300 is for a vocabulary that",
    ),
    (ANY, "a.txt", PROSE, "--input=a.txt --tokenizer=data/none", "--tokenizer=data/none has no vocabulary"),
    (NOVEL, "a.txt", PROSE, "--input=a.txt --tokenizer=data/none", "--tokenizer=data/none has no vocabulary"),
    (ANY, "a.txt", PROSE, "--input=a.txt --val_fraction=0", "--val_fraction=0.0 should be between 0 and 1"),
    (ANY, "a.txt", PROSE, "--input=a.txt --val_fraction=1", "--val_fraction=1.0 should be between 0 and 1"),
    (NOVEL, "a.txt", PROSE, "--input=a.txt --clean=perhaps", "--clean=perhaps should be True or False"),
    (NOVEL, "a.txt", PROSE, "--inptu=a.txt", "did you mean --input?"),
    (NOVEL, "a.txt", PROSE, "--input", "write --key=value"),
    # the dataset's name
    (ANY, "a.txt", PROSE, "--input=a.txt --dataset=../a", "'../a' cannot be a dataset's name"),
    (ANY, "a.txt", PROSE, "--input=a.txt --dataset=", "'' cannot be a dataset's name"),
    (ANY, "東京.txt", PROSE, "--input=東京.txt", "named after '東京': name it in letters a to z with --dataset=NAME"),
    (ANY, "Ὀδύσσεια.txt", PROSE, "--input=Ὀδύσσεια.txt", "named after 'Ὀδύσσεια': name it in letters a to z"),
    # too little text, or too many characters
    (ANY, "a.txt", "", "--input=a.txt", "too short: train would have 0 tokens, but needs 65"),
    (NOVEL, "a.txt", "", "--input=a.txt", "too short: train would have 0 tokens, but needs 65"),
    (ANY, "a.txt", "", "--input=a.txt --encoding=char", "too short: train would have 0 tokens, but needs 65"),
    (ANY, "a.txt", "", "--input=a.txt --encoding=bpe", "too short: train would have 0 tokens, but needs 65"),
    (NOVEL, "a.txt", "x" * 640, "--input=a.txt --encoding=bpe", "too short: train would have "),
    (ANY, "a.txt", "\n", "--input=a.txt", "too short"),
    (ANY, "a.txt", "\ufeff", "--input=a.txt", "too short"),
    (ANY, "a.txt", "ab", "--input=a.txt", "too short: train would have 1 token, but needs 65"),
    (NOVEL, "a.txt", "short", "--input=a.txt", "too short"),
    (NOVEL, "a.txt", "Chapter One. Chapter Two. ", "--input=a.txt", "too short"),
    (ANY, "a.txt", "x" * 640, "--input=a.txt --encoding=char", "too short: val would have 64 tokens"),
    (ANY, "a.jsonl", "\n\n", "--input=a.jsonl", "too short"),
    (ANY, "a.jsonl", GOOD + '{"text": "other"}\n', "--input=a.jsonl", "a document is never divided"),
    (ANY, "a.txt", MANY, "--input=a.txt --encoding=char", "69,632 different characters"),
    (NOVEL, "a.txt", MANY, "--input=a.txt --encoding=char", "69,632 different characters"),
    # not what a .jsonl file should be
    (ANY, "a.jsonl", GOOD + "\nnot JSON\n", "--input=a.jsonl", "'a.jsonl', line 3 is not JSON"),
    (ANY, "a.jsonl", GOOD + "[" * 100_000, "--input=a.jsonl", "'a.jsonl', line 2 is not JSON"),
    (ANY, "a.jsonl", GOOD + '{"txt": "x"}', "--input=a.jsonl", "'a.jsonl', line 2 has no \"text\""),
    (ANY, "a.jsonl", GOOD + '{"text": 42}', "--input=a.jsonl", "'a.jsonl', line 2 has no \"text\""),
    (ANY, "a.jsonl", GOOD + '["text"]', "--input=a.jsonl", "'a.jsonl', line 2 has no \"text\""),
    # not UTF-8
    (ANY, "a.txt", PROSE.encode("utf-16"), "--input=a.txt", "is not UTF-8 (byte 0), but seems to be UTF-16"),
    (ANY, "a.txt", PROSE.encode("utf-32"), "--input=a.txt", "is not UTF-8 (byte 0), but seems to be UTF-32"),
    (ANY, "a.txt", PROSE.encode("utf-16-le"), "--input=a.txt", "a binary file or UTF-16"),
    (ANY, "a.txt", LATIN, "--input=a.txt", "is not UTF-8 (byte 5703), but seems to be Windows-1252"),
    (NOVEL, "a.txt", LATIN, "--input=a.txt --clean=False", "is not UTF-8 (byte 5703), but seems to be Windows-1252"),
    (ANY, "a.txt", PROSE.encode() * 9 + b"\x81\xff", "--input=a.txt", "is not UTF-8 (byte 51300), and its encoding"),
    (ANY, "a.txt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "--input=a.txt", "a binary file"),
    (ANY, "a.jsonl", GOOD.encode() + b'{"text": "caf\xe9"}', "--input=a.jsonl", "WINDOWS-1252"),
    (ANY, "a.txt", b"\x1f\x8b\x08\x08" + bytes(range(256)), "--input=a.txt", "(byte 1), but compressed: unpack it"),
    (ANY, "a.pdf", "%PDF-1.4\n%âãÏÓ\n".encode("latin-1"), "--input=a.pdf", "but a binary file: save its contents as"),
    # UTF-8 but for few places
    (
        ANY,
        "a.txt",
        GREEK[:-3],
        "--input=a.txt",
        "is UTF-8 but for 1 place, at byte 37196, line 400, where it ends: mend",
    ),
    (
        ANY,
        "a.txt",
        "Ünd".encode() + PROSE.encode() + "🙂".encode()[:3],
        "--input=a.txt",
        "1 place, at byte 5704, line 1",
    ),
    (ANY, "a.txt", GREEK + b"\xff" + GREEK, "--input=a.txt", "is UTF-8 but for 1 place, at byte 37200, line 401: mend"),
    (NOVEL, "a.txt", GREEK + b"\xe9" + GREEK, "--input=a.txt", "'iconv -c -f UTF-8 -t UTF-8 OLD > NEW', which removes"),
    (ANY, "a.txt", b"\xe9\n" + GREEK + b"\xe9", "--input=a.txt", "for 2 places, the first at byte 0, line 1: mend"),
    (ANY, "a.txt", PROSE.encode() + SURROGATES, "--input=a.txt", "byte 5700, line 1, half of a character that was"),
    (ANY, "a.txt", GREEK + SURROGATES * 5, "--input=a.txt", "is UTF-8 but for 1 place, at byte 37200, line 401, half"),
    (ANY, "a.jsonl", b'{"text": "' + GREEK[:99] + b"\xff", "--input=a.jsonl", "is UTF-8 but for 1 place, at byte 109"),
    (ANY, "a.txt", "мы говорим и пишем ".encode("koi8-r") * 99, "--input=a.txt", "is not UTF-8 (byte 0)"),
    (ANY, "a.txt", "我们说话和写作".encode("gbk") * 99, "--input=a.txt", "is not UTF-8 (byte "),
]


def everything_in(folder):
    return {path: path.read_bytes() if path.is_file() else "folder" for path in folder.rglob("*")}


@pytest.mark.parametrize("old", [True, False], ids=["prepared before", "never prepared"])
@pytest.mark.parametrize("script, name, text, arguments, message", MISTAKES, ids=[f"{m[0]} {m[4]}" for m in MISTAKES])
def test_a_mistake_is_one_line_and_status_2_and_changes_no_file(
    run_script, tmp_path, monkeypatch, script, name, text, arguments, message, old
):
    (tmp_path / "desk" / "folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "desk")
    if old:
        Path("a.txt").write_text(PROSE[::-1], encoding="utf-8")
        assert run_script(script, "--input=a.txt", "--encoding=char")[0] == 0
        Path("a.txt").unlink()
    if name:
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    before = everything_in(tmp_path / "house")
    status, _, err = run_script(script, *arguments.split())
    assert status == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n") and message in err
    assert everything_in(tmp_path / "house") == before


def test_all_files_that_are_not_utf_8_are_named_at_once(run_script, tmp_path, monkeypatch):
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")
    files = {"a.txt": PROSE.encode(), "b.txt": LATIN, "c.txt": GREEK, "d.txt": LATIN[:300:-1], "e.jsonl": GOOD.encode()}
    for name, content in files.items():
        Path(name).write_bytes(content)
    status, _, err = run_script(ANY, "--input=.", "--dataset=x")
    latin = "is not UTF-8 (byte {}), but seems to be Windows-1252 or Latin-1"
    advice = "save it as UTF-8 first, or run 'iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW'"
    assert status == 2
    assert err == f"error: './b.txt' {latin.format(5703)}; './d.txt' {latin.format(0)}: {advice}\n"
    Path("f.md").write_bytes(GREEK + b"\xff" + GREEK)
    Path("g.jsonl").write_bytes(b"\x1f\x8b\x08\0\0")
    status, _, err = run_script(ANY, "--input=.", "--dataset=x")
    assert status == 2 and err.count("\n") == 1 and err.endswith(": mend each of them first\n")
    assert err.count("./") == 4 and "'./f.md' is UTF-8 but for 1 place" in err and "'./g.jsonl' is not UTF-8" in err


def test_one_bad_byte_in_800_kb_is_found_by_its_byte_and_line(prepare, tmp_path):
    (tmp_path / "a.txt").write_bytes(GREEK * 11 + b"\xff" + GREEK * 11)
    status, _, err = prepare(f"--input={tmp_path / 'a.txt'}")
    assert status == 2 and "is UTF-8 but for 1 place, at byte 409200, line 4,401: mend or remove" in err


@pytest.mark.parametrize("text", [LATIN, GREEK + b"\xff", PROSE.encode("utf-16")], ids=["latin", "one byte", "utf-16"])
def test_on_windows_which_has_no_iconv_no_advice_names_it(prepare, tmp_path, monkeypatch, text):
    (tmp_path / "a.txt").write_bytes(text)
    monkeypatch.setattr(sys, "platform", "win32")
    status, _, err = prepare(f"--input={tmp_path / 'a.txt'}")
    assert status == 2 and err.startswith("error: ") and "iconv" not in err and re.search("(first|there)\n$", err)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "standard input is too short"),
        (gzip.compress(PROSE.encode()), "standard input is not UTF-8 (byte 1), but compressed"),
        (LATIN, "standard input is not UTF-8 (byte 5703)"),
        (bytes(99), "standard input is not UTF-8 text"),
    ],
    ids=["empty", "gz", "latin", "binary"],
)
@pytest.mark.parametrize("script", [ANY, NOVEL])
def test_a_mistake_in_standard_input_names_that_and_no_temporary_file(run_script, monkeypatch, script, content, said):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    status, _, err = run_script(script, "--input=-", *(["--dataset=x"] if script == ANY else []))
    assert status == 2 and said in err and tempfile.gettempdir() not in err and err.count("\n") == 1


def test_the_novels_prepare_keeps_nanogpts_tokens_and_says_how_many_ends_it_saw(prepare, house):
    text = f"{PROSE}<|endoftext|>{PROSE}<|endoftext|>"
    status, out, err = prepare("--clean=False", text=text)
    assert (status, err) == (0, "") and "found <|endoftext|> 2 times, which stays plain text, as in nanoGPT\n" in out
    assert ids_in(house) == [gpt2.bpe.encode_ordinary(part) for part in nanogpts_split(text)]


@pytest.mark.parametrize("text", [b"caf\xe9 " * 1000, None], ids=["latin-1", "missing"])
def test_an_unusable_transcript_ends_a_real_run_with_one_line_that_names_it_and_status_2(house, text):
    source = house / "transcriptions.txt"
    source.unlink()
    if text is not None:
        source.write_bytes(text)
    before = everything_in(house)
    result = subprocess.run([sys.executable, "-IB", house / "prepare.py"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "") and result.stderr.count("\n") == 1
    about = "the text"
    assert result.stderr.startswith(f"error: {about} ") and "transcriptions.txt" in result.stderr
    assert everything_in(house) == before


@pytest.mark.parametrize("name", WRITTEN)
def test_if_one_file_cannot_be_written_all_old_ones_stay(prepare, house, name):
    assert prepare(text=PROSE)[0] == 0
    before = {name: (house / name).read_bytes() for name in WRITTEN}
    (house / f"{name}.tmp").mkdir()  # in the way, even of root
    status, _, err = prepare(text=PROSE[::-1])
    assert status == 2 and err.startswith("error: cannot write ") and name in err and err.count("\n") == 1
    assert {name: (house / name).read_bytes() for name in WRITTEN} == before


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_if_the_disk_fails_at_any_of_the_files_all_old_ones_stay(prepare, house, monkeypatch, nth):
    assert prepare(text=PROSE)[0] == 0
    before = {path.name: path.read_bytes() for path in house.iterdir() if path.is_file()}
    calls = []

    def fsync(fd):
        calls.append(fd)
        if len(calls) == nth:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    status, _, err = prepare("--encoding=char")
    assert status == 2 and err.startswith("error: cannot write ") and f"{WRITTEN[nth - 1]}': No space left" in err
    assert {path.name: path.read_bytes() for path in house.iterdir() if path.is_file()} == before


def test_if_the_disk_is_full_at_the_last_bytes_the_old_files_stay(prepare, house):
    assert prepare(text=PROSE)[0] == 0
    before = {name: (house / name).read_bytes() for name in WRITTEN}
    # with a thousand characters meta.json is the largest file, but still smaller than Python's buffer
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 1000)))
    (house / "transcriptions.txt").write_text(text, encoding="utf-8")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        status, _, err = prepare("--encoding=char")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 2 and err.startswith("error: cannot write ") and "meta.json" in err and err.count("\n") == 1
    assert {name: (house / name).read_bytes() for name in WRITTEN} == before
