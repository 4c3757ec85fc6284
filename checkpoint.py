"""
What a run leaves on disk, and how another run continues from it: checkpoints are written, read, checked, resumed and
set aside, and the folder is locked meanwhile.

out_dir/ckpt.pt is what sample.py reads, out_dir/last.pt the newest state, from which a run resumes. Both have nanoGPT's
keys and our own. Reading a file never runs code that is in it.
"""

import contextlib
import errno
import math
import os
import platform
import shutil
import warnings
import zipfile
from dataclasses import dataclass

import torch

from configurator import UserError, at_end, check_installed, close_on_disk, data_folder, first_line, quote, replace
from configurator import replacing
from model import GPT
from pretrained import PRETRAINED
from report import say
from tokenizer import check_meta, make_tokenizer, read_meta, read_tokenizer, same_ids

OPTIMIZERS = ("optimizer", "muon")  # the keys of the optimizers' states, in configure_optimizers' order
KEYS = {  # what a checkpoint holds: nanoGPT's keys, and our own
    "model": dict,
    "model_args": dict,
    "optimizer": dict,
    "iter_num": int,
    "best_val_loss": (float, torch.Tensor),  # nanoGPT's is a tensor
    "config": dict,
    "muon": dict,
    "meta": dict,  # the tokenizer's, so that sampling needs no data folder
    "scaler": dict,
    "wandb": str,  # the id of the run there
    "seconds": float,  # of training so far
    "tokens": int,  # trained on so far
    "evaluated_on": str,  # the windows that best_val_loss was measured on
}
RUN_FILES = ("ckpt.pt", "last.pt", "log.jsonl", "loss.png")  # what a run leaves in its folder


@dataclass
class TrainingState:
    """A training run between two iterations: all that a checkpoint saves, and that a resume restores."""

    model: GPT
    optimizers: list
    scaler: torch.amp.GradScaler
    config: dict  # the options
    meta: dict  # the dataset's
    iter_num: int = 0  # updates made so far
    best_val_loss: float = math.inf
    seconds: float = 0.0  # of training so far
    tokens: int = 0  # trained on so far
    evaluated_on: str = ""  # the windows that best_val_loss was measured on
    wandb_id: str | None = None

    def to_checkpoint(self):
        """The dict that a checkpoint holds."""
        return {
            "model": self.model.state_dict(),
            **{key: optimizer.state_dict() for key, optimizer in zip(OPTIMIZERS, self.optimizers)},
            "model_args": self.model.config.model_args(),
            "iter_num": self.iter_num,
            "best_val_loss": self.best_val_loss,
            "config": self.config,
            "meta": {key: value for key, value in self.meta.items() if key != "options"},  # whose paths are private
            "scaler": self.scaler.state_dict(),
            "seconds": self.seconds,
            "tokens": self.tokens,
            "evaluated_on": self.evaluated_on,
            **({"wandb": self.wandb_id} if self.wandb_id else {}),
        }

    def restore(self, checkpoint, path):
        """Restore all but the model, which is loaded already. Raises UserError, which names `path`."""
        for key, optimizer in zip(OPTIMIZERS, self.optimizers):
            load_optimizer(optimizer, checkpoint.get(key, {}), path)
        if self.scaler.is_enabled() and checkpoint.get("scaler"):
            self.scaler.load_state_dict(checkpoint["scaler"])
        self.iter_num, self.best_val_loss = checkpoint["iter_num"], float(checkpoint["best_val_loss"])
        self.seconds, self.wandb_id = checkpoint.get("seconds", 0.0), checkpoint.get("wandb")
        self.tokens = checkpoint.get("tokens", self.iter_num * tokens_per_iter(checkpoint.get("config", {})))
        # a checkpoint of nanoGPT's does not say what it was evaluated on: its options must do
        saved, names = checkpoint.get("config", {}), ("dataset", "eval_iters", "batch_size", "block_size")
        unchanged = all(saved.get(name) == self.config[name] for name in names)
        self.evaluated_on = checkpoint.get("evaluated_on", "" if unchanged else "other windows")

    def compare_losses(self, windows):
        """Forget a best_val_loss that was measured on other windows than these, which a text stands for."""
        if self.evaluated_on not in ("", windows) and self.best_val_loss < math.inf:
            say("the best validation loss begins anew: the one so far was measured on other windows")
            self.best_val_loss = math.inf
        self.evaluated_on = windows

    def gather(self):
        """Bring the optimizers' whole states to the first process, where they are sharded. All processes call it."""
        for optimizer in self.optimizers:
            if hasattr(optimizer, "consolidate_state_dict"):  # ZeroRedundancyOptimizer
                optimizer.consolidate_state_dict()


