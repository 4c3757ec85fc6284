"""
What a run leaves on the disk, and how another takes it up: checkpoints are written, read, checked, resumed, set aside.

out_dir/ckpt.pt is what sample.py reads, out_dir/last.pt the newest state, from which a run resumes. Both have nanoGPT's
keys and our own. Whatever a file contains, reading it runs no program.
"""

import contextlib
import math
import os
import shutil
import warnings
import zipfile
from dataclasses import dataclass

import torch

from configurator import RANK, UserError, check_installed, data_folder, first_line, quote, replacing
from model import GPT, GPT2_VOCAB
from pretrained import PRETRAINED
from report import say
from tokenizer import check_meta, make_tokenizer, read_meta

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
}


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
            "meta": self.meta,
            "scaler": self.scaler.state_dict(),
            "seconds": self.seconds,
            **({"wandb": self.wandb_id} if self.wandb_id else {}),
        }

    def restore(self, checkpoint, path):
        """Go on from a checkpoint whose model this is already. Raises UserError, which names `path`."""
        for key, optimizer in zip(OPTIMIZERS, self.optimizers):
            load_optimizer(optimizer, checkpoint.get(key, {}), path)
        if self.scaler.is_enabled() and checkpoint.get("scaler"):
            self.scaler.load_state_dict(checkpoint["scaler"])
        self.iter_num, self.best_val_loss = checkpoint["iter_num"], float(checkpoint["best_val_loss"])
        self.seconds, self.wandb_id = checkpoint.get("seconds", 0.0), checkpoint.get("wandb")


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


def save_checkpoint(folder, state, is_best):
    """Write a TrainingState to last.pt, and if `is_best` to ckpt.pt too. Whatever interrupts it, both stay whole."""
    for optimizer in state.optimizers:
        if hasattr(optimizer, "consolidate_state_dict"):  # ZeroRedundancyOptimizer: gather it in the first process
            optimizer.consolidate_state_dict()
    if RANK != 0:
        return
    try:
        with replacing(os.path.join(folder, "last.pt")) as f:
            torch.save(state.to_checkpoint(), f)
            if is_best:  # before last.pt: a run killed between the two resumes from the older last.pt and repeats this
                f.flush()
                os.fsync(f.fileno())
                link(f.name, os.path.join(folder, "ckpt.pt"))
    except RuntimeError as failure:  # torch.save's, for a full disk
        raise UserError(f"cannot write to {folder!r} ({first_line(failure)}): the last checkpoint is kept") from None


def link(source, target):
    """Make `target` the same file as `source`, or a copy where the file system has no hard links."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(f"{target}.tmp")
    try:
        os.link(source, f"{target}.tmp")
        os.replace(f"{target}.tmp", target)
    except OSError:
        with contextlib.suppress(FileNotFoundError):  # else, being linked, it would empty the source as it is opened
            os.remove(f"{target}.tmp")
        with replacing(target) as f, open(source, "rb") as original:
            shutil.copyfileobj(original, f)


def set_aside(folder):
    """Move an earlier run's files into a folder of their own, so that a new run overwrites nothing."""
    names = ("ckpt.pt", "last.pt", "log.jsonl", "loss.png")
    files = [name for name in names if os.path.exists(os.path.join(folder, name))]
    if not files:
        return
    number = 1
    while os.path.exists(os.path.join(folder, f"earlier-{number}")):
        number += 1
    aside = os.path.join(folder, f"earlier-{number}")
    os.mkdir(aside)
    for name in files:
        os.replace(os.path.join(folder, name), os.path.join(aside, name))
    say(f"moved an earlier run to {aside} (to go on with it instead: --init_from=resume)")


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
        raise UserError(
            f"there is no checkpoint {path!r}: train a model first, or name its folder with --out_dir"
        ) from None
    except Exception as failure:  # a damaged file can raise almost anything
        raise UserError(f"cannot read the checkpoint {path!r}: it is damaged or none ({first_line(failure)})") from None
    found = checkpoint if isinstance(checkpoint, dict) else {}
    bad = {key for key, kind in KEYS.items() if key in found and not isinstance(found[key], kind)}
    if bad := bad | ({"model", "model_args"} - found.keys()):
        raise UserError(f"{path!r} is no checkpoint of a GPT: {' and '.join(sorted(bad))} missing or damaged")
    if "meta" in checkpoint:
        check_meta(checkpoint["meta"], path)
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
    check_folder(folder)
    model, checkpoint = load_model(os.path.join(folder, "ckpt.pt"))
    # nanoGPT's checkpoints do not hold the encoding: the data folder does
    data = data_folder(str(checkpoint.get("config", {}).get("dataset")))
    tokenizer = make_tokenizer(checkpoint.get("meta") or read_meta(data))
    if tokenizer.vocab_size > model.config.vocab_size:
        given = f"{tokenizer.vocab_size} token ids, the model {model.config.vocab_size}"
        raise UserError(f"the encoding in {data!r} has {given}: is that the folder it was trained on?")
    return model, tokenizer


def load_pretrained(name, block_size=None, dropout=0.0):
    """A GPT-2 in Hugging Face's format. Raises UserError where it cannot be had, or has another vocabulary."""
    check_installed("huggingface_hub", "safetensors")
    try:
        model = GPT.from_pretrained(name, block_size, dropout)
    except (OSError, ValueError) as failure:
        raise UserError(f"--init_from={name}: {failure}") from None
    if (known := model.config.vocab_size) < GPT2_VOCAB:
        raise UserError(f"--init_from={name} has {known} token ids, where GPT-2's encoding has 50257: it uses another")
    return model


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
    """The path of the newest checkpoint in a folder, or None."""
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
    """Raise UserError where a run with these options cannot go on from a checkpoint; say which options have changed."""
    if not {"optimizer", "iter_num", "best_val_loss"} <= checkpoint.keys():
        raise UserError(f"{path!r} holds a model and not the state of its training: it can be sampled, not resumed")
    if torch.as_tensor(checkpoint["best_val_loss"]).numel() != 1:
        raise UserError(f"{path!r} holds no single best_val_loss")
    model_args, saved_config = checkpoint["model_args"], checkpoint.get("config", {})
    saved_meta = checkpoint.get("meta", meta)
    if any(saved_meta.get(key) != meta.get(key) for key in ("encoding", "chars")):
        raise UserError(f"{path!r} was trained with other token ids than those of --dataset={config['dataset']}")
    if (optimizer := config["optimizer"]) != (trained := saved_config.get("optimizer", "adamw")):
        raise UserError(f"{path!r} was trained with --optimizer={trained}, and cannot go on with {optimizer}")
    if (block_size := config["block_size"]) < model_args["block_size"]:
        raise UserError(f"--block_size={block_size} is less than the {model_args['block_size']} of {path!r}")
    before = {**saved_config, **model_args}
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
