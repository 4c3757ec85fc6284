"""What `auto` stands for on which machine. What a machine has not is refused: tests/test_mistakes.py."""

import pytest
import torch

from configurator import UserError
import machine as module
from machine import resolve_device


@pytest.fixture
def machine(monkeypatch):
    """Pretends a machine: CUDA GPUs (how many, of which capability), an Apple GPU, a CPU that computes in bfloat16."""

    def pretend(cuda=0, capability=(8, 0), mps=False, bfloat16=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bfloat16)

    pretend()
    return pretend


def test_device_auto_is_cuda_then_mps_then_cpu(machine):
    assert resolve_device("auto", "auto", "auto")[0].type == "cpu"
    machine(mps=True)
    assert resolve_device("auto", "auto", "auto")[0].type == "mps"
    machine(cuda=1, mps=True)
    assert resolve_device("auto", "auto", "auto")[0].type == "cuda"


@pytest.mark.parametrize(
    "has, dtype",
    [
        ({"cuda": 1, "capability": (8, 0)}, torch.bfloat16),
        ({"cuda": 1, "capability": (9, 0)}, torch.bfloat16),
        ({"cuda": 1, "capability": (7, 5)}, torch.float16),
        ({"cuda": 1, "capability": (7, 5), "bfloat16": True}, torch.float16),
        ({"mps": True, "bfloat16": True}, torch.float32),
        ({"bfloat16": True}, torch.bfloat16),
        ({}, torch.float32),
    ],
)
def test_dtype_auto_is_what_the_device_has(machine, has, dtype):
    machine(**has)
    assert resolve_device("auto", "auto", "auto")[1] is dtype


def test_compile_auto_is_off_on_a_cpu(machine):
    assert resolve_device("cpu", "auto", "auto")[2] is False


@pytest.mark.parametrize(
    "capability, triton, compilers, reason",
    [
        ((8, 0), True, {"gcc": "/usr/bin/gcc"}, None),
        ((7, 0), True, {"clang": "/usr/bin/clang"}, None),
        ((7, 0), True, {"mycc": "/usr/bin/mycc"}, None),
        ((6, 1), True, {"gcc": "/usr/bin/gcc"}, "Triton needs a GPU of compute capability 7.0, and this one has 6.1"),
        ((8, 0), False, {"gcc": "/usr/bin/gcc"}, "Triton is not installed"),
        ((8, 0), True, {}, "Triton needs a C compiler"),
        ((8, 0), True, {"cc": "/usr/bin/cc"}, "Triton needs a C compiler"),  # it looks for gcc and clang only
        ((8, 0), True, {"gcc": "/usr/bin/gcc", "no header": ""}, "Triton needs Python.h"),
    ],
)
def test_compile_auto_is_on_where_triton_can_work_and_else_says_why_not(
    machine, monkeypatch, capsys, tmp_path, capability, triton, compilers, reason
):
    machine(cuda=1, capability=capability)
    if "no header" not in compilers:
        (tmp_path / "Python.h").touch()
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name: str(tmp_path))
    if "mycc" in compilers:  # CC names it
        monkeypatch.setenv("CC", "mycc")
    else:
        monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object() if triton else None)
    monkeypatch.setattr(module.shutil, "which", compilers.get)
    assert resolve_device("cuda", "auto", "auto")[2] is (reason is None)
    said = capsys.readouterr().err
    assert reason is None and said == "" or f"--compile=auto does not compile the model: {reason}" in said
    assert resolve_device("cuda", "auto", "True")[2] is True  # what is asked for is tried


def test_a_gpu_with_a_number_becomes_the_current_one(machine, monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    machine(cuda=2)
    resolve_device("cuda", "auto", "False")
    assert current == []
    resolve_device("cuda:1", "auto", "False")
    assert current == [1]


@pytest.mark.parametrize("text, value", [("True", True), (True, True), ("1", True), ("false", False), (False, False)])
def test_explicit_values_are_obeyed(machine, text, value):
    assert resolve_device("cpu", "bfloat16", text) == (torch.device("cpu"), torch.bfloat16, value)


@pytest.mark.parametrize(
    "environment, named",
    [
        ({}, "RANK, MASTER_ADDR, MASTER_PORT not: torchrun sets them all"),
        ({"RANK": "0", "MASTER_ADDR": "", "MASTER_PORT": "29500"}, "MASTER_ADDR not: torchrun"),
        ({"RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "x"}, "cannot meet at MASTER_ADDR=127.0.0.1, .*=x"),
        ({"RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "99999"}, "cannot meet at .*MASTER_PORT=99999"),
    ],
)
def test_several_processes_without_what_torchrun_sets_are_an_error_that_names_it(monkeypatch, environment, named):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (environment | {"WORLD_SIZE": "2"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "WORLD_SIZE", 2)
    with pytest.raises(UserError, match=named):
        module.join_processes(torch.device("cpu"), "auto")


@pytest.mark.parametrize("device", ["cuda:2", "cuda:99", "cuda:"])
def test_a_gpu_beyond_those_that_are_there_is_refused(machine, device):
    machine(cuda=2)
    with pytest.raises(UserError, match=f"--device={device}"):
        resolve_device(device, "float32", "False")


@pytest.mark.parametrize(
    "name, tflops",
    {
        "NVIDIA H100 80GB HBM3": 989,
        "NVIDIA H100 PCIe": 756,
        "NVIDIA H100 NVL": 835,
        "NVIDIA H200": 989,
        "NVIDIA H20": 148,
        "NVIDIA H800": 989,
        "NVIDIA GH200 480GB": 989,
        "NVIDIA B200": 2250,
        "NVIDIA A100-SXM4-80GB": 312,
        "NVIDIA A100 80GB PCIe": 312,
        "NVIDIA A100-PCIE-40GB": 312,
        "NVIDIA A800-SXM4-80GB": 312,
        "NVIDIA A10": 125,
        "NVIDIA A10G": 70,
        "NVIDIA L4": 121,
        "NVIDIA L40": 181,
        "NVIDIA L40S": 362,
        "Tesla T4": 65,
        "Tesla V100-SXM2-16GB": 125,
        "NVIDIA GeForce RTX 4090": 165,
        "NVIDIA GeForce RTX 4070 Ti": 80,
        "AMD Instinct MI300X": 1307,
        # none of these is the GPU whose name it contains
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb": None,
        "NVIDIA GeForce RTX 4090 Laptop GPU": None,
        "NVIDIA GeForce RTX 4070 Ti SUPER": None,
        "NVIDIA RTX A1000": None,
        "NVIDIA T400 4GB": None,
        "NVIDIA L400": None,
        "NVIDIA GeForce GTX 1080": None,
    }.items(),
)
def test_the_peak_is_that_of_the_whole_name_and_else_unknown(machine, monkeypatch, name, tflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    peak = module.peak_flops(torch.device("cuda"), torch.bfloat16)
    assert peak == (tflops and tflops * 1e12)
    assert module.peak_flops(torch.device("cuda"), torch.float32) is None
    assert module.peak_flops(torch.device("cpu"), torch.bfloat16) is None
