"""What the tests share: a copy of the scripts, tiny datasets, and two ways to run a script."""

import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import regex

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tiny models gain nothing from more
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import configurator  # noqa: E402


@pytest.fixture(autouse=True)
def like_windows(monkeypatch):
    """In this process files behave as on Windows: one that is open, under any name, is not moved, linked or removed."""

    def is_open(path):
        if os.path.basename(path) == "lock":  # which is removed in another order on Windows
            return False
        try:
            wanted = os.stat(path)
        except OSError:
            return False
        for number in os.listdir("/dev/fd"):
            try:
                if os.path.samestat(os.fstat(int(number)), wanted):
                    return True
            except OSError:  # the listing's own
                continue
        return False

    def refusing(function):
        def refuse(*paths, **more):
            if any(map(is_open, paths)):
                raise PermissionError(errno.EACCES, "it is open, which Windows refuses", str(paths[0]))
            return function(*paths, **more)

        return refuse

    for name in ("replace", "rename", "remove", "link"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))


def status_of(script):
    """Run a script's main in this process; return its exit status."""
    try:
        script.run(script.main)
        return 0
    except SystemExit as end:
        return end.code or 0


GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def plain_merges(text, vocab_size):
    """
    The merges of byte pairs for a text, learnt in the plainest way: all pairs are counted anew for each. Of equally
    frequent pairs the first one counts: bytes in the order of the characters that stand for them in Hugging Face's
    files, the visible ones first, and then the merges in theirs.
    """
    visible = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    rank = {byte: i for i, byte in enumerate([*visible, *sorted({*range(256)} - {*visible})])}
    words = [(list(word.encode()), count) for word, count in Counter(regex.findall(GPT2_PATTERN, text)).items()]
    merges = []
    while len(merges) < vocab_size - 257:
        counts = Counter()
        for ids, count in words:
            for pair in zip(ids, ids[1:]):
                counts[pair] += count
        best = min(counts, key=lambda pair: (-counts[pair], [rank.get(i, i) for i in pair]), default=None)
        if counts[best] < 2:
            break
        for ids, _ in words:
            for i in range(len(ids)):
                if (*ids[i : i + 2],) == best:
                    ids[i : i + 2] = [256 + len(merges)]
        merges.append([*best])
    return merges


@pytest.fixture(scope="session")
def repo(tmp_path_factory):
    """A copy of the scripts with an empty data folder, so that no test touches the repository's own folders."""
    folder = tmp_path_factory.mktemp("repo")
    for file in ROOT.glob("*.py"):
        shutil.copy(file, folder)
    shutil.copytree(ROOT / "config", folder / "config")
    (folder / "data").mkdir()
    return folder


@pytest.fixture(scope="session")
def dataset(repo):
    """dataset(name, text, val_text) writes a dataset of characters; returns its folder and the ids of both splits."""

    def write(name, text="the cat sat on the mat. " * 40, val_text="a cat has a hat. " * 10, **counts):
        (folder := repo / "data" / name).mkdir()
        chars = "".join(sorted(set(text + val_text)))
        ids = {"train": [chars.index(c) for c in text], "val": [chars.index(c) for c in val_text]}
        for split in ids:
            np.array(ids[split], dtype="<u2").tofile(folder / f"{split}.bin")
        meta = {"encoding": "char", "vocab_size": len(chars), "chars": chars, **counts}
        (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        return folder, ids

    return write


@pytest.fixture(scope="session")
def command(repo):
    """command("train.py", "--key=value", ...): what subprocess needs to run a script in a process of its own."""
    more = {"PYTHONUNBUFFERED": "", "CUDA_VISIBLE_DEVICES": ""}

    def of(name, *args):
        return {"args": [sys.executable, repo / name, *args], "env": os.environ | more, "encoding": "utf-8"}

    return of


@pytest.fixture
def script(command, tmp_path):
    """script("train.py", "--key=value", ...) runs a script in a process of its own, to its end."""
    options = {"capture_output": True, "timeout": 60, "cwd": tmp_path}
    return lambda name, *args, **more: subprocess.run(**{**options, **command(name, *args), **more})


@pytest.fixture
def inside(repo, tmp_path, monkeypatch, capsys):
    """inside("train.py", "--key=value", ..., name=value) does so in this process, which saves importing torch."""

    def run(name, *args, **replaced):
        # a new module for each run, since a script's options are its globals; `replaced` are globals set by the test
        spec = importlib.util.spec_from_file_location("script", ROOT / name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(configurator, "HERE", str(repo))  # where data_folder() looks
        vars(module).update({"catch_signals": list, **replaced})  # pytest keeps its own signal handlers
        monkeypatch.setattr(sys, "argv", [name, *args])
        capsys.readouterr()
        return subprocess.CompletedProcess([name, *args], status_of(module), *capsys.readouterr())

    monkeypatch.chdir(tmp_path)
    return run
