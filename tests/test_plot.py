"""What plot.py promises: the losses in a log as a picture, and mistakes in one line."""

import json
import random
import re
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
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith(f"\nthe losses are in my=loss{ending}\n")
    assert Path(f"my=loss{ending}").read_bytes().startswith(STARTS[ending.lower()])
    assert {path.name for path in tmp_path.iterdir()} == {"out-a", "out-b", f"my=loss{ending}"}


def test_a_run_may_be_named_by_its_log(folder, inside):
    result = inside("plot.py", f"{folder()}/log.jsonl")
    assert (result.returncode, result.stderr) == (0, "") and Path("loss.png").exists()


def test_the_picture_has_an_opaque_background_and_is_wide_enough_for_a_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plot.plot_losses({"out-a": list(log_lines())}, "loss.png")
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


def test_the_height_is_that_of_the_validation_losses_after_the_first_fifth_and_half_as_much_below():
    runs = {"out-a": list(log_lines(noise=0.1)), "out-b": list(log_lines(40))}  # from 20 on: 3.0 to 3.8, and 3.0 to 4.2
    low, high = plot.loss_figure(runs, "iter").axes[0].get_ylim()
    assert 4.2 < high < 4.2 + 0.2 * 1.2  # the first evaluation of out-a is 4.2 too, its first training loss 10.5
    assert 3.0 - 0.7 * 1.2 < low < 3.0 - 0.5 * 1.2  # the training losses end at 2.6, and would fill it


def test_a_run_with_its_first_evaluation_only_does_not_press_the_others_together():
    first = list(log_lines())[:2]
    assert [line["iter"] for line in first if "val/loss" in line] == [0]
    alone = plot.loss_figure({"out-a": list(log_lines())}, "iter").axes[0].get_ylim()
    assert plot.loss_figure({"first": first, "out-a": list(log_lines())}, "iter").axes[0].get_ylim()[1] <= alone[1]


def test_training_losses_far_below_do_not_press_the_validation_losses_together():
    lines = [line | ({"loss": line["loss"] - 50} if "loss" in line else {}) for line in log_lines()]
    for runs, most in (({"out-a": lines}, 3.5), ({"out-a": lines, "out-b": lines}, 2)):  # times their own range
        low, high = plot.loss_figure(runs, "iter").axes[0].get_ylim()
        assert low < 3.0 and high > 3.8 and high - low < most * 0.8


def test_a_single_runs_training_curve_is_seen_to_its_end():
    lines = list(log_lines())
    low, _ = plot.loss_figure({"out-a": lines}, "iter").axes[0].get_ylim()
    assert low < min(plot.smoothed(plot.curve(lines, "iter", "loss")[1]))


def test_a_run_that_has_just_begun_does_not_press_the_others_together():
    young = [{"iter": 0, "val/loss": 8.6}, {"iter": 10, "loss": 7.0}]
    low, high = plot.loss_figure({"out-a": list(log_lines()), "young": young}, "iter").axes[0].get_ylim()
    assert low < 3.0 and 3.8 < high < 4.2


def box(figure, artist):
    figure.canvas.draw()
    return artist.get_window_extent(figure.canvas.get_renderer())


@pytest.mark.parametrize("others", [0.0, 0.001, 0.02])
def test_no_best_hides_another_or_the_figure_at_the_lowest(others):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    runs = {f"out-{i}": [{"iter": n, "val/loss": 5 - n / 10 + i * others} for n in range(11)] for i in range(4)}
    FigureCanvasAgg(figure := plot.loss_figure(runs, "iter"))
    axes = figure.axes[0]
    stars = [line for line in axes.lines if line.get_marker() == "*"]
    assert len({star.get_markersize() for star in stars}) == 4 and {star.get_markerfacecolor() for star in stars} == {
        "none"
    }
    [figure_below] = axes.texts
    text = box(figure, figure_below)
    for star in stars:
        radius = star.get_markersize() / 2 * figure.dpi / 72
        lowest = axes.transData.transform((star.get_xdata()[0], star.get_ydata()[0]))[1] - radius * 0.81  # its two feet
        assert lowest > text.y1


