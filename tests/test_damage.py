"""Checkpoints that are damaged, or that were made to do harm: an error in one line, or else the very same model."""

import copy
import os
import random
import re
import shutil
import subprocess

import pytest
import torch

from checkpoint import load_checkpoint, load_model
from configurator import UserError

TINY = ["--dataset=hats", "--device=cpu", "--dtype=float32", "--compile=False", "--n_layer=1", "--n_head=2"]
TINY += ["--n_embd=8", "--block_size=8", "--batch_size=2", "--gradient_accumulation_steps=1", "--dropout=0.0"]
TINY += ["--warmup_iters=2", "--eval_iters=1", "--eval_interval=2", "--optimizer=muon"]


@pytest.fixture(scope="session")
def whole(dataset, command, tmp_path_factory):
    """The path of a checkpoint."""
    dataset("hats")
    folder = tmp_path_factory.mktemp("whole")
    subprocess.run(**command("train.py", *TINY, "--max_iters=2"), cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder / "out" / "last.pt"


@pytest.fixture
def resume(whole, inside, tmp_path):
    """resume(content) goes on from a checkpoint of these bytes, or of this state, for two updates."""
    (tmp_path / "out").mkdir()

    def run(content, *more):
        path = tmp_path / "out" / "last.pt"
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        return inside("train.py", *TINY, "--max_iters=4", "--init_from=auto", *more)

    return run


def same(one, other):
    """Whether two nested dicts and lists hold the same, bit for bit."""
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def refused(path, content):
    """Whether load_model refuses a file of these bytes, in one line that names it; any other exception is a failure."""
    path.write_bytes(content)
    try:
        load_model(str(path))
    except UserError as mistake:
        assert str(path) in str(mistake) and len(str(mistake)) < 500
        return True
    return False


# -----------------------------------------------------------------------------
# bytes


def test_a_checkpoint_cut_short_anywhere_is_refused(whole, tmp_path):
    content, draw = whole.read_bytes(), random.Random(1)
    cuts = [0, 1, 2, 3, 4, *range(len(content) - 100, len(content)), *draw.sample(range(len(content)), 400)]
    assert [cut for cut in cuts if not refused(tmp_path / "cut.pt", content[:cut])] == []


@pytest.mark.parametrize("damage", ["a bit", "a byte", "a page of zeros"])
def test_a_checkpoint_with_damaged_bytes_is_refused_or_was_damaged_where_nothing_is(whole, tmp_path, damage):
    content, draw = whole.read_bytes(), random.Random(damage)
    original, path, kept = load_checkpoint(str(whole)), tmp_path / "flipped.pt", 0
    for at in draw.sample(range(len(content)), 400):
        changed = bytearray(content)
        if damage == "a page of zeros":
            changed[at : at + 4096] = bytes(len(changed[at : at + 4096]))
        else:
            changed[at] ^= 1 << draw.randrange(8) if damage == "a bit" else draw.randrange(1, 256)
        if changed != content and not refused(path, bytes(changed)):
            kept += 1  # the archive has gaps between its parts, and dates
            assert same(load_checkpoint(str(path)), original), f"byte {at} of {len(content)}"
    assert kept < 200


def test_a_resume_shows_one_line_for_damaged_bytes_and_leaves_them(whole, resume, tmp_path):
    content, draw = whole.read_bytes(), random.Random(2)
    for at in draw.sample(range(len(content)), 12):
        for changed in (content[:at], content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]):
            if refused(tmp_path / "probe.pt", changed):
                done = resume(changed)
                assert done.returncode == 2 and re.fullmatch("error: .*out/last.pt.+\n", done.stderr)
                assert (tmp_path / "out" / "last.pt").read_bytes() == changed


def test_where_the_newest_state_is_damaged_the_error_says_how_to_go_on_from_the_best_model(whole, resume, tmp_path):
    shutil.copy(whole, tmp_path / "out" / "ckpt.pt")
    done = resume(whole.read_bytes()[:1000])
    assert done.returncode == 2 and re.fullmatch("error: .*'out/last.pt'.*'out/ckpt.pt' instead.*\n", done.stderr)


# -----------------------------------------------------------------------------
# contents


def places(value, path=()):
    """The paths of all that is in nested dicts and lists; of a list's many alike, the first."""
    yield path
    items = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def replaced(state, path, value):
    """A copy of the state with another value at a path; without it where that is `places`."""
    state = copy.deepcopy(state)
    *way, last = path
    inner = state
    for key in way:
        inner = inner[key]
    if value is places:
        del inner[last]
    else:
        inner[last] = value
    return state


WRONG = [places, None, -1, 2**70, float("nan"), "text", [], {}, torch.zeros(3), torch.zeros(0), [None], {"a": [1]}]


