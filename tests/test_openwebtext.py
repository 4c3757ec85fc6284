"""What data/openwebtext/prepare.py promises, shown on small files, with the cache in a temporary folder."""

import gzip
import importlib.util
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import status_of

from tokenizer import gpt2_tokenizer

ROOT = Path(__file__).resolve().parent.parent
HERE = Path("data", "openwebtext")
SPLITS = ("train", "val")
WRITTEN = ("train.bin", "val.bin", "meta.json")

gpt2 = gpt2_tokenizer()  # tests/test_tokenizer.py shows that its ids are tiktoken's own


def random_documents(count, seed=1):
    """`count` documents of words, signs, several scripts and all kinds of white space; some are empty."""
    rng = random.Random(seed)
    words = ["the", "kettle's", "3.14", "naïve", "“so”", "語る", "🫖", "<|endoftext|>", "don't", "ß", "e\u0301", "\x1c"]
    blanks = [" "] * 8 + ["  ", "\n", "\n\n", " \n ", "\t", "\u3000", "\u00a0", "   ", "\r\n", ""]
    return ["".join(rng.choice(words) + rng.choice(blanks) for _ in range(rng.randrange(40))) for _ in range(count)]


@pytest.fixture
def house(tmp_path):
    """The scripts that prepare.py needs, laid out as in the repository. Returns the folder of prepare.py."""
    (tmp_path / "house" / HERE).mkdir(parents=True)
    for name in ("configurator.py", "tokenizer.py", "data/prepare.py", HERE / "prepare.py"):
        shutil.copy(ROOT / name, tmp_path / "house" / name)
    return tmp_path / "house" / HERE


