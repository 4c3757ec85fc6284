"""What plot.py promises: the losses in a log as a picture, and mistakes in one line."""

import json
import random
from pathlib import Path

import pytest
from matplotlib.image import imread

import plot
from report import read_log

ROOT = Path(__file__).resolve().parent.parent
STARTS = {".png": b"\x89PNG\r\n", ".svg": b"<?xml", ".pdf": b"%PDF-"}


def log_lines(best_at=60, noise=0.0):
    """A run's figures as train.py writes them: 101 training lines, 6 evaluations, the best at `best_at`."""
    rng = random.Random(1)
    for i in range(101):
        at = {"iter": i, "tokens": i * 768, "seconds": i / 4}
        if i % 20 == 0:
            val = 3.0 + abs(i - best_at) / 50
            yield {**at, "train/loss": val - 1, "val/loss": val, "val/bits_per_byte": val / 3, "sample": "The Earth"}
        yield {**at, "loss": 2.5 + 8 / (1 + i) + noise * rng.gauss(0, 1), "lr": 1e-3, "grad_norm": 1.0, "ms": 250.0}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """folder("out-a", lines) makes a run's folder with a log of these lines: dicts, or text as it is."""
    monkeypatch.chdir(tmp_path)

    def make(name="out-a", lines=None):
        Path(name).mkdir()
        lines = log_lines() if lines is None else lines
        text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
        Path(name, "log.jsonl").write_text(text, encoding="utf-8")
        return name

    return make


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf", ".PNG"])
def test_a_picture_of_the_asked_for_kind_is_written_and_no_other_file(folder, inside, tmp_path, ending):
    result = inside("plot.py", folder(), folder("out-b"), f"--to=my=loss{ending}")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"the losses are in my=loss{ending}\n", "")
    assert Path(f"my=loss{ending}").read_bytes().startswith(STARTS[ending.lower()])
    assert {path.name for path in tmp_path.iterdir()} == {"out-a", "out-b", f"my=loss{ending}"}


def test_a_run_may_be_named_by_its_log(folder, inside):
    result = inside("plot.py", f"{folder()}/log.jsonl")
    assert (result.returncode, result.stderr) == (0, "") and Path("loss.png").exists()


def test_the_picture_has_an_opaque_background_and_is_wide_enough_for_a_readme(folder):
    plot.plot_losses([folder()], "loss.png")
    picture = imread("loss.png")  # (height, width, RGBA)
    assert picture.shape[1] >= 1600 and (picture[:, :, 3] == 1).all() and (picture[0, 0, :3] == 1).all()


@pytest.mark.parametrize("x, label", [("iter", "iterations"), ("tokens", "tokens"), ("seconds", "seconds")])
def test_the_picture_shows_the_logs_figures(x, label):
    lines = list(log_lines())
    axes = plot.loss_figure({"out-a": lines}, x).axes[0]
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    for y in ("val/loss", "loss"):
        assert ([line[x] for line in lines if y in line], [line[y] for line in lines if y in line]) in drawn
    assert label in axes.get_xlabel() and "nats" in axes.get_ylabel()


@pytest.mark.parametrize("best_at", [0, 60, 100])
def test_the_best_validation_loss_of_each_run_is_marked_and_named(best_at):
    runs = {"out-a": list(log_lines(best_at)), "_b $x$": list(log_lines(20))}
    axes = (figure := plot.loss_figure(runs, "iter")).axes[0]
    stars = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "*"]
    assert stars == [(best_at, 3.0), (20, 3.0)]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert any("out-a" in text and "best 3.000" in text for text in legend)
    assert any("_b $x$" in text and "best 3.000" in text for text in legend)


def test_seven_runs_look_different():
    axes = plot.loss_figure({f"out-{i}": list(log_lines()) for i in range(7)}, "iter").axes[0]
    looks = {(line.get_color(), line.get_marker()) for line in axes.lines if line.get_marker() not in ("*", "None")}
    assert len(looks) == 7


def test_the_steep_beginning_does_not_press_the_rest_together():
    low, high = plot.loss_figure({"out-a": list(log_lines(noise=0.1))}, "iter").axes[0].get_ylim()
    assert low < 2.6 and 3.8 < high < 5  # the evaluation at 20 is 3.8, the first loss 10.5


