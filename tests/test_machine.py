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
