"""
What data/prepare.py promises: any text becomes a dataset, in little memory. It runs on a copy of the scripts.

The mistakes that it reports are in test_prepare.py.
"""

import importlib.util
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import regex
import tokenizers
from conftest import GPT2_PATTERN, plain_merges, status_of

import configurator
from tokenizer import BytePairTokenizer, TokensTokenizer, gpt2_tokenizer, learn_tokenizer, make_tokenizer, read_meta
from tokenizer import same_ids, tokenizer_json

ROOT = Path(__file__).resolve().parent.parent
WRITTEN = {"train.bin", "val.bin", "meta.json"}
PROSE = "The kettle had opinions, and on Thursdays it aired them. " * 100
END, END_OF_TEXT = 50256, "<|endoftext|>"

gpt2 = gpt2_tokenizer()  # tests/test_tokenizer.py shows that its ids are tiktoken's own


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A copy of the scripts, with only prepare.py in data/. The current folder is another one."""
    (tmp_path / "house" / "data").mkdir(parents=True)
    for file in ROOT.glob("*.py"):
        shutil.copy(file, tmp_path / "house")
    shutil.copytree(ROOT / "config", tmp_path / "house" / "config")
    shutil.copy(ROOT / "data" / "prepare.py", tmp_path / "house" / "data")
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")
    monkeypatch.setattr(configurator, "HERE", str(tmp_path / "house"))  # where data_folder() looks
    return tmp_path / "house"


@pytest.fixture
def script(house, monkeypatch):
    """The copy as a module."""
    monkeypatch.setattr(sys, "path", sys.path[:])  # the script adds a folder
    spec = importlib.util.spec_from_file_location("prepare_any", house / "data" / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def prepare(script, monkeypatch, capsys):
    """prepare("--key=value", ...) runs its main; returns status, output and error output."""

    def call(*arguments):
        vars(script).update(
            input=None,
            dataset=None,
            encoding="gpt2",
            vocab_size=None,
            tokenizer=None,
            val_fraction=0.1,
            clean=False,
            split_documents=True,
        )
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
    """The documents that the ids of each split decode to."""
    splits, meta = [], read_meta(folder)
    tokenizer = gpt2 if meta["encoding"] == "gpt2" else make_tokenizer(meta)
    for ids in ids_in(folder):
        assert ids[-1] == tokenizer.end_of_text
        text = tokenizer.decode_bytes(ids).decode("utf-8")
        assert text.endswith("<|endoftext|>")
        splits.append(text.split("<|endoftext|>")[:-1])
    return splits


def in_blocks(text, size):
    return [text[i : i + size] for i in range(0, len(text), size)]


# -----------------------------------------------------------------------------
# encoding and cleaning block by block gives the same as at once

SYLLABLES = [
    *(" ", " ", "  ", "\n", "\n\n", "\r\n", "\t", "\v", "\f", "\x1c", "\x1f", "\x85", "\xa0", "\u2028", "\u3000"),
    *("\u200b", "a", "Word", "é", "e\u0301", "東京", "。", "שלום", "🙂", "👩‍👩‍👧", "1", "42", "½", "Ⅷ", "٣", "ﬁ"),
    *("'", "'s", "'ll", "'ve", "'S", "’s", "''", "!", "...", "—", "<|endoftext|>", "\ufeff", "\0", "_", "\U0010ffff"),
]


@pytest.fixture(scope="module", params=["gpt2", "bpe"])
def byte_pairs(request):
    """GPT-2's tokenizer, and one learnt from a text with all that is odd."""
    odd = "".join(random.Random(5).choices(SYLLABLES, k=20_000))
    return gpt2 if request.param == "gpt2" else learn_tokenizer([odd], 2000)


def test_blocks_give_the_ids_of_the_whole_wherever_they_are_cut(script, byte_pairs):
    draw = random.Random(42)
    for _ in range(400):
        text = "".join(draw.choices(SYLLABLES, k=draw.randint(0, 80)))
        for size in (1, 2, 3, 7, 50):
            blocks = list(script.rechunk(in_blocks(text, size), script.WHOLE_WORDS))
            assert "".join(blocks) == text
            assert [i for block in blocks for i in byte_pairs.encode(block)] == byte_pairs.encode(text), (text, size)


