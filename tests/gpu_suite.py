"""
How fast is this GPU, and does it compute what a CPU does? All of it in one command and at most six minutes.

    python tests/gpu_suite.py --json=gpu.json

It prints a table for docs/speed.md row by row, the most telling first. What is compared ran in turn, on random tokens
and weights; no dataset and no network is needed. Without a CUDA GPU it is a trial of itself, with tiny sizes.
"""

import gc
import math
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from json import dumps
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configurator import UserError, check_range, configure, first_line, replacing, run  # noqa: E402

import torch  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import fast  # noqa: E402
import model  # noqa: E402
from bench import MODELS, TransformersGPT2, time_in_turn, warmed_up_step  # noqa: E402
from machine import device_name, mixed_precision, peak_flops, peak_memory, resolve_device, set_up_torch  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402
from train import train_step  # noqa: E402

# -----------------------------------------------------------------------------
minutes = 6  # begin nothing that will take longer than this in all
json: str | None = None  # write the figures to this file too, after each row
# -----------------------------------------------------------------------------

SMALL = not torch.cuda.is_available()
SIZES = dict.fromkeys(MODELS, (16, 2, 2, 16, 2)) if SMALL else MODELS  # as bench.py has them
VOCABULARY, N_IDS = (320, 300) if SMALL else (50304, 50257)
STEPS, RUNS, SAMPLES, TOKENS = (2, 1, 2, 8) if SMALL else (20, 2, 10, 500)  # to time; and to draw
DEVICE, DTYPE, COMPILED = resolve_device("cuda" if torch.cuda.is_available() else "cpu", "auto", "auto")
APART = 1e-3  # losses in float32 may differ by so much

rows, faults = [], []  # of the table; and what went wrong


class PlainLoss(GPT):
    """Ours with all logits at once, and torch's own cross entropy."""

    def forward(self, idx, targets):
        return None, F.cross_entropy(self.lm_head(self.features(idx)).flatten(0, 1), targets.flatten())


def report(what, here, other="", ratio="", **figures):
    """Print a row of the table, and keep it with its figures."""
    print(f"| {what} | {here} | {other} | {ratio} |", flush=True)
    rows.append({"what": what, "here": here, "other": other, "ratio": ratio, **figures})
    save()


def save():
    """Write the rows so far to the file, if there is one."""
    if json:
        facts = {"device": device_name(DEVICE), "torch": torch.__version__, "dtype": str(DTYPE), "compile": COMPILED}
        with replacing(json) as f:
            f.write(dumps(facts | {"rows": rows}, indent=1).encode("utf-8"))


def fault(what, failure):
    """Report what failed. The rest goes on."""
    report(what, f"failed: {first_line(failure)}")
    faults.append(f"{what} failed ({first_line(failure)})")


def report_times(what, times, speed, **figures):
    """Report ours beside each of the other ways, {name: [seconds]}. The ratio is the median of neighbouring runs'."""
    for way in list(times)[1:]:
        ratio = statistics.median(b / a for a, b in zip(times["ours"], times[way]))
        report(what, speed("ours"), f"{way}: {speed(way)}", f"{ratio:.2f}", seconds=times, **figures)
    if len(times) == 1:
        report(what, speed("ours"), seconds=times, **figures)


def sizes_of(name):
    """A model's GPTConfig and its windows in a micro-batch."""
    block_size, n_layer, n_head, n_embd, batch_size = SIZES[name]
    return GPTConfig(block_size, VOCABULARY, n_layer, n_head, n_embd, n_ids=N_IDS), batch_size


# -----------------------------------------------------------------------------
# whether it computes right


def losses(device, dtype, compiled, optimizer):
    """The losses of 20 iterations of the laptop model, on any device from the same weights with the same tokens."""
    torch.manual_seed(1337)
    config, batch_size = sizes_of("laptop")
    network = GPT(config)
    windows = torch.randint(N_IDS, (20, batch_size, config.block_size + 1)).to(device)
    optimizers = network.to(device).configure_optimizers(0.1, 1e-3, (0.9, 0.95), device.type, optimizer)
    autocast, scaler = mixed_precision(device, dtype)
    network = torch.compile(network) if compiled else network
    step = partial(train_step, network, optimizers, scaler, autocast)
    return [step([lambda w=w: (w[:, :-1], w[:, 1:])], 1)[0].item() for w in windows]


