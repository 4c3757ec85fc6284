"""
How fast is this machine? A training step and sampling, timed; no dataset needed.

    python bench.py                                      GPT-2 (124M) on whatever is here
    python bench.py --model=laptop --peer=transformers   the laptop model, next to transformers' GPT-2 in the same run
    python bench.py --model=baby --json=bench.json --profile=True

The step is train.py's own, with random tokens. Medians; in brackets the fastest and the slowest.
"""

from configurator import UserError, configure, keep_freed_memory, replacing, resolve_device, run, suggestion

import contextlib
import json as json_module
import platform
import statistics
import sys
import time
from functools import partial

import torch
from torch.nn import functional as F

from model import GPT, GPT2_VOCAB, GPTConfig
from train import measured_flops, peak_flops, train_step

# -----------------------------------------------------------------------------
model = "gpt2"  # laptop, baby, gpt2, gpt2-medium, gpt2-large or gpt2-xl
batch_size: int | None = None  # windows in a micro-batch; None: the model's usual one
block_size: int | None = None  # tokens in a window; None: the model's usual one
optimizer = "adamw"  # adamw or muon
steps = 20  # training steps to time
num_samples = 10  # the batch for sampling, timed beside a single stream
max_new_tokens: int | None = None  # tokens to write; None: as many as fit into the window, at most 200
runs = 3  # how often to time the writing
peer: str | None = None  # transformers: time its GPT-2 in turn with ours
profile = False  # write a trace of one step to bench-trace.json, for ui.perfetto.dev or chrome://tracing
json: str | None = None  # write the figures to this file too
seed = 1337  # of weights and tokens
device = "auto"  # auto, cpu, cuda, cuda:1, mps
dtype = "auto"  # auto, float32, bfloat16, float16
compile: str | bool = "auto"  # torch.compile the model: auto, True, False
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
    """transformers' GPT-2 of the same sizes, called as ours is."""

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
                eos_token_id=None,  # write on to the last token, as ours does
                bos_token_id=None,
            )
        )

    def forward(self, idx, targets):
        logits = self.gpt2(idx, use_cache=False).logits
        return None, F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def generate(self, idx, max_new_tokens, top_k):
        mask = torch.ones_like(idx)
        return self.gpt2.generate(idx, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=True, top_k=top_k)


def in_turn(calls, times, torch_device):
    """Call each of the functions (a dict by name) in turn, so many times; the seconds each took, by name."""

    def synchronize():
        if torch_device.type != "cpu":
            getattr(torch, torch_device.type).synchronize()

    seconds = {name: [] for name in calls}
    for _ in range(times):
        for name, call in calls.items():
            synchronize()
            began = time.perf_counter()
            call()
            synchronize()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def peak_memory(torch_device):
    """The most bytes in use so far: on a CUDA GPU, or else by the whole process; None where this is not known."""
    if torch_device.type == "cuda":
        return torch.cuda.max_memory_allocated(torch_device)
    with contextlib.suppress(ImportError):  # on Windows
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return None


def device_name(torch_device):
    if torch_device.type == "cuda":
        return torch.cuda.get_device_name(torch_device)
    return f"{torch_device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def row(name, seconds, rate):
    """Print the median of some times with their range, and what is worked out from the median."""
    ms = sorted(1000 * s for s in seconds)
    print(f"  {name:14}{statistics.median(ms):11.2f} ms  [{ms[0]:.2f} .. {ms[-1]:.2f}]  {rate}")


def ratio(times):
    """Print how many times as fast ours is as the peer: the median of the ratios of neighbouring runs."""
    for name in times.keys() - {"ours"}:
        times_as_long = statistics.median(b / a for a, b in zip(times["ours"], times[name]))
        print(f"  {name} takes {times_as_long:.2f} times as long")


def check_options():
    """Raise UserError for values that cannot be meant."""
    if model not in MODELS:
        raise UserError(f"--model={model} is unknown: {suggestion(model, MODELS)}")
    if peer not in (None, "transformers"):
        raise UserError(f"--peer={peer} is unknown: it may be transformers or None")
    if optimizer not in ("adamw", "muon"):
        raise UserError(f"--optimizer={optimizer} is unknown: it may be adamw or muon")
    for name in ("batch_size", "block_size", "steps", "num_samples", "max_new_tokens", "runs"):
        if globals()[name] is not None and globals()[name] < 1:
            raise UserError(f"--{name}={globals()[name]} should be at least 1")


