"""What data/hitchikersguide/prepare.py promises. It runs on copies: the repository's own data stays as it is."""

import hashlib
import importlib.util
import io
import json
import os
import resource
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import status_of

from tokenizer import GPT2Tokenizer, make_tokenizer, read_meta

ROOT = Path(__file__).resolve().parent.parent
HERE = Path("data", "hitchikersguide")
WRITTEN = ("train.bin", "val.bin", "meta.json")
PROSE = "The kettle had opinions, and on Thursdays it aired them. " * 100

gpt2 = GPT2Tokenizer()  # tests/test_tokenizer.py shows that its ids are tiktoken's own


@pytest.fixture
def house(tmp_path):
    """The scripts that prepare.py needs and the novel, laid out as in the repository; the folder of prepare.py."""
    (tmp_path / "house" / HERE).mkdir(parents=True)
    for name in (
        "configurator.py",
        "tokenizer.py",
        "data/prepare.py",
        HERE / "prepare.py",
        HERE / "transcriptions.txt",
    ):
        shutil.copy(ROOT / name, tmp_path / "house" / name)
    return tmp_path / "house" / HERE


@pytest.fixture
def prepare(house, monkeypatch, capsys):
    """Runs the copy's main in this process; gives its status, standard output and standard error."""

    def call(*arguments, text=None):
        if text is not None:
            (house / "transcriptions.txt").write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        monkeypatch.setattr(sys, "argv", ["prepare.py", *arguments])
        monkeypatch.setattr(sys, "path", sys.path[:])  # the script puts its root there
        spec = importlib.util.spec_from_file_location("prepare_copy", house / "prepare.py")
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        return (status_of(script), *capsys.readouterr())

    return call


def ids_in(folder):
    return [np.frombuffer((folder / f"{split}.bin").read_bytes(), dtype="<u2").tolist() for split in ("train", "val")]


def text_in(folder):
    """The text that was prepared, as the ids and the meta.json give it back."""
    tokenizer = make_tokenizer(read_meta(folder))
    return b"".join(tokenizer.decode_bytes(ids) for ids in ids_in(folder)).decode("utf-8")


def nanogpts_split(text):
    """nanoGPT's: the first 90% of the characters, then each part encoded."""
    n = len(text)
    return text[: int(n * 0.9)], text[int(n * 0.9) :]


# -----------------------------------------------------------------------------
# the novel


def test_the_novel_is_the_one_that_was_written_for_this_byte_for_byte():
    content = (ROOT / HERE / "transcriptions.txt").read_bytes()
    assert hashlib.sha256(content).hexdigest() == "2a73aaf4505286ff1d1a1eca6d69bcba38b825aa436e6b6838133927f11e4f8e"


def test_without_cleaning_the_tokens_are_nanogpts_own(prepare, house):
    status, out, err = prepare("--clean=False")
    train, val = nanogpts_split((house / "transcriptions.txt").read_text(encoding="utf-8"))
    assert (status, err) == (0, "") and "took out" not in out
    assert ids_in(house) == [gpt2.bpe.encode_ordinary(train), gpt2.bpe.encode_ordinary(val)]


