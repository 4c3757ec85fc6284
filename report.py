"""
What a run says: on the terminal, in log.jsonl and to Weights & Biases. Of several processes only the first one speaks.
"""

import contextlib
import json
import math
import os
import shutil
import sys
import textwrap

from tqdm import tqdm

from configurator import RANK, UserError, check_installed, first_line, replacing


def say(line):
    """Print a line, above the progress bar if there is one, unless standard output is full or closed."""
    if RANK == 0:
        with contextlib.suppress(OSError, ValueError):  # the log has it all, and the training goes on
            tqdm.write(line)
            sys.stdout.flush()


def bits_per_byte(loss, counts):
    """A loss in nats per token as bits per byte of text, which compares across encodings; None without the counts."""
    return loss / math.log(2) * counts["tokens"] / counts["bytes"] if counts and counts.get("bytes") else None


class Report:
    """
    Reports a run's evaluations and updates: as lines or on a progress bar, to log.jsonl and to wandb.

    state: the run's TrainingState; wandb_run: its run there, or None; peak_flops: what all devices together do at most
    in floating point operations per second, None if unknown. Figures wait in memory until `start_log` is called.
    """

    def __init__(self, state, max_iters, tokens_per_iter, peak_flops, wandb_run):
        self.state, self.max_iters = state, max_iters
        self.tokens_per_iter, self.peak_flops = tokens_per_iter, peak_flops
        self.log_file, self.unwritten, self.wandb_run = None, [], wandb_run
        self.samples = []  # the rows of wandb's table
        self.reported_updates, self.reported_seconds = state.iter_num, state.seconds
        self.began = self.progress()
        self.on_terminal = sys.stdout.isatty() and sys.stderr.isatty()
        shown = self.on_terminal and RANK == 0
        self.bar = tqdm(total=max_iters, initial=state.iter_num, unit="it", disable=not shown, dynamic_ncols=True)

    def evaluation(self, losses, is_best, sample):
        """Report the losses of an evaluation, {split: nats per token}, and what the model then wrote, if anything."""
        bits = {split: bits_per_byte(loss, self.state.meta.get(split)) for split, loss in losses.items()}
        in_bits = f", {bits['val']:.4f} bits per byte" if bits["val"] else ""
        best = " (the best)" if is_best else ""
        train, val = losses["train"], losses["val"]
        say(f"step {self.state.iter_num}: train loss {train:.4f}, val loss {val:.4f}{in_bits}{best}")
        if sample is not None:
            width = shutil.get_terminal_size().columns - 1 if self.on_terminal else sys.maxsize
            say(textwrap.fill(f"it writes: {sample}", width, subsequent_indent="  "))
        figures = {f"{split}/loss": loss for split, loss in losses.items()}
        figures |= {f"{split}/bits_per_byte": value for split, value in bits.items() if value}
        self.log(figures | ({} if sample is None else {"sample": sample}))

    def update(self, loss, lr, norm):
        """Report an update. Its time is the mean over all updates since the last report."""
        state = self.state
        updates = state.iter_num + 1
        dt = (state.seconds - self.reported_seconds) / (updates - self.reported_updates)
        self.reported_updates, self.reported_seconds = updates, state.seconds
        speed = self.tokens_per_iter / dt
        mfu = speed * state.model.flops_per_token() / self.peak_flops if self.peak_flops else None
        if self.on_terminal:
            self.bar.set_postfix_str(f"loss {loss:.4f}, {speed:,.0f} tok/s", refresh=False)
        else:
            share = f" mfu {mfu * 100:.2f}%," if mfu else ""
            left = tqdm.format_interval(dt * (self.max_iters - updates))
            say(
                f"iter {state.iter_num}: loss {loss:.4f}, time {dt * 1000:.2f}ms,{share} lr {lr:.2e}, "
                f"norm {norm:.2f}, {speed:,.0f} tok/s, {left} left"
            )
        figures = {"loss": float(loss), "lr": lr, "grad_norm": float(norm), "ms": dt * 1000, "tokens_per_s": speed}
        self.log(figures | ({"mfu": mfu} if mfu else {}))

    def advance(self):
        """Move the progress bar on by an update."""
        with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
            self.bar.update()

    def close_bar(self):
        with contextlib.suppress(OSError, ValueError):
            self.bar.close()

    def progress(self):
        """What each line of the log begins with."""
        state = self.state
        return {"iter": state.iter_num, "tokens": state.tokens, "seconds": round(state.seconds, 3)}

    def log(self, figures):
        """Write figures to log.jsonl and to wandb. Raises UserError if the disk is full."""
        if RANK != 0:
            return
        state = self.state
        figures = {**self.progress(), **figures}
        self.unwritten.append(json.dumps(figures) + "\n")
        self.write_log()
        if self.wandb_run:
            if "sample" in figures:
                import wandb

                self.samples.append([state.iter_num, figures["sample"]])
                figures["sample"] = wandb.Table(["iter", "sample"], self.samples)
            self.wandb_run.log(figures, step=state.iter_num)

    def start_log(self, path):
        """Write to a log.jsonl, see open_log: first the options, then the figures so far, and later those to come."""
        self.log_file, kept = open_log(path, self.began["iter"])
        if options := new_options(self.state.config, kept, resumed=self.began["iter"] > 0):
            self.unwritten.insert(0, json.dumps({**self.began, "config": options}) + "\n")
        self.write_log()

    def write_log(self):
        if self.log_file:
            try:
                self.log_file.writelines(self.unwritten)
                self.unwritten = []
            except OSError as failure:
                raise UserError(f"cannot write {self.log_file.name!r}: {failure.strerror}") from None

    def close(self):
        """The end of a run that was not interrupted."""
        if self.wandb_run:
            self.wandb_run.finish()
        if self.log_file:
            self.log_file.close()


