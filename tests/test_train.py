"""train.py's promises. Where a number is expected, plain PyTorch computes it here once more, in another way."""

import copy
import fcntl
import json
import math
import os
import pickle
import pty
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import train as train_script
from machine import mixed_precision
from model import GPT, GPTConfig
from tokenizer import TokensTokenizer, learn_tokenizer
from train import get_batch

# the options of a run that takes a moment; later ones on the command line replace these
TINY = [
    *("--dataset=tiny", "--device=cpu", "--dtype=float32", "--compile=False", "--out_dir=out", "--max_iters=6"),
    *(
        "--n_layer=1",
        "--n_head=2",
        "--n_embd=16",
        "--block_size=8",
        "--batch_size=3",
        "--gradient_accumulation_steps=2",
    ),
    *("--learning_rate=1e-2", "--min_lr=1e-3", "--warmup_iters=2", "--lr_decay_iters=6", "--eval_interval=4"),
]
CHECKPOINT = {"model", "optimizer", "model_args", "iter_num", "best_val_loss", "config"}  # nanoGPT's keys
MODEL_ARGS = {"n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout"}


@pytest.fixture(scope="session")
def tiny(dataset):
    """The data set of most tests: its folder, and the ids of both splits."""
    return dataset("tiny")


@pytest.fixture
def train(tiny, inside):
    """train("--key=value", ..., name=value) trains in this process, and shows what went wrong if anything did."""

    def run(*args, status=0, **replaced):
        done = inside("train.py", *TINY, *args, **replaced)
        assert done.returncode == status, done.stderr
        return done

    return run


@pytest.fixture
def start(tiny, command, tmp_path):
    """start("--key=value", ...) begins to train in a process of its own; `until` reads its lines up to one."""
    running = []

    def run(*args, ignoring=None):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": tmp_path}
        if ignoring:
            pipes["preexec_fn"] = lambda: signal.signal(ignoring, signal.SIG_IGN)
        process = subprocess.Popen(**command("train.py", *TINY, *args), **pipes)
        (alarm := threading.Timer(60, process.kill)).start()  # rather than wait for ever for a line
        running.append((process, alarm))
        return process

    yield run
    for process, alarm in running:
        alarm.cancel()
        process.kill()
        process.communicate()


def until(stream, beginning):
    assert any(line.startswith(beginning) for line in stream), f"it ended without {beginning!r}"


def load(path):
    return torch.load(path, weights_only=True)


def log(folder="out"):
    with open(f"{folder}/log.jsonl", encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def logged_configs(folder="out"):
    return [(figures["iter"], figures["config"]) for figures in log(folder) if "config" in figures]


def updates(folder="out"):
    return [figures for figures in log(folder) if "loss" in figures]


def evaluations(folder="out"):
    return [figures for figures in log(folder) if "val/loss" in figures]


def moments(checkpoint):
    optimizers = [checkpoint[key] for key in ("optimizer", "muon") if key in checkpoint]
    return [moment for o in optimizers for state in o["state"].values() for moment in state.values()]


def assert_same_state(one, other):
    """Two checkpoints hold the same weights and moments, bit for bit."""
    assert one["model"].keys() == other["model"].keys()
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])
    assert len(moments(one)) == len(moments(other)) > 0
    assert all(torch.equal(a, b) for a, b in zip(moments(one), moments(other)))


def model_of(checkpoint):
    model = GPT(GPTConfig(**checkpoint["model_args"]))
    model.load_state_dict(checkpoint["model"])
    return model


def plain_loss(model, x, y):
    """The loss by all logits at once, and PyTorch's own cross entropy."""
    return F.cross_entropy(model.lm_head(model.features(x)).flatten(0, 1), y.flatten())


# -----------------------------------------------------------------------------
# the loop


@pytest.mark.slow
def test_exactly_max_iters_updates_evaluated_before_and_after_and_saved(train):
    train()
    assert [figures["iter"] for figures in updates()] == [0, 1, 2, 3, 4, 5]
    assert [figures["iter"] for figures in evaluations()] == [0, 4, 6]
    newest = load("out/last.pt")
    assert newest["iter_num"] == 6
    assert {state["step"].item() for state in newest["optimizer"]["state"].values()} == {6}


@pytest.mark.slow
def test_a_finished_run_resumed_makes_no_further_update(train):
    train()
    before = load("out/last.pt")
    train("--init_from=resume")
    assert_same_state(load("out/last.pt"), before)
    assert [figures["iter"] for figures in updates()] == [0, 1, 2, 3, 4, 5]
    assert [figures["iter"] for figures in evaluations()] == [0, 4, 6]


@pytest.mark.slow
def test_the_log_lines_begin_as_nanogpts(train):
    lines = train().stdout.splitlines()
    iters = [re.match(r"iter (\d+): loss \d+\.\d{4}, time \d+\.\d\dms, lr", line) for line in lines]
    assert [int(match[1]) for match in iters if match] == [0, 1, 2, 3, 4, 5]
    steps = [re.match(r"step (\d+): train loss \d+\.\d{4}, val loss \d+\.\d{4}", line) for line in lines]
    assert [int(match[1]) for match in steps if match] == [0, 4, 6]


@pytest.mark.slow
def test_mfu_stands_in_the_line_where_the_peak_is_known(train):
    lines = train(peak_flops=lambda device, dtype: 1e9).stdout.splitlines()
    shown = [float(match[1]) for line in lines if (match := re.search(r"ms, mfu (\d+\.\d\d)%, lr", line))]
    model = model_of(load("out/last.pt"))
    expected = [100 * figures["tokens_per_s"] * model.flops_per_token() / 1e9 for figures in updates()]
    assert len(shown) == 6 and shown == pytest.approx(expected, abs=0.01)


def test_mfu_of_several_processes_is_that_of_one_device(monkeypatch):
    state = SimpleNamespace(iter_num=0, tokens=0, seconds=0.0)
    for name, value in {"WORLD_SIZE": 4, "eval_only": True}.items():
        monkeypatch.setattr(train_script, name, value)
    assert train_script.start_report(state, False, 100, 1e9).peak_flops == 4e9


@pytest.mark.slow
def test_the_log_file_holds_the_figures_of_the_lines(train):
    lines = train().stdout.splitlines()
    shown = [float(re.search(r"loss (\S+),", line)[1]) for line in lines if line.startswith("iter")]
    assert shown == pytest.approx([figures["loss"] for figures in updates()], abs=1e-4)
    shown = [float(re.search(r"val loss (\d+\.\d+)", line)[1]) for line in lines if line.startswith("step")]
    assert shown == pytest.approx([figures["val/loss"] for figures in evaluations()], abs=1e-4)