def tokens_per_iter(config):
    """The tokens that an iteration trains on by these options, from a checkpoint that may be damaged; else 0."""
    sizes = [config.get(name) for name in ("gradient_accumulation_steps", "batch_size", "block_size")]
    return math.prod(sizes) if all(type(size) is int for size in sizes) else 0


# -----------------------------------------------------------------------------
# writing


def check_folder(folder):
    """Raise UserError for an --out_dir that is no folder: the checkpoint in one, say, or a link to nothing."""
    if os.path.isfile(folder):
        tip = f", as in --out_dir={quote(os.path.dirname(folder) or '.')}" if folder.endswith(".pt") else ""
        raise UserError(f"--out_dir={folder} is a file: it should be a folder{tip}")
    if os.path.islink(folder) and not os.path.exists(folder):
        raise UserError(f"--out_dir={folder} is a link to {os.readlink(folder)!r}, which is not there")


def check_writable(folder):
    """Make a folder, and raise UserError where it cannot be written to."""
    check_folder(folder)
    try:
        os.makedirs(folder, exist_ok=True)
        probe = os.path.join(folder, "writable")
        with open(probe, "wb"):
            pass
        os.remove(probe)
    except OSError as failure:
        raise UserError(f"--out_dir={folder} cannot be written to: {failure.strerror}") from None


def save_checkpoint(folder, state, as_ckpt):
    """Write a TrainingState to last.pt, and if `as_ckpt` to ckpt.pt too. Whatever interrupts it, both stay whole."""
    try:
        with replacing(os.path.join(folder, "last.pt")) as f:
            torch.save(state.to_checkpoint(), f)
            close_on_disk(f)
            if as_ckpt:  # before last.pt: a run killed between the two resumes from the older last.pt and repeats this
                link(f.name, os.path.join(folder, "ckpt.pt"))
    except RuntimeError as failure:  # torch.save's, for a full disk
        raise UserError(f"cannot write to {folder!r} ({first_line(failure)}): the last checkpoint is kept") from None


def link(source, target):
    """Make `target` the same file as `source`, or a copy where the file system has no hard links."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(f"{target}.tmp")
    try:
        os.link(source, f"{target}.tmp")
        replace(f"{target}.tmp", target)
    except OSError:
        with contextlib.suppress(FileNotFoundError):  # a link to the source: opening it for writing would empty both
            os.remove(f"{target}.tmp")
        with replacing(target) as f, open(source, "rb") as original:
            shutil.copyfileobj(original, f)


def earlier_files(folder):
    """The names of an earlier run's files in a folder."""
    return [name for name in RUN_FILES if os.path.exists(os.path.join(folder, name))]


def set_aside(folder):
    """Move an earlier run's files into a folder of their own, so that a new run overwrites nothing."""
    number = 1
    while os.path.exists(os.path.join(folder, f"earlier-{number}")):
        number += 1
    aside = os.path.join(folder, f"earlier-{number}")
    os.mkdir(aside)
    for name in earlier_files(folder):
        replace(os.path.join(folder, name), os.path.join(aside, name))
    say(f"moved an earlier run to {aside} (to go on with it: --out_dir={quote(aside)} --init_from=resume)")


def earlier_run(folder):
    """A hint at the newest run that was set aside in a folder, for an error message; empty without one."""
    asides = [name for name in os.listdir(folder) if name.startswith("earlier-")] if os.path.isdir(folder) else []
    asides = [os.path.join(folder, name) for name in asides if earlier_files(os.path.join(folder, name))]
    return f"; an earlier run is in --out_dir={quote(max(asides, key=os.path.getmtime))}" if asides else ""


def lock(folder):
    """
    Let no other run write to a folder until this one ends, however it ends. Raises UserError, which names the process
    that holds the lock. Where the file system has no locks, a note says so.
    """
    path = os.path.join(folder, "lock")
    try:
        f = open(path, "a+", encoding="utf-8")
        lock_file(f)
    except BlockingIOError:
        f.seek(0)
        holder = f.read(200).strip() or "another process"
        raise UserError(
            f"--out_dir={folder} is in use by {holder}: wait until it ends, stop it, or name another folder"
        ) from None
    except OSError as failure:
        say(f"note: {folder} cannot be locked ({failure.strerror}): start no second run in it")
        return
    if not os.path.exists(path) or not os.path.samestat(os.stat(path), os.fstat(f.fileno())):
        f.close()  # the run that held it has just ended and removed the file
        return lock(folder)
    f.truncate(0)
    f.write(f"process {os.getpid()} on {platform.node()}\n")
    f.flush()
    at_end.callback(unlock, f)


