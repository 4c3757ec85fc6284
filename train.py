"""
Train a GPT on the token ids in data/NAME/train.bin.

    python train.py config/train_hitchikers.py                     a small GPT on a GPU
    python train.py config/train_hitchikers_cpu.py                 a smaller one on a laptop
    python train.py config/train_hitchikers.py --init_from=resume  go on where a run was stopped
    torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py    on eight GPUs

out_dir/ckpt.pt, which sample.py reads, is the newest model, or the best so far with --always_save_checkpoint=False;
last.pt is the newest state, from which a run resumes; log.jsonl holds the figures. Ctrl-C finishes the iteration and
saves.
"""

from configurator import RANK, WORLD_SIZE, UserError, check_range, command, configure, data_folder, first_line, note
from configurator import run, suggestion

import contextlib
import math
import os
import sys
import time
import zlib
from functools import partial

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from checkpoint import TrainingState, announce_resume, check_init_from, check_resumable, check_writable, earlier_files
from checkpoint import earlier_run, find_newest, load_newest, load_pretrained, lock, pretrained_tokenizer
from checkpoint import save_checkpoint, set_aside
from machine import OneOptimizer, all_reduce, catch_signals, estimated_hours, join_processes, mixed_precision
from machine import peak_flops, resolve_device, set_up_torch, signal_in_any_process
from model import GPT, GPTConfig
from plot import plot_losses
from report import Report, advise, read_log, say, start_wandb, summarize
from tokenizer import make_tokenizer, read_meta, rows_for, same_ids

# -----------------------------------------------------------------------------
# what to write, and when
out_dir = "out"  # the folder for checkpoints and the log
eval_interval = 2000  # evaluate and save every so many iterations
log_interval = 1  # report every so many iterations
eval_iters = 200  # batches of each split to evaluate on, at most
eval_only = False  # evaluate once and stop
always_save_checkpoint = True  # ckpt.pt is the newest model at each evaluation; False: the best so far
sample_tokens = 40  # tokens that the model writes at each evaluation; 0: none
init_from = "scratch"  # scratch, resume, auto (resume or scratch), gpt2, gpt2-medium, -large, -xl, a folder
# wandb
wandb_log = False  # log to Weights & Biases, too
wandb_project = "owt"  # the project there
wandb_run_name = "gpt2"  # the name of the run there
# data
dataset = "openwebtext"  # the folder in data/
gradient_accumulation_steps = 5 * 8  # micro-batches in an iteration
batch_size = 12  # windows in a micro-batch
block_size = 1024  # tokens in a window
# model
n_layer = 12  # blocks
n_head = 12  # attention heads in a block
n_embd = 768  # channels, a multiple of n_head
dropout = 0.0  # 0 for plenty of text; 0.1 and more against overfitting
bias = False  # biases in the linear and norm layers
# optimizer
optimizer = "adamw"  # adamw, or muon: Muon for the matrices inside the blocks, AdamW for the rest
learning_rate = 6e-4  # the highest, reached after the warm-up
max_iters = 600000  # updates in all
weight_decay = 1e-1  # on matrices and embeddings
beta1 = 0.9  # AdamW's decay rate of the mean gradient
beta2 = 0.95  # and of the mean squared gradient
grad_clip = 1.0  # clip the gradient to this norm; 0: not at all
# learning rate
decay_lr = True  # warm up, then decay along a cosine; False: learning_rate throughout
warmup_iters = 2000  # iterations of warm-up
lr_decay_iters = 600000  # min_lr is reached here; usually max_iters
min_lr = 6e-5  # the lowest, usually a tenth of learning_rate
# machine
seed = 1337  # of the initial weights, the batches and dropout
device = "auto"  # auto, cpu, cuda, cuda:1, mps
dtype = "auto"  # auto, float32, bfloat16, float16
checkpoint_activations = False  # compute the blocks twice instead of keeping activations: less memory
compile: str | bool = "auto"  # torch.compile the model: auto, True, False
backend = "auto"  # connects the processes that torchrun starts: auto, nccl (GPUs), gloo
zero = False  # shard the optimizer's state over the processes: less memory in each
# -----------------------------------------------------------------------------

COMPILE_FLOPS = 1e15  # what a slow GPU computes in the minute that compiling takes


