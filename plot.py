"""
Draw the losses of one run, or of several in one picture, from the log.jsonl in their folders.

    python plot.py out-hitchikers                                  loss.png, against iterations
    python plot.py out-a out-b --x=seconds --to=comparison.svg     which learns faster?

The curves with marks are validation losses, with a star at the best; those without are training losses (faint) and
their running means. The steep beginning is cut off. Losses are in nats per token: compare only runs that have the same
encoding.
"""

from configurator import UserError, check_installed, configure, replacing, run, suggestion

import glob
import os
import sys
from itertools import accumulate

from report import read_log

# -----------------------------------------------------------------------------
to = "loss.png"  # the picture to write: .png, .svg or .pdf
x = "iter"  # what the losses are drawn against: iter, tokens or seconds
# -----------------------------------------------------------------------------

AXES = {"iter": "iterations", "tokens": "tokens seen", "seconds": "seconds of training"}
# Okabe and Ito's colours, which colour-blind readers tell apart too; with 7 marks they make 42 different curves
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKS = "osD^vPX"
# a name may contain $, which is no formula here; Agg fails at long curves unless it draws them in parts
STYLE = {"font.size": 12, "text.parse_math": False, "agg.path.chunksize": 10000}


def curve(lines, *names):
    """The figures of two names, of all lines that have both, as two lists."""
    pairs = [[line.get(name) for name in names] for line in lines]
    # the comparison also drops nan and infinity
    pairs = [pair for pair in pairs if all(type(value) in (int, float) and abs(value) < 1e15 for value in pair)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def smoothed(values):
    """Running means, over n/40 values on either side. Fewer near the start, where a loss falls fast, and the end."""
    sums, n = [0.0, *accumulate(values)], len(values)
    ends = [(i - min(i, n // 40 + 1), min(i + min(i, n // 40 + 1) + 1, n)) for i in range(n)]
    return [(sums[end] - sums[begin]) / (end - begin) for begin, end in ends]


def short(value, _=None):
    """A number on an axis: 800, 1.5k, 40M, 3B."""
    factor, unit = next(((f, u) for f, u in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if abs(value) >= f), (1, ""))
    return f"{value / factor:g}{unit}"


def loss_figure(runs, axis):
    """A matplotlib Figure of the losses in `runs`, {name: lines of its log}. Raises UserError where one has none."""
    from matplotlib.figure import Figure  # here, since importing it takes a second; pyplot might want a display

    axes = (figure := Figure(figsize=(8, 4.5), dpi=200, layout="constrained", facecolor="white")).subplots()
    bests, settled = [], []  # settled: the losses after the steep beginning, which set the height
    for i, (name, lines) in enumerate(runs.items()):
        colour, mark = COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]
        best, late = draw_run(axes, name, lines, axis, colour, mark)
        bests.append((*best, colour))
        settled += late
    axes.plot([], color="grey", label="training, and its running mean")

    for loss, at, colour in bests:
        axes.plot(at, loss, "*", color=colour, markersize=18, markeredgecolor="white", zorder=3)
    loss, at, _ = min(bests)
    place = {"xytext": (0, -12), "textcoords": "offset points", "ha": "center", "va": "top"}
    axes.annotate(f"{loss:.3f}", (at, loss), **place, weight="bold")

    height = max(settled) - min(settled) or 0.1
    top = max(loss for line in axes.lines for loss in line.get_ydata())
    top = top if top < max(settled) + 0.25 * height else max(settled)  # cut off the steep part only if it is high
    axes.set_ylim(min(settled) - 0.15 * height, top + 0.05 * height)
    axes.set_xlabel(AXES[axis])
    axes.set_ylabel("loss (nats per token)")
    axes.xaxis.set_major_formatter(short)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    longest = max(len(str(line.get_label())) for line in axes.lines)
    figure.legend(loc="outside upper center", ncols=2 if longest < 40 else 1, frameon=False)
    return figure


def draw_run(axes, name, lines, axis, colour, mark):
    """Draw a run's losses. Returns its best, (loss, where), and the losses after the first twentieth."""
    at, losses = curve(lines, axis, "val/loss")
    if not losses:
        raise UserError(f"the log of {name!r} has no evaluation yet: train.py makes the first as it starts")
    train_at, train_losses = curve(lines, axis, "loss")
    mean = smoothed(train_losses)
    axes.plot(train_at, train_losses, color=colour, linewidth=1, alpha=0.25)
    axes.plot(train_at, mean, color=colour, linewidth=1.5, alpha=0.6)
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")  # of a folder, in any encoding
    label = f"validation, {name if len(name) <= 40 else '…' + name[-39:]}: best {min(losses):.3f}"
    every = len(at) // 40 + 1  # more marks would overlap
    axes.plot(at, losses, color=colour, linewidth=2, marker=mark, markevery=every, label=label)
    steep = max(at + train_at) / 20
    late = [loss for where, loss in zip(at + train_at, losses + mean) if where >= steep]
    return (min(losses), at[losses.index(min(losses))]), late


def run_folder(path):
    """The folder of a run that is named by its folder, or by the log.jsonl in it."""
    path = os.path.expanduser(path)
    named = os.path.basename(path) == "log.jsonl" and os.path.isfile(path)
    return os.path.dirname(path) or "." if named else path


def plot_losses(folders, path, axis="iter"):
    """Draw the losses of the runs in `folders`, against an axis of AXES, into a file. Raises UserError."""
    ending = os.path.splitext(path)[1].lower()
    if ending not in (".png", ".svg", ".pdf"):
        raise UserError(f"--to={path} should end in .png, .svg or .pdf")
    if axis not in AXES:
        raise UserError(f"--x={axis} is unknown: it may be {', '.join(AXES)}")
    if not folders:
        raise UserError("no run to draw: name its folder, as in 'python plot.py out-hitchikers'")
    for folder in folders:
        if not os.path.isdir(folder):
            known = [os.path.dirname(path) for path in sorted(glob.glob("*/log.jsonl"))]
            raise UserError(f"there is no folder {folder!r}: {suggestion(folder, known) if known else 'train first'}")
    runs = {os.path.normpath(folder): read_log(os.path.join(folder, "log.jsonl")) for folder in folders}
    for name, lines in runs.items():
        if not lines:
            raise UserError(f"the log of {name!r} is empty or damaged: no line of it is train.py's")

    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's own matplotlibrc says
        matplotlib.rcParams.update(STYLE)
        figure = loss_figure(runs, axis)
        with replacing(path) as f:
            figure.savefig(f, format=ending[1:])


def main():
    folders = [run_folder(a) for a in sys.argv[1:] if not a.startswith("-")]
    configure(globals(), [a for a in sys.argv[1:] if a.startswith("-")], takes="out-a [out-b ...]")
    check_installed("matplotlib")
    plot_losses(folders, to, x)
    print(f"the losses are in {to}")


if __name__ == "__main__":
    run(main)
