"""bench.py's promises, on sizes that take seconds."""

import json
import re
from functools import partial

import pytest

import bench
import train
from conftest import ROOT

TINY = ["--model=laptop", "--batch_size=2", "--block_size=16", "--steps=3", "--runs=1", "--num_samples=2"]
TINY += ["--max_new_tokens=4", "--device=cpu"]


@pytest.mark.slow
def test_it_times_training_and_sampling_beside_transformers_and_writes_the_figures(script, tmp_path):
    done = script("bench.py", *TINY, "--peer=transformers", "--json=figures.json", "--profile=True")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    for times in (figures["training_seconds"], figures["sampling_1_x_4_seconds"], figures["sampling_2_x_4_seconds"]):
        assert set(times) == {"ours", "transformers"} and all(seconds > 0 for s in times.values() for seconds in s)
    assert len(figures["training_seconds"]["ours"]) == 3 and figures["peak_flops"] > 1e9
    median = sorted(figures["training_seconds"]["ours"])[1]
    assert f"{2 * 16 / median:,.0f} tok/s, {figures['flops_per_step'] / median / 1e9:,.0f} GFLOP/s" in done.stdout
    assert (
        figures["peak_memory_bytes"]["ours"] > 2**20 and figures["peak_memory_bytes"]["transformers"] is None
    )  # a GPU's
    assert done.stdout.count("transformers takes") == 3 and "first token" in done.stdout
    assert "sampling, 2 x 4 tokens, eager\n" in done.stdout and figures["sampling_2_x_4_way"] == "eager"
    assert json.loads((tmp_path / "bench-trace.json").read_text(encoding="utf-8"))["traceEvents"]


def test_another_vocabulary_is_timed_and_stands_among_the_figures(inside, tmp_path):
    done = inside("bench.py", *TINY, "--compile=False", "--vocab_size=300", "--json=figures.json")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    layers = 4 * 12 * 128**2  # the matrices of the blocks
    assert figures["vocab_size"] == 300 and figures["training_seconds"]["ours"]
    assert 1 < figures["flops_per_step"] / (6 * (2 * 16) * (layers + 300 * 128)) < 1.1  # biases and attention besides


def test_it_times_the_step_that_training_makes():
    assert bench.train_step is train.train_step


@pytest.mark.slow
def test_it_writes_no_more_tokens_than_fit_into_the_window(script):
    done = script("bench.py", *TINY[:-2], "--device=cpu", "--optimizer=muon", "--block_size=8")
    assert done.returncode == 0 and "sampling, 1 x 7 tokens" in done.stdout, done.stderr


def test_the_figures_take_the_place_of_earlier_ones(inside, tmp_path):
    (tmp_path / "figures.json").write_text("old", encoding="utf-8")
    assert inside("bench.py", *TINY, "--json=figures.json", measure=lambda: {"steps": 3}).returncode == 0
    assert json.loads((tmp_path / "figures.json").read_text(encoding="utf-8")) == {"steps": 3}


def test_it_fails_before_it_measures_where_the_figures_cannot_be_written(inside):
    measured = []
    done = inside("bench.py", *TINY, "--json=nothing/x.json", measure=lambda: measured.append(True))
    assert done.returncode == 2 and re.fullmatch("error: cannot write .*nothing/x.json.*\n", done.stderr)
    assert not measured


def test_nanogpts_options_work_with_a_note_where_one_means_nothing(inside):
    done = inside("bench.py", "--real_data=False", "--bias=False", measure=dict)
    assert (done.returncode, done.stderr) == (0, "note: --real_data=False means nothing here: the tokens are random\n")


@pytest.mark.full
def test_the_suite_for_a_gpu_makes_a_trial_of_itself_on_a_cpu(script, tmp_path):
    done = script(ROOT / "tests/gpu_suite.py", "--json=figures.json", timeout=300)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    table = [line for line in done.stdout.splitlines() if line.startswith("|")][2:]
    assert table == [f"| {row['what']} | {row['here']} | {row['other']} | {row['ratio']} |" for row in figures["rows"]]
    exact = [row["ratio"] for row in figures["rows"] if "float32, adamw" in row["what"]]
    assert exact == ["0.0e+00 apart"] * 2, "a CPU is compared with itself"
    for what in ("step, gpt2,", "step, baby,", "step, gpt2-medium,", "sampling, gpt2, 2 x 8", "`sample.py`"):
        assert any(row["what"].startswith(what) and row["seconds"] for row in figures["rows"])
    steps = [row["other"] for row in figures["rows"] if row["what"].startswith("step, gpt2,")]
    compared = ["Muon", "not compiled", "transformers", "plain cross entropy", "float16"]
    assert [step.partition(":")[0] for step in steps] == compared


def test_the_suite_goes_on_where_a_part_fails_and_begins_none_that_would_take_too_long(inside, tmp_path):
    def broken(until):
        raise RuntimeError("no such kernel\non this GPU")

    jobs = [(broken, 1), (partial(print, "sound"), 1e4), (partial(broken), 1)]
    done = inside("tests/gpu_suite.py", "--json=figures.json", JOBS=jobs)
    assert done.returncode == 2
    twice = "; ".join(["broken failed (no such kernel)"] * 2)
    assert done.stderr == f"error: {twice}\n"
    rows = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["rows"]
    assert [(row["what"], row["here"]) for row in rows] == [
        *(
            ("broken", "failed: no such kernel"),
            ("print sound", "no time was left"),
            ("broken", "failed: no such kernel"),
        ),
    ]


def test_it_is_not_for_several_processes(inside):
    done = inside("bench.py", *TINY, WORLD_SIZE=2)
    assert done.returncode == 2 and re.fullmatch("error: WORLD_SIZE=2.*without torchrun\n", done.stderr)


@pytest.mark.parametrize(
    "mistake, right",
    [
        *(("--model=gpt3", "gpt2"), ("--peer=jax", "transformers"), ("--steps=0", "at least 1")),
        *(("--vocab_size=0", "at least 1"), ("--vocab_size=1e9", "at most 1000000")),
    ],
)
def test_a_mistake_is_one_line_with_what_would_be_right(inside, mistake, right):
    done = inside("bench.py", *TINY, mistake)
    assert done.returncode == 2 and re.fullmatch(f"error: .*{right}.*\n", done.stderr)
