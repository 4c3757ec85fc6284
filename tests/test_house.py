"""The rules of the house: which file may import which, what stands at the top, and what a script loads as it starts."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from conftest import ROOT

FLOORS = [  # an import points down this list; a new file needs a place in it
    {"train", "sample", "bench", "export", "plot", "speak", "play", "prepare"},
    {"checkpoint"},
    {"report"},
    {"model", "voices"},
    {"fast", "pretrained", "tokenizer", "machine", "words"},
    {"configurator"},
]
# the three cases in which a script imports a script
EXCEPTIONS = [("bench.py", "train"), ("train.py", "plot"), ("data/*/prepare.py", "prepare")]
TOP = {"README.md", "LICENSE", "Makefile", "requirements.txt", "requirements-dev.txt", "pyproject.toml", ".gitignore"}
TOP |= {"requirements-play.txt", ".ci", "assets", "docs", "config", "data", "tests", "transcribe.ipynb"}

FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
FILES = sorted(path.relative_to(ROOT) for pattern in ("*.py", "data/**/prepare.py") for path in ROOT.glob(pattern))


def imports(file):
    """The files of the house that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        modules = [name.name for name in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from FLOOR.keys() & {module.partition(".")[0] for module in modules}


def allowed(file, module):
    exception = any(file.match(pattern) and module == script for pattern, script in EXCEPTIONS)
    return exception or FLOOR[file.stem] < FLOOR[module]


def test_every_file_has_a_floor():
    assert {file.stem for file in FILES} <= FLOOR.keys()


@pytest.mark.parametrize("file", FILES, ids=str)
def test_an_import_points_down_the_floors_but_for_three_exceptions(file):
    assert [module for module in imports(file) if not allowed(file, module)] == []


def test_no_imports_go_round_in_a_circle():
    graph = {file.stem: set(imports(file)) for file in FILES if len(file.parts) == 1}
    TopologicalSorter(graph).prepare()  # raises an error that names the circle


def test_nothing_stands_at_the_top_but_what_belongs_there():
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, encoding="utf-8"
    ).stdout  # empty without a git checkout
    assert {name.partition("/")[0] for name in files.splitlines()} <= TOP | {f"{name}.py" for name in FLOOR}


NOT_NEEDED = ["transformers", "datasets", "wandb", "tiktoken", "whisper", "matplotlib"]
STARTS = {  # what a script needs at once, and what it must not load before it needs it
    "train": ("torch", NOT_NEEDED),
    "sample": ("torch", [*NOT_NEEDED, "readline", "torch.distributed.optim", "torch.distributed.elastic"]),
    "speak": ("numpy", ["torch", "onnxruntime", *NOT_NEEDED]),
    "play": ("torch", ["gradio", "onnxruntime", *NOT_NEEDED]),
    "plot": ("sys", ["torch", "numpy", "matplotlib"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("script", STARTS)
def test_a_script_loads_nothing_as_it_starts_that_it_does_not_need(script):
    needed, late = STARTS[script]
    code = f"import sys, {needed}; before = set(sys.modules); import {script}; print(*(sys.modules.keys() - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stderr
    assert [name for name in done.stdout.split() if f"{name}.".startswith(tuple(f"{module}." for module in late))] == []