def test_smoothing_takes_the_noise_and_leaves_the_course():
    rng = random.Random(1)
    course = [5 - i / 1000 for i in range(1000)]
    noisy = [value + rng.gauss(0, 0.1) for value in course]
    smooth = plot.smoothed(noisy)
    assert len(smooth) == 1000 and max(abs(a - b) for a, b in zip(smooth[30:], course[30:])) < 0.07
    assert plot.smoothed(course[:1]) == course[:1] and plot.smoothed([]) == []


def test_a_log_is_read_without_its_damaged_lines(folder):
    good = list(log_lines())[:3]
    path = Path(folder(lines=good), "log.jsonl")
    odd = ["null", "[1]", "3", '"iter"', "{}", '{"iter": "1"}', '{"iter": true}', '{"iter": 1.5}', "[" * 100000]
    bad = "\n".join([*odd, '{"iter": ' + "9" * 5000 + "}", ""]).encode() + b"\xff\xfe\0\n"
    path.write_bytes(bad + path.read_bytes() + b'{"iter": 40, "tokens": 30720, "sec')
    assert read_log(path) == good


def test_figures_that_cannot_be_drawn_are_left_out(folder):
    odd = [float("nan"), float("inf"), 10**400, "3", None, [3], True]
    lines = [*({"iter": 1, "val/loss": value, "loss": value} for value in odd), {"iter": 10**400, "val/loss": 1.0}]
    plot.plot_losses([folder(lines=[*log_lines(), *lines])], "loss.png")
    axes = plot.loss_figure({"a": [*log_lines(), *lines]}, "iter").axes[0]
    assert sum(len(line.get_xdata()) for line in axes.lines) == 6 + 1 + 101 + 101


def test_one_evaluation_is_enough(folder):
    plot.plot_losses([folder(lines=[{"iter": 0, "seconds": 0.0, "val/loss": 10.8}])], "loss.png", "seconds")
    assert Path("loss.png").exists()


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("", ["no run", "python plot.py out-hitchikers"]),
        ("out-b", ["'out-b'", "did you mean out-a?"]),
        ("log.jsonl", ["no folder 'log.jsonl'"]),
        ("nolog", ["nolog", "log.jsonl", "out_dir"]),
        ("out-a nolog", ["nolog", "log.jsonl"]),
        ("empty", ["empty", "damaged"]),
        ("damaged", ["damaged", "no line"]),
        ("young", ["'young'", "no evaluation yet"]),
        ("folder", ["cannot read", "folder"]),
        ("out-a --to=loss.jpg", ["--to=loss.jpg", ".png, .svg or .pdf"]),
        ("out-a --to=", ["--to=", ".png, .svg or .pdf"]),
        ("out-a --x=epochs", ["--x=epochs", "iter, tokens, seconds"]),
        ("out-a --too=loss.png", ["--too", "did you mean --to?"]),
        ("out-a --to", ["--to", "--key=value"]),
        ("out-a --to=no/such/loss.png", ["cannot write", "no/such/loss.png"]),
    ],
)
def test_a_mistake_is_one_line_and_leaves_the_old_picture(folder, inside, arguments, said):
    folder()
    folder("empty", [])
    folder("damaged", ['{"iter": 0, "val/lo'])
    folder("young", [{"iter": 0, "tokens": 0, "seconds": 0.1, "loss": 10.8}])
    Path("nolog").mkdir()
    Path("folder/log.jsonl").mkdir(parents=True)
    Path("loss.png").write_bytes(b"old")
    result = inside("plot.py", *arguments.split())
    assert result.returncode == 2 and result.stdout == "" and len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ") and all(part in result.stderr for part in said)
    assert Path("loss.png").read_bytes() == b"old" and not list(Path().glob("*.tmp"))


def test_help_says_that_folders_are_wanted_and_no_config_files(inside):
    result = inside("plot.py", "no-such-folder", "--help")
    assert result.returncode == 0 and "plot.py out-a [out-b ...] [--key=value ...]" in result.stdout
    assert "config.py" not in result.stdout
