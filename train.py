"""
Train a GPT on the token ids in data/NAME/train.bin.

    python train.py config/train_hitchikers.py                     a small GPT on a GPU
    python train.py config/train_hitchikers_cpu.py                 a smaller one on a laptop
    python train.py config/train_hitchikers.py --init_from=resume  go on where a run was stopped
    torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py    on eight GPUs

out_dir/ckpt.pt is the best model so far, which sample.py reads; last.pt is the newest state, from which a run resumes;
log.jsonl holds the figures. Ctrl-C finishes the iteration and saves.
"""

from configurator import HERE, UserError, check_installed, configure, first_line, keep_freed_memory, replacing
from configurator import resolve_device, run, suggestion

import atexit
import contextlib
import json
import math
import os
import shutil
import signal
import sys
import textwrap
import time
import warnings
import zipfile
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from model import GPT, GPT2_VOCAB, PRETRAINED, GPTConfig
from plot import plot_loss, read_log
from tokenizer import check_meta, make_tokenizer, read_meta

# -----------------------------------------------------------------------------
# what to write, and when
out_dir = "out"  # where checkpoints and the log go
eval_interval = 2000  # evaluate every so many iterations, and save
log_interval = 1  # report every so many iterations
eval_iters = 200  # evaluate on at most so many batches of each split
eval_only = False  # evaluate once and stop
always_save_checkpoint = True  # ckpt.pt is the newest model at each evaluation; False: the best so far
sample_tokens = 40  # have the model write so many tokens at each evaluation; 0: none
init_from = "scratch"  # scratch, resume, auto (resume or scratch), gpt2, gpt2-medium, -large, -xl, a folder
# wandb
wandb_log = False  # log to Weights & Biases too
wandb_project = "owt"  # its project
wandb_run_name = "gpt2"  # its name for this run
# data
dataset = "openwebtext"  # the folder in data/
gradient_accumulation_steps = 5 * 8  # micro-batches in an iteration
batch_size = 12  # windows in a micro-batch
block_size = 1024  # tokens in a window
# model
n_layer = 12  # blocks
n_head = 12  # attention heads in a block
n_embd = 768  # channels, a multiple of n_head
dropout = 0.0  # 0 is best where there is plenty of text; 0.1 and more against overfitting
bias = False  # have biases in the linear and norm layers
# optimizer
optimizer = "adamw"  # adamw, or muon: Muon for the matrices inside the blocks, AdamW for the rest
learning_rate = 6e-4  # the highest, reached after the warm-up
max_iters = 600000  # updates in all
weight_decay = 1e-1  # on matrices and embeddings
beta1 = 0.9  # AdamW's decay of the mean gradient
beta2 = 0.95  # and of its square
grad_clip = 1.0  # clip the gradient's norm to this; 0: not at all
# learning rate
decay_lr = True  # warm up, then decay along a cosine; False: learning_rate throughout
warmup_iters = 2000  # iterations of warm-up
lr_decay_iters = 600000  # min_lr is reached here; usually max_iters
min_lr = 6e-5  # the lowest, usually a tenth of learning_rate
# machine
seed = 1337  # of the initial weights, the batches and dropout
device = "auto"  # auto, cpu, cuda, cuda:1, mps
dtype = "auto"  # auto, float32, bfloat16, float16
checkpoint_activations = False  # compute the blocks twice instead of keeping their activations: less memory
compile: str | bool = "auto"  # torch.compile the model: auto, True, False
backend = "auto"  # how the processes that torchrun starts talk: auto, nccl (GPUs), gloo
zero = False  # share the optimizer's state out among the processes: less memory in each
# -----------------------------------------------------------------------------

RANK, WORLD_SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun


def check_options():
    """Raise UserError for values that no training can have."""
    counts = ("batch_size", "block_size", "gradient_accumulation_steps", "eval_interval", "eval_iters", "log_interval")
    amounts = ("max_iters", "learning_rate", "min_lr", "warmup_iters", "lr_decay_iters", "weight_decay", "grad_clip")
    for name in counts:
        if globals()[name] < 1:
            raise UserError(f"--{name}={globals()[name]} should be at least 1")
    for name in (*amounts, "seed", "sample_tokens"):
        if globals()[name] < 0:
            raise UserError(f"--{name}={globals()[name]} should be at least 0")
    for name in ("beta1", "beta2"):
        if not 0 <= globals()[name] < 1:
            raise UserError(f"--{name}={globals()[name]} should be from 0 up to, not including, 1")
    if optimizer not in ("adamw", "muon"):
        raise UserError(f"--optimizer={optimizer} is unknown: it may be adamw or muon")
    if backend not in ("auto", "nccl", "gloo"):
        raise UserError(f"--backend={backend} is unknown: it may be auto, nccl or gloo")
    if gradient_accumulation_steps % WORLD_SIZE:
        less = gradient_accumulation_steps // WORLD_SIZE * WORLD_SIZE
        raise UserError(
            f"{WORLD_SIZE} processes cannot share --gradient_accumulation_steps={gradient_accumulation_steps} evenly: "
            f"{f'{less} or ' if less else ''}{less + WORLD_SIZE} would do"
        )
    if init_from not in ("scratch", "resume", "auto", *PRETRAINED) and not os.path.isdir(init_from):
        raise UserError(
            f"--init_from={init_from} is unknown: it may be scratch, resume, auto, {', '.join(PRETRAINED)}, or a "
            "folder with a GPT-2 in Hugging Face's format"
        )


# -----------------------------------------------------------------------------
# data


def open_tokens(split, meta, block_size, vocab_size):
    """The token ids of a split as a memory map, (tokens,). Raises UserError for a file that cannot be trained on."""
    folder = os.path.join(HERE, "data", dataset)
    path = os.path.join(folder, f"{split}.bin")
    if not os.path.exists(path):
        script = os.path.join("data", dataset, "prepare.py")
        known = sorted(
            d for d in os.listdir(os.path.join(HERE, "data")) if os.path.isdir(os.path.join(HERE, "data", d))
        )
        if os.path.exists(os.path.join(HERE, script)):
            raise UserError(f"dataset {dataset!r} has no {split}.bin yet: prepare it with 'python {script}'")
        raise UserError(f"--dataset={dataset} has no data/{dataset}/{split}.bin: {suggestion(dataset, known)}")
    size = os.path.getsize(path)
    if size % 2:
        raise UserError(f"{path!r} has {size} bytes, an odd number, and a token takes two: prepare the dataset again")
    tokens, written = size // 2, meta.get(split, {}).get("tokens")
    if written is not None and written != tokens:
        raise UserError(f"{path!r} has {tokens} tokens, and its meta.json says {written}: prepare the dataset again")
    if tokens <= block_size:
        raise UserError(
            f"{path!r} has {tokens} tokens, too few for one window of --block_size={block_size} and its target: "
            f"try --block_size={max(tokens - 1, 1)} or less, or more text"
        )
    data = np.memmap(path, dtype="<u2", mode="r")
    check_ids(data[: 2**27], vocab_size, path)  # all of most files; batches are checked as they come
    return data


def check_ids(ids, vocab_size, path):
    """Raise UserError where a token id is beyond the vocabulary, which a GPU would answer with a crash."""
    if ids.max() >= vocab_size:
        raise UserError(
            f"{path!r} has the token id {ids.max()}, beyond the model's vocabulary of {vocab_size}: "
            "does the file belong to the meta.json beside it, and to this model?"
        )


def get_batch(data, starts, block_size, vocab_size, device):
    """The windows of `data` that begin at `starts`: token ids x and those that follow each, y, both (B, T)."""
    windows = np.stack([data[i : i + block_size + 1] for i in starts])
    check_ids(windows, vocab_size, data.filename)
    windows = torch.from_numpy(windows.astype(np.int64))
    if device.type == "cuda":  # pinned memory travels while the GPU computes
        windows = windows.pin_memory().to(device, non_blocking=True)
    else:
        windows = windows.to(device)
    return windows[:, :-1], windows[:, 1:]


def evaluation_starts(tokens, block_size, at_most):
    """Where the windows of an evaluation begin: spread evenly over the split, the whole of it where it is small."""
    cover = math.ceil((tokens - 1) / block_size)
    if cover <= at_most:
        return np.minimum(np.arange(cover) * block_size, tokens - 1 - block_size)
    return np.linspace(0, tokens - 1 - block_size, at_most).astype(np.int64)


# -----------------------------------------------------------------------------
# training


def learning_rate_at(iteration):
    """Linear warm-up, then a cosine down to min_lr, as nanoGPT has it."""
    if not decay_lr:
        return learning_rate
    if iteration < warmup_iters:
        return learning_rate * (iteration + 1) / (warmup_iters + 1)
    if iteration >= lr_decay_iters:
        return min_lr
    progress = (iteration - warmup_iters) / (lr_decay_iters - warmup_iters)
    return min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (learning_rate - min_lr)


