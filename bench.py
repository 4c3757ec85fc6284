"""
How fast is this machine? A training step and sampling, timed. No dataset is needed.

    python bench.py                                      GPT-2 (124M) on whatever is here
    python bench.py --model=laptop --peer=transformers   the laptop model, next to transformers' GPT-2 in the same run
    python bench.py --model=baby --json=bench.json --profile=True

The step is train.py's own, on random tokens. The figures are medians, with the fastest and the slowest in brackets.
"""

from configurator import WORLD_SIZE, UserError, check_range, configure, note, replacing, run, suggestion

import contextlib
import statistics
import time
from functools import partial
from json import dumps

import torch
from torch.nn import functional as F

from fast import captures, pack
from machine import device_name, forget_peak_memory, measured_flops, mixed_precision, peak_flops, peak_memory
from machine import resolve_device, set_up_torch, synchronize
from model import GPT, GPTConfig
from train import train_step

# -----------------------------------------------------------------------------
model = "gpt2"  # laptop, baby, gpt2, gpt2-medium, gpt2-large or gpt2-xl
batch_size: int | None = None  # windows in a micro-batch; None: the model's usual one
block_size: int | None = None  # tokens in a window; None: the model's usual one
vocab_size = 50304  # token ids; the default is GPT-2's, rounded up
optimizer = "adamw"  # adamw or muon
steps = 20  # training steps to time
num_samples = 10  # samples to draw at once, timed beside a single one
max_new_tokens: int | None = None  # tokens to draw for each; None: as many as fit into the window, at most 200
runs = 3  # how often to time the sampling
peer: str | None = None  # transformers: time its GPT-2 too, in turn with ours
profile = False  # write a trace of one step to bench-trace.json, for ui.perfetto.dev or chrome://tracing
json: str | None = None  # write the figures to this file too
seed = 1337  # of weights and tokens
device = "auto"  # auto, cpu, cuda, cuda:1, mps
dtype = "auto"  # auto, float32, bfloat16, float16
compile: str | bool = "auto"  # torch.compile the model: auto, True, False
bias = True  # biases in the linear and norm layers
real_data: bool | None = None  # nanoGPT's: means nothing here, the tokens are random
# -----------------------------------------------------------------------------

MODELS = {  # block_size, layers, heads, channels, windows in a micro-batch
    "laptop": (64, 4, 4, 128, 12),
    "baby": (256, 6, 6, 384, 64),
    "gpt2": (1024, 12, 12, 768, 12),
    "gpt2-medium": (1024, 24, 16, 1024, 8),
    "gpt2-large": (1024, 36, 20, 1280, 4),
    "gpt2-xl": (1024, 48, 25, 1600, 2),
}


class TransformersGPT2(torch.nn.Module):
    """transformers' GPT-2 of the same sizes, called as ours is: with idx (B, T) and targets (B, T)."""

    def __init__(self, config):
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        self.gpt2 = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=config.vocab_size,
                n_positions=config.block_size,
                n_embd=config.n_embd,
                n_layer=config.n_layer,
                n_head=config.n_head,
                attn_pdrop=0.0,
                embd_pdrop=0.0,
                resid_pdrop=0.0,
                eos_token_id=None,  # draws all tokens asked for, as ours does
                bos_token_id=None,
            )
        )

    def forward(self, idx, targets):
        logits = self.gpt2(idx, use_cache=False).logits
        return None, F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def generate(self, idx, count, top_k):
        mask = torch.ones_like(idx)
        return self.gpt2.generate(idx, attention_mask=mask, max_new_tokens=count, do_sample=True, top_k=top_k)


def check_options():
    """Raise UserError for values out of range."""
    if model not in MODELS:
        raise UserError(f"--model={model} is unknown: {suggestion(model, MODELS)}")
    if peer not in (None, "transformers"):
        raise UserError(f"--peer={peer} is unknown: it may be transformers or None")
    if optimizer not in ("adamw", "muon"):
        raise UserError(f"--optimizer={optimizer} is unknown: it may be adamw or muon")
    sizes = dict.fromkeys(("batch_size", "block_size", "vocab_size", "num_samples", "max_new_tokens"), (1, 10**6))
    check_range(globals(), sizes | dict.fromkeys(("steps", "runs"), (1, 10**9)) | {"seed": (0, 2**63)})
    if WORLD_SIZE > 1:
        raise UserError(f"WORLD_SIZE={WORLD_SIZE}: bench.py times a single process; start it without torchrun")
    if real_data is not None:
        note(f"note: --real_data={real_data} means nothing here: the tokens are random")


# -----------------------------------------------------------------------------
# timing


def time_in_turn(calls, times, torch_device):
    """Call the functions in `calls`, {name: function}, in turn, so many times. Returns {name: [seconds]}."""
    seconds = {name: [] for name in calls}
    for _ in range(times):
        for name, call in calls.items():
            synchronize(torch_device)
            began = time.perf_counter()
            call()
            synchronize(torch_device)
            seconds[name].append(time.perf_counter() - began)
    return seconds


def print_row(name, seconds, rate):
    """Print the median of some times with their range, and a rate."""
    ms = sorted(1000 * s for s in seconds)
    print(f"  {name:14}{statistics.median(ms):11.2f} ms  [{ms[0]:.2f} .. {ms[-1]:.2f}]  {rate}")


def print_ratio(times):
    """Print how much longer the peer takes: the median of the ratios of neighbouring runs."""
    for name in times.keys() - {"ours"}:
        times_as_long = statistics.median(b / a for a, b in zip(times["ours"], times[name]))
        print(f"  {name} takes {times_as_long:.2f} times as long")