@pytest.fixture
def prepare(house, tmp_path, monkeypatch, capsys):
    """prepare("--key=value", ...) runs the copy's main in this process; returns status, output and error output."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["prepare.py", "--num_proc=1", *arguments])
        monkeypatch.setattr(sys, "path", sys.path[:])  # the script adds folders
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its own handlers
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        spec = importlib.util.spec_from_file_location("openwebtext_copy", house / "prepare.py")
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        capsys.readouterr()
        return (status_of(script), *capsys.readouterr())

    return call


@pytest.fixture
def command(house, tmp_path):
    """command("--key=value", ...): arguments for subprocess to run the copy offline and with an empty cache."""
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE"):
        environment.pop(name, None)
    return lambda *arguments: {
        "args": [sys.executable, str(house / "prepare.py"), *arguments],
        "env": environment,
        "cwd": tmp_path,
        "text": True,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }


def parquet(path, texts, column="text"):
    pq.write_table(pa.table({column: texts}), path)
    return path


def ids_in(folder):
    return {split: np.fromfile(folder / f"{split}.bin", dtype="<u2").tolist() for split in SPLITS}


def expected(texts):
    """
    The ids and bytes of each split by nanoGPT's procedure: `datasets` makes the split, and each document is encoded on
    its own and followed by 50256.
    """
    parts = datasets.Dataset.from_dict({"text": texts}).train_test_split(test_size=0.0005, seed=2357, shuffle=True)
    parts = {"train": parts["train"]["text"], "val": parts["test"]["text"]}
    ids = {split: [i for text in parts[split] for i in [*gpt2.bpe.encode_ordinary(text), 50256]] for split in SPLITS}
    return ids, {split: sum(len(text.encode("utf-8")) for text in parts[split]) for split in SPLITS}


def check(folder, texts):
    ids, sizes = expected(texts)
    assert ids_in(folder) == ids
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    assert meta.pop("encoding") == "gpt2" and meta.pop("vocab_size") == 50257
    assert meta == {split: {"tokens": len(ids[split]), "bytes": sizes[split]} for split in SPLITS}
    assert not list(folder.glob("*.tmp"))


def assert_refused(result, folder, *words):
    """The run ended with status 2, one line that contains the words, and no file."""
    status, _, error = result
    assert status == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    for word in words:
        assert word in error, error
    assert not [path.name for path in folder.iterdir() if path.name.endswith((".bin", ".json", ".tmp"))]


# -----------------------------------------------------------------------------
# what comes out


def test_ids_and_split_and_counts_are_those_of_nanogpts_procedure(prepare, house, tmp_path):
    texts = random_documents(2500)  # of which two are for validation
    assert "" in texts
    path = parquet(tmp_path / "documents.parquet", texts)
    status, out, error = prepare(f"--data_files={path}")
    assert (status, error) == (0, "")
    check(house, texts)
    meta = json.loads((house / "meta.json").read_text(encoding="utf-8"))
    assert out.splitlines() == ["2,500 documents, 2 of them for validation"] + [
        f"{split} has {meta[split]['tokens']:,} tokens ({meta[split]['bytes']:,} bytes of text)" for split in SPLITS
    ]


def test_long_words_and_long_blanks_change_no_id(prepare, house, tmp_path):
    texts = ["a" * 5000 + " 語る" * 30 + " " * 3000 + "語" * 500, "one two  three", " lead", "trail "]
    assert prepare(f"--data_files={parquet(tmp_path / 'a.parquet', texts)}")[0] == 0
    check(house, texts)


def test_a_space_inside_a_token_follows_a_no_break_space():  # the script relies on it
    tokens = [gpt2.decode_bytes([i]) for i in range(50256)]
    assert [token for token in tokens if b" " in token[1:].replace(b"\xc2\xa0 ", b"")] == []


@pytest.mark.parametrize("blanks", [" \u00a0", " \n", " \t\u3000\x1c\u00a0\n"])
def test_runs_of_white_space_give_tiktokens_ids(prepare, house, tmp_path, blanks):
    rng = random.Random(2)
    runs = ["".join(rng.choices(blanks, k=rng.randrange(9))) + rng.choice(["", "a", "'s", "7"]) for _ in range(2000)]
    texts = ["".join(rng.choices(runs, k=rng.randrange(1, 5))) for _ in range(1000)]
    assert prepare(f"--data_files={parquet(tmp_path / 'a.parquet', texts)}")[0] == 0
    check(house, texts)


def test_several_files_are_read_in_the_order_of_their_names(prepare, house, tmp_path):
    texts = random_documents(30)
    for i in (2, 0, 1):
        parquet(tmp_path / f"part[{i}].parquet", texts[10 * i : 10 * i + 10])  # brackets are special in a glob
    assert prepare(f"--data_files={tmp_path}/part*.parquet")[0] == 0
    check(house, texts)


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.json"])
def test_lines_of_json_are_documents(prepare, house, tmp_path, name):
    texts = random_documents(20)
    lines = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)).encode("utf-8")
    (tmp_path / name).write_bytes(gzip.compress(lines) if name.endswith("gz") else lines)
    assert prepare(f"--data_files={tmp_path / name}")[0] == 0
    check(house, texts)


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_a_text_file_is_one_document(prepare, house, tmp_path, suffix):
    texts = ["One line.\n\nAnother line.\n", "Second file", "", "Fourth\n"]
    for i, text in enumerate(texts):
        content = text.encode("utf-8")
        (tmp_path / f"{i}{suffix}").write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert prepare(f"--data_files={tmp_path}/*{suffix}")[0] == 0
    check(house, texts)


@pytest.mark.slow
def test_more_processes_than_documents_give_the_same_ids(command, house, tmp_path):
    path = parquet(tmp_path / "documents.parquet", texts := random_documents(3))
    process = subprocess.run(**command(f"--data_files={path}", "--num_proc=4"), timeout=120)
    assert (process.returncode, process.stderr) == (0, "")
    check(house, texts)


def test_a_second_run_reads_the_cache_unless_the_files_have_changed(prepare, house, tmp_path):
    path = parquet(tmp_path / "documents.parquet", texts := random_documents(30))
    stat = path.stat()
    assert prepare(f"--data_files={path}")[0] == 0
    for name in WRITTEN:
        (house / name).unlink()
    path.write_bytes(b"\0" * stat.st_size)  # `datasets` identifies a file by name, size and time
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert prepare(f"--data_files={path}")[0] == 0
    check(house, texts)
    parquet(path, texts := random_documents(30, seed=2))
    assert prepare(f"--data_files={path}")[0] == 0
    check(house, texts)


# -----------------------------------------------------------------------------
# OpenWebText itself, with a stand-in for the Hub


class FakeDataset:
    """Has the given number of documents, and fails when they are used."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def train_test_split(self, **options):
        assert options == {"test_size": 0.0005, "seed": 2357, "shuffle": True}
        raise RuntimeError("out of memory, as if")


@pytest.mark.parametrize("main", [RuntimeError("Dataset scripts are no longer supported"), FakeDataset(2_000_000)])
def test_the_parquet_revision_is_used_if_main_does_not_load_or_has_another_count(prepare, house, monkeypatch, main):
    asked = []

    def load_dataset(path, revision, split):
        assert (path, split) == ("Skylion007/openwebtext", "train")
        asked.append(revision)
        if revision == "main" and isinstance(main, Exception):
            raise main
        return main if revision == "main" else FakeDataset(8_013_769)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert_refused(prepare(), house, "out of memory, as if")
    assert asked == ["main", "refs/pr/22"]


