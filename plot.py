"""
Compare runs by the log.jsonl in their folders: one picture of their losses, and a table of what each one reached.

    python plot.py out-hitchikers                                  loss.png, against iterations
    python plot.py out-a out-b --x=seconds --to=comparison.svg     which learns faster?
    python plot.py out-gpt2 out-bpe --y=bits                       runs with different encodings

The curves with marks are validation losses, with a star at the best; those without are training losses (faint) and
their running means. The height shows the validation losses after the first fifth of each run, and up to half as much
below them for the training losses. The table ends with the options in which the runs differ: a run that was resumed
with another value has both.
"""

from configurator import UserError, check_installed, configure, replacing, run, suggestion

import contextlib
import glob
import os
import shutil
import sys
from itertools import accumulate

from report import PLACES, logged_options, read_log

# -----------------------------------------------------------------------------
to = "loss.png"  # the picture to write: .png, .svg or .pdf
x = "iter"  # what the losses are drawn against: iter, tokens or seconds
y = "loss"  # what they are drawn in: loss (nats per token) or bits (per byte of text)
# -----------------------------------------------------------------------------

AXES = {"iter": "iterations", "tokens": "tokens seen", "seconds": "seconds of training"}
UNITS = {"loss": "loss (nats per token)", "bits": "bits per byte"}
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


def shown(text, longest):
    """A text in one line, cut at its beginning."""
    with contextlib.suppress(UnicodeError):  # the name of a folder, in any encoding
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= longest else "…" + text[1 - longest :]


def loss_figure(runs, axis, unit="loss"):
    """A matplotlib Figure of the losses in `runs`, {name: lines of its log}. Raises UserError where there are none."""
    from matplotlib.figure import Figure  # here, since importing it takes a second; pyplot might want a display

    evaluated = {name: lines for name, lines in runs.items() if curve(lines, axis, "val/loss")[0]}
    if not evaluated:
        raise UserError(f"the log of {next(iter(runs))!r} has no evaluation yet: train.py makes the first as it starts")
    axes = (figure := Figure(figsize=(8, 4.5), dpi=200, layout="constrained", facecolor="white")).subplots()
    bests, every, late, means = [], [], [], []
    for i, (name, lines) in enumerate(evaluated.items()):
        (at, losses), training = curves(name, lines, axis, unit)
        colour, mark, mean = COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)], smoothed(training[1])
        axes.plot(*training, color=colour, linewidth=1, alpha=0.25)
        axes.plot(training[0], mean, color=colour, linewidth=1.5, alpha=0.6)
        label = f"validation, {shown(name, 40)}: best {min(losses):.3f}"
        # a mark for each of more than 40 would overlap
        axes.plot(at, losses, color=colour, linewidth=2, marker=mark, markevery=len(at) // 40 + 1, label=label)
        bests.append((min(losses), at[losses.index(min(losses))], colour))
        late += [loss for where, loss in zip(at, losses) if where >= max(at + training[0]) / 5 and where > 0]
        every, means = every + losses, means + mean
    axes.plot([], color="grey", label="training, and its running mean")
    draw_bests(axes, bests)

    low, high = min(every), max(late or every)
    height = high - low or 0.1
    depth = 2 * height if len(bests) == 1 else height / 2  # of a single run, the training curve tells of overfitting
    axes.set_ylim(max(min([low, *means]), low - depth) - 0.15 * height, high + 0.05 * height)
    axes.set_xlabel(AXES[axis])
    axes.set_ylabel(UNITS[unit])
    axes.xaxis.set_major_formatter(short)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    longest = max(len(str(line.get_label())) for line in axes.lines)
    figure.legend(loc="outside upper center", ncols=2 if longest < 40 else 1, frameon=False)
    return figure


def curves(name, lines, axis, unit):
    """A run's validation and training losses in a unit of UNITS, each as two lists: where, and how much."""
    at, losses = curve(lines, axis, "loss")
    if unit == "loss":
        return curve(lines, axis, "val/loss"), (at, losses)
    validation = curve(lines, axis, "val/bits_per_byte")
    if not validation[0]:
        raise UserError(f"--y=bits: of {name!r} the bytes of text are unknown, only its loss per token: try --y=loss")
    # an update has no bits of its own: the last evaluation says what a nat makes
    nats, bits = curve([line for line in lines if line.get("train/loss")], "train/loss", "train/bits_per_byte")
    return validation, (at, [loss * bits[-1] / nats[-1] for loss in losses]) if nats else ([], [])


def draw_bests(axes, bests):
    """A star at each run's best, (loss, where, colour), and the figure at the lowest."""
    for i, (loss, at, colour) in enumerate(bests):
        size = 22 - 12 * i / len(bests)  # open, and each smaller than the one before: none hides another
        axes.plot(at, loss, "*", color=colour, markersize=size, markerfacecolor="none", markeredgewidth=1.5, zorder=3)
    loss, at, _ = min(bests)
    place = {"xytext": (0, -12), "textcoords": "offset points", "ha": "center", "va": "top"}  # where no star is
    paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1}
    axes.annotate(f"{loss:.3f}", (at, loss), **place, weight="bold", zorder=4, bbox=paper)