def check_options():
    """Raise UserError for values that no training can have."""
    sizes = dict.fromkeys(("batch_size", "block_size", "gradient_accumulation_steps"), (1, 10**6))
    counts = dict.fromkeys(("eval_interval", "eval_iters", "log_interval"), (1, math.inf))
    rest = dict.fromkeys(("max_iters", "warmup_iters", "lr_decay_iters", "seed", "grad_clip"), (0, math.inf))
    rates = dict.fromkeys(("learning_rate", "min_lr", "weight_decay"), (0, 1e30))
    check_range(globals(), sizes | counts | rest | rates | {"sample_tokens": (0, 10**6)})
    for name in ("beta1", "beta2"):
        if not 0 <= globals()[name] < 1:
            raise UserError(f"--{name}={globals()[name]} should be from 0 up to, not including, 1")
    if optimizer not in ("adamw", "muon"):
        raise UserError(f"--optimizer={optimizer} is unknown: it may be adamw or muon")
    if backend not in ("auto", "nccl", "gloo"):
        raise UserError(f"--backend={backend} is unknown: it may be auto, nccl or gloo")
    if gradient_accumulation_steps < WORLD_SIZE:
        raise UserError(
            f"{WORLD_SIZE} processes cannot share --gradient_accumulation_steps={gradient_accumulation_steps}: it "
            f"should be at least {WORLD_SIZE}, a micro-batch for each process"
        )
    check_init_from(init_from, "scratch", "resume", "auto")


# -----------------------------------------------------------------------------
# where to start


def starting_state(config, meta, scaler, torch_device):
    """The TrainingState that a run begins with, and whether it is an earlier run's. Completes the sizes in `config`."""
    path = find_newest(out_dir) if init_from in ("resume", "auto") else None
    if init_from == "resume" and not path:
        none = f"there is no last.pt or ckpt.pt in {out_dir!r}"
        raise UserError(f"--init_from=resume: {none}; try --init_from=scratch{earlier_run(out_dir)}")
    if path:
        model, checkpoint = load_newest(path, dropout)
        check_resumable(checkpoint, config, meta, path)
        announce_resume(checkpoint, config, path)
    else:
        model, checkpoint = starting_model(meta), None
    model.to(torch_device)
    model.checkpoint_activations = checkpoint_activations
    config.update({name: value for name, value in model.config.model_args().items() if name in config})
    betas = (beta1, beta2)
    optimizers = model.configure_optimizers(weight_decay, learning_rate, betas, torch_device.type, optimizer)
    if zero and WORLD_SIZE > 1:
        optimizers = [shard_state(o) for o in optimizers]
    state = TrainingState(model, optimizers, scaler, config, meta)
    if checkpoint:
        state.restore(checkpoint, path)
    check_learning_rate(state.iter_num)
    return state, bool(path)


def check_learning_rate(iter_num):
    """Raise UserError where updates would change nothing, at a rate of 0; say where a resumed run's stays lowest."""
    if not decay_lr or eval_only or max(iter_num, lr_decay_iters) >= max_iters:
        return
    longer = f"add --lr_decay_iters={max_iters}"
    if WORLD_SIZE == 1:
        others = [argument for argument in sys.argv if not argument.startswith("--lr_decay_iters=")]
        longer = command(*others, lr_decay_iters=max_iters)
    if min_lr == 0:
        raise UserError(f"from iteration {lr_decay_iters} on the learning rate is 0, and nothing is learned: {longer}")
    if iter_num >= lr_decay_iters:
        say(f"note: from iteration {lr_decay_iters} on the learning rate is {min_lr:g}; to decay it later: {longer}")


def starting_model(meta):
    """A new model of the options' sizes, or the pretrained one that init_from names."""
    if init_from in ("scratch", "auto"):
        sizes = block_size, rows_for(meta), n_layer, n_head, n_embd, dropout, bias
        try:
            return GPT(GPTConfig(*sizes, n_ids=meta["vocab_size"]))
        except ValueError as failure:
            raise UserError(failure) from None
    known = pretrained_tokenizer(init_from).meta()
    if not same_ids(known, meta):
        raise other_ids(known, meta)
    return load_pretrained(init_from, block_size, dropout)[0]