def compare_losses(until):
    torch.backends.cuda.matmul.allow_tf32 = False  # which has 10 bits, and is no mistake
    expected = {kind: losses(torch.device("cpu"), torch.float32, False, kind) for kind in ("adamw", "muon")}
    for dtype, compiled, optimizer in [
        *((torch.float32, False, "adamw"), (torch.float32, False, "muon")),
        *((torch.bfloat16, False, "adamw"), (torch.float16, False, "adamw")),
        *((torch.float32, COMPILED, "adamw"), (DTYPE, COMPILED, "adamw")),
    ]:
        got = losses(DEVICE, dtype, compiled, optimizer)
        apart = max(abs(a - b) for a, b in zip(got, expected[optimizer]))
        kind = f"{str(dtype)[6:]}{', compiled' if compiled else ''}, {optimizer}"
        cpus = f"CPU, float32, {expected[optimizer][-1]:.4f}"
        report(f"loss after 20 iterations, {kind}", f"{got[-1]:.4f}", cpus, f"{apart:.1e} apart", losses=got)
        if not all(map(math.isfinite, got)):
            faults.append(f"a loss in {kind}, is not finite: {got}")
        if not apart < APART and (dtype, optimizer) == (torch.float32, "adamw"):  # Muon computes in bfloat16
            faults.append(f"the losses in {kind}, are {apart:.1e} apart from a CPU's")
    torch.backends.cuda.matmul.allow_tf32 = True


# -----------------------------------------------------------------------------
# training


def variants():
    """The training steps to compare: {name: (class, optimizer, dtype, whether compiled)}. The cheap ones come first."""
    return {
        "ours": (GPT, "adamw", DTYPE, COMPILED),
        "Muon": (GPT, "muon", DTYPE, COMPILED),
        "not compiled": (GPT, "adamw", DTYPE, False),
        "transformers": (TransformersGPT2, "adamw", DTYPE, COMPILED),
        "plain cross entropy": (PlainLoss, "adamw", DTYPE, COMPILED),
        "float16": (GPT, "adamw", torch.float16, COMPILED),
    }


def make_steps(what, config, windows, until):
    """The variants' steps, {name: function}, and the bytes that each needs: as many as can be made in the time."""
    steps, memory, cost = {}, {}, 0.0
    for name, (kind, optimizer, dtype, compiled) in variants().items():
        began = time.monotonic()
        if steps and began + (cost if compiled else 0) > until:
            continue
        held = 0 if SMALL else torch.cuda.memory_allocated(DEVICE)
        try:
            with DEVICE:  # where their many random weights are made in no time
                network = kind(config)
            optimizers = GPT.configure_optimizers(network, 0.1, 6e-4, (0.9, 0.95), DEVICE.type, optimizer)
            step = warmed_up_step(network, optimizers, windows, dtype, compiled)
        except Exception as failure:  # too little memory, say: the others' figures are wanted all the same
            fault(f"{what}, {name}", failure)
            continue
        steps[name], memory[name] = step, (peak_memory(DEVICE) or 0) - held
        cost = max(cost, time.monotonic() - began)
    return steps, memory


def time_training(name, until):
    config, batch_size = sizes_of(name)
    T = config.block_size
    windows = torch.randint(N_IDS, (batch_size, T + 1), device=DEVICE)
    what = f"step, {name}, {batch_size} x {T} tokens, {str(DTYPE)[6:]}"
    steps, memory = make_steps(what, config, windows, until)
    times = time_in_turn(steps, STEPS, DEVICE)
    with torch.device("meta"):
        flops = batch_size * T * GPT(config).flops_per_token()

    def speed(kind):
        seconds, peak = statistics.median(times[kind]), peak_flops(DEVICE, variants()[kind][2])
        mfu = f"{flops / seconds / peak:.1%} MFU, " if peak else ""
        return f"{batch_size * T / seconds:,.0f} tok/s, {mfu}{memory[kind] / 2**20:,.0f} MiB"

    report_times(what, times, speed, memory=memory)


# -----------------------------------------------------------------------------
# sampling


