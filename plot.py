"""
Draw the losses of one run, or of several in one picture, from the log.jsonl in their folders.

    python plot.py out-hitchikers                                  loss.png, against iterations
    python plot.py out-a out-b --x=seconds --to=comparison.svg     which learns faster?

With marks: the validation loss, a star where it is best. Without: the training loss, faint, and its running mean.
In nats a token; where the runs have different tokens, in bits a byte of text, which compare. The steep beginning is
cut off.
"""

from configurator import UserError, check_installed, configure, replacing, run, suggestion

import contextlib
import glob
import json
import os
import sys
from itertools import accumulate

# -----------------------------------------------------------------------------
to = "loss.png"  # the picture to write: .png, .svg or .pdf
x = "iter"  # what the losses are drawn against: iter, tokens or seconds
# -----------------------------------------------------------------------------

AXES = {"iter": "iterations", "tokens": "tokens seen", "seconds": "seconds of training"}
# Okabe and Ito's colours, which colour-blind readers tell apart too; with 7 marks that makes 42 different curves
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKS = "osD^vPX"
# names are no formulas, and Agg takes long curves only in parts
STYLE = {"font.size": 12, "text.parse_math": False, "agg.path.chunksize": 10000}


def read_log(path):
    """The lines of a log.jsonl as dicts, without those that were cut short, say by a power failure."""
    lines = []
    with open(path, encoding="utf-8", errors="replace") as f:
        for line in f:
            with contextlib.suppress(ValueError, RecursionError):
                lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict) and type(line.get("iter")) is int]


def read_run(folder):
    """The log of the run in a folder, as dicts. Raises UserError where there is none."""
    if not os.path.isdir(folder):
        known = [os.path.dirname(path) for path in sorted(glob.glob("*/log.jsonl"))]
        raise UserError(f"there is no folder {folder!r}: {suggestion(folder, known) if known else 'train first'}")
    path = os.path.join(folder, "log.jsonl")
    try:
        lines = read_log(path)
    except FileNotFoundError:
        raise UserError(f"there is no {path!r}: name a folder that train.py has written (its --out_dir)") from None
    except OSError as failure:
        raise UserError(f"cannot read {path!r}: {failure.strerror}") from None
    if not lines:
        raise UserError(f"{path!r} is empty or damaged: no line of it is train.py's")
    return lines


def curve(lines, x, y):
    """The figures x and y of all lines that have both, as two lists."""
    pairs = [(line.get(x), line.get(y)) for line in lines]
    # the comparison leaves out nan and infinity too
    pairs = [pair for pair in pairs if all(type(value) in (int, float) and abs(value) < 1e15 for value in pair)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def smoothed(values):
    """Running means over a fortieth of the values on either side; fewer, but as many on both, near the ends."""
    sums, n = [0.0, *accumulate(values)], len(values)
    reach = [min(i, n - 1 - i, n // 40 + 1) for i in range(n)]
    return [(sums[i + r + 1] - sums[i - r]) / (2 * r + 1) for i, r in enumerate(reach)]


def bits_per_nat(lines, split):
    """The factor from a split's loss in nats a token to bits a byte of its text; None where the log has no bits."""
    nats, bits = curve(lines, f"{split}/loss", f"{split}/bits_per_byte")
    return bits[-1] / nats[-1] if nats and nats[-1] else None


def draw(runs, x):
    """A matplotlib Figure of the losses in `runs`, {name: lines of its log}. Raises UserError where one has none."""
    from matplotlib.figure import Figure  # here, since it takes a second; not pyplot, which may want a display
    from matplotlib.ticker import EngFormatter, MaxNLocator, StrMethodFormatter

    factors = {name: [bits_per_nat(lines, split) for split in ("train", "val")] for name, lines in runs.items()}
    vals = [val for _, val in factors.values()]
    in_bits = all(all(pair) for pair in factors.values()) and max(vals) > min(vals) * (1 + 1e-6)
    axes = (figure := Figure(figsize=(8, 4.5), dpi=200, layout="constrained", facecolor="white")).subplots()
    bests, settled, longest = [], [], 0  # settled: the losses after the steep beginning
    for i, (name, lines) in enumerate(runs.items()):
        train_factor, val_factor = factors[name] if in_bits else (1, 1)
        at, losses = curve(lines, x, "val/loss")
        if not losses:
            raise UserError(f"the log in {name!r} has no evaluation yet: train.py makes one as it starts")
        losses = [loss * val_factor for loss in losses]
        train_at, train_losses = curve(lines, x, "loss")
        train_losses = [loss * train_factor for loss in train_losses]
        mean, colour = smoothed(train_losses), COLOURS[i % len(COLOURS)]
        axes.plot(train_at, train_losses, color=colour, linewidth=1, alpha=0.25)
        axes.plot(train_at, mean, color=colour, linewidth=1.5, alpha=0.6)

        loss, best_at = min(zip(losses, at))
        bests.append((loss, best_at, colour))
        label = f"validation, {name if len(name) <= 30 else '…' + name[-29:]}, best {loss:.3f} at {best_at:,.0f}"
        every = len(at) // 40 + 1  # more marks would cover each other
        mark = MARKS[i % len(MARKS)]
        axes.plot(at, losses, color=colour, linewidth=2, marker=mark, markersize=6, markevery=every, label=label)
        longest = max(longest, *at, *train_at)
        steep = max(at + train_at) / 20
        settled += [b for a, b in zip(at + train_at, losses + mean) if a >= steep]

    for loss, at, colour in bests:
        axes.plot(at, loss, "*", color=colour, markersize=18, markeredgecolor="white", zorder=3)
    loss, at, _ = min(bests)
    place = {"xytext": (0, -12), "textcoords": "offset points", "ha": "center", "va": "top"}
    axes.annotate(f"{loss:.3f}", (at, loss), **place, weight="bold")
    height = max(settled) - min(settled) or 0.1
    axes.set_ylim(min(settled) - 0.15 * height, max(settled) + 0.05 * height)
    axes.set_xlabel(AXES[x])
    axes.set_ylabel("loss (bits a byte)" if in_bits else "loss (nats a token)")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep="") if longest >= 1e6 else StrMethodFormatter("{x:,.0f}"))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.plot([], color="grey", label="training, and its running mean")
    axes.legend(loc="upper right")
    return figure


def plot_loss(folders, to, x="iter"):
    """Draw the losses of the runs in `folders` into the file `to`. Raises UserError for what cannot be drawn."""
    ending = os.path.splitext(to)[1].lower()
    if ending not in (".png", ".svg", ".pdf"):
        raise UserError(f"--to={to} should end in .png, .svg or .pdf")
    if x not in AXES:
        raise UserError(f"--x={x} is unknown: it may be iter, tokens or seconds")
    if not folders:
        raise UserError("no run to draw: name its folder, as in 'python plot.py out-hitchikers'")
    runs = {os.path.normpath(folder): read_run(folder) for folder in folders}

    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's own matplotlibrc says
        matplotlib.rcParams.update(STYLE)
        figure = draw(runs, x)
        with replacing(to) as f:
            figure.savefig(f, format=ending[1:])


def main():
    folders = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    configure(globals(), [a for a in sys.argv[1:] if a.startswith("-")], takes="out-a [out-b ...]")
    check_installed("matplotlib")
    plot_loss(folders, to, x)
    print(f"wrote {to}")


if __name__ == "__main__":
    run(main)