def lock_file(f):
    """Lock an open file for as long as it stays open. Raises BlockingIOError if another process has locked it."""
    if os.name == "nt":
        import msvcrt

        f.seek(2**20)  # beyond the text, which others may read
        try:
            msvcrt.locking(f.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            raise BlockingIOError from None
    else:
        import fcntl

        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as failure:
            raise BlockingIOError if failure.errno in (errno.EACCES, errno.EAGAIN) else failure from None


def unlock(f):
    """Remove a lock's file, and close it."""
    with contextlib.suppress(OSError):
        if os.name == "nt":
            f.close()  # Windows removes no open file
        os.remove(f.name)
    f.close()


# -----------------------------------------------------------------------------
# reading


def load_checkpoint(path):
    """A checkpoint's dict, with its tensors on the CPU. Raises UserError where there is none or it is damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error says what is wrong
            check_sums(path)
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        advice = f"train a model first, or name its folder with --out_dir{earlier_run(os.path.dirname(path))}"
        raise UserError(f"there is no checkpoint {path!r}: {advice}") from None
    except Exception as failure:  # a damaged file can raise almost anything
        raise UserError(
            f"cannot read the checkpoint {path!r}: it is damaged, or not a checkpoint ({first_line(failure)})"
        ) from None
    found = checkpoint if isinstance(checkpoint, dict) else {}
    bad = {key for key, kind in KEYS.items() if key in found and not isinstance(found[key], kind)}
    if bad := bad | ({"model", "model_args"} - found.keys()):
        raise UserError(f"{path!r} is no checkpoint of a GPT: {' and '.join(sorted(bad))} missing or damaged")
    if "meta" in checkpoint:
        ids = check_meta(checkpoint["meta"], path, "the checkpoint is damaged")["vocab_size"]
        rows = checkpoint["model_args"].get("vocab_size")
        if not (type(rows) is int and rows >= ids):
            raise UserError(f"the {ids} token ids in {path!r} take as many rows of its model, and it has {rows!r:.40}")
    return checkpoint


def check_sums(path):
    """Raise ValueError where a file is not what was saved: torch.load takes damaged weights as they are."""
    if zipfile.is_zipfile(path):  # as all checkpoints since PyTorch 1.6
        with zipfile.ZipFile(path) as archive:
            # a flipped bit can mark a file as a folder, of which neither testzip nor torch reads anything
            folders = (part.filename for part in archive.infolist() if part.external_attr & 16)
            if part := archive.testzip() or next(folders, None):
                raise ValueError(f"{part} in it is not what was saved")


def load_model(path, dropout=0.0):
    """The model in a checkpoint, and the checkpoint. Raises UserError where there is none."""
    checkpoint = load_checkpoint(path)
    try:
        return GPT.from_checkpoint(checkpoint, dropout), checkpoint
    except ValueError as failure:
        raise UserError(f"the checkpoint {path!r} {first_line(failure)}") from None


def load_trained(folder):
    """The model in a folder that train.py wrote, and its tokenizer. Raises UserError where there is none."""
    model, tokenizer, _ = load_run(folder)
    return model, tokenizer


def load_run(folder):
    """`load_trained`, and the rest of the checkpoint."""
    check_folder(folder)
    path = os.path.join(folder, "ckpt.pt")
    model, checkpoint = load_model(path)
    # nanoGPT's checkpoints do not hold the encoding: the data folder does
    dataset = checkpoint.get("config", {}).get("dataset")
    meta = checkpoint.get("meta") or read_meta(data_folder(str(dataset)))
    tokenizer = make_tokenizer(meta)
    if tokenizer is None:
        raise UserError(
            f"of the token ids of {path!r} only their number is known, {meta['vocab_size']}: its model can be trained, "
            "but neither reads nor writes text"
        )
    if tokenizer.vocab_size > (known := model.config.vocab_size):
        other = "GPT-2's" if meta["encoding"] == "gpt2" else f"the {tokenizer.vocab_size} of data/{dataset}"
        needed = f"put the meta.pkl of its dataset into data/{dataset}" if dataset else "nor which dataset they are of"
        raise UserError(f"{path!r} does not say what its {known} token ids mean, which are not {other}: {needed}")
    return model, tokenizer, checkpoint


def pretrained_tokenizer(name):
    """The tokenizer of a GPT-2 in Hugging Face's format. Raises UserError where its folder has one that is unknown."""
    try:
        return read_tokenizer(name)
    except (OSError, ValueError) as failure:
        raise UserError(f"--init_from={name}: {failure}") from None


def load_pretrained(name, block_size=None, dropout=0.0):
    """A GPT-2 in Hugging Face's format, and its tokenizer. Raises UserError where one of them cannot be had."""
    check_installed("huggingface_hub", "safetensors")
    tokenizer = pretrained_tokenizer(name)
    try:
        model = GPT.from_pretrained(name, block_size, dropout)
    except (OSError, ValueError) as failure:
        raise UserError(f"--init_from={name}: {failure}") from None
    if (rows := model.config.vocab_size) < (ids := tokenizer.vocab_size):
        raise UserError(f"--init_from={name} has {rows} token ids, where its encoding has {ids}: it uses another")
    model.config.n_ids = ids
    return model, tokenizer


def check_init_from(init_from, *words):
    """Raise UserError for an --init_from that is none of the words, and names no pretrained GPT-2."""
    if init_from not in (*words, *PRETRAINED) and not os.path.isdir(init_from):
        raise UserError(
            f"--init_from={init_from} is unknown: it may be {', '.join([*words, *PRETRAINED])}, or a folder with a "
            "GPT-2 in Hugging Face's format"
        )


# -----------------------------------------------------------------------------
# resuming


def find_newest(folder):
    """The path of the newest checkpoint in a folder, or None. Raises UserError for a file."""
    check_folder(folder)
    paths = (os.path.join(folder, name) for name in ("last.pt", "ckpt.pt"))
    return next((path for path in paths if os.path.exists(path)), None)


def load_newest(path, dropout):
    """load_model for a resume: where last.pt is damaged and ckpt.pt is there, the error says how to go on from that."""
    try:
        return load_model(path, dropout)
    except UserError as mistake:
        best = os.path.join(os.path.dirname(path), "ckpt.pt")
        if path == best or not os.path.exists(best):
            raise
        raise UserError(f"{mistake}; to go on from {best!r} instead, move {path!r} out of the way") from None


def check_resumable(checkpoint, config, meta, path):
    """Raise UserError where a run with these options cannot go on from a checkpoint."""
    if not {"optimizer", "iter_num", "best_val_loss"} <= checkpoint.keys():
        raise UserError(f"{path!r} holds a model and not the state of its training: it can be sampled, not resumed")
    if torch.as_tensor(checkpoint["best_val_loss"]).numel() != 1:
        raise UserError(f"{path!r} holds no single best_val_loss")
    model_args, saved_config = checkpoint["model_args"], checkpoint.get("config", {})
    if not same_ids(checkpoint.get("meta", meta), meta):
        raise UserError(f"{path!r} was trained with other token ids than those of --dataset={config['dataset']}")
    if (optimizer := config["optimizer"]) != (trained := saved_config.get("optimizer", "adamw")):
        raise UserError(f"{path!r} was trained with --optimizer={trained}, and cannot go on with {optimizer}")
    if (block_size := config["block_size"]) < model_args["block_size"]:
        raise UserError(f"--block_size={block_size} is less than the {model_args['block_size']} of {path!r}")


def announce_resume(checkpoint, config, path):
    """Say that a run goes on, where, and which options have changed; the model's sizes stay the checkpoint's."""
    say(f"resuming from {path} at iteration {checkpoint['iter_num']}")
    model_args = checkpoint["model_args"]
    before = {**checkpoint.get("config", {}), **model_args}
    for name, value in config.items():
        # compared as texts, since a damaged checkpoint may hold anything
        differs = name in before and str(before[name]) != str(value)
        if differs and name not in ("init_from", "out_dir", "eval_only", "dropout"):
            kept = f"{before[name]}, the checkpoint's" if name in model_args else value
            say(f"{name}: {before[name]} so far, {value} asked for: going on with {kept}")


def load_optimizer(optimizer, state, path):
    """Load an optimizer's saved moments; its settings stay the options'. Raises UserError, which names `path`."""
    try:
        for group, saved in zip(optimizer.param_groups, state["param_groups"]):
            saved.update({k: v for k, v in group.items() if k != "params"})
            check_moments(group["params"], [state["state"].get(i) for i in saved["params"]], "momentum" in group)
        optimizer.load_state_dict(state)
    except (KeyError, ValueError, TypeError, AttributeError) as failure:
        raise UserError(f"{path!r} holds no state of this model's optimizer ({first_line(failure)})") from None


def check_moments(parameters, states, muon):
    """Raise ValueError for moments that are not these parameters': a fused optimizer would read beyond their end."""
    names = ("momentum_buffer",) if muon else ("step", "exp_avg", "exp_avg_sq")
    for p, state in zip(parameters, states):
        wanted = {name: (() if name == "step" else p.shape, p.dtype) for name in names}
        if any(states) and {name: (moment.shape, moment.dtype) for name, moment in state.items()} != wanted:
            raise ValueError("its moments have other names, shapes or types")
