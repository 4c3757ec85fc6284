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
import shutil
import signal
import sys
import sysconfig
import time

import torch
import torch.distributed as dist

from configurator import LOCAL_RANK, RANK, WORLD_SIZE, UserError, first_line, note

# -----------------------------------------------------------------------------
# device


def resolve_device(device, dtype, compile):
    """
    The options `device`, `dtype` and `compile` as (torch.device, torch.dtype, bool). `auto` means: cuda, then mps, then
    cpu; bfloat16 on a GPU or a CPU that computes in it, float16 on other GPUs, float32 elsewhere; compiled on
    CUDA where that can work. Makes a cuda:1 the current device. Raises UserError for what this machine does not have.
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
        lacking = cannot_compile(torch.device(device))
        if kind == "cuda" and lacking and RANK == 0:
            note(f"note: --compile=auto does not compile the model: {lacking}")
        compile = not lacking
    if str(compile).lower() not in ("true", "1", "false", "0"):
        raise UserError(f"--compile={compile} should be True, False or auto")
    if kind == "cuda" and index:
        torch.cuda.set_device(int(index))  # or streams, pinned memory and a context of the first GPU would be used
    return torch.device(device), getattr(torch, dtype), str(compile).lower() in ("true", "1")


def cannot_compile(device):
    """Why torch.compile does not pay on a device, or would fail, or None. On CUDA it needs Triton, and a C compiler."""
    if device.type != "cuda":
        return f"it does not pay on {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 7:
        return f"Triton needs a GPU of compute capability 7.0, and this one has {major}.{minor}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang", "cl"]
    if not any(map(shutil.which, compilers)):
        return "Triton needs a C compiler, and there is none on the PATH; Debian and Ubuntu have it in build-essential"
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        return "Triton needs Python.h, and there is none here; Debian and Ubuntu have it in python3-dev"
    return None


def has_bfloat16(device):
    """Whether a device computes in bfloat16: of CPUs those with AVX-512 BF16, among them all with AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def mixed_precision(device, dtype):
    """The autocast that computes in `dtype` where that is safe, and the gradient scaler that float16 needs."""
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    return autocast, torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)


class OneOptimizer:
    """
    Several optimizers as one for a gradient scaler: where gradients of any are not finite, none makes its step, and the
    device is waited for once. A single one is better given itself: torch's AdamW then skips without waiting.
    """

    def __init__(self, optimizers):
        self.optimizers = optimizers
        self.param_groups = [group for optimizer in optimizers for group in optimizer.param_groups]

    def step(self):
        for optimizer in self.optimizers:
            optimizer.step()


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


def forget_peak_memory(device):
    """Have `peak_memory` begin anew, on a CUDA GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


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

PEAK_TFLOPS = {  # dense, in bfloat16, or float16 for T4 and V100, with sums in float32: NVIDIA's and AMD's data sheets
    **{"GB200": 2500, "B200": 2250, "GH200": 989, "H200": 989, "H100": 989, "H100 NVL": 835, "H100 PCIe": 756},
    **{"H800": 989, "H800 PCIe": 756, "H20": 148, "A100": 312, "A800": 312, "A40": 150, "A30": 165, "A10": 125},
    **{"A10G": 70, "L40S": 362, "L40": 181, "L4": 121, "V100": 125, "T4": 65, "MI300X": 1307},
    # NVIDIA's white papers on the GA102, Ada and Blackwell GeForce GPUs
    **{"RTX 5090": 210, "RTX 5080": 113, "RTX 5070 Ti": 88, "RTX 5070": 62, "RTX 4090": 165, "RTX 4080": 97},
    **{"RTX 4070 Ti": 80, "RTX 3090": 71, "RTX 3080": 60, "RTX 3070": 41},
}
MAKERS = re.compile(r"\b(NVIDIA|AMD|GeForce|Tesla|Instinct)\s+")
VARIANT = r"([ -](SXM\d?|PCIE|PCIe|\d+GB|HBM\de?))*"  # which changes nothing, where PEAK_TFLOPS does not name it


def peak_flops(device, dtype):
    """
    The device's peak in floating point operations per second, from its data sheet; None where it is unknown: for a CPU,
    in float32, for a GPU whose whole name is not in PEAK_TFLOPS, such as a laptop's, and for a part of one (MIG).
    """
    if device.type != "cuda" or dtype == torch.float32:
        return None
    name = MAKERS.sub("", torch.cuda.get_device_name(device))
    for gpu in sorted(PEAK_TFLOPS, key=len, reverse=True):  # H100 PCIe before H100
        if re.fullmatch(re.escape(gpu) + VARIANT, name):
            return PEAK_TFLOPS[gpu] * 1e12
    return None


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