def test_bits_per_byte_are_drawn_with_the_training_losses_in_the_same_unit():
    lines = [
        line | ({"train/bits_per_byte": line["train/loss"] / 3} if "val/loss" in line else {}) for line in log_lines()
    ]
    axes = (figure := plot.loss_figure({"out-a": lines}, "iter", "bits")).axes[0]
    drawn = [list(line.get_ydata()) for line in axes.lines]
    assert [line["val/bits_per_byte"] for line in lines if "val/loss" in line] in drawn
    assert pytest.approx([line["loss"] / 3 for line in lines if "loss" in line]) in [y for y in drawn if len(y) == 101]
    assert axes.get_ylabel() == "bits per byte" and "best 1.000" in figure.legends[0].get_texts()[0].get_text()


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
    plot.plot_losses({"a": read_log(f"{folder(lines=[*log_lines(), *lines])}/log.jsonl")}, "loss.png")
    axes = plot.loss_figure({"a": [*log_lines(), *lines]}, "iter").axes[0]
    assert sum(len(line.get_xdata()) for line in axes.lines) == 6 + 1 + 101 + 101


def test_one_evaluation_is_enough(folder, inside):
    result = inside("plot.py", folder(lines=[{"iter": 0, "seconds": 0.0, "val/loss": 10.8}]), "--x=seconds")
    assert result.returncode == 0 and Path("loss.png").exists()


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
        ("begun", ["'begun'", "no evaluation yet"]),
        ("folder", ["cannot read", "folder"]),
        ("out-a --to=loss.jpg", ["--to=loss.jpg", ".png, .svg or .pdf"]),
        ("out-a --to=", ["--to=", ".png, .svg or .pdf"]),
        ("out-a --x=epochs", ["--x=epochs", "iter, tokens, seconds"]),
        ("out-a --y=bytes", ["--y=bytes", "loss, bits"]),
        ("out-a bitless --y=bits", ["--y=bits", "'bitless'", "bytes", "--y=loss"]),
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
    folder("begun", [{"iter": 0, "tokens": 0, "seconds": 0.0, "config": {"n_embd": 128}}])
    folder("bitless", [{"iter": 0, "val/loss": 4.0}])
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


# -----------------------------------------------------------------------------
# the table


CONFIG = {
    "out_dir": "out-a",
    "device": "auto",
    "wandb_run_name": "a",
    "init_from": "scratch",
    "n_embd": 128,
    "bias": False,
}


def with_options(lines, at=0, **options):
    """A log that says its options at an iteration."""
    lines = list(lines)
    place = [line["iter"] for line in lines].index(at)
    return [*lines[:place], {"iter": at, "tokens": 0, "seconds": 0.0, "config": options}, *lines[place:]]


