"""
What every script here shares: options, errors and safe files. Needs nothing but Python itself.

A script's options are the plain assignments at its top, each with a comment behind it:

    batch_size = 12  # windows in a micro-batch
    top_k: int | None = 200  # an annotation is needed only where None is allowed too

`configure(globals())` then replaces them by what the command line says, in this order:
the defaults, the config files as they come, and last every --key=value, wherever it stands.
"""

import ast
import contextlib
import ctypes
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


class UserError(Exception):
    """A mistake that the user can mend: `run` shows it as one line, without a traceback."""

    def __init__(self, message):
        super().__init__(" ".join(str(message).splitlines()))  # what was given may itself have lines


def run(main):
    """Call `main()`, and end the process with one `error:` line and status 2 where the user has something to mend."""
    try:
        main()
    except UserError as mistake:
        if int(os.environ.get("LOCAL_RANK", 0)) > 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which torchrun sends when the first process has ended
            time.sleep(3)  # the first process may be showing the same mistake, and its end then ends this one
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader, say `head`, has seen enough; without this Python complains once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (MemoryError, RuntimeError) as failure:
        if "RANK" in os.environ and re.search("closed by peer|reset by peer|remote process|NCCL", str(failure)):
            sys.exit(1)  # another process has ended, and has said why
        if not (isinstance(failure, MemoryError) or re.search("out of memory|can't allocate memory", str(failure))):
            raise
        print(f"error: out of memory ({first_line(failure)}): try a smaller batch or model", file=sys.stderr)
        sys.exit(2)


def first_line(failure):
    """What an exception says, cut to one line."""
    return (str(failure).strip() or type(failure).__name__).splitlines()[0]


def check_installed(*modules):
    """Say how to install what is missing, rather than let an import at the top of a script end in a traceback."""
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
    kinds: tuple  # the types it may have: those of its annotation, or else that of its default
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
    Set a script's options from its command line.

    `namespace` is the script's globals(), and is changed in place; `argv` the arguments (default: the command line's);
    `takes` is what the help calls those that are no options. Returns the options as a dict. Raises UserError for
    whatever cannot be meant. `--help` prints and exits.
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
    """The value that `text` stands for on the command line, in the option's own type."""
    if type(None) in option.kinds and text == "None":
        return None
    try:
        if option.kinds[0] is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return check(name, option.kinds[0](text), option)
    except (ValueError, KeyError):
        raise UserError(f"--{name}={text} should be {wanted(option)}") from None


def check(name, value, option):
    """`value`, if it is of the option's type (an int where a float is wanted becomes one); else a UserError."""
    if type(value) is int and abs(value) >= 2**63 or type(value) is float and not math.isfinite(value):
        huge = type(value) is int and value.bit_length() > 200  # Python will not even print some of these
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
    """'did you mean …?', or where nothing is near, the whole list."""
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {prefix}{near[0]}?" if near else f"there are {', '.join(prefix + k for k in known)}"


IMPORTED = (ModuleType, FunctionType, BuiltinFunctionType, type)  # names for these in a config file are its own affair


def read_config_file(path, config, options):
    """
    Run a config file, plain Python, in a namespace of its own that holds the options' values so far.

    Returns the options. The file may import, define functions and compute; any other name it sets must be an option's
    or begin with an underscore.
    """
    if not os.path.exists(path):
        known = [f"config/{name}" for name in sorted(os.listdir(os.path.join(HERE, "config")))]
        if path not in known:
            raise UserError(f"there is no config file {path!r}: {suggestion(path, known)}")
        path = os.path.join(HERE, path)
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
    result = {}
    for name, value in scope.items():
        if name in options:
            try:
                result[name] = check(name, value, options[name])
            except UserError as mistake:
                raise UserError(f"{path}: {mistake}") from None
        elif not name.startswith("_") and not isinstance(value, IMPORTED):
            raise UserError(f"{path} sets {name!r}, which is no option: {suggestion(name, options)}")
    return result


def print_help(namespace, options, takes):
    """Print a script's docstring, and each option with its default and comment."""
    script = os.path.relpath(namespace["__file__"])
    print(f"{namespace['__doc__'].strip()}\n\nusage: python {script} {takes} [--key=value ...]\n")
    settings = [f"--{name}={option.default!r}" for name, option in options.items()]
    width = max(len(setting) for setting in settings)
    for setting, option in zip(settings, options.values()):
        print(f"  {setting:{width}}  {option.comment}")


# -----------------------------------------------------------------------------
# the machine and its files


def resolve_device(device, dtype, compile):
    """
    The options `device`, `dtype` and `compile` as (torch.device, torch.dtype, bool), with `auto` decided:
    cuda, then mps, then cpu; bfloat16 on a GPU that has it, float16 on one that has not, float32 elsewhere;
    compiled where it pays, which is on CUDA. Raises UserError for what this machine has not.
    """
    import torch  # here, since not every script that has options needs it

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        device = "cuda" if cuda else "mps" if mps else "cpu"
    kind, _, index = device.partition(":")
    if not re.fullmatch(r"(cpu|cuda|mps)(:(0|[1-9]\d{0,3}))?", device):
        raise UserError(f"--device={device} is unknown: it may be auto, cpu, cuda, cuda:0, cuda:1, ... or mps")
    if kind == "cuda" and not cuda:
        raise UserError(f"--device={device}: PyTorch {torch.__version__} sees no CUDA GPU here; try --device=auto")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise UserError(f"--device={device}: there are {torch.cuda.device_count()} GPUs here, counted from cuda:0")
    if kind == "mps" and not mps:
        raise UserError("--device=mps: there is no Apple GPU that PyTorch can use here; try --device=auto")

    if dtype == "auto":
        native = kind == "cuda" and torch.cuda.get_device_capability(torch.device(device))[0] >= 8
        dtype = "bfloat16" if native else "float16" if kind == "cuda" else "float32"
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"--dtype={dtype} is unknown: it may be auto, float32, bfloat16 or float16")

    if compile == "auto":
        compile = kind == "cuda" and importlib.util.find_spec("triton") is not None
    if str(compile).lower() not in ("true", "1", "false", "0"):
        raise UserError(f"--compile={compile} should be True, False or auto")
    return torch.device(device), getattr(torch, dtype), str(compile).lower() in ("true", "1")


def keep_freed_memory():
    """
    Have Linux' C library keep the memory that tensors free, rather than hand it to the kernel and fetch it anew, filled
    with zeros, in each iteration: a tenth of the time of GPT-2 (124M).
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            libc = ctypes.CDLL(None)
            libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD: take blocks up to this size from the heap,
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: and leave this much of it at its free end


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
            f.flush()
            os.fsync(f.fileno())
            f.close()  # Windows moves no open file
        for path in paths:
            failed = repr(path)
            os.replace(f"{path}.tmp", path)
    except BaseException as failure:
        for f in files:
            with contextlib.suppress(OSError):
                f.close()  # which may fail once more, at the same full disk
            with contextlib.suppress(OSError):
                os.remove(f.name)
        if isinstance(failure, OSError):
            raise UserError(f"cannot write {failed}: {failure.strerror}") from None
        raise


def data_folder(dataset):
    """The folder of a dataset, data/NAME beside the scripts."""
    return os.path.join(HERE, "data", dataset)