def test_gpt2s_pattern_parts_any_two_characters_where_a_text_is_cut(script):
    odd = [s for s in SYLLABLES if len(s) == 1]
    for a in odd:
        for b in odd:
            if script.WHOLE_WORDS.match(a + b):
                for before, after in (("", ""), ("it'", "ll"), ("  ", "  "), ("x", "x"), ("!", "!"), ("\n", "\n\n.")):
                    left, right = before + a, b + after
                    whole, *parts = (regex.findall(GPT2_PATTERN, text) for text in (left + right, left, right))
                    assert parts[0] + parts[1] == whole, (left, right)
                    assert gpt2.encode(left) + gpt2.encode(right) == gpt2.encode(left + right), (left, right)


LONG = {
    "one letter": "x" * 600_000,
    "letters": "".join(random.Random(1).choices("abcdefghij", k=600_000)),
    "japanese": "東京は夜の七時。" * 80_000,
    "digits": "7" * 600_000,
    "long lines": ("a" * 300_000 + "\n") * 2,
    "words": "word " * 150_000,
    "blanks": " " * 300_000 + "x",
}


@pytest.mark.slow
@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_very_long_words_lines_and_blanks_give_the_ids_of_the_whole(script, text):
    blocks = script.rechunk(in_blocks(text, script.BLOCK_CHARS), script.WHOLE_WORDS)
    assert [i for block in blocks for i in gpt2.encode(block)] == gpt2.encode(text)


@pytest.mark.slow
@pytest.mark.parametrize("blank", [" ", "\n", "\u3000"])
def test_a_million_blanks_which_tiktoken_cannot_encode_at_once_are_encoded(script, blank):
    text = "x" + blank * 1_200_000 + "y"
    blocks = script.rechunk(in_blocks(text, script.BLOCK_CHARS), script.WHOLE_WORDS)
    ids = [i for block in blocks for i in gpt2.encode(block)]
    assert gpt2.decode_bytes(ids).decode("utf-8") == text


def test_a_text_of_many_blocks_is_encoded_as_nanogpt_encodes_it(script, prepare, house):
    script.BLOCK_CHARS = 1000
    draw = random.Random(7)
    text = write("text.txt", "".join(draw.choices(SYLLABLES, k=20_000)).replace("\r", ""))
    status, out, err = prepare("--input=text.txt", "--split_documents=False")
    n = len(text)
    assert (status, err) == (0, "") and f"found {END_OF_TEXT} {text.count(END_OF_TEXT)} times, which stays plain" in out
    assert ids_in(house / "data" / "text") == [gpt2.encode(text[: int(n * 0.9)]), gpt2.encode(text[int(n * 0.9) :])]


def test_cleaning_block_by_block_removes_what_cleaning_the_whole_does(script):
    draw = random.Random(3)
    blanks = ["\n", "\n", "\n\n\n", " ", "  ", "\t", "\r", "\ufeff"]
    words = ["Chapter One.", "Chapter 12:", "Chapter", "Two", "word", "CHAPTER I A ", "Chapter 4?\n? ", "desk. "]
    for _ in range(500):
        text = "".join(draw.choices(blanks + words, k=40))
        removed = script.Counter()
        whole = "".join(script.clean_blocks([text], removed))
        for size in (1, 2, 5, 30):
            removed_in_blocks = script.Counter()
            assert "".join(script.clean_blocks(in_blocks(text, size), removed_in_blocks)) == whole, (text, size)
            assert removed_in_blocks == removed


@pytest.mark.parametrize("encoding", ["gpt2", "char"])
def test_a_text_is_encoded_in_small_blocks(script, prepare, monkeypatch, encoding):
    script.BLOCK_CHARS, lengths = 1000, []
    for kind in (BytePairTokenizer, TokensTokenizer):
        encode = kind.encode
        count = lambda self, text, encode=encode: lengths.append(len(text)) or encode(self, text)  # noqa: E731
        monkeypatch.setattr(kind, "encode", count)
    write("text.txt", PROSE * 20)
    assert prepare("--input=text.txt", f"--encoding={encoding}")[0] == 0
    assert len(lengths) > 100 and max(lengths) < 2000


# -----------------------------------------------------------------------------
# one text


@pytest.mark.slow
def test_a_text_becomes_a_dataset_of_its_name_and_the_printed_command_trains_on_it(prepare, house):
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