def time_sampling(name, until):
    config, _ = sizes_of(name)
    ours, theirs = (kind(config).eval().to(DEVICE, DTYPE) for kind in (GPT, TransformersGPT2))
    fast.pack(ours)
    new = min(TOKENS, config.block_size - 1)

    def without_graph(*args, **options):
        with mock.patch.object(model, "worth_capturing", lambda *_: False):
            return ours.generate(*args, **options)

    ways = {"ours": ours.generate, "without a CUDA graph": without_graph, "transformers": theirs.generate}
    for count in (1, SAMPLES):
        idx = torch.randint(N_IDS, (1, 1), device=DEVICE).expand(count, -1)
        time_in_turn({way: partial(write, idx, min(new, 60), top_k=200) for way, write in ways.items()}, 1, DEVICE)
        calls = {way: partial(write, idx, new, top_k=200) for way, write in ways.items()}
        times = time_in_turn(calls, RUNS, DEVICE)
        speeds = {way: f"{count * new / statistics.median(seconds):,.0f} tok/s" for way, seconds in times.items()}
        graphs = dict(fast.captures)  # how many CUDA graphs were made so far, and how many failed
        way = "captured" if graphs["made"] else "eager"  # as a CUDA graph, or not
        report_times(f"sampling, {name}, {count} x {new} tokens, {way}", times, speeds.get, graphs=graphs)
    if graphs["failed"]:
        faults.append("the decoding step could not be recorded as a CUDA graph: see the note")
    first = torch.randint(N_IDS, (1, 1), device=DEVICE)
    captured, eager = (write(first, new, temperature=0) for write in (ours.generate, without_graph))
    same = (captured == eager).sum().item() - 1
    report(f"greedy tokens with and without a CUDA graph, {name}", f"{same} of {new}", "", "the same")


def time_script(name, until):
    """Time sample.py as a whole process, on random weights."""
    config, _ = sizes_of(name)
    chars = "".join(map(chr, range(10, 10 + N_IDS)))  # a vocabulary that needs no file; the first is the line end
    meta = {"encoding": "char", "vocab_size": N_IDS, "chars": chars}
    options = [f"--num_samples={SAMPLES}", f"--max_new_tokens={TOKENS}", f"--device={DEVICE}"]
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = {"model": GPT(config).state_dict(), "model_args": config.model_args(), "meta": meta}
        torch.save(checkpoint, Path(folder, "ckpt.pt"))
        for _ in range(RUNS):
            began = time.perf_counter()
            command = [sys.executable, str(ROOT / "sample.py"), f"--out_dir={folder}", *options]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - began)
    what = f"`sample.py`, {name}, {SAMPLES} x {TOKENS} tokens, the whole process"
    report(what, f"{statistics.median(seconds):.1f} s", seconds=seconds)


# -----------------------------------------------------------------------------

JOBS = [  # and the seconds that each may take; it begins where so many are left
    (compare_losses, 45),
    (partial(time_training, "gpt2"), 135),
    (partial(time_sampling, "gpt2"), 50),
    (partial(time_script, "gpt2"), 25),
    (partial(time_training, "baby"), 60),
    (partial(time_training, "gpt2-medium"), 45),
]


def main():
    configure(globals())
    check_range(globals(), {"minutes": (1, 1000)})
    save()  # or fail before the minutes that it takes
    set_up_torch(1337)
    end = time.monotonic() + 60 * minutes
    what = "a trial of the suite itself, without a GPU: " if SMALL else ""
    print(f"{what}{device_name(DEVICE)}, torch {torch.__version__}, {DTYPE}, compile={COMPILED}\n")
    print("| what | here | the other | ratio |\n| --- | --- | --- | --- |", flush=True)
    for job, seconds in JOBS:
        name = " ".join([getattr(job, "func", job).__name__, *getattr(job, "args", ())])
        if time.monotonic() + seconds > end:
            report(name, "no time was left")
            continue
        torch.compiler.reset()  # or sizes other than the last job's would be compiled as variable ones
        gc.collect()
        try:
            job(until=time.monotonic() + seconds)
        except Exception as failure:
            fault(name, failure)
    if faults:
        raise UserError("; ".join(faults))


if __name__ == "__main__":
    run(main)
