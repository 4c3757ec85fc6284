"""What configurator.py promises: options from command line and config files, errors in one line, safe files."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import configurator
import sample
import train
from configurator import UserError, configure, read_options, replacing, run
from conftest import ROOT
from machine import catch_signals

PREPARE = ROOT / "data" / "hitchikersguide" / "prepare.py"

SCRIPT = '''"""What the script does."""

import os

LIMIT = 3  # a name in capitals is a constant
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
    """The globals() of a script with this source."""
    path.write_text(source, encoding="utf-8")
    namespace = {"__file__": str(path), "__name__": "__main__"}
    exec(compile(source, str(path), "exec"), namespace)
    return namespace


@pytest.fixture
def namespace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # config files are named relative to the current folder
    return namespace_of(tmp_path / "script.py", SCRIPT)


@pytest.fixture
def mistake(namespace):
    """mistake("--key=value", ...) gives the message for wrong arguments: one line, and no option has changed."""

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


def test_the_options_of_the_command_line_are_set_in_the_script_and_returned(namespace, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py", "--batch_size=2", "--batch_size=3"])  # the last one counts
    config = configure(namespace)
    assert config == DEFAULTS | {"batch_size": 3} == {name: namespace[name] for name in DEFAULTS}


def test_only_commented_assignments_in_small_letters_above_the_first_function_are_options(namespace, mistake):
    assert list(configure(namespace, [])) == list(DEFAULTS)
    for name in ("LIMIT", "separator", "inside", "main"):
        assert f"there is no option --{name}" in mistake(f"--{name}=1")


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


# -----------------------------------------------------------------------------
# values on the command line


@pytest.mark.parametrize(
    "argument, value",
    [
        ("--batch_size=64", 64),
        ("--batch_size=-1", -1),
        ("--batch_size=1e3", 1000),
        ("--batch_size=12.0", 12),
        ("--top_k=2e2", 200),
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


# -----------------------------------------------------------------------------
# config files


@pytest.mark.parametrize(
    "line, value",
    [
        ("batch_size = 64", 64),
        ("batch_size = 1e3", 1000),
        ("batch_size = 1e3 / 10", 100),
        ("top_k = 2e2", 200),
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


def test_all_arguments_are_checked_before_any_config_file_runs(mistake):
    write("harm.py", "open('harm', 'w').close()\n")
    for arguments in (["harm.py", "--batch_siz=3"], ["harm.py", "--dropout=x"], ["harm.py", "--start", "harm.py"]):
        mistake(*arguments)
    mistake("harm.py", "missing.py")
    assert not os.path.exists("harm")


def test_a_value_after_a_space_is_never_run_and_the_right_form_is_named(mistake):
    write("my novel.py", "open('harm', 'w').close()\n")
    assert "write --key=value, as in --start='my novel.py'" in mistake("--start", "my novel.py")
    assert "write --key=value, as in --batch_size=12" in mistake("--batch_size")
    assert "write --key=value, as in --bias=True" in mistake("--bias", "--batch_size=3")
    assert not os.path.exists("harm")


def test_where_an_argument_is_an_options_value_no_file_runs(namespace):
    write("novel.py", "open('harm', 'w').close()\n")
    assert configure(namespace, ["novel.py", "--batch_size=2"], positional="out_dir")["out_dir"] == "novel.py"
    assert configure(namespace, ["-"], positional="out_dir")["out_dir"] == "-"
    with pytest.raises(UserError, match="--out_dir takes one value, and 2 are there, 'a.txt' and 'b.py'"):
        configure(namespace, ["a.txt", "b.py"], positional="out_dir")
    with pytest.raises(UserError, match="as in --out_dir=novel.py"):
        configure(namespace, ["--out_dir", "novel.py", "--start", "x"], positional="out_dir")
    assert not os.path.exists("harm")


def test_prepare_takes_a_plain_argument_as_its_text_and_runs_nothing(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("configurator.py", "tokenizer.py", "data/prepare.py"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "x.py").write_text("open('harm', 'w').close()\n" * 99, encoding="utf-8")

    def prepare(*args):
        command = [sys.executable, "data/prepare.py", *args]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=60)

    done = prepare("x.py", "--encoding=char")
    assert done.returncode == 0 and "--dataset=x " in done.stdout, done.stderr
    done = prepare("--input", "x.py")
    assert (done.returncode, done.stdout) == (2, "") and "as in --input=x.py" in done.stderr
    assert not (tmp_path / "harm").exists()


# -----------------------------------------------------------------------------
# what nanoGPT's users have


def test_a_helper_in_a_config_file_is_a_note_and_a_typo_an_error(namespace, mistake, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(configurator, "HERE", str(tmp_path))  # where a file of the user's own may be broken
    write("broken.py", "x = (\n")
    write("a.py", "n_gpus = 8\nLIMIT = 5\n_hidden = 3\nbatch_size = 2 * n_gpus\n")
    assert configure(namespace, ["a.py"])["batch_size"] == 16
    assert capsys.readouterr() == ("", "note: a.py sets n_gpus, LIMIT: no options of this script\n")
    assert "did you mean learning_rate?" in mistake(write("b.py", "learningrate = 1e-3"))


@pytest.mark.parametrize(
    "script, source", [(sample, "batch_size = 3\nout_dir = 'x'\n"), (train, "to = 'x.png'\ntop_k = 3\nseed = 5\n")]
)
def test_options_of_another_script_are_no_typos(tmp_path, capsys, script, source):
    path = write(str(tmp_path / "c.py"), source)
    config = configure(dict(vars(script)), [path])
    assert capsys.readouterr().err.startswith(f"note: {path} sets ")
    assert config["out_dir"] == "x" or config["seed"] == 5


NANOGPTS_CONFIG = """# as nanoGPT's users write them
import time
n_gpus = 8
out_dir = 'out-shakespeare-char'
wandb_run_name = 'ft-' + str(time.time())
gradient_accumulation_steps = 5 * n_gpus
batch_size = 64 # windows
max_iters = 1e3
dtype = 'bfloat16'
compile = False # do not torch compile the model
"""


def test_a_config_file_in_nanogpts_style_works_in_training_and_sampling(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write("c.py", NANOGPTS_CONFIG)
    config = configure(dict(vars(train)), ["c.py"])
    assert (config["max_iters"], config["gradient_accumulation_steps"], config["batch_size"]) == (1000, 40, 64)
    assert capsys.readouterr().err == "note: c.py sets n_gpus: no option of this script\n"
    assert configure(dict(vars(sample)), ["c.py"])["out_dir"] == "out-shakespeare-char"
    assert capsys.readouterr().err.count("\n") == 1


# -----------------------------------------------------------------------------
# paths


def test_a_tilde_at_the_start_of_a_path_is_the_home_folder_and_in_a_text_it_is_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    namespace = dict(vars(sample))
    config_file = write(tmp_path / "c.py", "out_dir = '~/x'\n")
    for arguments, name, value in [
        (["--out_dir=~/x"], "out_dir", f"{tmp_path}/x"),
        (["--out_dir=~"], "out_dir", str(tmp_path)),
        (["--init_from=~/gpt2"], "init_from", f"{tmp_path}/gpt2"),
        (["--start=FILE:~/x.txt"], "start", f"FILE:{tmp_path}/x.txt"),
        ([str(config_file)], "out_dir", f"{tmp_path}/x"),
        (["--start=~/x"], "start", "~/x"),
        (["--start=~"], "start", "~"),
        (["--out_dir=a~/x"], "out_dir", "a~/x"),
        (["--out_dir=~x"], "out_dir", "~x"),
    ]:
        assert configure(dict(namespace), arguments)[name] == value


def test_every_path_among_the_options_takes_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    paths = {
        "train.py": ["out_dir", "init_from"],
        "sample.py": ["out_dir", "init_from"],
        "export.py": ["out_dir", "to"],
    }
    paths |= {
        "plot.py": ["to"],
        "bench.py": ["json"],
        "speak.py": ["out", "model"],
        "play.py": ["voice"],
        "data/prepare.py": ["input"],
    }
    for script, names in paths.items():
        comments = {name: comment for name, _, comment in configurator.commented_assignments(str(ROOT / script))}
        for name in names:
            option = configurator.Option("", (str,), comments[name])
            assert configurator.parse(name, "~/a b", option) == "/home/me/a b"


def test_a_text_typed_in_an_ascii_locale_is_what_was_typed(namespace):
    typed = "größe".encode().decode("ascii", "surrogateescape")
    option = read_options(vars(sample))["start"]
    assert configurator.parse("start", typed, option) == "größe"
    with pytest.raises(UserError, match="not UTF-8"):
        configurator.parse("start", "\udcff", option)


# -----------------------------------------------------------------------------
# printed commands


def test_a_printed_command_is_quoted_as_the_shell_wants_it(monkeypatch):
    command = configurator.command("sample.py", out_dir="out dir ü", seed=1)
    assert shlex.split(command) == ["python", "sample.py", "--out_dir=out dir ü", "--seed=1"]
    assert configurator.command("plot.py", "out-a", "it's") == """python plot.py out-a 'it'"'"'s'"""
    monkeypatch.setattr(configurator.os, "name", "nt")
    try:
        windows = configurator.command("sample.py", out_dir="out dir ü")
    finally:
        monkeypatch.undo()
    assert windows == 'python sample.py --out_dir="out dir ü"'


def test_no_windows_user_is_told_of_a_path_that_only_other_systems_have(monkeypatch):
    for name, told in (("posix", True), ("nt", False)):
        with monkeypatch.context() as patch, pytest.raises(UserError) as error:
            patch.setattr(configurator.importlib.util, "find_spec", lambda module: None)
            patch.setattr(configurator.os, "name", name)
            configurator.check_installed("whatever")
        assert ("run with '.venv/bin/python'" in str(error.value)) is told


def test_a_config_file_of_the_repository_is_found_from_any_folder(namespace, tmp_path, monkeypatch):
    (tmp_path / "house" / "config").mkdir(parents=True)
    write("house/config/small.py", "batch_size = 2\n")
    monkeypatch.setattr(configurator, "HERE", str(tmp_path / "house"))
    assert configure(namespace, ["config/small.py"])["batch_size"] == 2


MISTAKES = {
    # what is no Python, with its line
    "batch_size = 1\nlearning_rate = = 2\n": "c.py, line 2: ",
    "\n\nbatch_size = (1\n": "c.py, line 3: ",
    "if bias:\nbatch_size = 1\n": "c.py, line 2: ",
    "batch_size = 3\0\n": "c.py",
    b'out_dir = "caf\xe9"\n': "the config file 'c.py' is not UTF-8",
    # an exception, with its line
    "batch_size = 1\ndropout = 1 / 0\n": "c.py, line 2: ZeroDivisionError",
    "batch_size = batchsize\n": "c.py, line 1: NameError",
    "def f():\n    return {}['key']\n\nbatch_size = f()\n": "c.py, line 2: KeyError",
    "import json\njson.loads('{')\n": "c.py, line 2: JSONDecodeError",
    "raise KeyError\n": "c.py, line 1: KeyError",
    "raise ValueError('two\\nlines')\n": "c.py, line 1: ValueError: two",
    "raise ValueError('\\n')\n": "c.py, line 1: ValueError",
    "def f(): f()\nf()\n": "c.py, line 1: RecursionError",
    "batch_size = 1\n\neval('1 +')\n": "c.py, line 3",
    "\nimport broken_module\n": "c.py, line 2: SyntaxError",
    "import sys\nsys.exit()\n": "c.py ends the script",
    # names that are no options
    "batch_siz = 3\n": "c.py sets 'batch_siz', which is no option: did you mean batch_size?",
    "learningrate = 3\n": "c.py sets 'learningrate', which is no option: did you mean learning_rate?",
    # values of another type
    "batch_size = 12.5": "c.py: batch_size = 12.5 should be a whole number (the default is 12)",
    "batch_size = 1e300": "c.py: batch_size = an integer of 997 bits is out of range: it should be a whole number",
    "batch_size = True": "c.py: batch_size = True should be a whole number",
    "batch_size = 2**63": "c.py: batch_size = 9223372036854775808 is out of range: it should be a whole number",
    "batch_size = 10**5000": "c.py: batch_size = an integer of 16610 bits is out of range",
    "learning_rate = '1e-3'": "c.py: learning_rate = '1e-3' should be a number (the default is 0.0006)",
    "learning_rate = 10**400": "c.py: learning_rate = an integer of 1329 bits is out of range",
    "learning_rate = float('nan')": "c.py: learning_rate = nan is out of range",
    "bias = 1": "c.py: bias = 1 should be True or False",
    "out_dir = 2024": "c.py: out_dir = 2024 should be a text (the default is 'out')",
    "out_dir = 'two\\nlines', 3": "c.py: out_dir = ('two\\nlines', 3) should be a text",
    "top_k = 1.5": "c.py: top_k = 1.5 should be a whole number or None",
    "compile = 1": "c.py: compile = 1 should be a text or True or False",
    "def batch_size(): pass": "c.py: batch_size = <function",
}


@pytest.mark.parametrize("source", MISTAKES, ids=ascii)
def test_a_mistake_in_a_config_file_is_named_with_its_line_or_what_would_be_right(mistake, monkeypatch, source):
    write("broken_module.py", "\n\n\n\n\n\n\nx = (\n")
    monkeypatch.syspath_prepend(".")
    assert mistake(write("c.py", source)).startswith(MISTAKES[source])


@pytest.mark.parametrize("path", ["train_hitchikers.py", "conf/train_hitchikers.py", "zzz.py", "null\0.py", ".py"])
def test_for_a_missing_config_file_the_nearest_is_offered_or_else_all_are_listed(mistake, path):
    known = [f"config/{file.name}" for file in (ROOT / "config").glob("*.py")]
    message, near = mistake(path), "train_hitchikers" in path
    assert repr(path) in message and ("did you mean config/train_hitchikers.py?" in message) is near
    assert near or all(name in message for name in known)


def test_a_folder_is_no_config_file(mistake, tmp_path):
    (tmp_path / "folder.py").mkdir()
    assert "cannot read the config file" in mistake("folder.py")


def test_a_mistake_in_a_later_argument_leaves_all_options_as_they_were(mistake):
    write("a.py", "batch_size = 2\n")
    mistake("a.py", "--learning_rate=1", "--dropout=abc")  # the fixture compares before and after


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


@pytest.mark.parametrize("columns", [40, 80, 119, 200])
def test_help_is_as_wide_as_the_terminal_and_cuts_no_word(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = {}
    for terminal in (True, False):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal, raising=False)
        with pytest.raises(SystemExit):
            configure(vars(train), ["--help"])
        shown[terminal] = capsys.readouterr().out
    lines, words = shown[True].splitlines(), shown[False].split()
    assert shown[True].split() == words
    assert all(len(line) <= columns or len(line.split()) == 1 for line in lines)
    assert max(map(len, lines)) > columns * 0.8 or columns == 200


def test_help_needs_no_docstring_in_memory():
    namespace = dict(vars(train)) | {"__doc__": None}  # as under python -OO
    with pytest.raises(SystemExit) as end:
        configure(namespace, ["--help"])
    assert end.value.code == 0


def test_a_default_may_be_any_text(tmp_path):
    lines = ['a = "# no comment"  # with # inside', 'b = "«Größe» 東京"  # not ASCII', 'c = """two', 'lines"""  # long']
    options = read_options(namespace_of(tmp_path / "other.py", "\n".join(lines)))
    assert {name: option.default for name, option in options.items()} == {
        "a": "# no comment",
        "b": "«Größe» 東京",
        "c": "two\nlines",
    }
    assert [option.comment for option in options.values()] == ["with # inside", "not ASCII", "long"]


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


@pytest.mark.parametrize("script, nanogpt", [(train, NANOGPT_TRAIN), (sample, NANOGPT_SAMPLE)])
def test_nanogpts_options_keep_their_names_and_defaults(script, nanogpt):
    options = read_options(vars(script))
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
def test_the_repositorys_config_files_give_what_the_readme_says(name, values):
    config = configure(dict(vars(train)), [str(ROOT / "config" / f"train_{name}.py")])
    assert {key: config[key] for key in values} == values


# -----------------------------------------------------------------------------
# errors


def outcome(capsys, exception):
    """The status, standard output and standard error of `run` if its main raises this exception."""

    def main():
        raise exception

    with pytest.raises(SystemExit) as end:
        run(main)
    return (end.value.code, *capsys.readouterr())


def test_run_turns_a_mistake_into_one_line_and_status_2(capsys):
    assert outcome(capsys, UserError("this is wrong: try that")) == (2, "", "error: this is wrong: try that\n")


@pytest.mark.parametrize("failure", [MemoryError(), RuntimeError("CUDA out of memory.\nTried to allocate 9 GiB")])
def test_run_says_that_memory_was_too_small(capsys, failure):
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


def test_run_leaves_the_signal_handlers_as_they_were():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run(catch_signals)  # as a training does
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_run_needs_no_more_of_a_stream_than_a_notebooks_has(monkeypatch):
    class Stream:  # Jupyter's OutStream has no reconfigure, no buffer and no descriptor
        def __init__(self):
            self.written = ""

        def write(self, text):
            self.written += text

        def flush(self):
            pass

        def isatty(self):
            return False

    monkeypatch.setattr(sys, "stdout", Stream())
    monkeypatch.setattr(sys, "stderr", Stream())
    run(lambda: print("größe"))
    with pytest.raises(SystemExit):
        run(lambda: configurator.read_text("-") if setattr(sys, "stdin", None) is None else None)
    assert sys.stdout.written == "größe\n" and sys.stderr.written.startswith("error: there is no standard input")


def test_of_several_processes_only_the_first_calls_a_main_that_is_alone(monkeypatch):
    called = []
    monkeypatch.setattr(configurator, "RANK", 1)
    run(lambda: called.append("alone"))
    run(lambda: called.append("together"), alone=False)
    assert called == ["together"]


@pytest.mark.parametrize(
    "environment, right",
    [
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE=x: it should be a whole number"),
        ({"RANK": "-1"}, "RANK=-1: it should be a whole number"),
        ({"LOCAL_RANK": "1.5"}, "LOCAL_RANK=1.5: it should be a whole number"),
        ({"WORLD_SIZE": "0"}, "should be below the third"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "should be below the third"),
    ],
)
def test_an_environment_that_is_not_torchruns_is_named(environment, right):
    with pytest.raises(UserError, match=right):
        configurator.process_numbers(environment)


def test_an_environment_without_torchrun_is_one_process():
    assert configurator.process_numbers({}) == (0, 0, 1)
    assert configurator.process_numbers({"RANK": "", "LOCAL_RANK": "", "WORLD_SIZE": ""}) == (0, 0, 1)
    assert configurator.process_numbers({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}) == (3, 1, 4)


def test_a_real_run_asked_for_help_prints_it_and_does_nothing_else(tmp_path):
    command = [sys.executable, PREPARE, "--help"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert (result.returncode, result.stderr) == (0, "")
    assert "--encoding='gpt2'" in result.stdout and "tokens" not in result.stdout.split("usage:")[1]


# -----------------------------------------------------------------------------
# safe files


def test_replacing_keeps_the_old_file_until_the_block_has_ended(tmp_path):
    write(tmp_path / "file", "old")
    write(tmp_path / "file.tmp", "a longer text, from a run that was killed")
    with replacing(str(tmp_path / "file")) as f:
        f.write(b"new")
        f.flush()
        assert (tmp_path / "file").read_bytes() == b"old"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"new"}


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
