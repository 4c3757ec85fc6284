"""
Each mistake ends a script at once with status 2 and one line that begins with "error: ", and changes no file.

The table below is the one place for wrong values on the command line; tests/test_fuzz.py tries whatever else there is.
Mistakes in config files are in tests/test_options.py.
"""

import os
import pickle
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

SIZES = [
    *("--device=cpu", "--dtype=float32", "--compile=False", "--n_layer=1", "--n_head=2", "--n_embd=16"),
    *("--block_size=8", "--batch_size=3", "--gradient_accumulation_steps=1", "--max_iters=2", "--dataset=cats"),
]
OPTIONS = {"train.py": SIZES, "export.py": [], "plot.py": []}  # of the scripts that do not take just a --device


class Harm:
    """Makes a file when a pickle of it is loaded carelessly."""

    def __reduce__(self):
        return os.open, ("harm", os.O_CREAT)


@pytest.fixture(scope="session")
def earlier(dataset, repo, command, tmp_path_factory):
    """A folder with an earlier run in `out`, which no mistake may harm, and with files that are wrong in many ways."""
    dataset("cats")
    dataset("other", "xyz" * 30, "zyx" * 10)
    dataset("short", val_text="a hat. ")
    dataset("recounted", train={"tokens": 7, "bytes": 7})
    with open(dataset("odd")[0] / "train.bin", "ab") as f:
        f.write(b"\0")
    np.array([*range(12)] * 9, dtype="<u2").tofile(dataset("beyond")[0] / "val.bin")  # but the vocabulary has 11
    (dataset("damaged")[0] / "meta.json").write_text('{"encoding": "char", "vocab_size": 3')
    harmful, _ = dataset("harmful")
    (harmful / "meta.json").unlink()
    (harmful / "meta.pkl").write_bytes(pickle.dumps(Harm()))
    (repo / "data" / "unprepared").mkdir()
    (repo / "data" / "unprepared" / "prepare.py").touch()

    folder = tmp_path_factory.mktemp("earlier")
    subprocess.run(**command("train.py", *SIZES), cwd=folder, check=True, stdout=subprocess.DEVNULL)
    whole = (folder / "out" / "ckpt.pt").read_bytes()
    checkpoint = torch.load(folder / "out" / "ckpt.pt", weights_only=True)
    for name, content in {
        "truncated": whole[: len(whole) // 2],
        "text": b"The answer is 42.\n",
        "pickle": pickle.dumps({"model": {}, "model_args": {}}),
        "harmful": pickle.dumps({"model": Harm(), "model_args": {}}),
        "list": [1, 2, 3],
        "bare": checkpoint["model"],
        "resized": checkpoint | {"model_args": {**checkpoint["model_args"], "n_embd": 32}},
        "orphan": {key: checkpoint[key] for key in checkpoint if key != "meta"} | {"config": {"dataset": "gone"}},
        "strange": checkpoint | {"model_args": {**checkpoint["model_args"], "n_experts": 8}},
        "meta-list": checkpoint | {"meta": []},
        "meta-bare": checkpoint | {"meta": {"encoding": "char", "vocab_size": 5}},
        "config-text": checkpoint | {"config": "none"},
        "iter-text": checkpoint | {"iter_num": "3"},
        "loss-text": checkpoint | {"best_val_loss": "low"},
        "moments": checkpoint | {"optimizer": {}},
    }.items():
        (folder / f"out-{name}").mkdir()
        for file in ("ckpt.pt", "last.pt"):
            path = folder / f"out-{name}" / file
            path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)

    (folder / "file").touch()
    (folder / "dangling").symlink_to("gone")
    for name in ("harm.py", "harm.txt"):  # no mistake runs it
        (folder / name).write_text("open('harm', 'w').close()\n")
    (folder / "latin1.txt").write_bytes("Öl".encode("latin-1"))
    (folder / "wrong.py").write_text("batch_size = 3\nblock_size = 1 // 0\n")
    return folder


@pytest.fixture
def folder(earlier, tmp_path):
    return shutil.copytree(earlier, tmp_path, symlinks=True, dirs_exist_ok=True)