def other_ids(known, meta):
    """The UserError for a dataset with other token ids than those that a pretrained model knows: prepare it again."""
    wanted, suffix = {"tokenizer": init_from}, "again"
    if known["encoding"] == "gpt2":
        wanted, suffix = {"encoding": "gpt2"}, "gpt2"
    script, options = os.path.join("data", dataset, "prepare.py"), meta.get("options", {})
    if os.path.exists(os.path.join(data_folder(dataset), "prepare.py")):
        options = {name: options[name] for name in ("input", "val_fraction", "clean") if name in options}
    else:
        script = os.path.join("data", "prepare.py")
        usual = {"val_fraction": 0.1, "clean": False, "split_documents": True}
        unusual = {name: value for name, value in options.items() if usual.get(name) != value}
        options = {"input": "TEXT"} | unusual | {"dataset": f"{dataset}-{suffix}"}
    return UserError(
        f"--dataset={dataset} has other token ids than --init_from={init_from}: prepare its text for that with "
        f"'{command(script, **options, **wanted)}'"
    )


def shard_state(whole):
    """
    The same optimizer, of which each process keeps the state of its share of the parameters only, and sends these to
    the others after a step (ZeRO stage 1, Rajbhandari et al., 2020). Its state_dict is that of the whole.
    """
    from torch.distributed.optim import ZeroRedundancyOptimizer  # here, since importing it takes a second

    return ZeroRedundancyOptimizer(whole.param_groups, type(whole), lr=learning_rate)


# -----------------------------------------------------------------------------
# data


def open_tokens(split, meta, sizes):
    """The token ids of a split as a memory map, (tokens,), for a model of these sizes. Raises UserError."""
    path = os.path.join(data_folder(dataset), f"{split}.bin")
    if not os.path.exists(path):
        raise missing_data(split)
    size = os.path.getsize(path)
    if size % 2:
        raise UserError(f"{path!r} has {size} bytes, an odd number, and a token takes two: prepare the dataset again")
    tokens, written = size // 2, meta.get(split, {}).get("tokens")
    if written is not None and written != tokens:
        raise UserError(f"{path!r} has {tokens} tokens, and its meta.json says {written}: prepare the dataset again")
    if tokens <= sizes.block_size:
        raise UserError(
            f"{path!r} has {tokens} tokens, too few for one window of --block_size={sizes.block_size} and its target: "
            f"try --block_size={max(tokens - 1, 1)} or less, or more text"
        )
    data = np.memmap(path, dtype="<u2", mode="r")
    check_ids(data[: 2**27], sizes.n_ids, path)  # all of most files; get_batch checks the rest as it is read
    return data


def missing_data(split):
    """The UserError for a dataset that has no such split: prepare it, or is the name a typo?"""
    script = os.path.join("data", dataset, "prepare.py")
    if os.path.exists(os.path.join(data_folder(dataset), "prepare.py")):
        return UserError(f"dataset {dataset!r} has no {split}.bin yet: prepare it with '{command(script)}'")
    known = sorted(name for name in os.listdir(data_folder("")) if os.path.isdir(data_folder(name)))
    return UserError(f"--dataset={dataset} has no data/{dataset}/{split}.bin: {suggestion(dataset, known)}")


def check_ids(ids, n_ids, path):
    """Raise UserError where a token id is beyond the vocabulary: a GPU would crash at it."""
    if ids.max() >= n_ids:
        raise UserError(
            f"{path!r} has the token id {ids.max()}, beyond the model's vocabulary of {n_ids}: "
            "does the file belong to the meta.json beside it, and to this model?"
        )


def get_batch(data, starts, sizes, torch_device):
    """The windows of `data` that begin at `starts`: token ids x and those that follow each, y, both (B, T)."""
    windows = np.stack([data[i : i + sizes.block_size + 1] for i in starts])
    check_ids(windows, sizes.n_ids, data.filename)
    windows = torch.from_numpy(windows.astype(np.int64))
    if torch_device.type == "cuda":  # pinned memory is copied while the GPU computes
        windows = windows.pin_memory().to(torch_device, non_blocking=True)
    else:
        windows = windows.to(torch_device)
    return windows[:, :-1], windows[:, 1:]


def training_batch(data, sizes, torch_device, iter_num, micro_batch):
    """
    A micro-batch (x, y) of an iteration. It is drawn, and its dropout seeded, by these two numbers and the seed alone:
    so a resumed run repeats the uninterrupted one, and any number of processes draw what one would.
    """
    rng = np.random.default_rng((seed, iter_num, micro_batch))
    starts = rng.integers(0, len(data) - sizes.block_size, batch_size)
    torch.manual_seed(int(rng.integers(2**63)))  # for dropout
    return get_batch(data, starts, sizes, torch_device)