def test_the_printed_command_for_a_large_text_has_the_larger_config(prepare):
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


@pytest.mark.parametrize("encoding", ["gpt2", "bpe", "char"])
def test_standard_input_is_read_as_a_file_is(prepare, house, monkeypatch, encoding):
    write("text.txt", PROSE)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PROSE.encode())))
    for options in ("--input=text.txt", "--input=- --dataset=piped"):
        assert prepare(f"--encoding={encoding}", *options.split())[0] == 0
    assert ids_in(house / "data" / "text") == ids_in(house / "data" / "piped")
    assert same_ids(read_meta(house / "data" / "text"), read_meta(house / "data" / "piped"))


# -----------------------------------------------------------------------------
# several documents


def essays(count=40, words=60, seed=0):
    draw = random.Random(seed)
    vocabulary = ["kettle", "Provost", "it's", "42", "—", "towel", "\n", "東京"]
    return [f"Essay {i}. " + " ".join(draw.choices(vocabulary, k=words)) + "\n" for i in range(count)]


@pytest.mark.parametrize("encoding", ["gpt2", "bpe"])
def test_each_document_of_a_folder_is_in_one_split_as_a_whole_in_natural_order(prepare, house, encoding):
    texts = essays()
    for i, text in enumerate(texts):
        write(f"essays/part {i % 2}/{i}.{'TXT' if i % 3 else 'md'}", text)
    write("essays/cover.jpg", b"\xff\xd8")
    write("essays/.git/notes.txt", "not a text of mine")
    status, out, err = prepare("--input=essays", f"--encoding={encoding}")
    assert (status, err) == (0, "") and "left out" not in out
    assert "'essays' has 40 text files (.txt, .md, .jsonl) and 1 other file\n" in out
    train, val = documents_in(house / "data" / "essays")
    natural = texts[::2] + texts[1::2]
    assert train == [text for text in natural if text not in val] and val == [text for text in natural if text in val]
    assert 0.05 < sum(map(len, val)) / sum(map(len, texts)) <= 0.1
    assert f"{len(train)} documents for training, {len(val)} for validation" in out
    meta = read_meta(house / "data" / "essays")
    assert meta["train"]["bytes"] == len("".join(train).encode()) and meta["val"]["bytes"] == len("".join(val).encode())


def test_the_split_depends_on_the_contents_of_documents_and_not_on_file_names_or_types(prepare, house):
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
    assert status == 0 and "left out 4 empty or duplicate documents" in out
    assert sorted(sum(documents_in(house / "data" / "essays"), [])) == sorted(texts)


def test_if_all_documents_are_copies_of_one_it_is_divided_as_a_single_text(prepare, house):
    for name in ("a.txt", "b.txt"):
        write(f"novels/{name}", PROSE)
    assert prepare("--input=novels")[0] == 0
    assert ids_in(house / "data" / "novels") == [gpt2.encode(PROSE[:5130]), gpt2.encode(PROSE[5130:])]


@pytest.mark.parametrize("empty_one", [False, True])  # a text that is left out changes nothing
def test_if_no_document_fits_the_validation_split_the_smallest_goes_there(prepare, house, empty_one):
    for i in (1, 2, 3):
        write(f"novels/{i}.txt", f"{i} {PROSE * (5 - i)}")
    if empty_one:
        write("novels/4.txt", "")
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
# documents in one text, with <|endoftext|> between them


@pytest.mark.parametrize("form", ["{}<|endoftext|>", "{}<|endoftext|>\n", "{}\n<|endoftext|>\n\n", "<|endoftext|>\n{}"])
@pytest.mark.parametrize("size", [1, 5, 13, 997, 2**18])
def test_an_end_of_text_in_a_text_makes_documents_wherever_blocks_are_cut(script, prepare, house, form, size):
    script.BLOCK_CHARS = size
    texts = [text.strip() + "." for text in essays(40, words=20)]
    write("all.txt", "".join(map(form.format, texts)))
    status, out, err = prepare("--input=all.txt")
    assert (status, err) == (0, "")
    assert "found <|endoftext|> 40 times, which makes 40 documents\n" in out and "left out" not in out
    train, val = documents_in(house / "data" / "all")
    assert sorted(text.strip() for text in train + val) == sorted(texts)
    assert f"{len(train)} documents for training, {len(val)} for validation" in out and len(val) >= 2