def main():
    configure(globals())
    check_options()
    T, n_layer, n_head, n_embd, B = MODELS[model]
    T, B = block_size or T, batch_size or B
    torch_device, torch_dtype, compiled = resolve_device(device, dtype, compile)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    keep_freed_memory()
    torch.manual_seed(seed)
    models = {"ours": GPT(GPTConfig(T, GPTConfig.vocab_size, n_layer, n_head, n_embd)).to(torch_device)}
    gpt = models["ours"]
    peak = peak_flops(torch_device) or (
        measured_flops(torch_device, torch_dtype) if torch_device.type == "cpu" else None
    )
    print(f"{model}: {gpt.num_params() / 1e6:.1f}M parameters; {torch_dtype}, compile={compiled}")
    print(device_name(torch_device) + (f", peak {peak / 1e9:,.0f} GFLOP/s" if peak else ""))
    figures = {"model": model, "batch_size": B, "block_size": T, "device": device_name(torch_device)}
    figures |= {"dtype": str(torch_dtype), "compile": compiled, "torch": torch.__version__, "peak_flops": peak}

    # training: the first three steps compile, allocate and fill caches, and are not counted
    autocast = torch.autocast(torch_device.type, torch_dtype, enabled=torch_dtype != torch.float32)
    scaler = torch.amp.GradScaler(torch_device.type, enabled=torch_dtype == torch.float16)
    windows = torch.randint(GPTConfig.vocab_size, (B, T + 1), device=torch_device)
    batches = [lambda: (windows[:, :-1], windows[:, 1:])]

    def new_step(model, optimizers):
        model = torch.compile(model) if compiled else model
        return lambda: train_step(model, optimizers, scaler, autocast, batches, grad_clip=1.0)

    training = {"ours": new_step(gpt, gpt.configure_optimizers(0.1, 6e-4, (0.9, 0.95), torch_device.type, optimizer))}
    for _ in range(3):
        training["ours"]()
    memory = peak_memory(torch_device)  # before the peer takes its own
    if peer:
        models[peer] = TransformersGPT2(gpt.config).to(torch_device)
        training[peer] = new_step(models[peer], [torch.optim.AdamW(models[peer].parameters(), lr=6e-4, fused=True)])
        for _ in range(3):
            training[peer]()
    times = in_turn(training, steps, torch_device)
    flops = B * T * gpt.flops_per_token()
    print(f"\na training step, {B} x {T} tokens")
    for name, seconds in times.items():
        dt = statistics.median(seconds)
        share = f", {flops / dt / peak:.1%} of the peak" if peak else ""
        row(name, seconds, f"{B * T / dt:,.0f} tok/s, {flops / dt / 1e9:,.0f} GFLOP/s{share}")
    ratio(times)
    if memory:
        print(f"  {memory / 2**20:,.0f} MiB in use at the most, by ours")
    figures |= {"training_seconds": times, "flops_per_step": flops, "peak_memory_bytes": memory}

    if profile:
        with torch.profiler.profile() as trace:
            training["ours"]()
        trace.export_chrome_trace("bench-trace.json")
        print("  wrote bench-trace.json: open it in chrome://tracing or ui.perfetto.dev")

    # sampling, with the weights in dtype, and ours packed as sample.py has them
    for m in models.values():
        m.eval().to(torch_dtype)
    gpt.pack()
    new = max_new_tokens or min(200, T - 1)
    prompt = torch.randint(GPT2_VOCAB, (1, 1), device=torch_device)
    first = in_turn({"ours": lambda: next(gpt.stream(prompt, 1, top_k=200))}, runs + 1, torch_device)
    for rows in (1, num_samples):
        idx = prompt.expand(rows, -1)
        calls = {name: partial(m.generate, idx, new, top_k=200) for name, m in models.items()}
        in_turn(calls, 1, torch_device)
        times = in_turn(calls, runs, torch_device)
        print(f"\nsampling, {rows} x {new} tokens")
        for name, seconds in times.items():
            row(name, seconds, f"{rows * new / statistics.median(seconds):,.1f} tok/s")
        ratio(times)
        figures[f"sampling_{rows}_x_{new}_seconds"] = times
    print(f"  the first token of one stream after {1000 * statistics.median(first['ours'][1:]):.2f} ms")

    if json:
        with replacing(json) as f:
            f.write(json_module.dumps(figures, indent=1).encode("utf-8"))


if __name__ == "__main__":
    run(main)