def test_another_number_of_documents_is_refused(prepare, house, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: FakeDataset(8_013_768))
    assert_refused(prepare(), house, "expected 8,013,769 documents, found 8,013,768", "refs/pr/22", "--data_files")


@pytest.mark.slow
def test_without_network_and_cache_one_line_says_what_was_tried_and_what_to_do(command, house):
    process = subprocess.run(**command(), timeout=120)
    words = ("Skylion007/openwebtext", "main:", "refs/pr/22:", "Couldn't reach", "--data_files='folder/*.parquet'")
    assert_refused((process.returncode, process.stdout, process.stderr), house, *words)


# -----------------------------------------------------------------------------
# what cannot be prepared


def test_a_mistake_is_one_line_that_names_it_and_leaves_no_file(prepare, house, tmp_path):
    parquet(tmp_path / "body.parquet", ["one", "two"], column="body")
    parquet(tmp_path / "numbers.parquet", [1, 2])
    parquet(tmp_path / "nulls.parquet", ["one", None, "three"])
    parquet(tmp_path / "one.parquet", ["alone"])
    parquet(tmp_path / "none.parquet", pa.array([], pa.string()))
    (tmp_path / "words.csv").write_text("text\none\n", encoding="utf-8")
    (tmp_path / "broken.jsonl").write_text('{"text": "one"}\n{"text": "tw', encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes(b"na\xefve")
    whole = parquet(tmp_path / "damaged.parquet", ["word " * 500] * 100).read_bytes()
    (tmp_path / "damaged.parquet").write_bytes(whole[:-200])
    for name, words in {
        "body.parquet": ["['body']", "'text'"],
        "numbers.parquet": ["int64", "strings"],
        "nulls.parquet": ["'text' is missing in 1 of 3 documents"],
        "one.parquet": ["fewer than two documents"],
        "none.parquet": [],
        "words.csv": ["csv", "parquet, jsonl"],
        "*": ["one kind"],
        "missing*.txt": ["matches no file"],
        "broken.jsonl": ["cannot read"],
        "latin.txt": ["utf-8"],
        "damaged.parquet": ["arquet"],
    }.items():
        assert_refused(prepare(f"--data_files={tmp_path / name}"), house, f"--data_files={tmp_path / name}", *words)
    assert_refused(prepare("--num_proc=0"), house, "--num_proc=0", "at least 1")


@pytest.mark.slow
@pytest.mark.parametrize("room", [2_000, 250_000])  # bytes: none for the cache; enough for the cache, not for train.bin
def test_a_full_disk_leaves_the_old_files(command, house, tmp_path, room):
    path = parquet(tmp_path / "documents.parquet", ["a a a a a a a a a a " * 200] * 100)  # 200,000 ids
    run = command(f"--data_files={path}", "--num_proc=1")
    if room > 2_000:
        assert subprocess.run(**run, timeout=120).returncode == 0
    for name in WRITTEN:
        (house / name).write_text("old", encoding="utf-8")

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    process = subprocess.run(**run, preexec_fn=limit, timeout=120)
    assert process.returncode == 2 and process.stderr.count("\n") == 1, process.stderr
    assert process.stderr.startswith("error: cannot") and "File too large" in process.stderr
    assert ("train.bin" in process.stderr) == (room > 2_000)
    assert [(house / name).read_text(encoding="utf-8") for name in WRITTEN] == ["old"] * 3
    assert not list(house.glob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_the_old_files_no_half_ones_and_no_process(command, house, tmp_path, number):
    path = parquet(tmp_path / "documents.parquet", random_documents(20_000))
    (house / "train.bin").write_text("old", encoding="utf-8")
    process = subprocess.Popen(**command(f"--data_files={path}", "--num_proc=2"), start_new_session=True)
    deadline = time.monotonic() + 60
    half = house / "train.bin.tmp"
    while not (half.exists() and half.stat().st_size) and time.monotonic() < deadline:  # wait until it is writing
        time.sleep(0.02)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does for Ctrl-C: the workers get it too
    else:
        process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert error.strip() == "interrupted"
    assert sorted(path.name for path in house.iterdir()) == ["prepare.py", "train.bin"]
    assert (house / "train.bin").read_text(encoding="utf-8") == "old"
    with pytest.raises(ProcessLookupError):  # no process is left in its group
        os.killpg(process.pid, 0)