@pytest.mark.slow
def test_the_log_begins_with_the_options_as_the_run_has_them(train):
    train("--dropout=0.2", "--init_from=auto")
    [(at, config)] = logged_configs()
    assert at == 0 and list(log()[0]) == ["iter", "tokens", "seconds", "config"]
    assert config == load("out/last.pt")["config"] | {"init_from": "scratch"}
    assert config["dropout"] == 0.2 and config["max_iters"] == 6 and "auto" != config["dtype"]


@pytest.mark.slow
def test_a_resume_logs_the_options_that_have_changed_and_no_others(train):
    train()
    train("--init_from=resume", "--device=cpu")
    assert len(logged_configs()) == 1
    train("--init_from=resume", "--max_iters=8", "--learning_rate=1e-4")
    train("--init_from=auto", "--max_iters=8", "--learning_rate=1e-4")
    assert [at for at, _ in logged_configs()] == [0, 6]
    assert logged_configs()[1][1] == {"max_iters": 8, "learning_rate": 1e-4}
    assert [figures["iter"] for figures in updates()] == list(range(8))


@pytest.mark.slow
def test_a_log_without_options_is_resumed_and_says_them_from_there_on(train):
    train()
    older = [figures for figures in log() if "config" not in figures]
    with open("out/log.jsonl", "w", encoding="utf-8") as f:
        f.writelines(json.dumps(figures) + "\n" for figures in older)
    train("--init_from=resume", "--max_iters=7")
    [(at, config)] = logged_configs()
    assert at == 6 and config["max_iters"] == 7 and config["n_embd"] == 16 and "init_from" not in config
    assert [figures for figures in log() if figures["iter"] < 6] == [line for line in older if line["iter"] < 6]


@pytest.mark.slow
def test_a_new_run_over_an_earlier_one_begins_its_log_with_its_own_options(train):
    train()
    train("--learning_rate=1e-4")
    assert [(at, config["learning_rate"]) for at, config in logged_configs()] == [(0, 1e-4)] and "config" in log()[0]
    assert logged_configs("out/earlier-1")[0][1]["learning_rate"] != 1e-4


@pytest.mark.slow
def test_the_seed_decides_all_that_is_random(train):
    train("--dropout=0.2")
    train("--dropout=0.2", "--out_dir=again")
    train("--dropout=0.2", "--out_dir=other", "--seed=1")
    first, again, other = ([figures["loss"] for figures in updates(folder)] for folder in ("out", "again", "other"))
    assert first == again and first[0] != other[0]


@pytest.mark.slow
def test_dropout_is_at_work(train):
    train()
    train("--dropout=0.2", "--out_dir=dropped")
    assert updates()[0]["loss"] != updates("dropped")[0]["loss"]


@pytest.mark.slow
def test_log_interval_thins_the_lines_and_changes_nothing_else(train):
    train("--dropout=0.2", "--max_iters=7")
    train("--dropout=0.2", "--max_iters=7", "--log_interval=3", "--out_dir=thin")
    assert [figures["iter"] for figures in updates("thin")] == [0, 3, 6]
    assert_same_state(load("out/last.pt"), load("thin/last.pt"))


# -----------------------------------------------------------------------------
# an iteration against plain PyTorch


@pytest.fixture
def watched(train):
    """watched("--key=value", ...) trains, and returns the model before, and the windows (x, y) of each micro-batch."""

    def run(*args):
        windows = []

        def watch(*given):
            windows.append(get_batch(*given))
            return windows[-1]

        train(*args, "--max_iters=0", "--out_dir=before")
        # without evaluations, whose windows come the same way
        train(*args, get_batch=watch, evaluate=lambda *given: 1.0)
        return model_of(load("before/last.pt")), windows

    return run


@pytest.mark.slow
def test_windows_are_from_the_text_and_targets_the_tokens_after(watched, tiny):
    _, windows = watched()
    assert len(windows) == 6 * 2
    assert len({str(x.tolist()) for x, _ in windows}) == 6 * 2  # each micro-batch draws its own
    text = bytes(tiny[1]["train"])
    for x, y in ((x, y) for xs, ys in windows for x, y in zip(xs, ys)):
        assert len(x) == len(y) == 8
        assert bytes([*x.tolist(), y[-1]]) in text and torch.equal(x[1:], y[:-1])


@pytest.mark.slow
def test_windows_reach_the_first_and_the_last_token_of_the_split(watched, dataset):
    text = "".join(map(chr, range(48, 68)))  # each character once, so that a window tells where it begins
    dataset("ends", text, text)
    _, windows = watched("--dataset=ends", "--max_iters=40")
    assert {x[0].item() for xs, _ in windows for x in xs} == set(range(20 - 8))