def test_documents_in_one_text_are_those_of_a_folder(prepare, house):
    texts = essays(30)
    for i, text in enumerate([*texts, texts[3], ""]):
        write(f"essays/{i}.txt", text)
    write("all.txt", END_OF_TEXT.join([*texts, texts[3], "", " \n"]))
    write("all.jsonl", "".join(json.dumps({"text": END_OF_TEXT.join(texts[i : i + 10])}) + "\n" for i in (0, 10, 20)))
    results = []
    for source in ("essays", "all.txt", "all.jsonl"):
        status, out, _ = prepare(f"--input={source}", "--dataset=x")
        meta = read_meta(house / "data" / "x")
        assert meta.pop("options")["input"] == os.path.abspath(source)
        results.append([*ids_in(house / "data" / "x"), meta])
        assert status == 0 and ("found <|endoftext|> 32 times, which makes 31 documents\n" in out) == ("txt" in source)
        assert ("left out 1 empty or duplicate document\n" in out) == ("txt" in source)
    assert results[0] == results[1] == results[2]


def test_documents_of_characters_in_one_text_have_a_line_end_between_them(prepare, house):
    texts = ["".join(random.Random(i).choices("abcdef ", k=500)).strip() for i in range(12)]
    write("all.txt", END_OF_TEXT.join(texts))
    assert prepare("--input=all.txt", "--encoding=char")[0] == 0
    meta = read_meta(house / "data" / "all")
    splits = [make_tokenizer(meta).decode_bytes(ids).decode() for ids in ids_in(house / "data" / "all")]
    assert sorted("".join(splits).splitlines()) == sorted(texts) and meta["chars"] == "\n abcdef"


def test_a_single_document_with_an_end_is_divided_as_a_single_text(prepare, house):
    write("one.txt", f"{PROSE}<|endoftext|>\n")
    status, out, _ = prepare("--input=one.txt")
    assert status == 0 and "found <|endoftext|> 1 time, which makes 1 document\n" in out
    assert ids_in(house / "data" / "one") == [gpt2.encode(PROSE[:5130]), gpt2.encode(PROSE[5130:])]


def test_each_document_in_a_text_is_cleaned_from_its_beginning(prepare, house):
    write("all.txt", f"Chapter One. {PROSE}<|endoftext|>Chapter Two. x{PROSE}")
    status, out, _ = prepare("--input=all.txt", "--clean=True")
    assert status == 0 and "took out 2 spoken chapter numbers" in out
    assert sorted(sum(documents_in(house / "data" / "all"), [])) == [PROSE, f"x{PROSE}"]


def test_too_short_documents_in_one_text_may_be_read_as_one(prepare):
    write("all.txt", "A haiku.<|endoftext|>" + PROSE)
    status, _, err = prepare("--input=all.txt")
    assert status == 2 and "(a document is never divided, but --split_documents=False reads all as one)\n" in err
    assert prepare("--input=all.txt", "--split_documents=False")[0] == 0


# -----------------------------------------------------------------------------
# a vocabulary of the text's own


def test_of_a_single_text_byte_pairs_are_learnt_from_the_training_part_only(prepare, house):
    text = write("text.txt", PROSE + "zyzzyva " * 60)
    status, out, err = prepare("--input=text.txt", "--encoding=bpe", "--vocab_size=280")
    train, val = text[: int(len(text) * 0.9)], text[int(len(text) * 0.9) :]
    assert (status, err) == (0, "") and "zyzzyva" not in train and plain_merges(text, 280) != plain_merges(train, 280)
    meta = read_meta(house / "data" / "text")
    assert (meta["encoding"], meta["vocab_size"], meta["merges"]) == ("bpe", 280, plain_merges(train, 280))
    learnt = f"learnt a vocabulary of 280 from {len(train):,} of {len(train):,} characters of training text\n"
    assert learnt in out and "--vocab_size" not in out
    theirs = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(make_tokenizer(meta))))
    assert ids_in(house / "data" / "text") == [theirs.encode(part).ids for part in (train, val)]