def evaluation_batches(data, sizes, torch_device):
    """This process's share of the batches (x, y) on which a split is evaluated."""
    starts = evaluation_starts(len(data), sizes.block_size, eval_iters * batch_size)
    for i in range(RANK * batch_size, len(starts), WORLD_SIZE * batch_size):
        yield get_batch(data, starts[i : i + batch_size], sizes, torch_device)


def evaluation_windows(data, sizes):
    """A text that stands for the windows a split is evaluated on: two losses compare only if theirs are the same."""
    starts = evaluation_starts(len(data), sizes.block_size, eval_iters * batch_size)
    checksum = 0
    for i in starts:
        checksum = zlib.crc32(data[i : i + sizes.block_size + 1].tobytes(), checksum)
    return f"{len(starts)} x {sizes.block_size}: {checksum:08x}"


def evaluation_starts(tokens, T, at_most):
    """Where the windows of an evaluation begin: spread evenly over the split, or covering it all if it is small."""
    covering = math.ceil((tokens - 1) / T)
    if covering <= at_most:
        return np.minimum(np.arange(covering) * T, tokens - 1 - T)
    return np.linspace(0, tokens - 1 - T, at_most).astype(np.int64)


# -----------------------------------------------------------------------------
# training


def learning_rate_at(iter_num):
    """Linear warm-up, then a cosine down to min_lr, as in nanoGPT."""
    if not decay_lr:
        return learning_rate
    if iter_num < warmup_iters:
        return learning_rate * (iter_num + 1) / (warmup_iters + 1)
    if iter_num >= lr_decay_iters:
        return min_lr
    progress = (iter_num - warmup_iters) / (lr_decay_iters - warmup_iters)
    return min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (learning_rate - min_lr)


def train_step(model, optimizers, scaler, autocast, batches, micro_batches):
    """
    One update, from a list of functions that each draw a micro-batch (x, y): this process's share of an iteration's
    `micro_batches`. Returns the mean loss and the norm of the gradient before clipping, as tensors, so that nothing
    waits for the device until they are read.
    """
    loss_sum = 0.0
    # the mean over processes of such losses is the mean over all micro-batches, however unevenly they are shared
    per_process = micro_batches / WORLD_SIZE
    for i, get_micro_batch in enumerate(batches):
        x, y = get_micro_batch()
        # the processes average their gradients once, after the last micro-batch
        accumulating = WORLD_SIZE > 1 and i + 1 < len(batches)
        with model.no_sync() if accumulating else contextlib.nullcontext():
            with autocast:
                _, loss = model(x, y)
            scaler.scale(loss / per_process).backward()
        loss_sum = loss_sum + loss.detach()
    all_of_them = OneOptimizer(optimizers) if len(optimizers) > 1 else optimizers[0]
    scaler.unscale_(all_of_them)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
    scaler.step(all_of_them)
    scaler.update()
    for o in optimizers:
        o.zero_grad(set_to_none=True)
    return all_reduce(loss_sum / per_process) / WORLD_SIZE, norm


@torch.no_grad()
def evaluate(model, plain, autocast, batches, caught=(), group=None):
    """
    The mean loss, in nats per token, over all processes' batches (x, y). A signal in `caught` ends it early. `plain` is
    the model as it was before it was compiled: it takes a batch of another size, for which a compile would be lost.
    """
    model.eval()
    losses, counts = [], []
    for x, y in batches:
        if caught:
            break
        with autocast:
            losses.append((model if len(x) == batch_size else plain)(x, y)[1])
        counts.append(len(x))
    model.train()
    losses = torch.stack(losses).tolist() if losses else []  # waits for the device once
    sums = [sum(loss * count for loss, count in zip(losses, counts)), sum(counts)]
    total, windows = all_reduce(torch.tensor(sums, dtype=torch.float64), group).tolist()
    return total / max(windows, 1)


def check_finite(updates, scaler):
    """Raise UserError for the first of the updates (iter_num, loss, norm) that went wrong. Waits for the device."""
    for iter_num, loss, norm in updates:
        # a gradient scaler skips updates whose norm is not finite, and goes on
        if not (math.isfinite(loss) and (scaler.is_enabled() or math.isfinite(norm))):
            raise UserError(
                f"iteration {iter_num} has loss {loss:.4g} and gradient norm {norm:.4g}: the training has diverged; "
                "try a lower --learning_rate or a longer --warmup_iters; the checkpoints keep the last good state"
            )