def table(inside, *arguments):
    """The lines of the table that plot.py prints, each as its columns."""
    result = inside("plot.py", *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()[:-1]
    assert max(map(len, lines)) <= 80
    return [re.split("  +", line.strip()) for line in lines]


def test_the_table_says_what_each_run_reached_and_in_which_options_they_differ(folder, inside):
    folder(lines=with_options(log_lines(60), **CONFIG))
    folder(
        "out-b", with_options(log_lines(20), **CONFIG | {"n_embd": 192, "out_dir": "b", "device": "cpu", "bias": True})
    )
    assert table(inside, "out-a", "out-b") == [
        ["run", "best", "at iter", "minutes", "tokens/s", "n_embd", "bias"],
        ["out-a", "1.0000 bits/byte", "60", "0.4", "3,072", "128", "False"],
        ["out-b", "1.0000 bits/byte", "20", "0.4", "3,072", "192", "True"],
    ]


def test_where_a_run_is_and_what_it_is_called_is_no_difference(folder, inside):
    folder(lines=with_options(log_lines(), **CONFIG))
    names = {"out_dir": "b", "device": "cpu", "backend": "gloo", "wandb_log": True, "wandb_run_name": "b"}
    folder("out-b", with_options(log_lines(), **CONFIG | names))
    assert table(inside, "out-a", "out-b")[0][-1] == "tokens/s"


def test_the_table_of_one_run(folder, inside):
    columns, row = table(inside, folder(lines=with_options(log_lines(), **CONFIG)))
    assert columns[-1] == "tokens/s" and row[:2] == ["out-a", "1.0000 bits/byte"]


def test_the_table_says_loss_where_the_bytes_are_unknown(folder, inside):
    lines = [{k: v for k, v in line.items() if k != "val/bits_per_byte"} for line in log_lines()]
    assert [row[1] for row in table(inside, folder(), folder("out-b", lines))[1:]] == [
        "1.0000 bits/byte",
        "loss 3.0000",
    ]


def test_an_older_log_shows_a_question_mark_where_it_does_not_say_an_option(folder, inside):
    for name, width in {"out-a": 128, "out-b": 192}.items():
        folder(name, with_options(log_lines(), n_embd=width))
    folder("old")
    assert [row[5] for row in table(inside, "out-a", "out-b", "old")] == ["n_embd", "128", "192", "?"]
    assert table(inside, "out-a", "old")[0][-1] == "tokens/s"


def test_of_a_run_resumed_with_other_options_the_table_has_all_values_in_their_order(folder, inside):
    folder(lines=with_options(with_options(log_lines(), max_iters=40, seed=1), at=41, max_iters=100))
    folder("out-b", with_options(log_lines(), max_iters=100, seed=1))
    assert [row[5:] for row in table(inside, "out-a", "out-b")] == [["max_iters"], ["40, 100"], ["100"]]


def test_a_run_without_an_evaluation_yet_is_in_the_table_and_not_in_the_picture(folder, inside):
    folder("young", [{"iter": 0, "tokens": 0, "seconds": 0.0, "config": CONFIG}])
    rows = table(inside, "young", folder())
    assert rows[1] == ["young", "no evaluation", "?", "0.0", "0"] and rows[2][1] == "1.0000 bits/byte"
    figure = plot.loss_figure({name: read_log(f"{name}/log.jsonl") for name in ("young", "out-a")}, "iter")
    assert len(figure.legends[0].get_texts()) == 2


def test_the_table_is_aligned_and_no_wider_than_the_terminal_whatever_the_names(folder, inside, monkeypatch):
    options = {f"a_long_option_{i}": "x" * i for i in range(12)}
    names = ["out-" + "long" * 30, "out\n$x$", "out-c"]
    for i, name in enumerate(names):
        folder(name, with_options(log_lines(), **{k: f"{v}{i}" * 9 for k, v in options.items()}))
    for columns, width in {"300": 120, "100": 100, "20": 80}.items():
        monkeypatch.setenv("COLUMNS", columns)
        blocks = inside("plot.py", *names).stdout.rpartition("\n")[0].rpartition("\n")[0].split("\n\n")
        widths = [{len(line) for line in block.splitlines()} for block in blocks]
        assert all(len(w) == 1 and max(w) <= width for w in widths) and max(map(max, widths)) > width - 36
        assert [len(block.splitlines()) for block in blocks] == [4] * len(blocks)
        headers = [header for block in blocks for header in re.split("  +", block.splitlines()[0])[1:]]
        assert headers == ["best", "at iter", "minutes", "tokens/s", *options]


def test_a_log_with_odd_options_still_makes_a_table(folder, inside):
    odd = [{"iter": 0, "config": config} for config in (None, [1], "x", {"a": {"b": [1]}, "": None, "c\nd": "\ud800"})]
    folder(lines=[*odd, *log_lines(), '{"iter": 40, "config": {"a'])
    folder("out-b", with_options(log_lines(), **{"a": 1, "": 2, "c\nd": "e"}))
    assert [row[5:] for row in table(inside, "out-a", "out-b")[1:]] == [["{'b': [1]}", "None", "?"], ["1", "2", "e"]]