def test_of_several_documents_byte_pairs_are_learnt_from_those_for_training_only(prepare, house):
    texts = [f"{text}{f'word{i * 7919}x ' * 20}end.\n" for i, text in enumerate(essays(20))]
    write("all.txt", END_OF_TEXT.join(texts))
    status, out, _ = prepare("--input=all.txt", "--encoding=bpe", "--vocab_size=600")
    train, val = documents_in(house / "data" / "all")
    assert status == 0 and sorted(train + val) == sorted(texts) and len(val) >= 1
    meta = read_meta(house / "data" / "all")
    assert meta["merges"] == plain_merges("".join(train), 600) != plain_merges("".join(texts), 600)
    seen = len("".join(train))
    assert f"learnt a vocabulary of {meta['vocab_size']} from {seen:,} of {seen:,} characters of training text\n" in out


def test_what_is_learnt_does_not_depend_on_where_blocks_are_cut(script, prepare, house):
    text = "".join(random.Random(7).choices(SYLLABLES, k=10_000)).replace("\r", "")
    write("text.txt", text)
    results = []
    for script.BLOCK_CHARS in (100, 997, 2**18):
        assert prepare("--input=text.txt", "--encoding=bpe", "--vocab_size=500", "--split_documents=False")[0] == 0
        results.append([*ids_in(house / "data" / "text"), read_meta(house / "data" / "text")])
    assert results[0] == results[1] == results[2]
    assert results[0][2]["merges"] == plain_merges(text[: int(len(text) * 0.9)], 500)


def test_of_a_very_long_text_a_sample_is_read_that_is_spread_over_all_of_it(script, prepare, house):
    script.BLOCK_CHARS, script.LEARN_CHARS = 200, 4000
    draw = random.Random(3)
    words = ["".join(draw.sample("abcdefghijklmnopqrstuvwxyz", 7)) for _ in range(20)]
    text = write("text.txt", "".join(f"{word} " * 250 for word in words))  # 40,000 characters
    status, out, _ = prepare("--input=text.txt", "--encoding=bpe")
    found = re.search(r"learnt a vocabulary of ([\d,]+) from ([\d,]+) of ([\d,]+) characters of training text\n", out)
    vocab_size, taken, seen = (int(number.replace(",", "")) for number in found.groups())
    assert status == 0 and 3800 <= taken <= 4200 and seen == len(text) * 0.9
    tokenizer = make_tokenizer(read_meta(house / "data" / "text"))
    assert tokenizer.vocab_size == vocab_size
    tokens = {tokenizer.decode_bytes([i]).decode() for i in range(128, vocab_size) if i > 255}
    assert {word for word in words if f" {word}" in tokens} == {*words[:18]}  # the last two are for validation


@pytest.mark.parametrize("learn_chars", [10**4, 9 * 10**4 - 1, 9 * 10**4, 10**6])
def test_as_much_is_read_as_there_is_up_to_the_most(script, prepare, learn_chars):
    script.BLOCK_CHARS, script.LEARN_CHARS = 1000, learn_chars
    write("text.txt", "the kettle " * 9090 + "the kettle")
    out = prepare("--input=text.txt", "--encoding=bpe")[1]
    taken = int(re.search(r"from ([\d,]+) of 90,000 characters", out)[1].replace(",", ""))
    assert taken == 90_000 if learn_chars >= 90_000 else abs(taken - learn_chars) <= 1000


def test_a_text_too_small_for_the_vocabulary_has_a_smaller_one_and_says_so(prepare, house):
    text = write("text.txt", PROSE)
    status, out, err = prepare("--input=text.txt", "--encoding=bpe", "--vocab_size=65536")
    merges = plain_merges(text[: int(len(text) * 0.9)], 65536)
    assert (status, err) == (0, "") and f"learnt a vocabulary of {257 + len(merges)} from " in out
    assert "for --vocab_size=65536 the text repeats too few pairs of tokens\n" in out
    meta = read_meta(house / "data" / "text")
    assert (meta["vocab_size"], meta["merges"]) == (257 + len(merges), merges)
    assert max(map(max, ids_in(house / "data" / "text"))) < meta["vocab_size"] < 320


@pytest.mark.slow
def test_ctrl_c_ends_learning_at_once_and_leaves_no_dataset(house):
    write("letters.txt", "".join(random.Random(1).choices("abcdefghijkl", k=4_000_000)))  # is learnt from in 15 s
    options = ["--input=letters.txt", "--encoding=bpe"]
    command = [sys.executable, "-u", house / "data" / "prepare.py", *options]
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a child inherits where it is ignored
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, ignored)
    assert process.stdout.readline() == "learning a vocabulary of up to 11,392 token ids\n"
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.strip()) == (130, "", "interrupted") and time.monotonic() - began < 3
    assert [path.name for path in (house / "data").iterdir()] == ["prepare.py"]