def plot_losses(runs, path, axis="iter", unit="loss"):
    """Draw the losses of `runs`, {name: lines of its log}, into a file. Raises UserError."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's own matplotlibrc says
        matplotlib.rcParams.update(STYLE)
        figure = loss_figure(runs, axis, unit)
        with replacing(path) as f:
            figure.savefig(f, format=os.path.splitext(path)[1][1:].lower())


def table(runs, width):
    """What each of `runs`, {name: lines of its log}, reached, and the options in which they differ, as text."""
    rows, options = [reached(lines) for lines in runs.values()], [logged_options(lines) for lines in runs.values()]
    columns = [["run", *runs], *([header, *(row[header] for row in rows)] for header in rows[0])]
    for name in dict.fromkeys(name for values in options for name in values if name not in PLACES):
        texts = [", ".join(map(plain, values.get(name, "?"))) for values in options]
        if len({*texts} - {"?"}) > 1:
            columns.append([name, *texts])
    return layout(columns, width)


def plain(value):
    """An option's value as a text: 3e-05 and not 3.0000000000000004e-05."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def reached(lines):
    """What a run reached, as texts by column; "?" is what its log does not say."""
    row = {"best": "no evaluation", "at iter": "?", "minutes": "?", "tokens/s": "?"}
    at, losses = curve(lines, "iter", "val/loss")
    if losses:
        loss, where = min(zip(losses, at))
        bits = dict(zip(*curve(lines, "iter", "val/bits_per_byte"))).get(where)
        row |= {"best": f"{bits:.4f} bits/byte" if bits else f"loss {loss:.4f}", "at iter": f"{where:,}"}
    for tokens, seconds in list(zip(*curve(lines, "tokens", "seconds")))[-1:]:
        row |= {"minutes": f"{seconds / 60:,.1f}", "tokens/s": f"{tokens / (seconds or 1):,.0f}"}
    return row


def layout(columns, width):
    """A table as text. Columns that are too many for the width follow below, again beside the first one."""
    columns = [[shown(cell, 32) for cell in column] for column in columns]
    widths = [max(map(len, column)) for column in columns]
    first = [cell.ljust(widths[0]) for cell in columns[0]]
    blocks = [[first]]
    for column, wide in zip(columns[1:], widths[1:]):
        if len("  ".join(cells[0] for cells in blocks[-1])) + 2 + wide > width:
            blocks.append([first])
        blocks[-1].append([cell.rjust(wide) for cell in column])
    return "\n\n".join("\n".join(map("  ".join, zip(*block))) for block in blocks)


def run_folder(path):
    """The folder of a run that is named by its folder, or by the log.jsonl in it."""
    path = os.path.expanduser(path)
    named = os.path.basename(path) == "log.jsonl" and os.path.isfile(path)
    return os.path.dirname(path) or "." if named else path


def read_runs(folders):
    """The lines of each run's log, {folder: lines}. Raises UserError."""
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
    return runs


def main():
    folders = [run_folder(a) for a in sys.argv[1:] if not a.startswith("-")]
    configure(globals(), [a for a in sys.argv[1:] if a.startswith("-")], takes="out-a [out-b ...]")
    check_installed("matplotlib")
    if os.path.splitext(to)[1].lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"--to={to} should end in .png, .svg or .pdf")
    for name, value, known in (("x", x, AXES), ("y", y, UNITS)):
        if value not in known:
            raise UserError(f"--{name}={value} is unknown: it may be {', '.join(known)}")
    runs = read_runs(folders)
    plot_losses(runs, to, x, y)
    print(table(runs, width=min(max(shutil.get_terminal_size().columns, 80), 120)))
    print(f"the losses are in {to}")


if __name__ == "__main__":
    run(main)