def test_by_default_all_80_chapter_numbers_are_taken_out_and_nothing_else(prepare, house):
    status, out, err = prepare()
    assert (status, err) == (0, "")
    assert "took out 80 spoken chapter numbers" in out
    lines = (house / "transcriptions.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) == 80 and all(line.startswith("Chapter ") for line in lines)
    assert text_in(house) == "".join(line.partition(". ")[2] for line in lines)


def test_it_works_from_any_folder_and_without_anything_else(house, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    # -I: no current folder and no PYTHONPATH on sys.path, so that the copies are what is imported
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


@pytest.mark.parametrize("encoding", ["gpt2", "char"])
def test_the_bin_files_are_little_endian_uint16_and_nothing_else(prepare, house, encoding):
    assert prepare(f"--encoding={encoding}", "--clean=False", text=PROSE)[0] == 0
    train, val = nanogpts_split(PROSE)
    tokenizer = make_tokenizer(read_meta(house))
    for split, part in (("train", train), ("val", val)):
        expected = b"".join(i.to_bytes(2, "little") for i in tokenizer.encode(part))
        assert (house / f"{split}.bin").read_bytes() == expected


@pytest.mark.parametrize("encoding", ["gpt2", "char"])
def test_meta_json_counts_the_tokens_and_bytes_of_each_split(prepare, house, encoding):
    text = "Größe, 東京 🙂! " * 200
    status, out, _ = prepare(f"--encoding={encoding}", "--clean=False", text=text)
    train, val = nanogpts_split(text)
    meta = json.loads((house / "meta.json").read_text(encoding="utf-8"))
    expected = {"encoding": "gpt2", "vocab_size": 50257}
    if encoding == "char":
        expected = {"encoding": "char", "vocab_size": len(set(text)), "chars": "".join(sorted(set(text)))}
    for split, part, ids in zip(("train", "val"), (train, val), ids_in(house)):
        expected[split] = {"tokens": len(ids), "bytes": len(part.encode("utf-8"))}
        assert f"{split} has {len(ids):,} tokens ({expected[split]['bytes']:,} bytes of text)" in out
    assert status == 0 and meta == expected


def test_characters_make_the_round_trip(prepare, house):
    text = 'Größe, 東京 🙂, "quoted"\\ \u2028 \0 tab\t\n' * 100
    assert prepare("--encoding=char", "--clean=False", text=text)[0] == 0
    assert text_in(house) == text
    assert sum(map(len, ids_in(house))) == len(text)


def test_input_reads_another_text(prepare, house, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine=1.txt").write_text(PROSE, encoding="utf-8")
    assert prepare("--input=mine=1.txt")[0] == 0  # relative to the current folder, as the user's paths are
    assert text_in(house) == PROSE
    assert (house / "train.bin").exists() and not (tmp_path / "train.bin").exists()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_input_reads_standard_input_as_it_reads_a_file(prepare, house, tmp_path, monkeypatch, end):
    text = f"Chapter One. {PROSE}{end}{end}{end}Chapter Two. {PROSE}{end}".encode()
    (tmp_path / "file.txt").write_bytes(text)
    written = []
    for source in (str(tmp_path / "file.txt"), "-"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        assert prepare(f"--input={source}")[0] == 0
        written.append([(house / name).read_bytes() for name in WRITTEN])
    assert written[0] == written[1]


def test_preparing_again_gives_the_same_files(prepare, house):
    written = []
    for _ in range(2):
        assert prepare(text=PROSE)[0] == 0
        written.append([(house / name).read_bytes() for name in WRITTEN])
    assert written[0] == written[1]


# -----------------------------------------------------------------------------
# cleaning


@pytest.fixture
def clean(prepare):
    """Prepares characters, which spares the time that building the byte pairs takes."""
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
def test_a_chapter_number_is_taken_out_in_the_forms_that_people_speak(clean, house, heading, gap):
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
def test_what_is_no_spoken_chapter_number_stays(clean, house, line):
    status, out, _ = clean(text=f"{line}\n{PROSE}\n{line}\n")
    assert status == 0 and "took out 0 spoken chapter numbers" in out
    assert text_in(house) == f"{line}\n{PROSE}\n{line}\n"


def test_doubled_white_space_is_taken_out_and_counted(clean, house):
    status, out, _ = clean(text=f"{PROSE}one  two\tthree \t four\n\n\n\nfive\n\nsix\nseven")
    assert status == 0 and "0 spoken chapter numbers and 4 runs of white space" in out
    assert text_in(house) == f"{PROSE}one two three four\n\nfive\n\nsix\nseven"


def test_a_byte_order_mark_does_not_hide_the_first_chapter_number(clean, house):
    status, out, _ = clean(text=b"\xef\xbb\xbf" + f"Chapter One. {PROSE}".encode())
    assert status == 0 and "took out 1 spoken chapter numbers" in out
    assert text_in(house) == PROSE


def test_without_cleaning_everything_stays(clean, house):
    text = f"\ufeffChapter One.  {PROSE}\n\n\n\tChapter 2. {PROSE}"
    assert clean("--clean=False", text=text)[0] == 0
    assert text_in(house) == text


@pytest.mark.parametrize("take_out", [True, False])
def test_the_line_ends_of_windows_are_read_as_python_reads_them(clean, house, take_out):
    lines = [f"Chapter One. {PROSE}", f"Chapter Two. {PROSE}", ""]
    assert clean(f"--clean={take_out}", text="\r\n".join(lines))[0] == 0
    windows = ids_in(house)
    assert clean(f"--clean={take_out}", text="\n".join(lines))[0] == 0
    assert ids_in(house) == windows


# -----------------------------------------------------------------------------
# mistakes


@pytest.mark.parametrize("old", [True, False], ids=["prepared before", "never prepared"])
@pytest.mark.parametrize(
    "text, arguments, about",
    [
        (None, ["--input=no_such_file.txt"], "cannot read the text 'no_such_file.txt'"),
        (None, ["--input="], "cannot read the text ''"),
        (None, ["--input=."], "cannot read the text '.'"),
        (b"", [], "too short"),
        (b"", ["--encoding=char"], "too short"),
        (b"\n", [], "too short"),
        (b"\xef\xbb\xbf", [], "too short"),
        (b"Chapter One. Chapter Two. ", [], "too short"),
        (b"A short text, too short to train on.\n", [], "too short"),
        (b"x" * 640, ["--encoding=char"], "too short: val would have 64 tokens"),
        (PROSE.encode("utf-16"), [], "is not UTF-8"),
        (PROSE.encode() + "caf\xe9".encode("latin-1"), ["--clean=False"], "is not UTF-8"),
        (PROSE.encode(), ["--encoding=gpt4"], "--encoding=gpt4 is unknown: it may be gpt2 or char"),
        (PROSE.encode(), ["--clean=perhaps"], "--clean=perhaps should be True or False"),
        (PROSE.encode(), ["--inptu=text.txt"], "did you mean --input?"),
        (PROSE.encode(), ["--input"], "write --key=value"),
        pytest.param(
            "".join(map(chr, range(0xE000, 0x1F000))).encode(),
            ["--encoding=char"],
            "65",
            id="more than uint16 can count",
        ),
    ],
)
def test_a_mistake_is_one_line_and_status_2_and_the_old_files_stay(prepare, house, text, arguments, about, old):
    if old:
        assert prepare(text=PROSE[::-1])[0] == 0
    before = {path.name: path.read_bytes() for path in house.iterdir() if path.name in WRITTEN}
    assert len(before) == (3 if old else 0)
    status, _, err = prepare(*arguments, text=text)
    assert status == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n") and about in err
    after = {path.name: path.read_bytes() for path in house.iterdir()}
    assert {name: after[name] for name in WRITTEN if name in after} == before
    assert not any(name.endswith(".tmp") for name in after)


def test_a_missing_transcript_is_named(prepare, house):
    (house / "transcriptions.txt").unlink()
    status, out, err = prepare()
    assert (status, out) == (2, "")
    assert err.startswith("error: cannot read the text ") and "transcriptions.txt" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "text", [b"", b"caf\xe9 " * 1000, b"too short", None], ids=["empty", "latin-1", "short", "none"]
)
def test_a_real_run_with_an_unusable_text_ends_with_one_line_and_status_2(house, text):
    source = house / "transcriptions.txt"
    source.unlink()
    if text is not None:
        source.write_bytes(text)
    before = sorted(path.name for path in house.iterdir())
    result = subprocess.run([sys.executable, "-IB", house / "prepare.py"], capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert sorted(path.name for path in house.iterdir()) == before


@pytest.mark.parametrize("name", WRITTEN)
def test_where_a_file_cannot_be_written_the_old_ones_stay(prepare, house, name):
    assert prepare(text=PROSE)[0] == 0
    before = {name: (house / name).read_bytes() for name in WRITTEN}
    (house / f"{name}.tmp").mkdir()  # in the way, even of root
    status, _, err = prepare(text=PROSE[::-1])
    assert status == 2 and err.startswith("error: cannot write ") and err.count("\n") == 1
    assert {name: (house / name).read_bytes() for name in WRITTEN} == before


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_disk_that_fails_at_any_of_the_files_leaves_the_old_ones(prepare, house, monkeypatch, nth):
    assert prepare(text=PROSE)[0] == 0
    before = {path.name: path.read_bytes() for path in house.iterdir() if path.is_file()}
    calls = []

    def fsync(fd):
        calls.append(fd)
        if len(calls) == nth:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    status, _, err = prepare("--encoding=char")
    assert status == 2 and err.startswith("error: cannot write ") and "No space left on device" in err
    assert {path.name: path.read_bytes() for path in house.iterdir() if path.is_file()} == before


def test_a_disk_that_is_full_at_the_last_bytes_leaves_the_old_files(prepare, house):
    assert prepare(text=PROSE)[0] == 0
    before = {name: (house / name).read_bytes() for name in WRITTEN}
    # a thousand characters make the meta.json the largest file, though still smaller than Python's buffer
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