def train_step(model, optimizers, scaler, autocast, batches, grad_clip):
    """
    One update, from a list of functions that each give a micro-batch (x, y). Returns the mean loss and the gradient's
    norm before it was clipped, as tensors, so that nobody waits for the device who does not look at them.
    """
    loss_sum = 0.0
    for i, get in enumerate(batches):
        x, y = get()
        # the gradients are averaged over the processes once, after the last micro-batch
        waits = WORLD_SIZE > 1 and i + 1 < len(batches)
        with model.no_sync() if waits else contextlib.nullcontext():
            with autocast:
                _, loss = model(x, y)
            scaler.scale(loss / len(batches)).backward()
        loss_sum = loss_sum + loss.detach()
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
    for optimizer in optimizers:
        scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    scaler.update()
    return over_processes(loss_sum / len(batches)) / WORLD_SIZE, norm


def over_processes(tensor, group=None, how=dist.ReduceOp.SUM):
    """The sum, or another combination, of the tensors that each process gives."""
    if WORLD_SIZE > 1:
        dist.all_reduce(tensor, how, group)
    return tensor


def join_processes(torch_device):
    """
    Join the processes that torchrun started. Returns this process's device, and a group that talks between CPUs, so
    that no GPU has to wait for it; None where there is one process only.
    """
    if WORLD_SIZE == 1:
        return torch_device, None
    if torch_device.type == "cuda":
        torch_device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(torch_device)
    by_device = "nccl" if torch_device.type == "cuda" else "gloo"
    # a restart by torchrun must not read the addresses that the processes before it left in the store
    store, rank, world_size = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    chosen = by_device if backend == "auto" else backend
    dist.init_process_group(chosen, store=store, rank=rank, world_size=world_size)
    atexit.register(dist.destroy_process_group)
    return torch_device, dist.new_group(backend="gloo")


@torch.no_grad()
def evaluate(model, autocast, batches, stop=(), group=None):
    """The mean loss, in nats a token, over the batches (x, y) of all processes; of a part, where a signal comes."""
    model.eval()
    losses, sizes = [], []
    for x, y in batches:
        if stop:
            break
        with autocast:
            losses.append(model(x, y)[1])
        sizes.append(len(x))
    model.train()
    losses = torch.stack(losses).tolist() if losses else []  # waits for the device once
    sums = [sum(loss * size for loss, size in zip(losses, sizes)), sum(sizes)]
    total, count = over_processes(torch.tensor(sums, dtype=torch.float64), group).tolist()
    return total / max(count, 1)


def shared_out(optimizer):
    """
    The same optimizer, of which each process keeps the state of its share of the parameters only, and sends these to
    the others after a step (ZeRO, Rajbhandari et al., 2020, stage 1). Its state_dict is that of the whole.
    """
    from torch.distributed.optim import ZeroRedundancyOptimizer  # here, since it takes a second

    return ZeroRedundancyOptimizer(optimizer.param_groups, type(optimizer), lr=learning_rate)


def check_moments(parameters, states, muon):
    """Raise ValueError for moments that are not these parameters': a fused optimizer would read beyond their end."""
    names = ("momentum_buffer",) if muon else ("step", "exp_avg", "exp_avg_sq")
    for p, state in zip(parameters, states):
        wanted = {name: (() if name == "step" else p.shape, p.dtype) for name in names}
        if any(states) and {name: (moment.shape, moment.dtype) for name, moment in state.items()} != wanted:
            raise ValueError("its moments have other names, shapes or types")


def load_optimizer(optimizer, state, path):
    """Take over an optimizer's saved moments; its settings stay those of the options."""
    try:
        for group, saved in zip(optimizer.param_groups, state["param_groups"]):
            saved.update({k: v for k, v in group.items() if k != "params"})
            check_moments(group["params"], [state["state"].get(i) for i in saved["params"]], "momentum" in group)
        optimizer.load_state_dict(state)
    except (KeyError, ValueError, TypeError, AttributeError) as failure:
        raise UserError(f"{path!r} holds no state of this model's optimizer ({first_line(failure)})") from None