@pytest.mark.slow
@pytest.mark.parametrize("part", [0, 1])
def test_a_resume_takes_or_refuses_a_checkpoint_whatever_one_of_its_values_is(whole, resume, part):
    state = load_checkpoint(str(whole))
    every = [(path, value) for path in places(state) for value in WRONG if path]
    for path, value in random.Random(3).sample(every, 160)[part::2]:
        done = resume(replaced(state, path, value))
        assert done.returncode in (0, 2), (path, value)
        assert done.returncode == 0 or re.fullmatch("error: .+\n", done.stderr), (path, value, done.stderr)


@pytest.mark.parametrize("name", ["optimizer", "muon"])
def test_a_resume_refuses_moments_of_another_shape_rather_than_read_beyond_them(whole, resume, name):
    state = load_checkpoint(str(whole))
    first, moments = next(iter(state[name]["state"].items()))
    for key, moment in moments.items():
        for wrong in (moment.new_zeros(2), moment.double(), None, places):
            done = resume(replaced(state, (name, "state", first, key), wrong))
            assert done.returncode == 2 and re.fullmatch("error: .*out/last.pt.+\n", done.stderr)
    assert resume(replaced(state, (name, "state", first), places)).returncode == 2


def test_weights_that_do_not_fit_are_named_with_both_shapes(whole, tmp_path):
    state, path = load_checkpoint(str(whole)), tmp_path / "ckpt.pt"
    first, block = "transformer.wte.weight", "transformer.h.0.ln_1.weight"
    V = state["model_args"]["vocab_size"]
    for changed, message in {
        (first, None): rf"{first} it has none, .* for \({V}, 8\)",
        (first, "text"): rf"{first} it has none, .* for \({V}, 8\)",
        (first, torch.zeros(V, 16)): rf"{first} it has \({V}, 16\), .* for \({V}, 8\)",
        (block, torch.zeros(9)): rf"{block} it has \(9,\), .* for \(8,\)",
        (block, places): rf"{block} it has none, .* for \(8,\)",
        ("another", torch.zeros(3, 4)): r"another it has \(3, 4\), .* for none",
    }.items():
        name, value = changed
        model = {**state["model"], name: value}
        if value is places:
            del model[name]
        torch.save(state | {"model": model}, path)
        with pytest.raises(UserError, match=f"ckpt.pt' does not fit its model_args: of {message}$"):
            load_model(str(path))
    torch.save(state | {"model_args": state["model_args"] | {"n_layer": 2}}, path)
    with pytest.raises(UserError, match=r"transformer.h.1.ln_1.weight it has none, and they ask for \(8,\)"):
        load_model(str(path))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_a_resume_from_weights_with_masks_and_prefixes_is_that_from_plain_ones(whole, resume, tmp_path, prefix):
    state = load_checkpoint(str(whole))
    masked = {}
    for name, weight in state["model"].items():
        if name.endswith("attn.c_attn.weight"):  # where nanoGPT has the mask if there is no flash attention
            masked[prefix + name.replace("c_attn.weight", "bias")] = torch.ones(1, 1, 8, 8).tril()
        masked[prefix + name] = weight
    assert len(masked) == len(state["model"]) + 1
    results = []
    for model in (state["model"], masked):
        assert resume(state | {"model": model}).returncode == 0
        results.append(load_checkpoint(str(tmp_path / "out" / "last.pt")))
    plain, other = results
    assert plain["iter_num"] == 4 and not same(plain["model"], state["model"])
    assert all(same(plain[key], other[key]) for key in ("model", "optimizer", "muon"))


@pytest.mark.parametrize("name", ["out/ckpt.pt", "ckpt.pt"])
@pytest.mark.parametrize("script", ["sample.py", "export.py", "train.py scratch", "train.py resume", "train.py auto"])
def test_a_checkpoint_given_as_out_dir_is_an_error_that_names_its_folder(whole, inside, tmp_path, script, name):
    (tmp_path / "out").mkdir()
    shutil.copy(whole, tmp_path / name)
    script, *start = script.split()
    done = inside(script, f"--out_dir={name}", *(f"--init_from={word}" for word in start), *(TINY if start else []))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(f"error: --out_dir={name} is a file: .*--out_dir={os.path.dirname(name) or '.'}\n", done.stderr)


# -----------------------------------------------------------------------------
# code


class Harm:
    """Makes a file when it is read without care."""

    def __reduce__(self):
        return os.open, ("canary", os.O_CREAT)


@pytest.mark.parametrize("key", ["model", "optimizer", "config", "meta", "another"])
def test_code_in_a_checkpoint_is_refused_and_not_run(whole, resume, tmp_path, key):
    state = load_checkpoint(str(whole)) | {key: Harm()}
    done = resume(state)
    assert done.returncode == 2 and re.fullmatch("error: .*out/last.pt.+\n", done.stderr)
    assert not (tmp_path / "canary").exists()
    torch.load("out/last.pt", weights_only=False)
    assert (tmp_path / "canary").exists()  # it would have run
