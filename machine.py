"""
The machine that a script runs on: its device and dtype, its processes, its signals, its speed and memory.
"""

import atexit
import contextlib
import ctypes
import importlib.util
import os
import platform
import re
import signal
import sys
import time

import torch
import torch.distributed as dist

from configurator import LOCAL_RANK, RANK, WORLD_SIZE, UserError, first_line

# -----------------------------------------------------------------------------
# device


def resolve_device(device, dtype, compile):
    """
    The options `device`, `dtype` and `compile` as (torch.device, torch.dtype, bool). `auto` means: cuda, then mps, then
    cpu; bfloat16 on a GPU or a CPU that computes in it, float16 on other GPUs, float32 elsewhere; compiled on CUDA.
    Raises UserError for what this machine does not have.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        device = "cuda" if cuda else "mps" if mps else "cpu"
    kind, _, index = device.partition(":")
    if not re.fullmatch(r"(cpu|cuda|mps)(:(0|[1-9]\d{0,3}))?", device):
        raise UserError(f"--device={device} is unknown: it may be auto, cpu, cuda, cuda:0, cuda:1, ... or mps")
    if kind == "cuda" and not cuda:
        raise UserError(f"--device={device}: PyTorch {torch.__version__} sees no CUDA GPU here; try --device=auto")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        known = ", ".join(f"cuda:{i}" for i in range(torch.cuda.device_count()))
        raise UserError(f"--device={device}: this machine has {known}; try --device=auto")
    if kind == "mps" and not mps:
        raise UserError("--device=mps: there is no Apple GPU that PyTorch can use here; try --device=auto")

    if dtype == "auto":
        dtype = "bfloat16" if has_bfloat16(torch.device(device)) else "float16" if kind == "cuda" else "float32"
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"--dtype={dtype} is unknown: it may be auto, float32, bfloat16 or float16")

    if compile == "auto":
        compile = kind == "cuda" and importlib.util.find_spec("triton") is not None
    if str(compile).lower() not in ("true", "1", "false", "0"):
        raise UserError(f"--compile={compile} should be True, False or auto")
    return torch.device(device), getattr(torch, dtype), str(compile).lower() in ("true", "1")


def has_bfloat16(device):
    """Whether a device computes in bfloat16: of CPUs those with AVX-512 BF16, among them all with AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def mixed_precision(device, dtype):
    """The autocast that computes in `dtype` where that is safe, and the gradient scaler that float16 needs."""
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    return autocast, torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)


def set_up_torch(seed):
    """What every script wants of torch: a seed, TF32 for float32 products on CUDA, and memory that is kept."""
    torch.manual_seed(seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    keep_freed_memory()


def keep_freed_memory():
    """
    Have glibc keep the memory of freed tensors. By default it returns large blocks to the kernel, which zeroes them
    again for the next iteration: a tenth of the time of GPT-2 (124M).
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            libc = ctypes.CDLL(None)
            libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD: allocate blocks up to this size on the heap,
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: and keep this much free at the heap's end


def device_name(device):
    """A device's name for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def synchronize(device):
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def peak_memory(device):
    """The most bytes in use so far: on a CUDA GPU, else by the whole process; None where this is unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(ImportError):  # on Windows
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return None


# -----------------------------------------------------------------------------
# speed

PEAK_FLOPS = {  # dense, in bfloat16; in float16 for T4 and V100
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
    """The device's peak in floating point operations per second, from its data sheet; None where it is unknown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), None)


def measured_flops(device, dtype):
    """Floating point operations per second, measured: the best of five large matrix products."""
    n = 2048 if device.type == "cpu" else 8192
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - began)
    return 2 * n**3 / min(seconds)


def estimated_hours(flops, device, dtype):
    """How long a training of so many floating point operations takes: it reaches half the speed of matrix products."""
    if flops < 1e14:  # minutes anywhere: not worth measuring
        return 0.0
    return flops / (measured_flops(device, dtype) / 2) / 3600


# -----------------------------------------------------------------------------
# processes


def join_processes(device, backend):
    """
    Join the processes that torchrun started. Returns this process's device, and a group that communicates between CPUs
    so that no GPU has to wait; for a single process the device as it is, and None.
    """
    if WORLD_SIZE == 1:
        return device, None
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        raise UserError(
            f"WORLD_SIZE={WORLD_SIZE} is set in the environment, and {', '.join(missing)} not: torchrun sets them all "
            "for several processes; for a single one, unset WORLD_SIZE"
        )
    if device.type == "cuda":
        device = torch.device("cuda", LOCAL_RANK)
        torch.cuda.set_device(device)
    if backend == "auto":
        backend = "nccl" if device.type == "cuda" else "gloo"
    # after a restart by torchrun, the store still holds the addresses of the processes before
    try:
        store, rank, world_size = next(dist.rendezvous("env://"))
    except (ValueError, RuntimeError) as failure:  # torch's errors about networks are RuntimeErrors
        where = f"MASTER_ADDR={os.environ['MASTER_ADDR']}, MASTER_PORT={os.environ['MASTER_PORT']}"
        raise UserError(f"the processes cannot meet at {where}: {first_line(failure)}") from None
    store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    atexit.register(dist.destroy_process_group)
    return device, dist.new_group(backend="gloo")


def all_reduce(tensor, group=None, op=dist.ReduceOp.SUM):
    """The sum, or another reduction, of a tensor over all processes. In place, as torch's; returns the tensor."""
    if WORLD_SIZE > 1:
        dist.all_reduce(tensor, op, group)
    return tensor


# -----------------------------------------------------------------------------
# signals


def catch_signals():
    """
    A list that receives the number of a first Ctrl-C, SIGTERM or SIGHUP (a closed terminal, a lost connection). A
    second one ends the process at once. Under nohup, which has SIGHUP ignored, that stays so.
    """
    caught, first = [], 0.0

    def note(number, frame):
        nonlocal first
        # One event may come twice: a Ctrl-C from the terminal and through torchrun, a SIGHUP from terminal and shell.
        repeats = WORLD_SIZE > 1 or number == getattr(signal, "SIGHUP", None)
        if caught and not (repeats and time.monotonic() < first + 5):
            os._exit(128 + number)
        if not caught:
            first = time.monotonic()
            caught.append(number)
            clear = b"\r\x1b[K" if os.isatty(2) else b""  # the ^C that the terminal echoed behind the progress bar
            line = clear + b"finishing the iteration, then saving (once more: quit at once)\n"
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(2, line if RANK == 0 else b"")

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number and not (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
            signal.signal(number, note)
    return caught


def signal_in_any_process(caught, group):
    """The number of a signal that any process has caught, or 0: all must stop after the same iteration."""
    return int(all_reduce(torch.tensor(caught[0] if caught else 0), group, dist.ReduceOp.MAX))