PEAK_FLOPS = {  # dense, at the precision of training: bfloat16, or float16 on a T4 and V100
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def peak_flops(device):
    """What the device could do in a second by its maker's word, or None where this is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), None)


def measured_flops(device, dtype):
    """What the device does in a second, in floating point operations: the best of a few large matrix products."""
    n = 2048 if device.type == "cpu" else 8192
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - began)
    return 2 * n**3 / min(seconds)


def advise(model, iterations, tokens, tokens_per_iter, device, dtype):
    """Say in the first seconds where a run will take hours, or its model will learn the text by heart."""
    flops = iterations * tokens_per_iter * model.flops_per_token() / WORLD_SIZE
    # training reaches half the speed of matrix products; less than 1e14 takes no hours anywhere
    hours = flops / (measured_flops(device, dtype) / 2) / 3600 if flops > 1e14 else 0
    if hours > 3:
        instead = "config/train_hitchikers_cpu.py is for a CPU" if device.type == "cpu" else "more GPUs would share it"
        say(f"this will take some {hours:,.0f} hours on {device}: {instead}; Ctrl-C stops and saves")
    parameters = sum(p.numel() for p in model.transformer.h.parameters())
    if parameters > 20 * tokens:
        passes = iterations * tokens_per_iter / tokens
        say(
            f"{tokens:,} tokens are little for {parameters / 1e6:.1f}M parameters in the blocks, which read them "
            f"{passes:,.0f} times: expect the best validation loss early, and try more text, a smaller --n_layer and "
            "--n_embd, a higher --dropout"
        )


# -----------------------------------------------------------------------------
# checkpoints


def save_checkpoint(state, is_best):
    """Write the state to last.pt, and where it is the best to ckpt.pt too, without a moment when one is damaged."""
    best = os.path.join(out_dir, "ckpt.pt")
    try:
        with replacing(os.path.join(out_dir, "last.pt")) as f:
            torch.save(state, f)
            if is_best:  # first, so that a run killed between the two finds the older last.pt and does this again
                f.flush()
                os.fsync(f.fileno())
                link(f.name, best)
    except RuntimeError as failure:  # what torch.save makes of a full disk
        raise UserError(f"cannot write to {out_dir!r} ({first_line(failure)}): the last checkpoint is kept") from None


def link(source, target):
    """Make `target` the same file as `source`; a copy where the file system has no hard links."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(f"{target}.tmp")
    try:
        os.link(source, f"{target}.tmp")
        os.replace(f"{target}.tmp", target)
    except OSError:
        with contextlib.suppress(FileNotFoundError):  # or else the copy would begin by emptying the source
            os.remove(f"{target}.tmp")
        with replacing(target) as f, open(source, "rb") as original:
            shutil.copyfileobj(original, f)


CHECKPOINT = {  # what a checkpoint holds: nanoGPT's keys, and our own
    "model": dict,
    "model_args": dict,
    "optimizer": dict,
    "iter_num": int,
    "best_val_loss": (float, torch.Tensor),  # nanoGPT's is a tensor
    "config": dict,
    "muon": dict,
    "meta": dict,  # the tokenizer's, so that sampling needs no data folder
    "scaler": dict,
    "wandb": str,  # the run's id there, to go on with
    "seconds": float,  # of training so far
}


def check_sums(path):
    """Raise ValueError where a file is not what was saved: torch.load takes damaged weights as they are."""
    if zipfile.is_zipfile(path):  # as all checkpoints since PyTorch 1.6
        with zipfile.ZipFile(path) as archive:
            folders = (part.filename for part in archive.infolist() if part.external_attr & 16)  # torch reads nothing
            if part := archive.testzip() or next(folders, None):
                raise ValueError(f"{part} in it is not what was saved")


def load_checkpoint(path):
    """A checkpoint's dict, read without running anything it may contain, its tensors on the CPU."""
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
    bad = {key for key, kind in CHECKPOINT.items() if key in found and not isinstance(found[key], kind)}
    if bad := bad | ({"model", "model_args"} - found.keys()):
        raise UserError(f"{path!r} is no checkpoint of a GPT: {' and '.join(sorted(bad))} in it is missing or damaged")
    if "meta" in checkpoint:
        check_meta(checkpoint["meta"], path)
    return checkpoint


def load_model(path, dropout=0.0):
    """The model in a checkpoint, and the checkpoint. Raises UserError where there is none."""
    checkpoint = load_checkpoint(path)
    try:
        return GPT.from_checkpoint(checkpoint, dropout), checkpoint
    except ValueError as failure:
        raise UserError(f"the checkpoint {path!r} {first_line(failure)}") from None


def resumable():
    """The path of the newest checkpoint in out_dir, or None."""
    paths = (os.path.join(out_dir, name) for name in ("last.pt", "ckpt.pt"))
    return next((path for path in paths if os.path.exists(path)), None)


def resumed_model(path):
    """load_model for a resume: where only last.pt is damaged, the error says how to go on."""
    try:
        return load_model(path, dropout)
    except UserError as mistake:
        best = os.path.join(out_dir, "ckpt.pt")
        if path == best or not os.path.exists(best):
            raise
        raise UserError(f"{mistake}; to go on from {best!r} instead, move {path!r} out of the way") from None


def starting_model(meta):
    """A new model of the options' sizes, or the pretrained one that init_from names."""
    try:
        if init_from in ("scratch", "auto"):
            # GPT-2's 50257 ids are rounded up to a multiple of 64, which is faster
            vocab_size = GPTConfig.vocab_size if meta["encoding"] == "gpt2" else meta["vocab_size"]
            return GPT(GPTConfig(block_size, vocab_size, n_layer, n_head, n_embd, dropout, bias))
    except ValueError as failure:
        raise UserError(failure) from None
    if meta["encoding"] != "gpt2":
        raise UserError(f"--init_from={init_from} writes GPT-2's token ids, and --dataset={dataset} has characters")
    return load_pretrained(init_from, block_size, dropout)


def load_pretrained(name, block_size=None, dropout=0.0):
    """A GPT-2 in Hugging Face's format. Raises UserError where it cannot be had."""
    check_installed("huggingface_hub", "safetensors")
    try:
        model = GPT.from_pretrained(name, block_size, dropout)
    except (OSError, ValueError) as failure:
        raise UserError(f"--init_from={name}: {failure}") from None
    if (known := model.config.vocab_size) < GPT2_VOCAB:
        raise UserError(f"--init_from={name} has {known} token ids, where GPT-2's encoding has 50257: it uses another")
    return model


def set_aside(folder):
    """Move an earlier run's files into a folder of their own, so that a new one overwrites nothing."""
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


def open_log(path, iter_num):
    """Open log.jsonl to append to it, without what an earlier run wrote about iterations from iter_num on."""
    kept = [figures for figures in read_log(path) if figures["iter"] < iter_num] if os.path.exists(path) else []
    with replacing(path) as f:
        f.write("".join(json.dumps(figures) + "\n" for figures in kept).encode("utf-8"))
    return open(path, "a", encoding="utf-8", buffering=1)


def summarize(log_path):
    """Say how a run went, and draw its curve."""
    evaluations = [figures for figures in read_log(log_path) if "val/loss" in figures]
    best, last = min(evaluations, key=lambda figures: figures["val/loss"]), evaluations[-1]
    speed = f", {last['tokens'] / last['seconds']:,.0f} tokens/s" if last["seconds"] else ""
    minutes = tqdm.format_interval(last["seconds"])
    say(f"best val loss {best['val/loss']:.4f}, at iteration {best['iter']}; {minutes} of training{speed}")
    if best["val/loss"] < last["val/loss"] and best["train/loss"] > last["train/loss"]:
        say(
            f"overfitting: since then the train loss fell from {best['train/loss']:.4f} to {last['train/loss']:.4f}, "
            f"and the val loss rose to {last['val/loss']:.4f}: more text, a higher --dropout or fewer --max_iters help"
        )
    try:
        plot_loss([out_dir], os.path.join(out_dir, "loss.png"))
        say(f"the curve is in {os.path.join(out_dir, 'loss.png')}")
    except (ImportError, UserError) as failure:  # the model is there all the same
        say(f"no picture of the loss: {first_line(failure)}")
    say(f"the model is in {out_dir}; let it write: python sample.py --out_dir={out_dir}")


# -----------------------------------------------------------------------------
# the run


def catch_signals():
    """A list to which a first Ctrl-C or SIGTERM adds its number; a second one ends the process at once."""
    caught, first = [], 0.0

    def note(number, frame):
        nonlocal first
        if caught and not (WORLD_SIZE > 1 and time.monotonic() < first + 5):  # torchrun passes on what we got already
            os._exit(128 + number)
        if not caught:
            first = time.monotonic()
            caught.append(number)
            clear = b"\r\x1b[K" if os.isatty(2) else b""  # the ^C that the terminal echoed behind the bar
            line = clear + b"finishing the iteration, then saving (once more: quit at once)\n"
            os.write(2, line if RANK == 0 else b"")

    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)
    return caught