def sample_tokenizer(meta):
    """The tokenizer for what the model writes at each evaluation; None where nobody knows what its token ids mean."""
    tokenizer = make_tokenizer(meta)
    if not tokenizer:
        say(f"of {dataset!r}'s token ids only the number is known, {meta['vocab_size']}: the model will write no text")
    return tokenizer


def write_sample(model, tokenizer, ids):
    """What the model writes after the token ids (T,), in one line. The seed is the same each time, to compare by."""
    torch.manual_seed(seed)
    model.eval()
    ids = torch.from_numpy(ids.astype(np.int64))[None].to(model.lm_head.weight.device)
    written = model.generate(ids, sample_tokens, top_k=200, vocab_size=tokenizer.vocab_size)[0].tolist()
    model.train()
    text = tokenizer.decode_bytes(written).decode("utf-8", errors="replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


# -----------------------------------------------------------------------------
# the run


def flops_to_go(state, tokens_per_iter):
    """The floating point operations that each process has yet to do, evaluations aside."""
    iters = 0 if eval_only else max(max_iters - state.iter_num, 0)
    return iters * tokens_per_iter * state.model.flops_per_token() / WORLD_SIZE


def parallelized(model, torch_device, compiled):
    """The model compiled, if that pays, and wrapped so that the processes average their gradients."""
    if compiled:
        say("compiling the model, which takes a minute")
        model = torch.compile(model)
    if WORLD_SIZE > 1:
        devices = [torch_device] if torch_device.type == "cuda" else None
        model = DistributedDataParallel(model, devices, gradient_as_bucket_view=True)  # avoids a copy of the gradients
    return model


def start_report(state, resumed, tokens_per_iter, peak):
    """The run's Report. Its log is opened now, or where an earlier run's files are in the way, at the first `save`."""
    wandb_run = None
    if RANK == 0 and wandb_log:
        wandb_run = start_wandb(wandb_project, wandb_run_name, state.config, out_dir, state.wandb_id)
        state.wandb_id = wandb_run.id
    report = Report(state, max_iters, tokens_per_iter, peak * WORLD_SIZE if peak else None, wandb_run)
    if RANK == 0 and not eval_only and (resumed or not earlier_files(out_dir)):
        report.start_log(os.path.join(out_dir, "log.jsonl"))
    return report


def save(state, report, as_ckpt):
    """
    Save the state. A new run leaves an earlier one's files in place until it has made an update of its own, and then
    moves them aside. Of several processes the first one saves. Returns whether anything was saved.
    """
    state.gather()
    if RANK != 0 or eval_only or not report.log_file and state.iter_num == 0:
        return False
    if not report.log_file:
        set_aside(out_dir)
        report.start_log(os.path.join(out_dir, "log.jsonl"))
    save_checkpoint(out_dir, state, as_ckpt)
    return True


def introduce(state, data, tokens_per_iter, torch_device, torch_dtype, compiled):
    """Say what will be trained, on what and where, and warn where it will take hours or overfit."""
    model, train, val = state.model, len(data["train"]), len(data["val"])
    say(f"{model.num_params() / 1e6:.2f}M parameters on {torch_device}, {torch_dtype}, compile={compiled}")
    say(f"tokens: {train:,} to train on, {val:,} to validate, {tokens_per_iter:,} per iteration")
    total, uneven = gradient_accumulation_steps, gradient_accumulation_steps % WORLD_SIZE
    if uneven:
        more = total - uneven + WORLD_SIZE
        even = f"--gradient_accumulation_steps={total - uneven} or {more}"
        say(
            f"note: {WORLD_SIZE} processes share {total} micro-batches unevenly: {even} would train on "
            f"{more / total:.2f} times as many tokens a second"
        )
    if not eval_only:
        tokens_seen = max(max_iters - state.iter_num, 0) * tokens_per_iter
        hours = estimated_hours(flops_to_go(state, tokens_per_iter), torch_device, torch_dtype)
        in_blocks = sum(p.numel() for p in model.transformer.h.parameters())
        advise(hours, torch_device.type, in_blocks, train, tokens_seen)


def conclude(log_path, meta):
    """Say how the run went, and draw its curve. Where that fails, the model is there all the same."""
    summarize(lines := read_log(log_path))
    picture = os.path.join(out_dir, "loss.png")
    try:
        plot_losses({out_dir: lines}, picture)
        say(f"the curve is in {picture}")
    except Exception as failure:  # matplotlib's are of many kinds
        say(f"no picture of the loss: {first_line(failure)}")
    writes = f"; let it write: {command('sample.py', out_dir=out_dir)}" if make_tokenizer(meta) else ""
    say(f"the model is in {out_dir}{writes}")


def main():
    config = configure(globals())
    check_options()
    torch_device, torch_dtype, compiled = resolve_device(device, dtype, compile)
    config["dtype"] = str(torch_dtype).removeprefix("torch.")  # a resume says so where auto has become another
    torch_device, cpu_group = join_processes(torch_device, backend)
    set_up_torch(seed)
    autocast, scaler = mixed_precision(torch_device, torch_dtype)
    if RANK == 0:
        check_writable(out_dir)
        if not eval_only:
            lock(out_dir)

    # where to start: a new model, GPT-2's weights, or an earlier run's newest state
    meta = read_meta(data_folder(dataset))
    tokenizer = sample_tokenizer(meta) if sample_tokens and RANK == 0 else None
    state, resumed = starting_state(config, meta, scaler, torch_device)
    sizes = state.model.config
    tokens_per_iter = gradient_accumulation_steps * batch_size * sizes.block_size
    if compile == "auto" and compiled and flops_to_go(state, tokens_per_iter) < COMPILE_FLOPS:
        say("note: --compile=auto does not compile the model for so short a run")
        compiled = False
    model = parallelized(state.model, torch_device, compiled)

    # the data, and this process's share of the micro-batches, which are numbered over all processes
    data = {split: open_tokens(split, meta, sizes) for split in ("train", "val")}
    state.compare_losses(evaluation_windows(data["val"], sizes))
    first, end = (gradient_accumulation_steps * rank // WORLD_SIZE for rank in (RANK, RANK + 1))

    # what is said
    report = start_report(state, resumed, tokens_per_iter, peak_flops(torch_device, torch_dtype))
    introduce(state, data, tokens_per_iter, torch_device, torch_dtype, compiled)

    caught = catch_signals()
    unchecked = []  # updates (iter_num, loss, norm) whose loss has not been read yet
    while True:
        # once in a while: evaluate, show what the model writes, save
        finished = state.iter_num >= max_iters or eval_only
        if state.iter_num % eval_interval == 0 or finished:
            check_finite(unchecked, state.scaler)
            losses = {}
            for split in data:
                batches = evaluation_batches(data[split], sizes, torch_device)
                losses[split] = evaluate(model, state.model, autocast, batches, caught, cpu_group)
            if stop := signal_in_any_process(caught, cpu_group):
                break
            check_finite([(state.iter_num, loss, 0.0) for loss in losses.values()], state.scaler)
            is_best = losses["val"] < state.best_val_loss
            state.best_val_loss = min(losses["val"], state.best_val_loss)
            # not at the start: a new model writes noise
            sample = write_sample(state.model, tokenizer, data["val"][:1]) if tokenizer and state.iter_num else None
            report.evaluation(losses, is_best, sample)
            save(state, report, is_best or always_save_checkpoint)
        if finished:
            break

        # one update
        began = time.perf_counter()
        lr = learning_rate_at(state.iter_num)
        for group in (group for o in state.optimizers for group in o.param_groups):
            group["lr"] = lr
        get_micro_batch = partial(training_batch, data["train"], sizes, torch_device, state.iter_num)
        batches = [partial(get_micro_batch, number) for number in range(first, end)]
        loss, norm = train_step(model, state.optimizers, state.scaler, autocast, batches, gradient_accumulation_steps)
        unchecked.append((state.iter_num, loss, norm))
        stop = signal_in_any_process(caught, cpu_group)
        reporting = state.iter_num % log_interval == 0
        if reporting:
            check_finite(unchecked, state.scaler)  # waits for the device, so that the time is right
            unchecked = []
        state.seconds += time.perf_counter() - began
        if reporting:
            report.update(loss, lr, norm)
        state.iter_num += 1
        state.tokens += tokens_per_iter
        report.advance()
        if stop:
            break
    report.close_bar()

    if stop:
        check_finite(unchecked, state.scaler)
        saved = save(state, report, as_ckpt=False)
        if RANK == 0:
            then = "saved: --init_from=resume goes on from there" if saved else "there is nothing to save yet"
            note(f"stopped before iteration {state.iter_num}, and {then}")
        sys.exit(128 + stop)
    report.close()
    if report.log_file:
        conclude(report.log_file.name, meta)
    elif RANK == 0 and not eval_only:
        say(f"no update was made, and nothing saved: the earlier run in {out_dir} stays")


if __name__ == "__main__":
    run(main, alone=False)