# -----------------------------------------------------------------------------
# log.jsonl


# options that say where a run is and what it is called, and nothing of how it learns
PLACES = ("out_dir", "device", "backend", "wandb_log", "wandb_project", "wandb_run_name")


def open_log(path, iter_num):
    """
    Open a log.jsonl to append to it, without the lines of an earlier run about iterations from iter_num on. Returns
    the open file, and the lines that are kept.
    """
    kept = [figures for figures in read_log(path) if figures["iter"] < iter_num] if os.path.exists(path) else []
    with replacing(path) as f:
        f.write("".join(json.dumps(figures) + "\n" for figures in kept).encode("utf-8"))
    return open(path, "a", encoding="utf-8", buffering=1), kept


def new_options(config, lines, resumed):
    """The options that a log should say: all, or those that a resumed run has otherwise than the `lines` of its log."""
    if not resumed:
        return config | ({"init_from": "scratch"} if config["init_from"] == "auto" else {})
    before = logged_options(lines)
    changed = {name: value for name, value in config.items() if before.get(name, [None])[-1] != value}
    return {name: value for name, value in changed.items() if name not in (*PLACES, "init_from")}


def logged_options(lines):
    """The values of each option of a run, {name: [the first, ..., the newest]}, from the lines of its log."""
    values = {}
    for config in (line["config"] for line in lines if isinstance(line.get("config"), dict)):
        for name, value in config.items():
            values.setdefault(name, []).append(value)
    return values


def read_log(path):
    """The lines of a log.jsonl as dicts, without those that are cut short. Raises UserError without a log."""
    lines = []
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            for line in f:
                # a line that a power failure cut short
                with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                    figures = json.loads(line)
                    if type(figures["iter"]) is int:
                        lines.append(figures)
    except FileNotFoundError:
        raise UserError(f"there is no {path!r}: name a folder in which train.py has written (its --out_dir)") from None
    except OSError as failure:
        raise UserError(f"cannot read {path!r}: {failure.strerror}") from None
    return lines


# -----------------------------------------------------------------------------
# wandb


def start_wandb(project, name, config, folder, run_id):
    """A wandb run: a new one, or that of run_id. Raises UserError where wandb does not start."""
    check_installed("wandb")
    import wandb

    try:
        return wandb.init(project=project, name=name, config=config, dir=folder, id=run_id, resume="allow")
    except Exception as failure:  # of many kinds
        raise UserError(
            f"wandb does not start ({first_line(failure)}): 'wandb login', WANDB_MODE=offline, or --wandb_log=False"
        ) from None


# -----------------------------------------------------------------------------
# advice and summary


def advise(hours, device_type, parameters, tokens, tokens_seen):
    """
    Warn, before a run, where it will take hours on this type of device ("cpu", "cuda"), or where its model is large for
    the text: `parameters` in the blocks, `tokens` to train on; the run will see `tokens_seen`, repetitions counted.
    """
    if hours > 3:
        instead = "config/train_hitchikers_cpu.py is for a CPU" if device_type == "cpu" else "more GPUs would share it"
        say(f"this will take about {hours:,.0f} hours on {device_type}: {instead}; Ctrl-C stops and saves")
    if parameters > 20 * tokens:
        times = f"{round(tokens_seen / tokens):,}"
        say(
            f"{tokens:,} tokens are few for {parameters / 1e6:.1f}M parameters in the blocks, which will read them "
            f"{times} {'time' if times == '1' else 'times'}: expect the best validation loss early, and try more text, "
            "a smaller --n_layer and --n_embd, or a higher --dropout"
        )


def summarize(lines):
    """Say how a run went, from the lines of its log."""
    evaluations = [figures for figures in lines if "val/loss" in figures]
    best, last = min(evaluations, key=lambda figures: figures["val/loss"]), evaluations[-1]
    speed = f", {last['tokens'] / last['seconds']:,.0f} tokens/s" if last["seconds"] else ""
    duration = tqdm.format_interval(last["seconds"])
    say(f"best val loss {best['val/loss']:.4f}, at iteration {best['iter']}; {duration} of training{speed}")
    if best["val/loss"] < last["val/loss"] and best["train/loss"] > last["train/loss"]:
        say(
            f"overfitting: since then the train loss fell from {best['train/loss']:.4f} to {last['train/loss']:.4f}, "
            f"and the val loss rose to {last['val/loss']:.4f}: more text, a higher --dropout or fewer --max_iters help"
        )