def test_micro_batches_add_up_to_the_gradient_of_one_large_batch(watched):
    # with beta1=0 AdamW's first moment is the gradient
    model, windows = watched("--max_iters=1", "--gradient_accumulation_steps=4", "--beta1=0", "--grad_clip=0")
    x, y = (torch.cat(parts) for parts in zip(*windows))
    assert len(x) == 4 * 3
    loss = plain_loss(model.double(), x, y)
    loss.backward()
    states = load("out/last.pt")["optimizer"]["state"].values()
    decayed_first = sorted(model.parameters(), key=lambda p: p.dim() < 2)
    for state, parameter in zip(states, decayed_first, strict=True):
        torch.testing.assert_close(state["exp_avg"].double(), parameter.grad, rtol=1e-4, atol=1e-7)
    norm = math.sqrt(sum((p.grad**2).sum().item() for p in model.parameters()))
    assert updates()[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert updates()[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)


def expected_rates(warmup, decay):
    """A line from 0 up to 1e-2 over the warm-up, then PyTorch's own cosine schedule down to 1e-3."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(decay - warmup, 1), eta_min=1e-3)
    rates = [1e-2 * step / (warmup + 1) for step in range(1, warmup + 1)]
    for _ in range(decay - warmup):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.slow
def test_updates_are_those_of_plain_adamw(watched):
    options = ("--max_iters=5", "--weight_decay=0.3", "--beta1=0.8", "--beta2=0.9", "--grad_clip=0.5", "--bias=True")
    model, windows = watched(*options, "--n_layer=2")
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.8, 0.9), foreach=True)
    for i, figures in enumerate(updates()):
        optimizer.zero_grad()
        x, y = (torch.cat(parts) for parts in zip(*windows[2 * i : 2 * i + 2]))
        loss = plain_loss(model, x, y)
        loss.backward()
        norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in model.parameters()]))
        assert norm > 0.5  # or else the clipping would not be seen
        for p in model.parameters():
            p.grad *= 0.5 / norm
        for group in optimizer.param_groups:
            group["lr"] = expected_rates(2, 6)[i]
        optimizer.step()
        assert figures["loss"] == pytest.approx(loss.item(), rel=1e-4)
    for name, weight in load("out/last.pt")["model"].items():
        if "c_attn.bias" in name:  # the middle third are the keys', whose gradient is zero but for rounding
            weight, expected = (torch.cat((t[:16], t[32:])) for t in (weight, model.state_dict()[name]))
        else:
            expected = model.state_dict()[name]
        torch.testing.assert_close(weight, expected, rtol=1e-3, atol=2e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize("warmup, decay", [(3, 10), (0, 10), (0, 14), (5, 6)])
def test_the_learning_rate_warms_up_and_falls_along_a_cosine_as_nanogpts_does(train, warmup, decay):
    train(f"--warmup_iters={warmup}", f"--lr_decay_iters={decay}", "--max_iters=14")
    expected = expected_rates(warmup, decay) + [1e-3] * (14 - decay)
    assert [figures["lr"] for figures in updates()] == pytest.approx(expected, rel=1e-12)


def test_a_decay_that_ends_with_the_warm_up_goes_to_the_lowest_rate(train):
    train("--warmup_iters=3", "--lr_decay_iters=3")
    rates = [figures["lr"] for figures in updates()]
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.001, 0.001, 0.001])


def test_without_decay_the_learning_rate_stays(train):
    train("--decay_lr=False")
    assert {figures["lr"] for figures in updates()} == {1e-2}


# -----------------------------------------------------------------------------
# evaluation


@pytest.mark.slow
def test_how_often_one_evaluates_does_not_change_training(train):
    train("--dropout=0.2", "--eval_interval=1000")
    train("--dropout=0.2", "--eval_interval=1", "--eval_iters=1", "--out_dir=often")
    assert len(evaluations("often")) == 7
    assert_same_state(load("out/last.pt"), load("often/last.pt"))
    assert [figures["loss"] for figures in updates()] == [figures["loss"] for figures in updates("often")]


def test_two_evaluations_of_a_model_give_one_number(train):
    train("--dropout=0.2")
    options = ("--init_from=resume", "--eval_only=True", "--eval_iters=2", "--dropout=0.2")
    steps = [
        [line for line in train(*options, f"--seed={seed}").stdout.splitlines() if line.startswith("step")]
        for seed in (1, 1, 2)
    ]
    assert len(steps[0]) == 1 and steps[0] == steps[1] == steps[2]


@pytest.mark.slow
def test_the_evaluation_of_a_small_split_is_the_loss_over_all_of_it(train, dataset):
    # a last window that fits, and a last batch that is not full
    _, ids = dataset("whole", "hop, " * 11 + "ho", "pop" * 5 + "ho")
    assert len(ids["train"]) == 7 * 8 + 1 and len(ids["val"]) == 2 * 8 + 1
    train("--dataset=whole", "--max_iters=20", "--dropout=0.3")
    model = model_of(load("out/last.pt")).double().eval()
    for split in ids:
        tokens = torch.tensor(ids[split])
        x, y = tokens[:-1].view(-1, 8), tokens[1:].view(-1, 8)
        assert evaluations()[-1][f"{split}/loss"] == pytest.approx(plain_loss(model, x, y).item(), rel=1e-5)


@pytest.mark.parametrize("length", [9, 10, 16, 17, 18, 33, 60])
def test_every_token_of_a_small_split_is_evaluated_whatever_its_length(train, dataset, length):
    _, ids = dataset(f"length{length}", "abcd" * 5, "".join(map(chr, range(48, 48 + length))))
    seen = set()

    def evaluate(model, plain, autocast, batches, stop=(), group=None):
        seen.clear()  # of the training split, which comes first
        seen.update(*(y.flatten().tolist() for _, y in batches))
        return 1.0

    train(f"--dataset=length{length}", "--max_iters=0", evaluate=evaluate)
    assert seen == set(ids["val"][1:])  # each is another character


def test_a_large_split_is_evaluated_on_windows_spread_over_it(train, dataset):
    _, ids = dataset("large", "abcd" * 5, "".join(map(chr, range(48, 48 + 500))))
    begins = []

    def evaluate(model, plain, autocast, batches, stop=(), group=None):
        begins[:] = [x[0].item() for xs, _ in batches for x in xs]
        return 1.0

    train("--dataset=large", "--max_iters=0", "--eval_iters=5", evaluate=evaluate)
    offset = ids["val"][0]
    assert len(begins) == 5 * 3 and begins[0] == offset and begins[-1] == offset + 500 - 1 - 8
    gaps = np.diff(begins)
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(
    "options, flops, compiled",
    [
        (["--max_iters=2"], 0.0, True),
        (["--max_iters=2"], 1e15, False),  # a short run
        (["--max_iters=2", "--compile=True"], 1e15, True),  # is compiled if that is asked for
        (["--max_iters=2", "--eval_only=True"], 1.0, False),
        (["--max_iters=2", "--eval_only=True", "--compile=True"], 1.0, True),
    ],
)
def test_compile_auto_compiles_only_where_the_run_is_long_enough(train, options, flops, compiled):
    seen = []

    def resolve_device(device, dtype, compile):  # as on a GPU on which a compile pays
        return torch.device("cpu"), torch.float32, compile in ("auto", "True")

    def parallelized(model, torch_device, compiled):
        seen.append(compiled)
        return model

    arguments = ["--compile=auto", *options]
    train(*arguments, resolve_device=resolve_device, parallelized=parallelized, COMPILE_FLOPS=flops)
    assert seen == [compiled]


def test_an_evaluation_runs_batches_of_another_size_uncompiled(train, dataset):
    dataset("odd_batches", "abcd" * 5, "".join(map(chr, range(48, 48 + 60))))  # 8 windows: two batches of 3, one of 2
    sizes = []

    class Compiled(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x, y):
            sizes.append(len(x))
            return self.model(x, y)

    train("--dataset=odd_batches", "--max_iters=0", parallelized=lambda model, *_: Compiled(model))
    assert evaluations()[-1]["val/loss"] > 0 and set(sizes) == {3}


def test_losses_are_given_in_bits_per_byte_where_the_bytes_are_known(train, dataset):
    text = "für Öl " * 9
    counts = {"tokens": len(text), "bytes": len(text.encode())}
    dataset("bytes", text, text, train=counts, val=counts)
    train("--dataset=bytes")
    for figures in evaluations():
        in_bits = figures["val/loss"] * len(text) / math.log(2) / len(text.encode())
        assert figures["val/bits_per_byte"] == pytest.approx(in_bits, rel=1e-9)


def test_eval_only_evaluates_once_and_writes_no_checkpoint(train, tmp_path):
    lines = train("--eval_only=True").stdout.splitlines()
    assert [line.split(":")[0] for line in lines if re.match("step|iter", line)] == ["step 0"]
    assert not list(tmp_path.glob("out/*"))


# -----------------------------------------------------------------------------
# checkpoints


def test_checkpoints_hold_nanogpts_keys(train):
    train()
    for name in ("ckpt.pt", "last.pt"):
        checkpoint = load(f"out/{name}")
        assert checkpoint.keys() >= CHECKPOINT
        assert checkpoint["model_args"].keys() == MODEL_ARGS
        assert checkpoint["config"].keys() >= {"dataset", "batch_size", "learning_rate", "n_layer"}
    assert checkpoint["best_val_loss"] == min(figures["val/loss"] for figures in evaluations())


@pytest.fixture
def worsening(dataset, repo):
    """Options of a run whose validation loss soon rises: the text to validate on is the one to train on, backwards."""
    if not (repo / "data" / "worsening").exists():
        dataset("worsening", "abc" * 30, "cba" * 10)
    return "--dataset=worsening", "--max_iters=30", "--lr_decay_iters=30"


def best_evaluation():
    best = min(evaluations(), key=lambda figures: figures["val/loss"])
    assert best["iter"] < evaluations()[-1]["iter"]
    return best


@pytest.mark.slow
@pytest.mark.parametrize("always", [True, False])
def test_ckpt_is_the_best_model_or_where_asked_the_newest(train, worsening, always):
    train(*worsening, f"--always_save_checkpoint={always}")
    assert load("out/ckpt.pt")["iter_num"] == (30 if always else best_evaluation()["iter"])
    assert load("out/last.pt")["iter_num"] == 30


@pytest.mark.slow
def test_a_resumed_run_remembers_the_best_loss(train, worsening):
    for iterations in (20, 30):
        train(*worsening, "--always_save_checkpoint=False", "--init_from=auto", f"--max_iters={iterations}")
    best = best_evaluation()
    assert best["iter"] < 20
    assert load("out/ckpt.pt")["iter_num"] == best["iter"]
    assert load("out/last.pt")["best_val_loss"] == best["val/loss"]


def test_one_state_is_written_once(train, tmp_path):
    train()
    assert os.path.samefile("out/ckpt.pt", "out/last.pt")
    assert {path.name for path in tmp_path.glob("out/*")} == {"ckpt.pt", "last.pt", "log.jsonl", "loss.png"}


@pytest.mark.slow
def test_where_the_file_system_has_no_links_the_state_is_copied(train, monkeypatch):
    def refuse(*given):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    train()
    assert not os.path.samefile("out/ckpt.pt", "out/last.pt")
    assert_same_state(load("out/ckpt.pt"), load("out/last.pt"))


@pytest.mark.slow
def test_scratch_moves_an_earlier_run_aside(train, tmp_path):
    train()
    first = {path.name: path.read_bytes() for path in tmp_path.glob("out/*")}
    train("--seed=2")
    train("--seed=3")
    assert {path.name: path.read_bytes() for path in tmp_path.glob("out/earlier-1/*")} == first
    assert load("out/earlier-2/last.pt")["config"]["seed"] == 2
    assert load("out/last.pt")["config"]["seed"] == 3
    assert [figures["iter"] for figures in updates()] == [0, 1, 2, 3, 4, 5]


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_new_run_leaves_an_earlier_one_in_place_until_it_has_made_an_update(train, tmp_path):
    train()
    before = files(tmp_path / "out")

    def stop_at_once():
        return [signal.SIGINT]

    done = train("--seed=2", catch_signals=stop_at_once, status=130)
    assert "nothing to save" in done.stderr
    assert files(tmp_path / "out") == before
    done = train("--seed=2", "--learning_rate=1e30", "--warmup_iters=0", "--grad_clip=0", "--decay_lr=False", status=2)
    assert "iteration 1 " in done.stderr and files(tmp_path / "out") == before


@pytest.mark.slow
def test_the_advice_for_a_run_that_was_set_aside_works(train, inside, tmp_path):
    train()
    out = train("--seed=2").stdout
    advice = re.search(r"to go on with it: (.*)\)$", out, re.M)[1].split()
    train(*advice, "--max_iters=9", "--lr_decay_iters=9")
    assert load("out/earlier-1/last.pt")["iter_num"] == 9 and load("out/last.pt")["config"]["seed"] == 2
    for name in ("ckpt.pt", "last.pt"):
        os.remove(f"out/{name}")
    assert "--out_dir=out/earlier-1" in train("--init_from=resume", status=2).stderr
    assert "--out_dir=out/earlier-1" in inside("sample.py", "--out_dir=out", "--device=cpu").stderr


# -----------------------------------------------------------------------------
# going on with other options


@pytest.mark.slow
@pytest.mark.parametrize("min_lr", [0, 1e-3])
def test_training_longer_at_a_rate_of_0_is_refused_with_the_command_that_works(train, monkeypatch, min_lr):
    rate = f"--min_lr={min_lr}"
    train(rate)
    done = train(rate, "--init_from=resume", "--max_iters=9", status=0 if min_lr else 2)
    command = re.search(r"(?:: )(python .*--lr_decay_iters=9)$", done.stdout if min_lr else done.stderr, re.M)[1]
    train(*shlex.split(command)[2:])
    assert load("out/last.pt")["iter_num"] == 9
    if not min_lr:
        assert updates()[6]["lr"] > 0


@pytest.mark.slow
def test_a_run_that_would_reach_a_rate_of_0_on_its_way_is_refused_too_new_or_resumed(train):
    rate = ("--min_lr=0", "--max_iters=9")
    assert "--lr_decay_iters=9\n" in train(*rate, status=2).stderr
    train("--min_lr=0", "--max_iters=3")
    assert "--lr_decay_iters=9\n" in train(*rate, "--init_from=resume", status=2).stderr
    assert train(*rate, "--init_from=resume", "--eval_only=True").returncode == 0


def test_a_run_without_an_update_says_that_nothing_is_saved_in_a_used_folder(train, tmp_path):
    train()
    before = files(tmp_path / "out")
    assert "no update was made, and nothing saved" in train("--max_iters=0").stdout
    assert files(tmp_path / "out") == before


def test_a_name_that_is_not_utf_8_costs_no_picture(train):
    assert "the curve is in" in train("--out_dir=out-\udcff").stdout
    assert os.path.exists("out-\udcff/loss.png")


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["data", "eval_iters"])
def test_the_best_loss_counts_only_for_the_windows_it_was_measured_on(train, dataset, repo, changed):
    name = f"shifted-{changed}"
    folder, _ = dataset(name, "abc" * 30, "abc" * 10)
    options = (f"--dataset={name}", "--always_save_checkpoint=False", "--eval_iters=1", "--max_iters=20")
    train(*options, "--lr_decay_iters=40")
    best = load("out/ckpt.pt")["best_val_loss"]
    if changed == "data":  # of which the model knows nothing
        np.array([2, 1, 0] * 10, dtype="<u2").tofile(folder / "val.bin")
    more = ("--eval_iters=2",) if changed == "eval_iters" else ()
    out = train(*options, "--init_from=resume", "--max_iters=40", "--lr_decay_iters=40", *more).stdout
    assert "begins anew" in out
    later = [figures["val/loss"] for figures in evaluations() if figures["iter"] >= 20]
    assert load("out/last.pt")["best_val_loss"] == min(later)
    if changed == "data":
        assert min(later) > best and load("out/ckpt.pt")["iter_num"] >= 20
    assert "begins anew" not in train(*options, "--init_from=resume", "--max_iters=40", *more).stdout


@pytest.mark.slow
def test_tokens_are_counted_as_they_were_seen_whatever_the_batch_size_is_later(train):
    train("--lr_decay_iters=9")
    train("--lr_decay_iters=9", "--init_from=resume", "--max_iters=9", "--batch_size=1")
    seen = [figures["tokens"] for figures in log()]
    assert seen == sorted(seen) and seen[-1] == 6 * 2 * 3 * 8 + 3 * 2 * 1 * 8
    # a checkpoint without the count, as nanoGPT's
    checkpoint = load("out/last.pt")
    del checkpoint["tokens"]
    torch.save(checkpoint, "out/last.pt")
    train("--lr_decay_iters=9", "--init_from=resume", "--max_iters=10")
    assert log()[-1]["tokens"] == 9 * 2 * 1 * 8 + 2 * 3 * 8


@pytest.mark.slow
def test_auto_starts_and_then_goes_on(train):
    train("--max_iters=9", "--dropout=0.2", "--out_dir=whole")
    train("--init_from=auto", "--max_iters=5", "--dropout=0.2")
    train("--init_from=auto", "--max_iters=9", "--dropout=0.2")
    assert [figures["iter"] for figures in updates()] == list(range(9))
    assert_same_state(load("out/last.pt"), load("whole/last.pt"))


def test_a_run_goes_on_with_the_optimizer_it_has(train):
    train("--optimizer=muon", "--max_iters=3")
    assert "--optimizer=muon" in train("--init_from=resume", "--optimizer=adamw", status=2).stderr


@pytest.mark.slow
def test_nanogpts_checkpoint_is_resumed(train, tiny):
    train("--max_iters=3", "--always_save_checkpoint=True")
    ours = load("out/ckpt.pt")
    theirs = {key: ours[key] for key in CHECKPOINT}
    theirs["model"] = {f"_orig_mod.{name}": weight for name, weight in ours["model"].items()}
    theirs["best_val_loss"] = torch.tensor(ours["best_val_loss"])
    os.makedirs("theirs")
    torch.save(theirs, "theirs/ckpt.pt")
    train("--init_from=resume")
    train("--init_from=resume", "--out_dir=theirs")
    assert_same_state(load("theirs/last.pt"), load("out/last.pt"))


# -----------------------------------------------------------------------------
# interruptions


@pytest.mark.slow
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_finishes_the_iteration_and_saves(start, train, tmp_path, number, status):
    process = start("--max_iters=100000", "--lr_decay_iters=50", "--dropout=0.2", "--eval_interval=100000")
    until(process.stdout, "iter 7:")
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == status
    assert "saved" in stderr and "Traceback" not in stderr + stdout
    reached = load("out/last.pt")["iter_num"]
    assert [figures["iter"] for figures in updates()] == list(range(reached))
    # what was saved is the state between two iterations
    train(f"--max_iters={reached}", "--lr_decay_iters=50", "--dropout=0.2", "--out_dir=whole")
    assert_same_state(load("out/last.pt"), load("whole/last.pt"))


@pytest.mark.slow
def test_a_closed_terminal_window_saves(tiny, command, tmp_path):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    run = command("train.py", *TINY, "--max_iters=100000", "--eval_interval=100000")
    del run["encoding"]
    in_a_session = "import os, sys; os.setsid(); os.open(os.ttyname(0), os.O_RDWR); os.execv(sys.argv[1], sys.argv[1:])"
    run["args"] = [sys.executable, "-c", in_a_session, *map(str, run["args"])]
    process = subprocess.Popen(**run, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path)
    os.close(theirs)
    seen = b""
    while not re.search(rb"[1-9]\d?/100000", seen):  # on the progress bar
        seen += os.read(ours, 4096)
    os.close(ours)  # the kernel then sends SIGHUP, and writing to the terminal fails
    assert process.wait(timeout=60) == 129
    reached = load(tmp_path / "out/last.pt")["iter_num"]
    assert reached > 0 and [figures["iter"] for figures in updates(tmp_path / "out")] == list(range(reached))


@pytest.mark.slow
def test_a_lost_connection_does_not_end_a_run_under_nohup(start, tmp_path):
    process = start("--max_iters=30", "--lr_decay_iters=30", ignoring=signal.SIGHUP)
    until(process.stdout, "iter 7:")
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0 and load(tmp_path / "out/last.pt")["iter_num"] == 30


@pytest.mark.slow
def test_a_signal_during_an_evaluation_saves_too(start, train, dataset, tmp_path):
    dataset("long", "the cat sat. " * 10, "a cat has a hat. " * 500)
    process = start("--dataset=long", "--batch_size=1", "--eval_iters=100000", "--eval_interval=1")
    until(process.stdout, "iter 0:")  # an evaluation of a thousand batches follows
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "saved" in stderr and "Traceback" not in stderr + stdout
    assert "step" not in stdout
    assert load("out/last.pt")["iter_num"] == 1


@pytest.mark.slow
def test_a_second_signal_quits_at_once_and_leaves_the_checkpoint(start, tmp_path):
    process = start("--gradient_accumulation_steps=1000000")
    until(process.stdout, "step 0:")
    while not (tmp_path / "out" / "last.pt").exists():
        assert process.poll() is None
    before = (tmp_path / "out" / "last.pt").read_bytes()
    process.send_signal(signal.SIGINT)
    until(process.stderr, "finishing")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 130
    assert "Traceback" not in process.stderr.read()
    assert (tmp_path / "out" / "last.pt").read_bytes() == before


@pytest.mark.parametrize("log_interval", [1, 5])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_iteration(train, log_interval):
    options = ("--learning_rate=1e30", "--warmup_iters=0", "--decay_lr=False", "--grad_clip=0", "--eval_interval=100")
    done = train(*options, f"--log_interval={log_interval}", "--max_iters=50", status=2)
    assert done.stderr.count("\n") == 1
    assert re.match(r"error: .*\biteration 1\b", done.stderr)  # the first update ruins the weights
    for name in ("ckpt.pt", "last.pt"):
        checkpoint = load(f"out/{name}")
        assert checkpoint["iter_num"] == 0
        assert all(weight.isfinite().all() for weight in checkpoint["model"].values())


def test_weights_that_the_last_update_ruined_are_not_saved(train):
    options = ("--learning_rate=1e30", "--warmup_iters=0", "--decay_lr=False", "--grad_clip=0", "--max_iters=1")
    done = train(*options, status=2)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert load("out/last.pt")["iter_num"] == load("out/ckpt.pt")["iter_num"] == 0


# -----------------------------------------------------------------------------
# data, precision, and what is imported


@pytest.mark.slow
def test_nanogpts_data_is_read_unchanged(train, tiny, repo):
    ours, _ = tiny
    meta = json.loads((ours / "meta.json").read_text())
    (theirs := repo / "data" / "nanogpt").mkdir()
    for split in ("train", "val"):
        ids = np.fromfile(ours / f"{split}.bin", dtype=np.uint16)
        ids.tofile(theirs / f"{split}.bin")
    itos = dict(enumerate(meta["chars"]))
    stoi = {char: i for i, char in itos.items()}
    with open(theirs / "meta.pkl", "wb") as f:
        pickle.dump({"vocab_size": len(itos), "itos": itos, "stoi": stoi}, f)
    before = {path.name: path.read_bytes() for path in theirs.iterdir()}
    train("--dataset=tiny")
    train("--dataset=nanogpt", "--out_dir=theirs")
    assert load("theirs/last.pt")["model_args"]["vocab_size"] == len(meta["chars"])
    assert_same_state(load("theirs/last.pt"), load("out/last.pt"))
    assert {path.name: path.read_bytes() for path in theirs.iterdir()} == before


WORDS = [f"word{i} " for i in range(7334)]
NOTES = ["C4 ", "C4 ", "D#4 ", "rest "] + ["G" * n for n in range(1, 29)]


@pytest.fixture
def tokens_dataset(repo):
    """tokens_dataset(name, pickled, vocab_size) writes a dataset as nanoGPT has it, with this in its meta.pkl."""
    folders = []

    def write(name, pickled, vocab_size):
        folders.append(folder := repo / "data" / name)
        folder.mkdir()
        for split in ("train", "val"):
            (np.arange(400) * 7 % vocab_size).astype("<u2").tofile(folder / f"{split}.bin")
        (folder / "meta.pkl").write_bytes(pickle.dumps(pickled))

    yield write
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("itos", [WORDS, dict(enumerate(NOTES))], ids=["7,334 words", "32 notes, two of them equal"])
def test_nanogpts_words_and_notes_are_trained_on_resumed_and_sampled(train, inside, repo, tokens_dataset, itos):
    tokens_dataset("tokens", {"vocab_size": len(itos), "itos": itos}, len(itos))
    printed = train("--dataset=tokens", "--max_iters=2", "--n_embd=16").stdout
    assert "it writes: " in printed
    train("--dataset=tokens", "--max_iters=3", "--init_from=resume")
    assert load("out/last.pt")["model_args"]["vocab_size"] == len(itos)
    shutil.rmtree(repo / "data" / "tokens")  # the checkpoint knows the tokens
    options = ("--out_dir=out", "--num_samples=2", "--max_new_tokens=9", "--device=cpu")
    done = inside("sample.py", *options, f"--start={itos[3]}{itos[0]}")
    assert (done.returncode, done.stderr) == (0, "")
    tokenizer = TokensTokenizer([itos[i] for i in range(len(itos))])
    for text in done.stdout.replace("\n", "").split("-" * 15)[:2]:
        assert text.startswith(itos[3] + itos[0]) and tokenizer.encode(text)


def test_ids_of_which_only_the_number_is_known_are_trained_on_and_the_run_says_so(train, inside, tokens_dataset):
    tokens_dataset("numbers", {"vocab_size": 512}, 512)
    printed = train("--dataset=numbers", "--max_iters=2").stdout
    assert "of 'numbers''s token ids only the number is known, 512: the model will write no text\n" in printed
    assert "it writes" not in printed and load("out/last.pt")["model_args"]["vocab_size"] == 512
    assert "only their number is known" in inside("sample.py", "--out_dir=out").stderr


TALE = "the cat sat on the mat, and thé cât \N{CAT} had a hat. " * 20


@pytest.fixture
def bpe_dataset(repo):
    """bpe_dataset(name, learnt_from) writes a dataset of byte pairs as prepare.py does; returns its tokenizer."""
    folders = []

    def write(name, learnt_from=TALE, vocab_size=300):
        folders.append(folder := repo / "data" / name)
        folder.mkdir()
        tokenizer = learn_tokenizer([learnt_from], vocab_size)
        meta = tokenizer.meta() | {"options": {"input": "/home/me/private.txt", "clean": True}}
        for split, text in {"train": TALE, "val": TALE[:300]}.items():
            np.array(ids := tokenizer.encode(text), dtype="<u2").tofile(folder / f"{split}.bin")
            meta[split] = {"tokens": len(ids), "bytes": len(text.encode())}
        (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        return tokenizer

    yield write
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_byte_pairs_are_trained_on_resumed_and_sampled_without_their_data(train, inside, repo, bpe_dataset):
    tokenizer = bpe_dataset("pairs")
    assert "it writes: " in train("--dataset=pairs", "--max_iters=2").stdout
    assert "resuming" in train("--dataset=pairs", "--max_iters=6", "--init_from=resume").stdout
    meta = json.loads((repo / "data" / "pairs" / "meta.json").read_text(encoding="utf-8"))
    for figures in evaluations():
        in_bits = figures["val/loss"] * meta["val"]["tokens"] / math.log(2) / len(TALE[:300].encode())
        assert figures["val/bits_per_byte"] == pytest.approx(in_bits, rel=1e-9)
    shutil.rmtree(repo / "data" / "pairs")  # the checkpoint knows the byte pairs
    ids = tokenizer.encode("the cat")
    model = GPT.from_checkpoint(load("out/ckpt.pt")).eval()
    text = tokenizer.decode_bytes(model.generate(torch.tensor([ids]), 30, 0)[0].tolist()).decode("utf-8", "replace")
    for count in (1, 2):
        options = ("--max_new_tokens=30", "--temperature=0", f"--num_samples={count}", "--device=cpu")
        done = inside("sample.py", "--out_dir=out", "--start=the cat", *options)
        assert (done.returncode, done.stderr) == (0, "") and done.stdout == f"{text}\n{'-' * 15}\n" * count


@pytest.mark.parametrize("vocab_size, rows", [(257, 320), (300, 320), (320, 320), (330, 384)])
def test_a_checkpoint_of_byte_pairs_holds_them_and_no_path_and_rows_by_64(train, bpe_dataset, vocab_size, rows):
    text = TALE + "".join(f"{n} {n} " for n in range(1000, 1100))
    tokenizer = bpe_dataset("pairs", text, vocab_size)
    train("--dataset=pairs", "--max_iters=1", "--sample_tokens=0")
    for name in ("ckpt.pt", "last.pt"):
        checkpoint = load(f"out/{name}")
        assert checkpoint["meta"].keys() == {"encoding", "vocab_size", "merges", "train", "val"}
        assert checkpoint["meta"] | tokenizer.meta() == checkpoint["meta"] and "private" not in str(checkpoint)
        assert checkpoint["model_args"].keys() == MODEL_ARGS and checkpoint["model_args"]["vocab_size"] == rows
        assert checkpoint["model"]["transformer.wte.weight"].shape == (rows, 16)
        assert GPT.from_checkpoint(checkpoint).config.n_ids == vocab_size == tokenizer.vocab_size


def other_meta(checkpoint, ids):
    """The checkpoint with as many ids in its meta."""
    merges = [[left, right] for left in range(256) for right in (0, 1)][: ids - 257]
    return checkpoint | {"meta": {"encoding": "bpe", "vocab_size": ids, "merges": merges}}


DAMAGES = {
    "too many ids": lambda checkpoint: other_meta(checkpoint, 321),
    "merges lost": lambda checkpoint: checkpoint | {"meta": {"encoding": "bpe", "vocab_size": 330}},
    "rows lost": lambda checkpoint: checkpoint | {"model_args": {**checkpoint["model_args"], "vocab_size": 64}},
    "no number of rows": lambda checkpoint: (
        checkpoint | {"model_args": {**checkpoint["model_args"], "vocab_size": "x"}}
    ),
    "no rows": lambda checkpoint: checkpoint | {"model_args": {}},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_checkpoint_whose_vocabulary_does_not_fit_its_model_is_one_line_of_error(train, inside, bpe_dataset, damage):
    bpe_dataset("pairs", TALE + "".join(f"{n} {n} " for n in range(1000, 1100)), 330)
    train("--dataset=pairs", "--max_iters=1", "--sample_tokens=0")
    checkpoint = load("out/last.pt")
    if damage is DAMAGES["too many ids"]:  # of a model with 320 rows
        weight = checkpoint["model"]["lm_head.weight"][:320].clone()
        checkpoint["model"] |= {"lm_head.weight": weight, "transformer.wte.weight": weight}
        checkpoint["model_args"]["vocab_size"] = 320
    for name in ("ckpt.pt", "last.pt"):
        torch.save(damage(checkpoint), f"out/{name}")
    for done in (
        inside("sample.py", "--out_dir=out", "--device=cpu"),
        train("--dataset=pairs", "--init_from=resume", "--max_iters=2", status=2),
    ):
        assert done.returncode == 2 and re.fullmatch("error: .*out/(ckpt|last).pt.*\n", done.stderr)
        said = "merges should be a list" if damage is DAMAGES["merges lost"] else "take as many rows of its model"
        assert said in done.stderr


def test_a_run_does_not_go_on_with_other_byte_pairs(train, bpe_dataset):
    bpe_dataset("mine")
    bpe_dataset("theirs", TALE[::-1])
    train("--dataset=mine", "--max_iters=1")
    done = train("--dataset=theirs", "--init_from=resume", status=2)
    assert re.fullmatch("error: .*other token ids than those of --dataset=theirs.*\n", done.stderr)


def test_a_run_does_not_go_on_with_other_tokens(train, tokens_dataset):
    tokens_dataset("mine", {"vocab_size": 32, "itos": NOTES}, 32)
    tokens_dataset("theirs", {"vocab_size": 32, "itos": NOTES[::-1]}, 32)
    tokens_dataset("unnamed", {"vocab_size": 32}, 32)
    train("--dataset=mine", "--max_iters=1")
    for other in ("theirs", "unnamed"):
        done = train(f"--dataset={other}", "--init_from=resume", status=2)
        assert f"other token ids than those of --dataset={other}" in done.stderr


@pytest.mark.slow
def test_without_a_meta_the_ids_are_gpt2s(train, tiny, repo):
    (folder := repo / "data" / "bare").mkdir()
    for split in ("train", "val"):
        np.array([50256, *range(30)], dtype="<u2").tofile(folder / f"{split}.bin")
    train("--dataset=bare", "--max_iters=1")
    checkpoint = load("out/last.pt")
    assert checkpoint["model_args"]["vocab_size"] == 50304
    assert checkpoint["model"]["transformer.wte.weight"].shape == (50304, 16)


@pytest.mark.slow
def test_a_checkpoint_keeps_the_dtype_that_auto_stood_for_and_a_resume_says_where_it_differs(train):
    train("--dtype=auto", "--max_iters=1")
    before = load("out/last.pt")["config"]["dtype"]
    assert before in ("float32", "bfloat16")
    resumed = "--init_from=resume", "--max_iters=2"
    assert "dtype: " not in train("--dtype=auto", "--max_iters=1", "--init_from=resume").stdout
    other = {"float32": "bfloat16", "bfloat16": "float32"}[before]
    assert (
        f"dtype: {before} so far, {other} asked for: going on with {other}\n"
        in train(f"--dtype={other}", *resumed).stdout
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_trains_on_a_cpu(train, dtype):
    options = ("--max_iters=60", "--lr_decay_iters=60", "--learning_rate=3e-2")
    train(*options)
    train(*options, f"--dtype={dtype}", "--out_dir=half")
    exact, half = ([figures["train/loss"] for figures in evaluations(folder)] for folder in ("out", "half"))
    assert half[0] == pytest.approx(exact[0], rel=0.01) and half[0] != exact[0]
    assert max(half[-1], exact[-1]) < half[0] / 2
    assert {weight.dtype for weight in load("half/last.pt")["model"].values()} == {torch.float32}


@pytest.mark.full
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(
    "options, tolerance",
    [
        (["--optimizer=adamw", "--dtype=float32"], 1e-5),
        (["--optimizer=muon", "--dtype=float16", "--checkpoint_activations=True"], 2e-3),
    ],
)
def test_a_compiled_run_has_the_losses_of_one_that_is_not_in_two_graphs_without_breaks(train, options, tolerance):
    train(*options)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    train(*options, "--compile=True", "--out_dir=compiled")
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == 2  # to train and to evaluate
    for kind, name in ((updates, "loss"), (evaluations, "val/loss")):
        expected = [figures[name] for figures in kind("out")]
        assert [figures[name] for figures in kind("compiled")] == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("where", ["transformer.h.0.mlp.c_fc.weight", "transformer.ln_f.weight"])
def test_a_float16_step_with_an_infinite_gradient_anywhere_changes_nothing_and_the_next_one_does(where, optimizer):
    torch.manual_seed(0)
    model = GPT(GPTConfig(8, 20, 1, 2, 16))
    optimizers = model.configure_optimizers(0.1, 1e-2, (0.9, 0.95), "cpu", optimizer)
    autocast, scaler = mixed_precision(torch.device("cpu"), torch.float16)
    windows = torch.randint(20, (3, 9))

    def step():
        batches = [lambda: (windows[:, :-1], windows[:, 1:])]
        return train_script.train_step(model, optimizers, scaler, autocast, batches, 1)

    def state():
        return copy.deepcopy([model.state_dict(), *(o.state_dict()["state"] for o in optimizers)])

    step()
    before, scale = state(), scaler.get_scale()
    hook = dict(model.named_parameters())[where].register_hook(lambda grad: grad * math.inf)
    _, norm = step()
    assert not norm.isfinite()
    torch.testing.assert_close(state(), before, rtol=0, atol=0)
    assert scaler.get_scale() == scale / 2
    hook.remove()
    _, norm = step()
    after = state()
    assert norm.isfinite() and all(weight.isfinite().all() for weight in after[0].values())
    assert not any(torch.equal(weight, before[0][name]) for name, weight in after[0].items() if weight.dim() == 2)


@pytest.mark.slow
def test_a_resumed_float16_run_with_two_optimizers_repeats_the_uninterrupted_one(train):
    options = ("--dtype=float16", "--optimizer=muon", "--lr_decay_iters=6")
    train(*options, "--out_dir=whole")
    train(*options, "--max_iters=4")
    train(*options, "--init_from=resume")
    assert_same_state(load("whole/last.pt"), load("out/last.pt"))
    assert load("whole/last.pt")["scaler"] == load("out/last.pt")["scaler"] != {}


def wandb_records(path):
    """The records in a .wandb file: LevelDB's log format (blocks of 32 KB, a record in parts) after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at < len(data):
        if (room := 2**15 - at % 2**15) < 7:
            at += room
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        whole, at = whole + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # the whole of a record, or its last part
            yield Record.FromString(whole)
            whole = b""


@pytest.mark.slow
def test_wandb_gets_the_figures_the_options_and_the_samples_and_a_resumed_run_is_the_same_run(
    script, tiny, tmp_path, monkeypatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for more in (["--max_iters=5"], ["--init_from=resume"]):
        done = script("train.py", *TINY, "--log_interval=1", "--wandb_log=True", "--wandb_project=test", *more)
        assert done.returncode == 0, done.stderr
    files = sorted(tmp_path.glob("out/wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    runs, figures, options = [], {}, {}
    for record in (r for path in files for r in wandb_records(path)):
        if record.HasField("run"):
            runs.append((record.run.run_id, record.run.project))
            options |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.HasField("history"):
            line = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            figures.setdefault(line["iter"], {}).update(line)
    assert len(runs) == 2 and len(set(runs)) == 1 and runs[0][1] == "test"
    assert options["n_embd"] == 16 and options["max_iters"] == 6
    written = {}
    for line in (tmp_path / "out/log.jsonl").read_text(encoding="utf-8").splitlines():
        written.setdefault(json.loads(line)["iter"], {}).update(json.loads(line))
    assert figures.keys() == written.keys() == set(range(7))
    for iteration, line in written.items():
        for name in line.keys() - {"config", "sample", "seconds", "ms", "tokens_per_s"}:
            assert figures[iteration][name] == pytest.approx(line[name])
    assert {"loss", "lr", "grad_norm", "tokens_per_s"} <= figures[1].keys() and "val/loss" in figures[4]
    tables = [json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("out/wandb/*/files/media/table/*")]
    rows = {iteration: text for table in tables for iteration, text in table["data"]}
    assert (
        rows.items() >= {iteration: line["sample"] for iteration, line in written.items() if "sample" in line}.items()
    )


@pytest.mark.slow
def test_each_evaluation_shows_what_the_model_writes_and_zero_sample_tokens_nothing(train):
    def samples(*args):
        return re.findall("^it writes: (.*)$", train("--eval_interval=2", "--log_interval=1", *args).stdout, re.M)

    shown = samples("--sample_tokens=30")
    assert len(shown) == 3  # after 2, 4 and 6 iterations; before the first one it would be noise
    assert all(0 < len(text) <= 31 for text in shown)
    assert shown == [line["sample"] for line in log() if "sample" in line] == samples("--sample_tokens=30")
    assert samples("--sample_tokens=0") == []


@pytest.mark.slow
def test_samples_change_nothing_of_the_training(train):
    for tokens in (0, 20):
        train(f"--sample_tokens={tokens}", f"--out_dir=out-{tokens}", "--dropout=0.2", "--eval_interval=1")
    one, other = load("out-0/last.pt")["model"], load("out-20/last.pt")["model"]
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_run_that_will_take_hours_says_so_before_the_first_evaluation_and_names_a_config_that_does_not(train):
    out = train("--max_iters=10000000", "--eval_iters=1", evaluate=lambda *args: sys.exit(0)).stdout
    assert "config/train_hitchikers_cpu.py" not in out
    huge = ["--max_iters=1000000000", "--gradient_accumulation_steps=1000"]
    out = train(*huge, evaluate=lambda *args: sys.exit(0)).stdout
    assert re.search(r"will take about [\d,]+ hours on cpu: config/train_hitchikers_cpu.py", out)


@pytest.mark.slow
def test_a_model_far_too_large_for_its_text_is_told_what_to_try(train):
    assert "--dropout" in train("--n_embd=64", "--max_iters=1").stdout
    assert "--dropout" not in train("--max_iters=1").stdout
