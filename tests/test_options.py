"""What configurator.py promises: options from command line and config files, errors in one line, safe files."""

import ast
import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import configurator
from configurator import UserError, configure, read_options, replacing, run
from machine import resolve_device

ROOT = Path(__file__).resolve().parent.parent
PREPARE = ROOT / "data" / "hitchikersguide" / "prepare.py"
SCRIPTS = ["train.py", "sample.py", "data/prepare.py", "data/hitchikersguide/prepare.py"]

SCRIPT = '''"""What the script does."""

import os

LIMIT = 3  # a constant, since its name is in capitals
separator = os.sep
# -----------------------------------------------------------------------------
batch_size = 12  # windows in a micro-batch
learning_rate = 6e-4  # the highest, reached after the warm-up
dropout = 0.0  # against overfitting
bias = False  # have biases
out_dir = "out"  # where checkpoints go
start = "\\n"  # the prompt
top_k: int | None = 200  # None from all
top_p: float | None = None  # None from all, too
compile: str | bool = "auto"  # auto, True, False
accumulation = 5 * 8  # micro-batches


def main():
    inside = 1  # a local name
'''
DEFAULTS = {
    "batch_size": 12,
    "learning_rate": 6e-4,
    "dropout": 0.0,
    "bias": False,
    "out_dir": "out",
    "start": "\n",
    "top_k": 200,
    "top_p": None,
    "compile": "auto",
    "accumulation": 40,
}


def namespace_of(path, source):
    """What globals() is in a script of this source."""
    path.write_text(source, encoding="utf-8")
    namespace = {"__file__": str(path), "__name__": "__main__"}
    exec(compile(source, str(path), "exec"), namespace)
    return namespace


@pytest.fixture
def namespace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # so that the tests can name config files as people do
    return namespace_of(tmp_path / "script.py", SCRIPT)


@pytest.fixture
def mistake(namespace):
    """Configures the script with arguments that are wrong, and gives the message, after the checks that all share."""

    def of(*arguments):
        before = dict(namespace)
        with pytest.raises(UserError) as caught:
            configure(namespace, list(arguments))
        message = str(caught.value)
        assert message and len(message.splitlines()) == 1
        assert namespace == before
        return message

    return of


def write(name, content):
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return name


# -----------------------------------------------------------------------------
# order


def test_without_arguments_the_defaults_stay(namespace):
    assert configure(namespace, []) == DEFAULTS


def test_options_are_set_in_the_script_and_returned(namespace):
    config = configure(namespace, ["--batch_size=3"])
    assert namespace["batch_size"] == config["batch_size"] == 3
    assert config == DEFAULTS | {"batch_size": 3}