def agreed(stop, group):
    """The number of a signal that any process has caught, or 0: all of them must stop after the same iteration."""
    return int(over_processes(torch.tensor(stop[0] if stop else 0), group, dist.ReduceOp.MAX))


def start_wandb(config, run_id):
    import wandb

    try:
        return wandb.init(
            project=wandb_project, name=wandb_run_name, config=config, dir=out_dir, id=run_id, resume="allow"
        )
    except Exception as failure:  # wandb's own, of many kinds
        raise UserError(
            f"wandb does not start ({first_line(failure)}): 'wandb login', WANDB_MODE=offline, or --wandb_log=False"
        ) from None


def log_to_wandb(wandb_run, figures, samples):
    """Log the figures of an iteration, and the samples so far as a table."""
    if "sample" in figures:
        import wandb

        samples.append([figures["iter"], figures["sample"]])
        figures = {**figures, "sample": wandb.Table(["iter", "sample"], samples)}
    wandb_run.log(figures, step=figures["iter"])


def write_sample(model, tokenizer, ids, max_new_tokens):
    """What the model writes after the token ids (T,), in one line; the same dice each time, to compare by."""
    torch.manual_seed(seed)
    model.eval()
    ids = torch.from_numpy(ids.astype(np.int64))[None].to(model.lm_head.weight.device)
    written = model.generate(ids, max_new_tokens, top_k=200, vocab_size=tokenizer.vocab_size)[0].tolist()
    model.train()
    text = tokenizer.decode_bytes(written).decode("utf-8", errors="replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def say(line):
    """Print a line above the progress bar, if there is one. Of several processes only the first one speaks."""
    if RANK == 0:
        tqdm.write(line)
        sys.stdout.flush()


def bits_per_byte(loss, counts):
    """A loss in nats a token as bits a byte of the text, which compares across encodings; None without the counts."""
    return loss / math.log(2) * counts["tokens"] / counts["bytes"] if counts and counts.get("bytes") else None


def check_finite(steps, scaler):
    """Raise UserError for the first of the steps (iteration, loss, norm) that went wrong; waits for the device."""
    for iteration, loss, norm in steps:
        # a gradient scaler leaves out steps whose norm is not finite, and goes on
        if not (math.isfinite(loss) and (scaler.is_enabled() or math.isfinite(norm))):
            raise UserError(
                f"iteration {iteration} has loss {loss:.4g} and gradient norm {norm:.4g}, which is no training any "
                "more: try a lower --learning_rate or a longer --warmup_iters; the checkpoints keep the last good state"
            )


def check_resumable(checkpoint, config, meta, path):
    """Raise UserError where the options cannot go on with a checkpoint, and say where they differ from those it had."""
    if not {"optimizer", "iter_num", "best_val_loss"} <= checkpoint.keys():
        raise UserError(f"{path!r} holds a model but no state of its training: it can be sampled, not resumed")
    if torch.as_tensor(checkpoint["best_val_loss"]).numel() != 1:
        raise UserError(f"{path!r} holds no single best_val_loss")
    model_args, saved_meta = checkpoint["model_args"], checkpoint.get("meta", meta)
    if any(saved_meta.get(key) != meta.get(key) for key in ("encoding", "chars")):
        raise UserError(f"{path!r} was trained with other token ids than those of --dataset={dataset}")
    if config["optimizer"] != (trained := checkpoint.get("config", {}).get("optimizer", "adamw")):
        raise UserError(f"{path!r} was trained with --optimizer={trained}, and cannot go on with {config['optimizer']}")
    if block_size < model_args["block_size"]:
        raise UserError(f"--block_size={block_size} is less than the {model_args['block_size']} of {path!r}")
    before = {**checkpoint.get("config", {}), **model_args}
    for name, value in config.items():
        # as texts, since anything may stand in a damaged checkpoint
        differs = name in before and str(before[name]) != str(value)
        if differs and name not in ("init_from", "out_dir", "eval_only", "dropout"):
            holds = f"{name}={before[name]}, which is the checkpoint's" if name in model_args else f"{name}={value} now"
            say(f"{name}: {before[name]} so far, {value} asked for: going on with {holds}")


def check_writable(folder):
    """Make a folder, and raise UserError where it cannot be written to."""
    try:
        os.makedirs(folder, exist_ok=True)
        probe = os.path.join(folder, "writable")
        with open(probe, "wb"):
            pass
        os.remove(probe)
    except OSError as failure:
        raise UserError(f"--out_dir={folder} cannot be written to: {failure.strerror}") from None


def main():
    config = configure(globals())
    check_options()
    torch_device, torch_dtype, compiled = resolve_device(device, dtype, compile)
    torch_device, cpu_group = join_processes(torch_device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    autocast = torch.autocast(torch_device.type, torch_dtype, enabled=torch_dtype != torch.float32)
    if RANK == 0:  # which alone writes
        check_writable(out_dir)
    keep_freed_memory()

    # the model: a checkpoint's, or a new one
    meta = read_meta(os.path.join(HERE, "data", dataset))
    tokenizer = make_tokenizer(meta) if sample_tokens and RANK == 0 else None
    newest = resumable() if init_from in ("resume", "auto") else None
    if init_from == "resume" and not newest:
        raise UserError(f"--init_from=resume: there is no last.pt or ckpt.pt in {out_dir!r}; try --init_from=scratch")
    torch.manual_seed(seed)
    if newest:
        model, checkpoint = resumed_model(newest)
        check_resumable(checkpoint, config, meta, newest)
        say(f"resuming from {newest} at iteration {checkpoint['iter_num']}")
    else:
        model, checkpoint = starting_model(meta), {"iter_num": 0, "best_val_loss": math.inf}
    model.to(torch_device)
    model.checkpointing = checkpoint_activations
    model_args = model.config.model_args()
    config.update({k: v for k, v in model_args.items() if k in config})

    # the optimizers
    scaler = torch.amp.GradScaler(torch_device.type, enabled=torch_dtype == torch.float16)
    betas = (beta1, beta2)
    optimizers = model.configure_optimizers(weight_decay, learning_rate, betas, torch_device.type, optimizer)
    if zero and WORLD_SIZE > 1:
        optimizers = [shared_out(o) for o in optimizers]
    if "optimizer" in checkpoint:
        for key, o in zip(("optimizer", "muon"), optimizers):
            load_optimizer(o, checkpoint.get(key, {}), newest)
        if scaler.is_enabled() and checkpoint.get("scaler"):
            scaler.load_state_dict(checkpoint["scaler"])
    iter_num, best_val_loss = checkpoint["iter_num"], float(checkpoint["best_val_loss"])
    seconds, wandb_id = checkpoint.get("seconds", 0.0), checkpoint.get("wandb")
    del checkpoint
    raw_model = model  # the one to save: in a compiled one the parameters have other names
    if compiled:
        say("compiling the model, which takes a minute")
        model = torch.compile(model)
    if WORLD_SIZE > 1:
        devices = [torch_device] if torch_device.type == "cuda" else None
        model = DistributedDataParallel(model, devices, gradient_as_bucket_view=True)  # saves a copy of the gradients

    # the data
    T, vocab_size = raw_model.config.block_size, raw_model.config.vocab_size
    data = {split: open_tokens(split, meta, T, vocab_size) for split in ("train", "val")}

    def training_batch(micro_step):
        # a function of the options and these numbers alone, so that a resumed run repeats the uninterrupted one
        rng = np.random.default_rng((seed, iter_num, micro_step))
        starts = rng.integers(0, len(data["train"]) - T, batch_size)
        torch.manual_seed(int(rng.integers(2**63)))  # for dropout
        return get_batch(data["train"], starts, T, vocab_size, torch_device)

    def evaluation_batches(split):
        starts = evaluation_starts(len(data[split]), T, eval_iters * batch_size)
        for i in range(RANK * batch_size, len(starts), WORLD_SIZE * batch_size):
            yield get_batch(data[split], starts[i : i + batch_size], T, vocab_size, torch_device)

    # each process has its share of an iteration's micro-batches, whose numbers count over all of them
    share = gradient_accumulation_steps // WORLD_SIZE
    micro_steps = range(RANK * share, (RANK + 1) * share)

    # what is written: checkpoints and the log
    tokens_per_iter = gradient_accumulation_steps * batch_size * T
    wandb_run = start_wandb(config, wandb_id) if wandb_log and RANK == 0 else None
    if not newest and not eval_only and RANK == 0:
        set_aside(out_dir)
    log_file = open_log(os.path.join(out_dir, "log.jsonl"), iter_num) if not eval_only and RANK == 0 else None

    samples = []  # rows of wandb's table

    def log(figures):
        figures = {
            "iter": iter_num,
            "tokens": iter_num * tokens_per_iter,
            "seconds": round(seconds + busy, 3),
            **figures,
        }
        if log_file:
            try:
                log_file.write(json.dumps(figures) + "\n")
            except OSError as failure:
                raise UserError(f"cannot write {log_file.name!r}: {failure.strerror}") from None
        if wandb_run:
            log_to_wandb(wandb_run, figures, samples)

    def save(is_best):
        if zero and WORLD_SIZE > 1:
            for o in optimizers:
                o.consolidate_state_dict()  # to the first process, which needs them all
        if RANK != 0:
            return
        state = {
            "model": raw_model.state_dict(),
            **{key: o.state_dict() for key, o in zip(("optimizer", "muon"), optimizers)},
            "model_args": model_args,
            "iter_num": iter_num,
            "best_val_loss": best_val_loss,
            "config": config,
            "meta": meta,
            "scaler": scaler.state_dict(),
            "seconds": seconds + busy,
            **({"wandb": run_id} if (run_id := wandb_run.id if wandb_run else wandb_id) else {}),
        }
        save_checkpoint(state, is_best)

    peak = peak_flops(torch_device)
    say(f"{raw_model.num_params() / 1e6:.2f}M parameters on {torch_device}, {torch_dtype}, compile={compiled}")
    tokens = {split: f"{len(data[split]):,}" for split in data}
    say(f"tokens: {tokens['train']} to train on, {tokens['val']} to validate, {tokens_per_iter:,} an iteration")
    if not eval_only:
        advise(raw_model, max_iters - iter_num, len(data["train"]), tokens_per_iter, torch_device, torch_dtype)

    # the loop
    on_terminal = sys.stdout.isatty() and sys.stderr.isatty()
    bar = tqdm(total=max_iters, initial=iter_num, unit="it", disable=not on_terminal or RANK != 0, dynamic_ncols=True)
    stop, stop_number = catch_signals(), 0
    unreported, busy = [], 0.0  # the iterations since the last report, and the seconds they took
    while True:
        if iter_num % eval_interval == 0 or iter_num >= max_iters or eval_only:
            check_finite(unreported, scaler)
            losses = {split: evaluate(model, autocast, evaluation_batches(split), stop, cpu_group) for split in data}
            if stop_number := agreed(stop, cpu_group):
                break
            check_finite([(iter_num, loss, 0.0) for loss in losses.values()], scaler)
            is_best = losses["val"] < best_val_loss
            best_val_loss = min(losses["val"], best_val_loss)
            bits = {split: bits_per_byte(losses[split], meta.get(split)) for split in data}
            in_bits = f", {bits['val']:.4f} bits a byte" if bits["val"] else ""
            best = " (the best)" if is_best else ""
            say(f"step {iter_num}: train loss {losses['train']:.4f}, val loss {losses['val']:.4f}{in_bits}{best}")
            figures = {f"{s}/loss": losses[s] for s in data} | {f"{s}/bits_per_byte": bits[s] for s in data if bits[s]}
            if tokenizer and iter_num:  # a new model's would be noise
                figures["sample"] = write_sample(raw_model, tokenizer, data["val"][:1], sample_tokens)
                width = shutil.get_terminal_size().columns - 1 if on_terminal else sys.maxsize
                say(textwrap.fill(f"it writes: {figures['sample']}", width, subsequent_indent="  "))
            log(figures)
            if not eval_only:
                save(is_best or always_save_checkpoint)
        if iter_num >= max_iters or eval_only:
            break

        began = time.perf_counter()
        lr = learning_rate_at(iter_num)
        for group in (group for o in optimizers for group in o.param_groups):
            group["lr"] = lr
        batches = [partial(training_batch, m) for m in micro_steps]
        loss, norm = train_step(model, optimizers, scaler, autocast, batches, grad_clip)
        unreported.append((iter_num, loss, norm))
        stop_number = agreed(stop, cpu_group)
        if iter_num % log_interval == 0:
            check_finite(unreported, scaler)  # waits for the device, so that the time is right
        busy += time.perf_counter() - began
        if iter_num % log_interval == 0:
            dt, seconds = busy / len(unreported), seconds + busy
            unreported, busy = [], 0.0
            speed = tokens_per_iter / dt
            mfu = speed * raw_model.flops_per_token() / peak if peak else -1.0  # as nanoGPT says "unknown"
            if on_terminal:
                bar.set_postfix_str(f"loss {loss:.4f}, {speed:,.0f} tok/s", refresh=False)
            else:
                say(
                    f"iter {iter_num}: loss {loss:.4f}, time {dt * 1000:.2f}ms, mfu {mfu * 100:.2f}%, lr {lr:.2e}, "
                    f"norm {norm:.2f}, {speed:,.0f} tok/s, {bar.format_interval(dt * (max_iters - iter_num - 1))} left"
                )
            figures = {"loss": loss.item(), "lr": lr, "grad_norm": norm.item(), "ms": dt * 1000, "tokens_per_s": speed}
            log(figures | ({"mfu": mfu} if peak else {}))
        iter_num += 1
        bar.update()
        if stop_number:
            break
    bar.close()

    if stop_number:
        check_finite(unreported, scaler)
        save(is_best=False)
        if RANK == 0:
            saved = f"stopped before iteration {iter_num}, and saved"
            print(f"{saved}: --init_from=resume goes on from there", file=sys.stderr)
        sys.exit(128 + stop_number)
    if wandb_run:
        wandb_run.finish()
    if log_file:
        log_file.close()
        summarize(log_file.name)


if __name__ == "__main__":
    run(main)
