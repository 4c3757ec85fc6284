"""
What all scripts share: options, errors, and files that are read and replaced safely. Needs nothing but Python.

A script's options are the plain assignments at its top, each with a trailing comment:

    batch_size = 12  # windows in a micro-batch
    top_k: int | None = 200  # an annotation is needed only where None is allowed too

`configure(globals())` replaces their values, in this order: the config files as they come on the command line, then
every --key=value, wherever it stands.
"""

import ast
import contextlib
import difflib
import importlib.util
import math
import os
import re
import signal
import sys
import time
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import NamedTuple

HERE = os.path.dirname(os.path.abspath(__file__))
# this process's number among those that torchrun started, and their count: only number 0 prints and writes files
RANK, WORLD_SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


at_end = contextlib.ExitStack()  # what `run` does when main() ends, however it ends: at_end.callback(function)


class UserError(Exception):
    """A mistake that the user can mend. `run` shows it as one line, without a traceback."""

    def __init__(self, message):
        super().__init__(" ".join(str(message).splitlines()))  # a value that it quotes may have several lines


def run(main):
    """Call `main()`. A UserError, or too little memory, ends the process with one `error:` line and status 2."""
    try:
        with at_end:
            main()
    except UserError as mistake:
        if int(os.environ.get("LOCAL_RANK", 0)) > 0:
            # The first process may be showing the same mistake. torchrun then sends SIGTERM to the others: wait for it.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(3)
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader, say `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
        sys.exit(1)
    except (MemoryError, RuntimeError) as failure:
        if "RANK" in os.environ and re.search("closed by peer|reset by peer|remote process|NCCL", str(failure)):
            sys.exit(1)  # another process has ended, and said why
        if not (isinstance(failure, MemoryError) or re.search("out of memory|can't allocate memory", str(failure))):
            raise
        print(f"error: out of memory ({first_line(failure)}): try a smaller batch or model", file=sys.stderr)
        sys.exit(2)


def first_line(failure):
    """The first line of an exception's message."""
    return (str(failure).strip() or type(failure).__name__).splitlines()[0]


def check_installed(*modules):
    """End with an `error:` line that says how to install what is missing, before an import fails with a traceback."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        how = "'pip install -r requirements.txt', or run with '.venv/bin/python', which 'make demo' sets up"
        print(f"error: {sys.executable} has no {', '.join(missing)}: {how}", file=sys.stderr)
        sys.exit(2)


check_installed("numpy", "torch", "tiktoken", "tqdm")  # every script imports this file first

# -----------------------------------------------------------------------------
# options


class Option(NamedTuple):
    default: object
    kinds: tuple  # the types it may have: its annotation's, or else its default's
    comment: str


KINDS = {"bool": bool, "int": int, "float": float, "str": str, "None": type(None)}


def read_options(namespace):
    """The options of a script, by name: its commented assignments above the first function, read from its source."""
    with open(namespace["__file__"], encoding="utf-8") as f:
        source = f.read()
    lines, options = source.splitlines(), {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            break
        comment = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode().strip()  # ast counts bytes
        if not (isinstance(node, ast.Assign | ast.AnnAssign) and comment.startswith("#")):
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if not (isinstance(target, ast.Name) and target.id.islower()):  # a constant
            continue
        default = namespace[target.id]
        annotation = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else type(default).__name__
        options[target.id] = Option(default, tuple(KINDS[k] for k in annotation.split(" | ")), comment.lstrip("# "))
    return options


def configure(namespace, argv=None, takes="[config.py ...]"):
    """
    Set a script's options from its command line, and return them as a dict. `--help` prints them and exits.

    `namespace` is the script's globals(), changed in place; `argv` the arguments, by default the command line's;
    `takes` how the help shows the arguments that are no options. Raises UserError for what no option can be.
    """
    arguments = sys.argv[1:] if argv is None else argv
    options = read_options(namespace)
    if "--help" in arguments or "-h" in arguments:
        print_help(namespace, options, takes)
        sys.exit(0)
    config = {name: option.default for name, option in options.items()}
    for path in (a for a in arguments if not a.startswith("-")):
        config |= read_config_file(path, config, options)
    for argument in (a for a in arguments if a.startswith("-")):
        name, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals:
            raise UserError(f"cannot read the argument {argument!r}: write --key=value, or --help for the options")
        if name not in options:
            raise UserError(f"there is no option --{name}: {suggestion(name, options, '--')}")
        config[name] = parse(name, text, options[name])
    namespace.update(config)
    return config


def parse(name, text, option):
    """The value of a text from the command line, in the option's type."""
    if type(None) in option.kinds and text == "None":
        return None
    try:
        if option.kinds[0] is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return check(name, option.kinds[0](text), option)
    except (ValueError, KeyError):
        raise UserError(f"--{name}={text} should be {wanted(option)}") from None


def check(name, value, option):
    """`value`, if it has the option's type; an int becomes a float where one is wanted. Raises UserError otherwise."""
    if type(value) is int and abs(value) >= 2**63 or type(value) is float and not math.isfinite(value):
        huge = type(value) is int and value.bit_length() > 200  # Python refuses to print the largest
        given = f"an integer of {value.bit_length()} bits" if huge else value
        raise UserError(f"{name} = {given} is out of range: it should be {wanted(option)}")
    if type(value) is int and float in option.kinds:
        return float(value)
    if type(value) not in option.kinds:
        raise UserError(f"{name} = {value!r:.80} should be {wanted(option)}")
    return value


def wanted(option):
    """An option's type and default in words, for error messages."""
    words = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", type(None): "None"}
    return f"{' or '.join(words[kind] for kind in option.kinds)} (the default is {option.default!r})"


def suggestion(name, known, prefix=""):
    """'did you mean ...?' with the nearest of the known names, or else all of them."""
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {prefix}{near[0]}?" if near else f"there are {', '.join(prefix + k for k in known)}"


IMPORTED = (ModuleType, FunctionType, BuiltinFunctionType, type)  # what a config file may also give names to


def read_config_file(path, config, options):
    """
    The options that a config file sets, as a dict. It sees the values so far, `config`, and may import, define
    functions and compute; all other names it sets must begin with an underscore.
    """
    if not os.path.exists(path):
        known = [f"config/{name}" for name in sorted(os.listdir(os.path.join(HERE, "config")))]
        if path not in known:
            raise UserError(f"there is no config file {path!r}: {suggestion(path, known)}")
        path = os.path.join(HERE, path)
    result = {}
    for name, value in run_config_file(path, config).items():
        if name in options:
            try:
                result[name] = check(name, value, options[name])
            except UserError as mistake:
                raise UserError(f"{path}: {mistake}") from None
        elif not name.startswith("_") and not isinstance(value, IMPORTED):
            raise UserError(f"{path} sets {name!r}, which is no option: {suggestion(name, options)}")
    return result


def run_config_file(path, config):
    """Run a config file, plain Python, in a namespace of its own that begins as `config`. Returns the namespace."""
    source = read_text(path, "config file")
    scope = {**config, "__file__": path, "__name__": "__config__"}
    try:
        code = compile(source, path, "exec")
    except SyntaxError as failure:
        line = f", line {failure.lineno}" if failure.lineno else ""
        raise UserError(f"{path}{line}: {failure.msg} (a config file is plain Python)") from None
    except (ValueError, RecursionError, MemoryError) as failure:  # nul bytes, in older Pythons; absurd nesting
        raise UserError(f"{path}: {first_line(failure)} (a config file is plain Python)") from None
    try:
        exec(code, scope)
    except SystemExit:
        raise UserError(f"{path} ends the script: a config file should only set options") from None
    except Exception as failure:  # whatever the user's own code raises
        where = failure.__traceback__
        while where.tb_next and where.tb_next.tb_frame.f_code.co_filename == path:
            where = where.tb_next
        line = f", line {where.tb_lineno}" if where.tb_frame.f_code.co_filename == path else ""
        raise UserError(f"{path}{line}: {type(failure).__name__}: {first_line(failure)}") from None
    return scope


def print_help(namespace, options, takes):
    """Print a script's docstring, and each option with its default and comment."""
    script = os.path.relpath(namespace["__file__"])
    print(f"{namespace['__doc__'].strip()}\n\nusage: python {script} {takes} [--key=value ...]\n")
    settings = [f"--{name}={option.default!r}" for name, option in options.items()]
    width = max(len(setting) for setting in settings)
    for setting, option in zip(settings, options.values()):
        print(f"  {setting:{width}}  {option.comment}")


# -----------------------------------------------------------------------------
# files


def data_folder(dataset):
    """The folder of a dataset, data/NAME beside the scripts."""
    return os.path.join(HERE, "data", dataset)


def read_text(path, what="file"):
    """The whole of a UTF-8 text file, `-` for standard input. Raises UserError, which calls it `what`."""
    try:
        if path == "-":
            return re.sub("\r\n?", "\n", sys.stdin.buffer.read().decode("utf-8"))  # as open() does for files
        with open(path, encoding="utf-8") as f:
            return f.read()
    except OSError as failure:
        raise UserError(f"cannot read the {what} {path!r}: {failure.strerror}") from None
    except UnicodeDecodeError as failure:
        raise UserError(f"the {what} {path!r} is not UTF-8 (byte {failure.start}): save it as UTF-8 first") from None


@contextlib.contextmanager
def replacing(path):
    """
    Open a temporary binary file beside `path`. It takes the place of `path` once the block has ended without an
    exception and the data is on the disk; otherwise the old file stays as it was.
    """
    with replacing_all([path]) as [f]:
        yield f


@contextlib.contextmanager
def replacing_all(paths):
    """`replacing` for several files: none takes its place before all are on the disk. Yields a list of files."""
    files = []
    try:
        for path in paths:
            failed = repr(path)
            files.append(open(f"{path}.tmp", "wb"))
        failed = ", ".join(map(repr, paths))
        yield files
        for path, f in zip(paths, files):
            failed = repr(path)
            close_on_disk(f)
        for path in paths:
            failed = repr(path)
            replace(f"{path}.tmp", path)
    except BaseException as failure:
        for f in files:
            with contextlib.suppress(OSError):
                f.close()  # which may fail once more, at the same full disk
            with contextlib.suppress(OSError):
                os.remove(f.name)
        if isinstance(failure, OSError):
            raise UserError(f"cannot write {failed}: {failure.strerror}") from None
        raise


def close_on_disk(f):
    """Close a file once its data is on the disk. Windows neither moves nor links an open file."""
    if not f.closed:
        f.flush()
        os.fsync(f.fileno())
        f.close()


def replace(source, target):
    """os.replace, tried again for two seconds: Windows refuses while another program reads the target."""
    for wait in (0.1, 0.3, 0.6, 1.0):
        try:
            return os.replace(source, target)
        except PermissionError:
            time.sleep(wait)
    os.replace(source, target)