# -----------------------------------------------------------------------------
# another dataset's vocabulary

OTHERS = {  # a dataset's meta, and how another program encodes by it
    "gpt2": ({"encoding": "gpt2", "vocab_size": 50257}, lambda text: gpt2.bpe.encode_ordinary(text)),
    "bpe": (learn_tokenizer([PROSE[:-300] + "towel " * 9], 290).meta(), None),
    "char": (TokensTokenizer("".join(sorted({*PROSE, "\n", "z"}))).meta(), lambda text: [*map(CHARS.index, text)]),
}
CHARS = OTHERS["char"][0]["chars"]


def encoded_elsewhere(name, text):
    meta, encode = OTHERS[name]
    if encode is None:
        theirs = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(make_tokenizer(meta))))
        return theirs.encode(text).ids
    return encode(text)


@pytest.fixture
def other(house):
    """other(meta, "data/name") writes the meta.json of a dataset, in the house or elsewhere."""

    def make(meta, path="data/other"):
        write(house / path / "meta.json", json.dumps(meta | {"train": {"tokens": 3, "bytes": 9}}))

    return make


@pytest.mark.parametrize("documents", [1, 12])
@pytest.mark.parametrize("name", OTHERS)
def test_another_datasets_vocabulary_is_taken(prepare, house, other, name, documents):
    meta = OTHERS[name][0]
    other(meta)
    texts = [
        f"{i * 'kettle '}{PROSE}".translate({ord(digit): None for digit in "0123456789"}) for i in range(documents)
    ]
    for i, text in enumerate(texts):
        write(f"texts/{i}.txt", text)
    # the current folder is another one: data/other is found beside the scripts
    status, out, err = prepare("--input=texts", "--tokenizer=data/other")
    assert (status, err) == (0, "") and "learnt" not in out
    written = read_meta(house / "data" / "texts")
    assert same_ids(written, meta)
    if documents == 1:
        cut = int(len(texts[0]) * 0.9)
        assert ids_in(house / "data" / "texts") == [
            encoded_elsewhere(name, part) for part in (texts[0][:cut], texts[0][cut:])
        ]
    else:
        end = [meta["vocab_size"] - 1] if name != "char" else [CHARS.index("\n")]
        train, val = ids_in(house / "data" / "texts")
        wanted = [encoded_elsewhere(name, text) + end for text in texts]
        assert len(train + val) == sum(map(len, wanted))
        assert all(str(ids)[1:-1] in f"{str(train)[1:-1]}; {str(val)[1:-1]}" for ids in wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "bpe"])
def test_the_vocabulary_of_an_exported_model_is_taken(prepare, house, name):
    exported = tokenizer_json(make_tokenizer(OTHERS[name][0]))
    write("hf/tokenizer.json", json.dumps(exported))
    write("text.txt", PROSE)
    status, out, err = prepare("--input=text.txt", "--tokenizer=hf")
    assert (status, err) == (0, "") and f"encoding as hf is: {name}, " in out  # the folder that is used
    assert same_ids(read_meta(house / "data" / "text"), OTHERS[name][0])
    write("hf/tokenizer.json", json.dumps(exported | {"normalizer": {"type": "Lowercase"}}))
    assert "it uses another encoding" in prepare("--input=text.txt", "--tokenizer=hf")[2]


@pytest.mark.parametrize("path", ["{house}/data/other", "{house}/data/other/", "../house/data/other", "data/other/"])
def test_another_dataset_may_be_named_in_many_ways(prepare, house, other, path):
    other(OTHERS["char"][0])
    write("text.txt", PROSE)
    status, _, err = prepare("--input=text.txt", f"--tokenizer={path.format(house=house)}", "--encoding=char")
    assert (status, err) == (0, "") and read_meta(house / "data" / "text")["chars"] == CHARS


