"""What data/prepare.py promises: any text becomes a dataset, in little memory. It runs on a copy of the scripts."""

import importlib.util
import io
import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import status_of

from tokenizer import CharTokenizer, GPT2Tokenizer, make_tokenizer, read_meta

ROOT = Path(__file__).resolve().parent.parent
WRITTEN = {"train.bin", "val.bin", "meta.json"}
PROSE = "The kettle had opinions, and on Thursdays it aired them. " * 100
END = 50256

gpt2 = GPT2Tokenizer()  # tests/test_tokenizer.py shows that its ids are tiktoken's own


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A copy of the scripts with an empty data folder but for prepare.py; the current folder is another one."""
    (tmp_path / "house" / "data").mkdir(parents=True)
    for file in ROOT.glob("*.py"):
        shutil.copy(file, tmp_path / "house")
    shutil.copytree(ROOT / "config", tmp_path / "house" / "config")
    shutil.copy(ROOT / "data" / "prepare.py", tmp_path / "house" / "data")
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "house"


@pytest.fixture
def script(house, monkeypatch):
    """The copy as a module."""
    monkeypatch.setattr(sys, "path", sys.path[:])  # the script puts its root there
    spec = importlib.util.spec_from_file_location("prepare_any", house / "data" / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def prepare(script, monkeypatch, capsys):
    """prepare("--key=value", ...) runs its main; gives its status, standard output and standard error."""

    def call(*arguments, **replaced):
        options = {"input": None, "dataset": None, "encoding": "gpt2", "val_fraction": 0.1, "clean": False}
        vars(script).update({**options, **replaced})
        monkeypatch.setattr(sys, "argv", ["prepare.py", *arguments])
        return (status_of(script), *capsys.readouterr())

    return call


def write(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return text


def ids_in(folder):
    return [np.fromfile(folder / f"{split}.bin", dtype="<u2").tolist() for split in ("train", "val")]


def documents_in(folder):
    """The documents of each split, as the ids give them back."""
    splits = []
    for ids in ids_in(folder):
        text = gpt2.decode_bytes(ids).decode("utf-8")
        assert text.endswith("<|endoftext|>")
        splits.append(text.split("<|endoftext|>")[:-1])
    return splits


def in_blocks(text, size):
    return [text[i : i + size] for i in range(0, len(text), size)]


# -----------------------------------------------------------------------------
# piece by piece as the whole

SYLLABLES = [
    *(
        " ",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        "\v",
        "\f",
        "\x1c",
        "\x1f",
        "\x85",
        "\xa0",
        "\u2028",
        "\u3000",
        "\u200b",
    ),
    *("a", "Word", "é", "e\u0301", "東京", "。", "שלום", "🙂", "👩‍👩‍👧", "1", "42", "½", "Ⅷ", "٣", "ﬁ"),
    *("'", "'s", "'ll", "'ve", "'S", "’s", "''", "!", "...", "—", "<|endoftext|>", "\ufeff", "\0", "_", "\U0010ffff"),
]


def test_pieces_give_the_ids_of_the_whole_wherever_the_blocks_end(script):
    draw = random.Random(42)
    for _ in range(400):
        text = "".join(draw.choices(SYLLABLES, k=draw.randint(0, 80)))
        for size in (1, 2, 3, 7, 50):
            pieces = list(script.recut(in_blocks(text, size), script.WORD))
            assert "".join(pieces) == text
            assert [i for piece in pieces for i in gpt2.encode(piece)] == gpt2.encode(text), (text, size)


def test_each_place_between_any_two_characters_where_a_text_is_cut_is_one_where_gpt2_begins_a_new_token(script):
    odd = [s for s in SYLLABLES if len(s) == 1]
    for a in odd:
        for b in odd:
            if script.WORD.match(a + b):
                for before, after in (("", ""), ("it'", "ll"), ("  ", "  "), ("x", "x"), ("!", "!"), ("\n", "\n\n.")):
                    left, right = before + a, b + after
                    assert gpt2.encode(left) + gpt2.encode(right) == gpt2.encode(left + right), (left, right)


@pytest.mark.parametrize(
    "text",
    [
        "x" * 600_000,
        "".join(random.Random(1).choices("abcdefghij", k=600_000)),
        "東京は夜の七時。" * 80_000,
        "7" * 600_000,
    ]
    + [("a" * 300_000 + "\n") * 2, "word " * 150_000, " " * 300_000 + "x"],
    ids=["one letter", "letters", "japanese", "digits", "long lines", "words", "blanks"],
)
def test_very_long_stretches_give_the_ids_of_the_whole(script, text):
    pieces = script.recut(in_blocks(text, script.BLOCK), script.WORD)
    assert [i for piece in pieces for i in gpt2.encode(piece)] == gpt2.encode(text)


@pytest.mark.parametrize("blank", [" ", "\n", "\u3000"])
def test_a_million_blanks_which_tiktoken_cannot_encode_at_once_are_encoded(script, blank):
    text = "x" + blank * 1_200_000 + "y"
    pieces = list(script.recut(in_blocks(text, script.BLOCK), script.WORD))
    ids = [i for piece in pieces for i in gpt2.encode(piece)]
    assert gpt2.decode_bytes(ids).decode("utf-8") == text


def test_a_text_of_many_blocks_is_encoded_as_nanogpt_encodes_it(script, prepare, house):
    script.BLOCK = 1000
    draw = random.Random(7)
    text = write("text.txt", "".join(draw.choices(SYLLABLES, k=20_000)).replace("\r", ""))
    status, out, err = prepare("--input=text.txt")
    n = len(text)
    assert (status, err) == (0, "")
    assert ids_in(house / "data" / "text") == [gpt2.encode(text[: int(n * 0.9)]), gpt2.encode(text[int(n * 0.9) :])]


def test_cleaning_block_by_block_takes_out_what_cleaning_the_whole_does(script):
    draw = random.Random(3)
    parts = [
        "Chapter One.",
        "Chapter 12:",
        "\n",
        "\n",
        "\n\n\n",
        " ",
        "  ",
        "\t",
        "word",
        "Chapter",
        "Two",
        "\r",
        "\ufeff",
    ]
    for _ in range(500):
        text = "".join(draw.choices(parts, k=40))
        taken = [script.Counter(), script.Counter()]
        whole = "".join(script.cleaned([text], taken[0]))
        for size in (1, 2, 5, 30):
            taken[1].clear()
            assert "".join(script.cleaned(in_blocks(text, size), taken[1])) == whole, (text, size)
            assert taken[0] == taken[1]


@pytest.mark.parametrize("encoding", ["gpt2", "char"])
def test_only_a_few_blocks_are_held_at_a_time(script, prepare, monkeypatch, encoding):
    script.BLOCK, longest = 1000, []
    for kind in (GPT2Tokenizer, CharTokenizer):
        encode = kind.encode
        count = lambda self, text, encode=encode: longest.append(len(text)) or encode(self, text)  # noqa: E731
        monkeypatch.setattr(kind, "encode", count)
    write("text.txt", PROSE * 20)
    assert prepare("--input=text.txt", f"--encoding={encoding}")[0] == 0
    assert len(longest) > 100 and max(longest) < 2000


# -----------------------------------------------------------------------------
# one text


def test_a_text_becomes_a_dataset_of_its_name_which_train_py_takes(prepare, house):
    write("My Novel (2nd).txt", PROSE)
    status, out, err = prepare("--input=My Novel (2nd).txt")
    folder = house / "data" / "my-novel-2nd"
    assert (status, err) == (0, "") and {path.name for path in folder.iterdir()} == WRITTEN
    train, val = ids_in(folder)
    assert f"train has {len(train):,} tokens (5,130 bytes of text)" in out
    assert f"val has {len(val):,} tokens (570 bytes of text)" in out
    command = out.splitlines()[-1].removeprefix("next: ").split()
    assert command[:3] == ["python", "train.py", "config/train_hitchikers_cpu.py"]
    tiny = ["--max_iters=1", "--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=16", "--eval_iters=1"]
    result = subprocess.run([sys.executable, *command[1:], *tiny], cwd=house, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert (house / "out-my-novel-2nd" / "ckpt.pt").exists()


def test_a_large_text_is_sent_to_the_larger_config(prepare):
    write("text.txt", PROSE * 200)
    assert "config/train_hitchikers.py --dataset=text " in prepare("--input=text.txt", "--encoding=char")[1]


def test_val_fraction_divides_the_characters(prepare, house):
    text = write("text.txt", PROSE)
    assert prepare("--input=text.txt", "--encoding=char", "--val_fraction=0.25")[0] == 0
    assert list(map(len, ids_in(house / "data" / "text"))) == [len(text) * 3 // 4, len(text) // 4]


def test_nothing_is_cleaned_unless_asked(prepare, house):
    text = write("text.txt", f"Chapter One.  {PROSE}")
    for arguments, expected in (([], text), (["--clean=True"], PROSE)):
        assert prepare("--input=text.txt", "--encoding=char", *arguments)[0] == 0
        tokenizer = make_tokenizer(read_meta(house / "data" / "text"))
        assert b"".join(map(tokenizer.decode_bytes, ids_in(house / "data" / "text"))).decode() == expected


def test_standard_input_is_read_as_a_file_is(prepare, house, monkeypatch):
    write("text.txt", PROSE)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PROSE.encode())))
    assert prepare("--input=text.txt")[0] == prepare("--input=-", "--dataset=piped")[0] == 0
    assert ids_in(house / "data" / "text") == ids_in(house / "data" / "piped")


# -----------------------------------------------------------------------------
# several documents


def essays(count=40, words=60, seed=0):
    draw = random.Random(seed)
    vocabulary = ["kettle", "Provost", "it's", "42", "—", "towel", "\n", "東京"]
    return [f"Essay {i}. " + " ".join(draw.choices(vocabulary, k=words)) + "\n" for i in range(count)]


def test_each_document_of_a_folder_is_in_one_split_as_a_whole_in_natural_order(prepare, house):
    texts = essays()
    for i, text in enumerate(texts):
        write(f"essays/part {i % 2}/{i}.{'TXT' if i % 3 else 'md'}", text)
    write("essays/cover.jpg", b"\xff\xd8")
    write("essays/.git/notes.txt", "not a text of mine")
    status, out, err = prepare("--input=essays")
    assert (status, err) == (0, "") and "40 texts" in out and "1 other" in out and "left out" not in out
    train, val = documents_in(house / "data" / "essays")
    natural = texts[::2] + texts[1::2]
    assert train == [text for text in natural if text not in val] and val == [text for text in natural if text in val]
    assert 0.05 < sum(map(len, val)) / sum(map(len, texts)) <= 0.1
    assert f"{len(train)} documents to train on, {len(val)} to validate" in out
    meta = read_meta(house / "data" / "essays")
    assert meta["train"]["bytes"] == len("".join(train).encode()) and meta["val"]["bytes"] == len("".join(val).encode())


def test_the_split_depends_on_what_documents_say_and_not_on_their_names_or_kind(prepare, house):
    texts = essays()
    for i, text in enumerate(texts):
        write(f"a/{i}.txt", text)
        write(f"b/{hash(text)}.txt", text)
    write("c.jsonl", "\n".join(json.dumps({"id": i, "text": text}) for i, text in enumerate(texts)) + "\n\n")
    splits = []
    for source in ("a", "b", "c.jsonl", "a/*.txt"):
        assert prepare(f"--input={source}", "--dataset=x")[0] == 0
        splits.append([sorted(split) for split in documents_in(house / "data" / "x")])
    assert splits[0] == splits[1] == splits[2] == splits[3]


def test_the_validation_split_is_spread_over_the_documents(prepare, house):
    write("a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in essays(300, words=20)))
    assert prepare("--input=a.jsonl")[0] == 0
    numbers = [int(re.match(r"Essay (\d+)", text)[1]) for text in documents_in(house / "data" / "a")[1]]
    assert min(numbers) < 50 and max(numbers) > 250 and 20 <= len(numbers) <= 30


def test_copies_and_empty_documents_are_left_out_and_counted(prepare, house):
    texts = essays(20)
    for i, text in enumerate([*texts, texts[3], texts[3], texts[7], ""]):
        write(f"essays/{i}.txt", text)
    status, out, _ = prepare("--input=essays")
    assert status == 0 and "left out 4 documents" in out
    assert sorted(sum(documents_in(house / "data" / "essays"), [])) == sorted(texts)


def test_where_all_but_one_are_copies_it_is_divided_as_one_text(prepare, house):
    for name in ("a.txt", "b.txt"):
        write(f"novels/{name}", PROSE)
    assert prepare("--input=novels")[0] == 0
    assert ids_in(house / "data" / "novels") == [gpt2.encode(PROSE[:5130]), gpt2.encode(PROSE[5130:])]


def test_of_few_large_documents_the_smallest_is_for_validation(prepare, house):
    for i in (1, 2, 3):
        write(f"novels/{i}.txt", f"{i} {PROSE * (5 - i)}")
    assert prepare("--input=novels")[0] == 0
    assert documents_in(house / "data" / "novels")[1] == [f"3 {PROSE * 2}"]


def test_characters_have_a_line_end_between_documents(prepare, house):
    texts = ["".join(random.Random(i).choices("abcdef ", k=500)) for i in range(12)]
    for i, text in enumerate(texts):
        write(f"essays/{i:02}.txt", text)
    assert prepare("--input=essays", "--encoding=char")[0] == 0
    meta = read_meta(house / "data" / "essays")
    splits = [make_tokenizer(meta).decode_bytes(ids).decode() for ids in ids_in(house / "data" / "essays")]
    assert sorted("".join(splits).splitlines()) == sorted(texts) and splits[1].count("\n") == 1
    assert meta["train"]["bytes"] == len(splits[0])


def test_byte_order_marks_are_no_part_of_documents(prepare, house):
    texts = essays(20)
    for i, text in enumerate(texts):
        write(f"essays/{i}.txt", b"\xef\xbb\xbf" + text.encode())
    assert prepare("--input=essays")[0] == 0
    assert sorted(sum(documents_in(house / "data" / "essays"), [])) == sorted(texts)


# -----------------------------------------------------------------------------
# other datasets are safe


def test_preparing_again_replaces_the_dataset_and_says_so(prepare, house):
    write("text.txt", PROSE[::-1])
    assert "replaced" not in prepare("--input=text.txt")[1]
    write("text.txt", PROSE)
    assert "data/text was prepared before, and is replaced" in prepare("--input=text.txt")[1]
    assert gpt2.decode_bytes(sum(ids_in(house / "data" / "text"), [])).decode() == PROSE


@pytest.mark.parametrize("theirs, about", [("prepare.py", "a prepare.py of its own"), ("train.bin", "not made here")])
def test_a_dataset_that_was_made_otherwise_is_not_touched(prepare, house, theirs, about):
    write("text.txt", PROSE)
    write(house / "data" / "text" / theirs, "theirs")
    status, out, err = prepare("--input=text.txt")
    assert status == 2 and about in err and "--dataset=NAME" in err and err.count("\n") == 1
    assert [path.name for path in (house / "data" / "text").iterdir()] == [theirs]
    assert prepare("--input=text.txt", "--dataset=mine")[0] == 0
    assert {path.name for path in (house / "data" / "mine").iterdir()} == WRITTEN


# -----------------------------------------------------------------------------
# mistakes

GOOD = '{"text": "good"}\n'


@pytest.mark.parametrize("old", [True, False], ids=["prepared before", "never prepared"])
@pytest.mark.parametrize(
    "name, text, arguments, about",
    [
        (None, "", [], "--input=PATH"),
        ("a.txt", PROSE, ["--input="], "cannot read the text ''"),
        ("a.txt", PROSE, ["--input=none.txt"], "cannot read the text 'none.txt'"),
        ("a.txt", PROSE, ["--input=-"], "--dataset=NAME"),
        ("a.txt", PROSE, ["--input=b*.txt"], "no text in 'b*.txt'"),
        ("folder/a.doc", PROSE, ["--input=folder"], "no text in 'folder'"),
        ("a.txt", PROSE, ["--input=a.txt", "--encoding=gpt4"], "--encoding=gpt4 is unknown"),
        ("a.txt", PROSE, ["--input=a.txt", "--val_fraction=0"], "--val_fraction=0.0 should be between 0 and 1"),
        ("a.txt", PROSE, ["--input=a.txt", "--val_fraction=1"], "--val_fraction=1.0 should be between 0 and 1"),
        ("a.txt", PROSE, ["--input=a.txt", "--dataset=../a"], "'../a' cannot be a dataset's name"),
        ("a.txt", PROSE, ["--input=a.txt", "--dataset="], "'' cannot be a dataset's name"),
        ("東京.txt", PROSE, ["--input=東京.txt"], "--dataset=NAME"),
        ("a.txt", "", ["--input=a.txt"], "too short: train would have 0 tokens"),
        ("a.txt", "short", ["--input=a.txt"], "too short"),
        ("a.jsonl", "\n\n", ["--input=a.jsonl"], "too short"),
        ("a.jsonl", GOOD + '{"text": "other"}\n', ["--input=a.jsonl"], "a document is never divided"),
        ("a.jsonl", GOOD + "\nnot JSON\n", ["--input=a.jsonl"], "'a.jsonl', line 3 is not JSON"),
        ("a.jsonl", GOOD + "[" * 100_000, ["--input=a.jsonl"], "'a.jsonl', line 2 is not JSON"),
        ("a.jsonl", GOOD + '{"txt": "x"}', ["--input=a.jsonl"], "'a.jsonl', line 2 has no \"text\""),
        ("a.jsonl", GOOD + '{"text": 42}', ["--input=a.jsonl"], "'a.jsonl', line 2 has no \"text\""),
        ("a.jsonl", GOOD + '["text"]', ["--input=a.jsonl"], "'a.jsonl', line 2 has no \"text\""),
        ("a.txt", PROSE.encode("utf-16"), ["--input=a.txt"], "is not UTF-8 (byte 0), but seems to be UTF-16"),
        ("a.txt", PROSE.encode("utf-32"), ["--input=a.txt"], "is not UTF-8 (byte 0), but seems to be UTF-32"),
        ("a.txt", PROSE.encode("utf-16-le"), ["--input=a.txt"], "a binary file or UTF-16"),
        (
            "a.txt",
            PROSE.encode() + b"caf\xe9",
            ["--input=a.txt"],
            "is not UTF-8 (byte 5703), but seems to be Windows-1252",
        ),
        ("a.txt", PROSE.encode() * 9 + b"\x81\xff", ["--input=a.txt"], "is not UTF-8 (byte 51300), nor"),
        ("a.txt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ["--input=a.txt"], "a binary file"),
        ("a.jsonl", GOOD.encode() + b'{"text": "caf\xe9"}', ["--input=a.jsonl"], "WINDOWS-1252"),
    ],
)
def test_a_mistake_is_one_line_and_status_2_and_nothing_is_changed(prepare, house, name, text, arguments, about, old):
    data = house / "data"
    if old:
        write("a.txt", PROSE[::-1])
        assert prepare("--input=a.txt", "--encoding=char")[0] == 0
        Path("a.txt").unlink()
    before = {path: path.read_bytes() for path in data.rglob("*") if path.suffix in (".bin", ".json")}
    if name:
        write(name, text)
    folders = sorted(path.name for path in data.iterdir())
    status, _, err = prepare(*arguments)
    assert status == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n") and about in err
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file() and path.suffix != ".py"} == before
    assert sorted(path.name for path in data.iterdir()) == folders


def test_a_file_that_is_no_text_among_others_is_named(prepare, house):
    for i, text in enumerate(essays()):
        write(f"essays/{i}.txt", text)
    write("essays/17.txt", b"\0\xff")
    status, _, err = prepare("--input=essays")
    assert status == 2 and "17.txt' is not UTF-8 (byte 1), but a binary file" in err
    assert [path.name for path in (house / "data").iterdir()] == ["prepare.py"]


def test_a_folder_that_cannot_be_made_is_an_error(prepare, house):
    write("text.txt", PROSE)
    write(house / "data" / "text", "a file in the way")
    status, _, err = prepare("--input=text.txt")
    assert status == 2 and err.startswith("error: cannot make the folder ") and err.count("\n") == 1