def warmed_up_step(network, optimizers, windows, torch_dtype, compiled):
    """
    A function that makes a training step on windows (B, T + 1), after three that compile and fill caches. The last of
    them is what `peak_memory` then counts on a GPU.
    """
    autocast, scaler = mixed_precision(windows.device, torch_dtype)
    network = torch.compile(network) if compiled else network
    batches = [lambda: (windows[:, :-1], windows[:, 1:])]
    step = partial(train_step, network, optimizers, scaler, autocast, batches, 1)
    for _ in range(3):
        forget_peak_memory(windows.device)
        step()
    return step


def time_training(ours, windows, torch_device, torch_dtype, compiled, peak):
    """Time training steps on windows (B, T + 1), ours and the peer's. Returns the figures as a dict."""
    optimizers = ours.configure_optimizers(0.1, 6e-4, (0.9, 0.95), torch_device.type, optimizer)
    training = {"ours": warmed_up_step(ours, optimizers, windows, torch_dtype, compiled)}
    memory = {"ours": peak_memory(torch_device)}
    if peer:
        held = torch.cuda.memory_allocated(torch_device) if torch_device.type == "cuda" else None
        theirs = TransformersGPT2(ours.config).to(torch_device)
        optimizers = [torch.optim.AdamW(theirs.parameters(), lr=6e-4, fused=True)]
        training[peer] = warmed_up_step(theirs, optimizers, windows, torch_dtype, compiled)
        memory[peer] = None if held is None else peak_memory(torch_device) - held
    times = time_in_turn(training, steps, torch_device)

    B, T = windows[:, 1:].shape
    flops = B * T * ours.flops_per_token()
    print(f"\na training step, {B} x {T} tokens")
    for name, seconds in times.items():
        dt = statistics.median(seconds)
        share = f", {flops / dt / peak:.1%} of the peak" if peak else ""
        print_row(name, seconds, f"{B * T / dt:,.0f} tok/s, {flops / dt / 1e9:,.0f} GFLOP/s{share}")
    print_ratio(times)
    for name, most in memory.items():
        if most:
            print(f"  {most / 2**20:,.0f} MiB in use at the most, by {name}")
    if profile:
        with torch.profiler.profile() as trace:
            training["ours"]()
        with replacing("bench-trace.json") as f:  # which says where it cannot
            trace.export_chrome_trace(f.name)
        print("  wrote bench-trace.json: open it in chrome://tracing or ui.perfetto.dev")
    return {"training_seconds": times, "flops_per_step": flops, "peak_memory_bytes": memory}


def time_sampling(ours, torch_device, torch_dtype):
    """Time sampling, ours and the peer's, with weights in torch_dtype and ours packed as in sample.py."""
    figures, models = {}, {"ours": ours} | ({peer: TransformersGPT2(ours.config)} if peer else {})
    for network in models.values():
        network.eval().to(torch_device, torch_dtype)
    pack(ours)
    new = max_new_tokens or min(200, ours.config.block_size - 1)
    prompt = torch.randint(ours.config.n_ids, (1, 1), device=torch_device)
    first = time_in_turn({"ours": lambda: next(ours.stream(prompt, 1, top_k=200))}, runs + 1, torch_device)
    for rows in (1, num_samples):
        idx = prompt.expand(rows, -1)
        calls = {name: partial(network.generate, idx, new, top_k=200) for name, network in models.items()}
        time_in_turn(calls, 1, torch_device)  # a warm-up
        graphs = captures["made"]
        times = time_in_turn(calls, runs, torch_device)
        way = "captured" if captures["made"] > graphs else "eager"  # as a CUDA graph, or not
        print(f"\nsampling, {rows} x {new} tokens, {way}")
        for name, seconds in times.items():
            print_row(name, seconds, f"{rows * new / statistics.median(seconds):,.1f} tok/s")
        print_ratio(times)
        figures |= {f"sampling_{rows}_x_{new}_seconds": times, f"sampling_{rows}_x_{new}_way": way}
    print(f"  the first token of one stream after {1000 * statistics.median(first['ours'][1:]):.2f} ms")
    return figures


def measure():
    """Time training and sampling, and print the figures. Returns them as a dict."""
    torch_device, torch_dtype, compiled = resolve_device(device, dtype, compile)
    set_up_torch(seed)
    T, n_layer, n_head, n_embd, B = MODELS[model]
    T, B = block_size or T, batch_size or B
    ours = GPT(GPTConfig(T, vocab_size, n_layer, n_head, n_embd, bias=bias)).to(torch_device)

    name, peak = device_name(torch_device), peak_flops(torch_device, torch_dtype)
    if torch_device.type == "cpu":
        peak = measured_flops(torch_device, torch_dtype)
    print(f"{model}: {ours.num_params() / 1e6:.1f}M parameters; {torch_dtype}, compile={compiled}")
    print(name + (f", peak {peak / 1e9:,.0f} GFLOP/s" if peak else ""))
    figures = {"model": model, "batch_size": B, "block_size": T, "vocab_size": vocab_size, "device": name}
    figures |= {"dtype": str(torch_dtype), "compile": compiled, "torch": torch.__version__, "peak_flops": peak}

    windows = torch.randint(vocab_size, (B, T + 1), device=torch_device)
    figures |= time_training(ours, windows, torch_device, torch_dtype, compiled, peak)
    return figures | time_sampling(ours, torch_device, torch_dtype)


def main():
    configure(globals())
    check_options()
    with replacing(json) if json else contextlib.nullcontext() as f:  # before the minutes that it takes
        figures = measure()
        if json:
            f.write(dumps(figures, indent=1).encode("utf-8"))


if __name__ == "__main__":
    run(main)