def test_a_folder_that_is_where_the_path_says_goes_before_one_beside_the_scripts(prepare, house, other):
    other(OTHERS["char"][0], "../desk/data/other")
    other(OTHERS["gpt2"][0])
    write("text.txt", PROSE)
    assert prepare("--input=text.txt", "--tokenizer=data/other")[0] == 0
    assert read_meta(house / "data" / "text")["encoding"] == "char"


@pytest.mark.parametrize(
    "meta, options, said",
    [
        (
            OTHERS["char"][0],
            "--tokenizer=data/none",
            "--tokenizer=data/none has no vocabulary: it should be",
        ),
        (OTHERS["char"][0], "--tokenizer=.", "--tokenizer=. has no vocabulary"),
        (OTHERS["char"][0], "--tokenizer=text.txt", "--tokenizer=text.txt has no vocabulary"),
        (
            OTHERS["char"][0],
            "--tokenizer=data/other --encoding=bpe",
            "--encoding=bpe is not that of --tokenizer=data/o",
        ),
        (
            OTHERS["bpe"][0],
            "--tokenizer=data/other --encoding=char",
            "--encoding=char is not that .*, bpe: leave it out",
        ),
        (
            OTHERS["bpe"][0],
            "--tokenizer=data/other --vocab_size=300",
            "--vocab_size=300 is that of --tokenizer=data/other",
        ),
        (
            OTHERS["bpe"][0],
            "--tokenizer=data/other --vocab_size=300 --encoding=bpe",
            "--vocab_size=300 is that of --tokenizer=data/other: leave it out",
        ),
        (TokensTokenizer("ab").meta(), "--tokenizer=data/other", "no character 'T'; it has 'ab'"),
        (
            {"encoding": "tokens", "vocab_size": 9},
            "--tokenizer=data/other",
            "tokens of its own: it should have byte pairs or",
        ),
        (OTHERS["bpe"][0], "--tokenizer=/nowhere/other", "--tokenizer=/nowhere/other has no vocabulary"),
        (OTHERS["bpe"][0], "--tokenizer=data/nowhere/other", "--tokenizer=data/nowhere/other has no vocabulary"),
        (OTHERS["bpe"][0], "--tokenizer=", "--tokenizer= has no vocabulary"),
        (OTHERS["bpe"][0] | {"vocab_size": 7}, "--tokenizer=data/other", "vocab_size 7 should be "),
    ],
)
def test_a_vocabulary_that_cannot_be_taken_is_an_error_of_one_line(prepare, house, other, meta, options, said):
    other(meta)
    write("text.txt", PROSE)
    status, _, err = prepare("--input=text.txt", *options.split())
    assert status == 2 and re.fullmatch(f"error: .*{said}.*\n", err)
    assert sorted(path.name for path in (house / "data").iterdir()) == ["other", "prepare.py"]


# -----------------------------------------------------------------------------
# other datasets are safe


def test_preparing_again_replaces_the_dataset_and_says_so(prepare, house):
    write("text.txt", PROSE[::-1])
    assert "replaced" not in prepare("--input=text.txt")[1]
    write("text.txt", PROSE)
    assert "data/text was prepared before and will be replaced" in prepare("--input=text.txt")[1]
    assert gpt2.decode_bytes(sum(ids_in(house / "data" / "text"), [])).decode() == PROSE


@pytest.mark.parametrize("theirs, about", [("prepare.py", "of its own"), ("train.bin", "this script did not make")])
def test_a_dataset_that_something_else_made_is_not_touched(prepare, house, theirs, about):
    write("text.txt", PROSE)
    write(house / "data" / "text" / theirs, "theirs")
    status, out, err = prepare("--input=text.txt")
    assert status == 2 and about in err and "--dataset=NAME" in err and err.count("\n") == 1
    assert [path.name for path in (house / "data" / "text").iterdir()] == [theirs]
    assert prepare("--input=text.txt", "--dataset=mine")[0] == 0
    assert {path.name for path in (house / "data" / "mine").iterdir()} == WRITTEN


# -----------------------------------------------------------------------------
# messages


def test_count_knows_singular_and_plural(script):
    assert [script.count(n, "file") for n in (0, 1, 2, 2000)] == ["0 files", "1 file", "2 files", "2,000 files"]