def test_the_arguments_are_those_of_the_command_line(namespace, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py", "--batch_size=3"])
    assert configure(namespace)["batch_size"] == 3


def test_only_commented_assignments_in_small_letters_above_the_first_function_are_options(namespace, mistake):
    assert list(configure(namespace, [])) == list(DEFAULTS)
    for name in ("LIMIT", "separator", "inside", "main"):
        assert f"there is no option --{name}" in mistake(f"--{name}=1")


def test_a_config_file_goes_before_the_defaults(namespace):
    write("a.py", "batch_size = 2\n")
    assert configure(namespace, ["a.py"]) == DEFAULTS | {"batch_size": 2}


def test_a_later_config_file_goes_before_an_earlier_one(namespace):
    write("a.py", "batch_size = 2\nout_dir = 'a'\n")
    write("b.py", "batch_size = 3\n")
    assert configure(namespace, ["a.py", "b.py"]) == DEFAULTS | {"batch_size": 3, "out_dir": "a"}
    assert configure(namespace, ["b.py", "a.py"]) == DEFAULTS | {"batch_size": 2, "out_dir": "a"}


@pytest.mark.parametrize("line", ["--batch_size=4 a.py b.py", "a.py --batch_size=4 b.py", "a.py b.py --batch_size=4"])
def test_an_argument_goes_before_every_config_file_wherever_it_stands(namespace, line):
    write("a.py", "batch_size = 2\n")
    write("b.py", "batch_size = 3\n")
    assert configure(namespace, line.split())["batch_size"] == 4


def test_the_last_of_two_arguments_counts(namespace):
    assert configure(namespace, ["--batch_size=4", "--batch_size=5"])["batch_size"] == 5


# -----------------------------------------------------------------------------
# values on the command line


@pytest.mark.parametrize(
    "argument, value",
    [
        ("--batch_size=64", 64),
        ("--batch_size=-1", -1),
        ("--learning_rate=1e-3", 0.001),
        ("--learning_rate=1", 1.0),
        ("--dropout=0", 0.0),
        ("--bias=True", True),
        ("--bias=true", True),
        ("--bias=1", True),
        ("--bias=False", False),
        ("--bias=false", False),
        ("--bias=0", False),
        ("--out_dir=2024", "2024"),
        ("--out_dir=1e3", "1e3"),
        ("--out_dir=", ""),
        ("--start=1", "1"),
        ("--start=True", "True"),
        ("--start=None", "None"),
        ("--start=0x10", "0x10"),
        ("--start='quoted'", "'quoted'"),
        ("--start=a=b==c", "a=b==c"),
        ("--start=--batch_size=3", "--batch_size=3"),
        ("--start=--help", "--help"),
        ("--start=two\nlines", "two\nlines"),
        ("--start= blank ", " blank "),
        ("--start=Größe 東京 🙂", "Größe 東京 🙂"),
        ("--top_k=None", None),
        ("--top_k=5", 5),
        ("--top_p=None", None),
        ("--top_p=0.9", 0.9),
        ("--top_p=1", 1.0),
        ("--compile=auto", "auto"),
    ],
)
def test_a_value_takes_the_type_of_its_option(namespace, argument, value):
    name = argument[2:].partition("=")[0]
    result = configure(namespace, [argument])
    assert result == DEFAULTS | {name: value}
    assert type(result[name]) is type(value)


@pytest.mark.parametrize(
    "argument, right",
    [
        ("--batch_size=abc", "a whole number (the default is 12)"),
        ("--batch_size=", "a whole number"),
        ("--batch_size=1.5", "a whole number"),
        ("--batch_size=1e3", "a whole number"),
        ("--batch_size=None", "a whole number"),
        ("--batch_size=True", "a whole number"),
        ("--batch_size=two\nlines", "a whole number"),
        ("--batch_size=9" + "0" * 30, "a whole number"),
        pytest.param("--batch_size=" + "9" * 5000, "a whole number", id="5000 digits"),
        ("--learning_rate=abc", "a number (the default is 0.0006)"),
        ("--learning_rate=", "a number"),
        ("--learning_rate=None", "a number"),
        ("--learning_rate=nan", "a number"),
        ("--learning_rate=inf", "a number"),
        ("--learning_rate=-inf", "a number"),
        ("--learning_rate=1e999", "a number"),
        ("--bias=yes", "True or False (the default is False)"),
        ("--bias=2", "True or False"),
        ("--bias=", "True or False"),
        ("--bias=None", "True or False"),
        ("--top_k=abc", "a whole number or None (the default is 200)"),
        ("--top_k=1.5", "a whole number or None"),
        ("--top_p=abc", "a number or None (the default is None)"),
        ("--top_p=nan", "a number or None"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_what_would_be_right(mistake, argument, right):
    message = mistake(argument)
    assert argument[2:].partition("=")[0] in message
    assert f"should be {right}" in message


@pytest.mark.parametrize(
    "argument, nearest",
    [
        ("--batch_siz=3", "--batch_size"),
        ("--batchsize=3", "--batch_size"),
        ("--batch-size=3", "--batch_size"),
        ("--learningrate=3", "--learning_rate"),
        ("--outdir=x", "--out_dir"),
        ("--topk=3", "--top_k"),
    ],
)
def test_for_a_typo_the_nearest_option_is_offered(mistake, argument, nearest):
    message = mistake(argument)
    assert f"there is no option {argument.partition('=')[0]}" in message
    assert f"did you mean {nearest}?" in message


@pytest.mark.parametrize("argument", ["--qqq=3", "--=3", "--qq\nqq=3"])
def test_where_no_option_is_near_all_are_listed(mistake, argument):
    message = mistake(argument)
    assert all(f"--{name}" in message for name in DEFAULTS)


@pytest.mark.parametrize("argument", ["--batch_size", "-batch_size=3", "-b", "--", "-"])
def test_an_argument_in_another_form_is_refused_with_the_right_one(mistake, argument):
    message = mistake(argument)
    assert repr(argument) in message and "--key=value" in message and "--help" in message


# -----------------------------------------------------------------------------
# config files


@pytest.mark.parametrize(
    "line, value",
    [
        ("batch_size = 64", 64),
        ("learning_rate = 1", 1.0),
        ("dropout = 0", 0.0),
        ("bias = True", True),
        ("out_dir = '2024'", "2024"),
        ("top_k = None", None),
        ("top_p = 1", 1.0),
        ("compile = False", False),
        ("compile = 'auto'", "auto"),
    ],
)
def test_a_value_in_a_config_file_takes_the_type_of_its_option(namespace, line, value):
    name = line.split()[0]
    result = configure(namespace, [write("c.py", line)])
    assert result == DEFAULTS | {name: value}
    assert type(result[name]) is type(value)


@pytest.mark.parametrize(
    "source, expected",
    [
        ("batch_size = batch_size * 2\n", {"batch_size": 24}),
        ("learning_rate = batch_size / 100\n", {"learning_rate": 0.12}),
        ("_width = 7\nbatch_size = 2 * _width\n", {"batch_size": 14}),
        ("batch_size = sum(_i for _i in range(4))\n", {"batch_size": 6}),
        ("if bias is False:\n    dropout = 0.5\n", {"dropout": 0.5}),
        ("import math\nbatch_size = math.isqrt(81)\n", {"batch_size": 9}),
        ("import os.path as p\nout_dir = p.basename(__file__)\n", {"out_dir": "c.py"}),
        ("from math import isqrt\nbatch_size = isqrt(81)\n", {"batch_size": 9}),
        ("from os.path import basename\nout_dir = basename(__file__)\n", {"out_dir": "c.py"}),
        ("from fractions import Fraction\ndropout = float(Fraction(1, 4))\n", {"dropout": 0.25}),
        ("def double(n):\n    return n * 2 + batch_size\nbatch_size = double(4)\n", {"batch_size": 20}),
        ("class Size:\n    small = 5\nbatch_size = Size.small\n", {"batch_size": 5}),
        ("batch_size: int = 5\n", {"batch_size": 5}),
        ("# nothing but a comment: größer, 東京\n", {}),
        ("", {}),
        ("batch_size = 5\r\nbias = True\r\n", {"batch_size": 5, "bias": True}),
    ],
)
def test_a_config_file_may_compute_import_and_define_functions(namespace, source, expected):
    assert configure(namespace, [write("c.py", source.encode())]) == DEFAULTS | expected


def test_a_config_file_sees_the_values_of_earlier_ones(namespace):
    write("a.py", "batch_size = 2\n")
    write("b.py", "batch_size = batch_size * 10\n")
    assert configure(namespace, ["a.py", "b.py"])["batch_size"] == 20


def test_a_config_file_does_not_see_the_arguments_which_come_after_it(namespace):
    write("a.py", "accumulation = batch_size\n")
    result = configure(namespace, ["--batch_size=3", "a.py"])
    assert (result["batch_size"], result["accumulation"]) == (3, 12)


def test_a_config_file_runs_in_a_namespace_of_its_own(namespace):
    names = set(namespace)
    write(
        "a.py", "import math\n_own = 5\ndef own(): pass\nout_dir = str('separator' in globals() or 'main' in globals())"
    )
    write("b.py", "bias = any(name in globals() for name in ('math', '_own', 'own'))\n")
    result = configure(namespace, ["a.py", "b.py"])
    assert result["out_dir"] == "False" and result["bias"] is False
    assert set(namespace) == names


def test_a_config_file_of_the_repository_is_found_from_any_folder(namespace, tmp_path, monkeypatch):
    (tmp_path / "house" / "config").mkdir(parents=True)
    write("house/config/small.py", "batch_size = 2\n")
    monkeypatch.setattr(configurator, "HERE", str(tmp_path / "house"))
    assert configure(namespace, ["config/small.py"])["batch_size"] == 2


@pytest.mark.parametrize("path", ["config/train_hitchiker.py", "train_hitchikers.py", "conf/train_hitchikers.py"])
def test_for_a_missing_config_file_the_nearest_is_offered(mistake, path):
    message = mistake(path)
    assert repr(path) in message and "did you mean config/train_hitchikers.py?" in message


@pytest.mark.parametrize("path", ["", "zzz", "null\0.py"])
def test_where_no_config_file_is_near_all_are_listed(mistake, path):
    message = mistake(path)
    assert all(f"config/{name.name}" in message for name in (ROOT / "config").glob("*.py"))


def test_a_folder_is_no_config_file(mistake, tmp_path):
    assert "cannot read the config file" in mistake(str(tmp_path))


@pytest.mark.parametrize(
    "source, where",
    [
        ("batch_size = 1\nlearning_rate = = 2\n", "c.py, line 2: "),
        ("\n\nbatch_size = (1\n", "c.py, line 3: "),
        ("if bias:\nbatch_size = 1\n", "c.py, line 2: "),
        ("batch_size 64\n", "c.py, line 1: "),
    ],
)
def test_a_syntax_error_in_a_config_file_is_named_with_its_line(mistake, source, where):
    assert mistake(write("c.py", source)).startswith(where)


@pytest.mark.parametrize(
    "source, where",
    [
        ("batch_size = 1\ndropout = 1 / 0\n", "c.py, line 2: ZeroDivisionError"),
        ("batch_size = batchsize\n", "c.py, line 1: NameError"),
        ("def f():\n    return {}['key']\n\nbatch_size = f()\n", "c.py, line 2: KeyError"),
        ("import json\njson.loads('{')\n", "c.py, line 2: JSONDecodeError"),
        ("\nimport no_such_module\n", "c.py, line 2: ModuleNotFoundError"),
        ("open('no such file')\n", "c.py, line 1: FileNotFoundError"),
        ("raise KeyError\n", "c.py, line 1: KeyError"),
        ("raise ValueError('two\\nlines')\n", "c.py, line 1: ValueError: two"),
        ("raise ValueError(' ')\n", "c.py, line 1: ValueError"),
        ("raise ValueError('\\n')\n", "c.py, line 1: ValueError"),
        ("def f(): f()\nf()\n", "c.py, line 1: RecursionError"),
        ("batch_size = 1\n\neval('1 +')\n", "c.py, line 3"),
        ("batch_size = 1\n\nint('9' * 5000)\n", "c.py, line 3: ValueError"),
    ],
)
def test_an_exception_in_a_config_file_is_named_with_its_line(mistake, source, where):
    assert mistake(write("c.py", source)).startswith(where)


def test_a_syntax_error_in_a_module_that_a_config_file_imports_has_the_line_of_the_import(
    mistake, monkeypatch, tmp_path
):
    monkeypatch.syspath_prepend(tmp_path)
    write("broken_module.py", "\n\n\n\n\n\n\nx = (\n")
    assert mistake(write("c.py", "\nimport broken_module\n")).startswith("c.py, line 2")


@pytest.mark.parametrize(
    "source, name, hint",
    [
        ("batch_siz = 3\n", "batch_siz", "did you mean batch_size?"),
        ("learningrate = 3\n", "learningrate", "did you mean learning_rate?"),
        ("zzz = 3\n", "zzz", "there are batch_size, learning_rate"),
        ("separator = '/'\n", "separator", ""),
        ("LIMIT = 4\n", "LIMIT", ""),
    ],
)
def test_a_config_file_may_not_set_an_unknown_name(mistake, source, name, hint):
    message = mistake(write("c.py", source))
    assert message.startswith(f"c.py sets {name!r}, which is no option") and hint in message


@pytest.mark.parametrize(
    "line, right",
    [
        ("batch_size = '12'", "a whole number (the default is 12)"),
        ("batch_size = 12.0", "a whole number"),
        ("batch_size = True", "a whole number"),
        ("batch_size = None", "a whole number"),
        ("batch_size = [12]", "a whole number"),
        ("batch_size = 2**63", "a whole number"),
        ("batch_size = -(2**63)", "a whole number"),
        ("batch_size = 10**5000", "a whole number"),
        ("learning_rate = '1e-3'", "a number (the default is 0.0006)"),
        ("learning_rate = True", "a number"),
        ("learning_rate = 10**400", "a number"),
        ("learning_rate = float('nan')", "a number"),
        ("learning_rate = -float('inf')", "a number"),
        ("bias = 1", "True or False"),
        ("bias = 'False'", "True or False"),
        ("out_dir = 2024", "a text (the default is 'out')"),
        ("out_dir = None", "a text"),
        ("out_dir = b'out'", "a text"),
        ("out_dir = 'two\\nlines', 3", "a text"),
        ("top_k = 1.5", "a whole number or None"),
        ("top_k = 'None'", "a whole number or None"),
        ("compile = 1", "a text or True or False"),
        ("def batch_size(): pass", "a whole number"),
        ("import os as out_dir", "a text"),
    ],
)
def test_a_config_file_may_not_give_an_option_the_wrong_type(mistake, line, right):
    message = mistake(write("c.py", line))
    assert message.startswith("c.py: ") and f"should be {right}" in message


def test_a_config_file_that_is_not_utf8_is_refused(mistake):
    message = mistake(write("c.py", b'batch_size = 3\nout_dir = "caf\xe9"\n'))
    assert "'c.py' is not UTF-8" in message


def test_a_config_file_with_a_nul_byte_is_refused(mistake):
    message = mistake(write("c.py", "batch_size = 3\0\n"))
    assert "c.py" in message and "nul" in message.lower() and "None" not in message


def test_a_mistake_in_a_later_argument_leaves_all_options_as_they_were(mistake):
    write("a.py", "batch_size = 2\n")
    mistake("a.py", "--learning_rate=1", "--dropout=abc")  # the fixture compares


# -----------------------------------------------------------------------------
# help


@pytest.mark.parametrize("line", ["--help", "-h", "--batch_size=3 --help", "--help --batch_siz=abc no_such_file.py"])
def test_help_prints_every_option_with_its_default_and_comment_and_ends_well(namespace, capsys, line):
    with pytest.raises(SystemExit) as end:
        configure(namespace, line.split())
    assert end.value.code == 0
    out, err = capsys.readouterr()
    assert not err and out.startswith("What the script does.\n") and "[config.py ...] [--key=value ...]" in out
    shown = [line.split(maxsplit=1) for line in out.splitlines() if line.startswith("  --")]
    assert shown == [
        ["--batch_size=12", "windows in a micro-batch"],
        ["--learning_rate=0.0006", "the highest, reached after the warm-up"],
        ["--dropout=0.0", "against overfitting"],
        ["--bias=False", "have biases"],
        ["--out_dir='out'", "where checkpoints go"],
        ["--start='\\n'", "the prompt"],
        ["--top_k=200", "None from all"],
        ["--top_p=None", "None from all, too"],
        ["--compile='auto'", "auto, True, False"],
        ["--accumulation=40", "micro-batches"],
    ]


def test_a_default_may_be_any_text(tmp_path):
    lines = ['a = "# no comment"  # with # inside', 'b = "«Größe» 東京"  # not ASCII', 'c = """two', 'lines"""  # long']
    options = read_options(namespace_of(tmp_path / "other.py", "\n".join(lines)))
    assert {name: option.default for name, option in options.items()} == {
        "a": "# no comment",
        "b": "«Größe» 東京",
        "c": "two\nlines",
    }
    assert [option.comment for option in options.values()] == ["with # inside", "not ASCII", "long"]


def load(script, monkeypatch):
    """A script as a module; prepare.py lies in no package, and puts the root on sys.path itself."""
    if "/" not in script:
        return importlib.import_module(script.removesuffix(".py"))
    monkeypatch.setattr(sys, "path", sys.path[:])
    spec = importlib.util.spec_from_file_location("prepare_script", ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_plain_assignment_at_the_top_of_a_script_is_an_option_with_a_comment(script, monkeypatch):
    options = read_options(vars(load(script, monkeypatch)))
    assigned = []
    for node in ast.parse((ROOT / script).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            break
        if isinstance(node, ast.Assign | ast.AnnAssign):
            assigned += [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    assert list(options) == [name for name in assigned if name.islower()]
    assert all(option.comment for option in options.values())


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_help(script, monkeypatch, capsys):
    module = load(script, monkeypatch)
    with pytest.raises(SystemExit) as end:
        configure(vars(module), ["--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0 and module.__doc__.strip() in out and os.path.basename(script) in out
    for name, option in read_options(vars(module)).items():
        assert f"--{name}={option.default!r} " in out and option.comment in out


NANOGPT_TRAIN = {
    "out_dir": "out",
    "eval_interval": 2000,
    "log_interval": 1,
    "eval_iters": 200,
    "eval_only": False,
    "always_save_checkpoint": True,
    "init_from": "scratch",
    "wandb_log": False,
    "wandb_project": "owt",
    "wandb_run_name": "gpt2",
    "dataset": "openwebtext",
    "gradient_accumulation_steps": 40,
    "batch_size": 12,
    "block_size": 1024,
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "dropout": 0.0,
    "bias": False,
    "learning_rate": 6e-4,
    "max_iters": 600000,
    "weight_decay": 1e-1,
    "beta1": 0.9,
    "beta2": 0.95,
    "grad_clip": 1.0,
    "decay_lr": True,
    "warmup_iters": 2000,
    "lr_decay_iters": 600000,
    "min_lr": 6e-5,
}
NANOGPT_SAMPLE = {
    "init_from": "resume",
    "out_dir": "out",
    "start": "\n",
    "num_samples": 10,
    "max_new_tokens": 500,
    "temperature": 0.8,
    "top_k": 200,
    "seed": 1337,
}


@pytest.mark.parametrize("script, nanogpt", [("train.py", NANOGPT_TRAIN), ("sample.py", NANOGPT_SAMPLE)])
def test_nanogpts_options_keep_their_names_and_defaults(script, nanogpt, monkeypatch):
    options = read_options(vars(load(script, monkeypatch)))
    assert {name: options[name].default for name in nanogpt if name in options} == nanogpt
    assert {"device", "dtype", "compile"} <= options.keys()


SMALL = {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "batch_size": 64, "dropout": 0.2}
HITCHIKERS = SMALL | {
    "max_iters": 5000,
    "learning_rate": 1e-3,
    "min_lr": 1e-4,
    "beta2": 0.99,
    "warmup_iters": 100,
    "eval_interval": 250,
    "out_dir": "out-hitchikers",
    "dataset": "hitchikersguide",
    "always_save_checkpoint": False,
}
LAPTOP = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 12, "dropout": 0.0}
CPU = LAPTOP | {"out_dir": "out-hitchikers", "dataset": "hitchikersguide"}
GPT2 = {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "max_iters": 600000}


@pytest.mark.parametrize("name, values", [("hitchikers", HITCHIKERS), ("hitchikers_cpu", CPU), ("gpt2", GPT2)])
def test_the_repositorys_config_files_give_what_the_readme_says(name, values, monkeypatch):
    namespace = dict(vars(load("train.py", monkeypatch)))
    config = configure(namespace, [str(ROOT / "config" / f"train_{name}.py")])
    assert {key: config[key] for key in values} == values


# -----------------------------------------------------------------------------
# device, dtype, compile


@pytest.fixture
def machine(monkeypatch):
    """Pretends a machine: whether it has CUDA GPUs (how many, of which capability) and an Apple GPU."""

    def pretend(cuda=0, capability=(8, 0), mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

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
        ({"mps": True}, torch.float32),
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
    "device, dtype, compile, about",
    [
        ("cuda", "auto", "auto", "--device=cuda"),
        ("cuda:1", "auto", "auto", "--device=cuda:1"),
        ("mps", "auto", "auto", "--device=mps"),
        ("gpu", "auto", "auto", "--device=gpu"),
        ("", "auto", "auto", "--device="),
        ("CPU", "auto", "auto", "--device=CPU"),
        ("cpu:", "auto", "auto", "--device=cpu:"),
        ("cpu:01", "auto", "auto", "--device=cpu:01"),
        ("cuda0", "auto", "auto", "--device=cuda0"),
        ("cuda:x", "auto", "auto", "--device=cuda:x"),
        ("cpu", "float64", "auto", "--dtype=float64"),
        ("cpu", "", "auto", "--dtype="),
        ("cpu", "auto", "yes", "--compile=yes"),
        ("cpu", "auto", "", "--compile="),
    ],
)
def test_what_this_machine_has_not_is_refused_with_the_reason(machine, device, dtype, compile, about):
    with pytest.raises(UserError) as caught:
        resolve_device(device, dtype, compile)
    assert str(caught.value).startswith(about) and len(str(caught.value).splitlines()) == 1
    assert "auto" in str(caught.value)


@pytest.mark.parametrize("device", ["cuda:2", "cuda:99", "cuda:"])
def test_a_gpu_beyond_those_that_are_there_is_refused(machine, device):
    machine(cuda=2)
    with pytest.raises(UserError, match=f"--device={device}"):
        resolve_device(device, "float32", "False")


# -----------------------------------------------------------------------------
# errors


def outcome(capsys, exception):
    """Status, standard output and standard error of `run` where its main raises."""

    def main():
        raise exception

    with pytest.raises(SystemExit) as end:
        run(main)
    return (end.value.code, *capsys.readouterr())


def test_run_turns_a_mistake_into_one_line_and_status_2(capsys):
    assert outcome(capsys, UserError("this is wrong: try that")) == (2, "", "error: this is wrong: try that\n")


@pytest.mark.parametrize("failure", [MemoryError(), RuntimeError("CUDA out of memory.\nTried to allocate 9 GiB")])
def test_run_says_where_memory_was_too_small(capsys, failure):
    status, out, err = outcome(capsys, failure)
    assert (status, out) == (2, "") and err.startswith("error: out of memory") and err.count("\n") == 1


def test_run_ends_quietly_at_ctrl_c(capsys):
    status, _, err = outcome(capsys, KeyboardInterrupt())
    assert status == 130 and "Traceback" not in err


@pytest.mark.parametrize("failure", [ValueError("a bug"), RuntimeError("a bug"), AssertionError("a bug")])
def test_run_does_not_hide_our_own_bugs(failure):
    def main():
        raise failure

    with pytest.raises(type(failure), match="a bug"):
        run(main)


def test_run_lets_a_main_that_ends_well_go_on(capsys):
    assert run(lambda: print("done")) is None
    assert capsys.readouterr() == ("done\n", "")


def test_a_real_run_with_a_typo_ends_with_one_line_and_status_2(tmp_path):
    command = [sys.executable, PREPARE, "--encodin=char"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: there is no option --encodin: did you mean --encoding?\n"


def test_a_real_run_asked_for_help_prints_it_and_does_nothing_else(tmp_path):
    result = subprocess.run([sys.executable, PREPARE, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "--encoding='gpt2'" in result.stdout and "tokens" not in result.stdout.split("usage:")[1]


def test_a_reader_that_has_seen_enough_gets_no_traceback(tmp_path):
    script = "import configurator\nconfigurator.run(lambda: [print('x' * 99) for _ in range(10**5)])\n"
    write(tmp_path / "script.py", script)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, tmp_path / "script.py"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


# -----------------------------------------------------------------------------
# safe files


def test_replacing_writes_a_new_file(tmp_path):
    with replacing(str(tmp_path / "file")) as f:
        f.write(b"new")
    assert (tmp_path / "file").read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]


def test_replacing_keeps_the_old_file_until_the_block_has_ended(tmp_path):
    write(tmp_path / "file", "old")
    with replacing(str(tmp_path / "file")) as f:
        f.write(b"new")
        f.flush()
        assert (tmp_path / "file").read_bytes() == b"old"
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize("failure", [ValueError, UserError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [b"old", None])
def test_replacing_leaves_the_old_file_or_none_and_no_tmp_where_the_block_raises(tmp_path, failure, old):
    if old:
        write(tmp_path / "file", old)
    with pytest.raises(failure), replacing(str(tmp_path / "file")) as f:
        f.write(b"half of the n")
        raise failure("stop")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == ({"file": old} if old else {})


def test_a_full_disk_is_a_mistake_that_leaves_the_old_file(tmp_path):
    write(tmp_path / "file", "old")
    with pytest.raises(UserError, match="cannot write .*file.*No space left"), replacing(str(tmp_path / "file")) as f:
        f.write(b"half of the n")
        raise OSError(28, "No space left on device")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}


def test_replacing_says_where_it_cannot_write(tmp_path):
    with pytest.raises(UserError, match="cannot write"), replacing(str(tmp_path / "missing" / "file")):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot write"), replacing(str(tmp_path / "folder")) as f:
        f.write(b"new")
    assert os.listdir(tmp_path) == ["folder"]


def test_what_an_interrupted_run_left_behind_is_in_nobodys_way(tmp_path):
    write(tmp_path / "file.tmp", "a longer text from a run that was killed")
    with replacing(str(tmp_path / "file")) as f:
        f.write(b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"new"}


def test_a_file_is_on_the_disk_before_it_takes_the_old_ones_place(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def note_fsync(fd):
        assert os.fstat(fd).st_size == 3  # all of it has left Python's buffer
        done.append("fsync")
        fsync(fd)

    def note_replace(source, target):
        done.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    with replacing(str(tmp_path / "file")) as f:
        f.write(b"new")
    assert done[:2] == ["fsync", "replace"]