def files(*folders):
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def mistake(folder, repo, inside, monkeypatch, recwarn):
    """mistake("train.py", "--key=value", ...) gives the error: one line, after which no file has changed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    def run(name, *args):
        before = files(folder, repo / "data")
        done = inside(name, *OPTIONS.get(name, ["--device=cpu"]), *args)
        assert done.returncode == 2
        assert re.fullmatch("error: .+\n", done.stderr)  # one line: a dot does not match a line break
        # Python would show these to the user. pytest keeps them off standard error.
        assert not [warning.message for warning in recwarn if warning.category is UserWarning]
        assert files(folder, repo / "data") == before
        return done.stderr

    return run


def cases(text):
    """Parametrizes a test by lines of "script and arguments -> what the error says" (a regular expression)."""
    pairs = [line.strip().split(" -> ") for line in text.strip().splitlines()]
    return pytest.mark.parametrize("arguments, named", pairs, ids=[arguments for arguments, _ in pairs])


@cases(r"""
    train.py --batchsize=3 -> no option --batchsize: did you mean --batch_size\?
    train.py --batch-size=3 -> no option --batch-size: did you mean --batch_size\?
    sample.py --topk=3 -> no option --topk: did you mean --top_k\?
    train.py --qqq=3 -> no option --qqq: there are --out_dir, .*--compile
    train.py --=3 -> no option --: there are --out_dir, .*--compile
    train.py --wandb_log -> '--wandb_log': write --key=value, as in --wandb_log=True$
    train.py --wandb_log --seed=3 -> '--wandb_log': write --key=value, as in --wandb_log=True$
    sample.py --temperature -1 -> '--temperature': write --key=value, as in --temperature=-1$
    train.py --batch_size 3 -> '--batch_size': write --key=value, as in --batch_size=3$
    sample.py --start harm.py -> '--start': write --key=value, as in --start=harm.py$
    sample.py harm.py --start harm.py -> '--start': write --key=value, as in --start=harm.py$
    sample.py harm.py --strt=x -> there is no option --strt: did you mean --start
    train.py harm.txt -> 'harm.txt': write --key=value, or --help for the options; a config file ends in .py
    train.py config/train_hitchikers -> 'config/train_hitchikers': did you mean config/train_hitchikers.py
    plot.py out --to loss.png -> '--to': write --key=value, as in --to=loss.png
    plot.py out --seed=3 -> no option --seed
    train.py -seed=3 -> '-seed=3': write --key=value
    train.py - -> '-': write --key=value
    train.py --batch_size=abc -> --batch_size=abc should be a whole number \(the default is 12\)
    train.py --batch_size= -> --batch_size= should be a whole number
    train.py --batch_size=1.5 -> --batch_size=1.5 should be a whole number
    train.py --batch_size=1.5e0 -> --batch_size=1.5e0 should be a whole number
    train.py --batch_size=inf -> --batch_size=inf should be a whole number
    train.py --batch_size=None -> --batch_size=None should be a whole number
    train.py --batch_size=9223372036854775808 -> out of range: it should be a whole number
    train.py --learning_rate=abc -> --learning_rate=abc should be a number \(the default is 0.0006\)
    train.py --learning_rate=nan -> learning_rate = nan is out of range: it should be a number
    train.py --learning_rate=1e999 -> learning_rate = inf is out of range: it should be a number
    train.py --bias=maybe -> --bias=maybe should be True or False \(the default is False\)
    train.py --bias= -> --bias= should be True or False
    sample.py --top_k=abc -> --top_k=abc should be a whole number or None \(the default is 200\)
    sample.py --top_p=abc -> --top_p=abc should be a number or None \(the default is None\)
    train.py --learning_rate=-1 -> learning_rate=-1
    train.py --block_size=0 -> block_size=0
    train.py --n_head=0 -> n_head=0
    train.py --eval_interval=0 -> eval_interval=0
    train.py --eval_iters=0 -> eval_iters=0
    train.py --log_interval=0 -> log_interval=0
    train.py --gradient_accumulation_steps=0 -> gradient_accumulation_steps=0
    train.py --max_iters=-1 -> max_iters=-1
    train.py --seed=-1 -> seed=-1
    train.py --block_size=100000000000000000 -> --block_size=100000000000000000 should be at most 1000000
    train.py --batch_size=9223372036854775807 -> batch_size=9223372036854775807 should be at most 1000000
    train.py --gradient_accumulation_steps=9223372036854775807 -> steps=9223372036854775807 should be at most 1000000
    train.py --n_layer=1000000000000 -> n_layer=1000000000000 should be at most 1000
    train.py --n_embd=4611686018427387904 --n_head=1 -> n_embd=4611686018427387904 should be at most 131072
    train.py --n_head=4611686018427387904 -> n_head=4611686018427387904 should be at most 1000
    train.py --learning_rate=1e39 -> learning_rate=1e\+39 should be at most 1e\+30
    train.py --sample_tokens=9223372036854775807 -> sample_tokens=9223372036854775807 should be at most 1000000
    sample.py --num_samples=9223372036854775807 -> num_samples=9223372036854775807 should be at most 10000
    sample.py --max_new_tokens=9223372036854775807 -> max_new_tokens=9223372036854775807 should be at most 1000000000
    bench.py --block_size=100000000000000000 -> block_size=100000000000000000 should be at most 1000000
    bench.py --batch_size=9223372036854775807 -> batch_size=9223372036854775807 should be at most 1000000
    bench.py --json=nothing/x.json -> cannot write 'nothing/x.json'
    train.py --beta1=1 -> beta1=1
    train.py --beta2=-0.1 -> beta2=-0.1
    train.py --dropout=1 -> dropout=1
    train.py --n_embd=17 -> n_embd=17 .*n_head=2
    sample.py --num_samples=0 -> num_samples=0
    sample.py --max_new_tokens=0 -> max_new_tokens=0
    sample.py --temperature=-1 -> temperature=-1
    sample.py --top_k=0 -> top_k=0
    sample.py --top_p=2 -> top_p=2
    sample.py --top_p=0 -> top_p=0
    sample.py --repetition_penalty=0 -> repetition_penalty=0.0 should be at least 0.01
    sample.py --repetition_penalty=1e9 -> repetition_penalty=1000000000.0 should be at most 100
    sample.py --seed=-1 -> seed=-1
    train.py config/train_hitchiker.py -> did you mean config/train_hitchikers.py\?
    sample.py config/missing.py -> 'config/missing.py'
    train.py wrong.py -> wrong.py, line 2: ZeroDivisionError
    train.py --dataset=unprepared -> python data/unprepared/prepare.py
    train.py --dataset=catz -> did you mean cats
    train.py --dataset=odd -> train.bin.*odd
    train.py --dataset=short -> val.bin.*block_size=8
    train.py --dataset=beyond -> val.bin.* 11\b
    train.py --dataset=damaged -> meta.json
    train.py --dataset=recounted -> train.bin.* 7\b
    train.py --dataset=harmful -> meta.pkl
    train.py --out_dir=file -> out_dir=file
    train.py --out_dir=file/below -> out_dir=file/below
    train.py --out_dir=out/ckpt.pt -> out/ckpt.pt is a file: it should be a folder, as in --out_dir=out
    train.py --out_dir=out/last.pt --init_from=resume -> is a file: it should be a folder, as in --out_dir=out
    sample.py --out_dir=out/ckpt.pt -> out/ckpt.pt is a file: it should be a folder, as in --out_dir=out
    train.py --out_dir=dangling -> --out_dir=dangling is a link to 'gone', which is not there
    sample.py --out_dir=dangling -> --out_dir=dangling is a link to 'gone', which is not there
    export.py --to=dangling -> --to=dangling exists already
    export.py --to= -> --to= is empty: it should name
    train.py --init_from=typo -> init_from=typo
    train.py --init_from=resume --out_dir=nothing -> nothing.*scratch
    train.py --init_from=resume --dataset=other -> dataset=other
    train.py --init_from=resume --block_size=4 -> block_size=4
    train.py --init_from=auto --out_dir=out-moments -> out-moments/last.pt
    sample.py --init_from=typo -> init_from=typo
    sample.py --out_dir=nothing -> nothing/ckpt.pt
    sample.py --out_dir=file -> out_dir=file is a file: it should be a folder
    sample.py --out_dir=out-orphan -> gone
    sample.py --start= -> empty
    sample.py --interactive=maybe -> --interactive=maybe should be True or False
    sample.py --start=FILE:file -> empty
    sample.py --start=FILE:missing.txt -> missing.txt
    sample.py --start=FILE:out -> 'out'
    sample.py --start=FILE:latin1.txt -> latin1.txt.*UTF-8
    sample.py --start=the€cat -> '€'
    train.py --device=cuda -> --device=cuda: .*auto
    train.py --device=cuda:1 -> --device=cuda:1: .*auto
    sample.py --device=mps -> --device=mps: .*auto
    train.py --device=gpu -> --device=gpu is unknown: .*auto
    train.py --device= -> --device= is unknown
    train.py --device=CPU -> --device=CPU is unknown
    train.py --device=cpu: -> --device=cpu: is unknown
    train.py --device=cpu:01 -> --device=cpu:01 is unknown
    train.py --device=cuda0 -> --device=cuda0 is unknown
    train.py --device=cuda:9x -> --device=cuda:9x is unknown
    sample.py --dtype=float64 -> --dtype=float64 is unknown: .*auto
    train.py --dtype= -> --dtype= is unknown
    train.py --compile=maybe -> --compile=maybe should be True, False or auto