def test_messages_about_a_single_thing_are_in_the_singular(prepare):
    write("essays/a.txt", f"Chapter One. {PROSE}\n1  blank")
    write("essays/cover.jpg", b"\xff\xd8")
    out = prepare("--input=essays", "--encoding=char", "--clean=True")[1]
    assert "'essays' has 1 text file (.txt, .md, .jsonl) and 1 other file\n" in out
    assert "took out 1 spoken chapter number and 1 run of white space\n" in out
    assert "document" not in out
    write("essays/b.txt", PROSE)
    write("essays/empty.txt", "")
    out = prepare("--input=essays", "--encoding=char")[1]
    assert "'essays' has 3 text files (.txt, .md, .jsonl) and 1 other file\n" in out
    assert "1 document for training, 1 for validation\n" in out and "left out 1 empty or duplicate document\n" in out
    assert "'essays/a*' matches 1 file\n" in prepare("--input=essays/a*", "--dataset=x", "--encoding=char")[1]


def test_the_sizes_of_tiny_splits_are_in_the_singular(script, capsys):
    script.print_sizes({"train": {"tokens": 1000, "bytes": 0}, "val": {"tokens": 1, "bytes": 1}})
    assert capsys.readouterr().out == "train has 1,000 tokens (0 bytes of text)\nval has 1 token (1 byte of text)\n"


def test_files_that_hold_text_in_other_formats_are_named(prepare):
    write("essays/a.txt", PROSE)
    for name in ("b.docx", "c.PDF", "sub/d.epub", "cover.jpg", ".hidden.pdf"):
        write(f"essays/{name}", b"PK\x03\x04")
    out = prepare("--input=essays", "--encoding=char")[1]
    assert "'essays' has 1 text file (.txt, .md, .jsonl) and 4 other files\n" in out
    assert "left out 'essays/b.docx', 'essays/c.PDF', 'essays/sub/d.epub': save as .txt what should be read\n" in out
    for i in range(40):
        write(f"essays/{i:02}.pdf", b"%PDF")
    assert "'essays/09.pdf' and 33 more: save as .txt" in prepare("--input=essays", "--encoding=char")[1]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_that_cannot_show_a_folders_name_ends_nothing(house, encoding):
    write("東京/ü.txt", PROSE)
    write("東京/\u0416.docx", b"")
    command = [sys.executable, house / "data" / "prepare.py", "--input=東京", "--dataset=x", "--encoding=char"]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(command, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (
        b"'??' has 1 text file" in done.stdout and b"left out '??/?.docx'" in done.stdout and b"next: " in done.stdout
    )
    done = subprocess.run([*command, "--val_fraction=0.001"], env=environment, capture_output=True)
    assert done.returncode == 2 and re.fullmatch(rb"error: .* is too short: .*\r?\n", done.stderr)


# -----------------------------------------------------------------------------
# files and folders in the way


def test_links_to_folders_are_followed_once_each_even_in_a_circle(prepare, house):
    texts = essays(20)
    for i, text in enumerate(texts):
        write(f"{'essays' if i % 2 else 'elsewhere/deep'}/{i}.txt", text)
    Path("essays/linked").symlink_to(Path("elsewhere").resolve())
    Path("essays/again").symlink_to(Path("elsewhere").resolve())
    Path("elsewhere/deep/circle").symlink_to(Path("essays").resolve())
    write("essays/.git/hidden.txt", "hidden")
    Path("essays/.git/linked").symlink_to(Path("elsewhere").resolve())
    status, out, err = prepare("--input=essays")
    assert (status, err) == (0, "") and "'essays' has 20 text files" in out and "left out" not in out
    assert sorted(sum(documents_in(house / "data" / "essays"), [])) == sorted(texts)


def test_a_pipe_among_texts_is_left_out(prepare):
    write("essays/a.txt", PROSE)
    os.mkfifo("essays/b.txt")
    status, out, _ = prepare("--input=essays", "--encoding=char")
    assert status == 0 and "'essays' has 1 text file (.txt, .md, .jsonl) and 1 other file\n" in out


@pytest.mark.parametrize("path", ["pipe.txt", os.devnull])
def test_a_pipe_or_device_as_input_is_an_error_that_names_standard_input(prepare, path):
    os.mkfifo("pipe.txt")
    status, _, err = prepare(f"--input={path}", "--dataset=x")
    assert status == 2 and err.startswith(f"error: {path!r} is a pipe or a device") and "--input=-" in err


def test_a_binary_file_among_texts_is_named(prepare, house):
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