""")
def test_a_mistake_is_named_with_what_would_be_right(mistake, arguments, named):
    assert re.search(named, mistake(*arguments.split()))


def test_training_refuses_a_folder_that_cannot_be_made(mistake):
    assert "cannot be written" in mistake("train.py", f"--out_dir={'long' * 100}")


@cases("""
    --starts=x -> did you mean --start
    --num_samples=few -> num_samples=few
    --num_samples=0 -> num_samples=0
    --max_new_tokens=0 -> max_new_tokens=0
    --temperature=-1 -> temperature=-1
    --top_k=0 -> top_k=0
    --top_p=2 -> top_p=2
    --top_p=0 -> top_p=0
    --seed=-1 -> seed=-1
    --init_from=typo -> init_from=typo
    --out_dir=nothing -> nothing/ckpt.pt
    --out_dir=file -> out_dir=file is a file
    --start= -> empty
    --start=FILE:file -> empty
    --start=FILE:missing.txt -> missing.txt
    --start=FILE:out -> 'out'
    --start=FILE:latin1.txt -> latin1.txt.*UTF-8
    --start=the€cat -> '€'
    --device=cuda -> device=cuda
    --device=mps -> device=mps
    --dtype=float17 -> dtype=float17
    config/missing.py -> config/missing.py
""")
def test_sampling_refuses(mistake, arguments, named):
    assert re.search(named, mistake("sample.py", *arguments.split()))


@pytest.mark.parametrize(
    "kind",
    ["truncated", "text", "pickle", "harmful", "list", "bare", "resized", "strange"]
    + ["meta-list", "meta-bare", "config-text", "iter-text", "loss-text"],
)
def test_a_checkpoint_that_is_none_is_neither_sampled_nor_resumed(mistake, kind):
    assert f"out-{kind}/ckpt.pt" in mistake("sample.py", f"--out_dir=out-{kind}")
    assert f"out-{kind}/last.pt" in mistake("train.py", f"--out_dir=out-{kind}", "--init_from=resume")


def test_wandb_that_does_not_start_is_told_before_anything_is_changed(mistake, monkeypatch):
    def init(**settings):
        raise RuntimeError("No API key configured.\nUse wandb login.")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    assert "wandb login" in mistake("train.py", "--wandb_log=True")


def test_a_full_disk_leaves_the_checkpoints_as_they_were(folder, inside):
    before = files(folder / "out")
    (folder / "out" / "last.pt.tmp").symlink_to("/dev/full")
    done = inside("train.py", *SIZES, "--init_from=resume", "--max_iters=3")
    assert done.returncode == 2
    assert re.fullmatch("error: .+\n", done.stderr)
    after = files(folder / "out")
    assert all(after[path] == before[path] for path in before if path.suffix == ".pt")


@pytest.mark.slow
@cases("""
    train.py --batchsize=3 -> did you mean --batch_size
    train.py --dataset=unprepared -> python data/unprepared/prepare.py
    sample.py --out_dir=out-truncated -> out-truncated/ckpt.pt
""")
def test_on_a_real_command_line_the_error_is_all_there_is(folder, script, arguments, named):
    before = files(folder)
    name, *options = arguments.split()
    done = script(name, *(SIZES if name == "train.py" else ["--device=cpu"]), *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch("error: .+\n", done.stderr) and re.search(named, done.stderr)
    assert files(folder) == before
