"""
What all scripts share: options, errors, and files that are read, fetched and replaced safely. Needs nothing but
Python, and huggingface_hub where a file is to be fetched.

A script's options are the plain assignments at its top, each with a trailing comment:

    batch_size = 12  # windows in a micro-batch
    top_k: int | None = 200  # an annotation is needed only where None is allowed too
    out_dir = "out"  # a text that begins with ~/ is a path in the home folder
    start = "Hi"  # but not where the comment names FILE: there a path follows on FILE:, and all else is just a text

`configure(globals())` replaces their values, in this order: the config files as they come on the command line, then
every --key=value, wherever it stands.
"""

import ast
import contextlib
import difflib
import errno
import glob
import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import signal
import sys
import textwrap
import time
from itertools import groupby
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import NamedTuple

HERE = os.path.dirname(os.path.abspath(__file__))
at_end = contextlib.ExitStack()  # what `run` does when main() ends, however it ends: at_end.callback(function)


def show_exception(kind, failure, trace):
    """Ctrl-C while a script still imports is no traceback."""
    note("\ninterrupted") if kind is KeyboardInterrupt else sys.__excepthook__(kind, failure, trace)


sys.excepthook = show_exception


class UserError(Exception):
    """A mistake that the user can mend. `run` shows it as one line, without a traceback."""

    def __init__(self, message):
        super().__init__(" ".join(str(message).splitlines()))  # a value that it quotes may have several lines


# -----------------------------------------------------------------------------
# the process


def note(line):
    """Print a line on standard error, where there is one that takes it."""
    with contextlib.suppress(OSError, ValueError):  # full, or closed
        if sys.stderr:  # print() would take standard output for None
            print(line, file=sys.stderr, flush=True)


def end_with_error(message):
    """End the process with an `error:` line, before `run` has begun."""
    note(f"error: {message}")
    sys.exit(2)


def process_numbers(environment):
    """
    This process's number among those that torchrun started, its number on this machine, and the count of all: RANK,
    LOCAL_RANK and WORLD_SIZE. Raises UserError where these are no numbers that fit together.
    """
    numbers = []
    for name, default in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        text = environment.get(name) or default
        if not re.fullmatch("[0-9]{1,9}", text):
            raise UserError(f"the environment has {name}={text:.80}: it should be a whole number, as torchrun sets it")
        numbers.append(int(text))
    rank, local_rank, world_size = numbers
    if not max(rank, local_rank) < world_size:
        given = f"RANK={rank}, LOCAL_RANK={local_rank} and WORLD_SIZE={world_size}"
        raise UserError(f"the environment has {given}: the first two should be below the third, as torchrun sets them")
    return rank, local_rank, world_size


try:
    RANK, LOCAL_RANK, WORLD_SIZE = process_numbers(os.environ)  # only number 0 prints and writes files
except UserError as mistake:
    end_with_error(mistake)


def run(main, alone=True):
    """
    Call `main()`. A UserError, or too little memory, ends the process with one `error:` line and status 2.

    Of the processes that torchrun starts only the first one calls it, unless not `alone`, which is for a training.
    That also goes on where nobody can read what it prints; all else ends there.
    """
    if alone and RANK > 0:
        return
    signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in signals}
    try:
        status = status_of(main, alone)
    finally:
        for number, handler in handlers.items():  # a notebook's %run would go on with those of a training
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
    failure = flush(sys.stdout)
    flush(sys.stderr)
    if alone and failure and not status:
        status = unwritable(failure)
    if status:
        sys.exit(status)


def status_of(main, alone):
    """The status with which a process that calls `main()` should end, once what is wrong has been said."""
    try:
        open_streams(alone)
        with at_end:
            main()
        return 0
    except SystemExit as end:
        return end.code
    except UserError as mistake:
        if LOCAL_RANK > 0:
            # The first process may be showing the same mistake. torchrun then sends SIGTERM to the others: wait for it.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(3)
        note(f"error: {mistake}")
        return 2
    except KeyboardInterrupt:
        note("\ninterrupted")
        return 130
    except OSError as failure:
        # printing names no file; all else that fails at these is caught where it is written
        printing = failure.filename is None and failure.errno in (errno.ENOSPC, errno.EIO, errno.EBADF)
        if not (printing or is_broken_pipe(failure)):
            raise
        return unwritable(failure)
    except (MemoryError, RuntimeError) as failure:
        if "RANK" in os.environ and re.search("closed by peer|reset by peer|remote process|NCCL", str(failure)):
            return 1  # another process has ended, and said why
        if not (isinstance(failure, MemoryError) or re.search("out of memory|can't allocate memory", str(failure))):
            raise
        note(f"error: out of memory ({first_line(failure)}): try a smaller batch or model")
        return 2


def open_streams(alone):
    """Make standard output and error such that printing to them fails at nothing but a closed or full one."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file to be opened would get its number, and what libraries print there
            os.open(os.devnull, os.O_RDWR)
    closed = sys.stdout is None
    sys.stdout = open(os.devnull, "w") if closed else sys.stdout
    sys.stderr = open(os.devnull, "w") if sys.stderr is None else sys.stderr  # print() would take standard output
    with contextlib.suppress(AttributeError):  # Jupyter's has no encoding to care about
        sys.stdout.reconfigure(errors="replace")  # standard error shows everything as it is
    if closed and alone:
        raise UserError("standard output is closed: it should be a terminal, a file or a pipe")


def flush(stream):
    """Write what is left for standard output or error. Returns the OSError if it is full or closed."""
    try:
        stream.flush()
    except OSError as failure:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # or Python complains at exit, with a status of 120
        return failure


def is_broken_pipe(failure):
    """Whether an OSError is that the reader of a pipe, say `head`, has seen enough. Windows calls it EINVAL."""
    return isinstance(failure, BrokenPipeError) or (os.name == "nt" and failure.errno == errno.EINVAL)


def unwritable(failure):
    """The status for a standard output that takes no more. Says so, unless its reader has ended."""
    if is_broken_pipe(failure):
        return 1
    note(f"error: cannot write to standard output: {failure.strerror}")
    return 2


def first_line(failure):
    """The first line of an exception's message."""
    return (str(failure).strip() or type(failure).__name__).splitlines()[0]


def check_installed(*modules):
    """Raise UserError, which says how to install what is missing, before an import fails with a traceback."""
    missing = [name for name in modules if name not in sys.modules and importlib.util.find_spec(name) is None]
    if missing:
        how = "'pip install -r requirements.txt'"
        how += "" if os.name == "nt" else ", or run with '.venv/bin/python', which 'make demo' sets up"
        raise UserError(f"{sys.executable} has no {', '.join(missing)}: {how}")


try:
    check_installed("numpy", "torch", "tiktoken", "tqdm")  # every script imports this file first
except UserError as mistake:
    end_with_error(mistake)


def quote(text):
    """A word as the shell of this system wants it."""
    if os.name == "nt":
        from subprocess import list2cmdline  # here, since only Windows needs it

        return list2cmdline([text])
    return shlex.quote(text)


def command(script, *arguments, **options):
    """The command that runs a script of ours with these arguments and options, quoted for the shell."""
    settings = [f"--{name}={quote(str(value))}" for name, value in options.items()]
    return " ".join(["python", quote(script), *map(quote, arguments), *settings])


# -----------------------------------------------------------------------------
# options


class Option(NamedTuple):
    default: object
    kinds: tuple  # the types it may have: its annotation's, or else its default's
    comment: str


KINDS = {"bool": bool, "int": int, "float": float, "str": str, "None": type(None)}


def read_options(namespace):
    """The options of a script, by name: its commented assignments above the first function, read from its source."""
    options = {}
    for name, annotation, comment in commented_assignments(namespace["__file__"]):
        default = namespace[name]
        kinds = (annotation or type(default).__name__).split(" | ")
        options[name] = Option(default, tuple(KINDS[kind] for kind in kinds), comment)
    return options


def commented_assignments(path):
    """The name, annotation ("" for none) and comment of each commented assignment above a script's first function."""
    with open(path, encoding="utf-8") as f:
        source = f.read()
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            break
        comment = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode().strip()  # ast counts bytes
        if not (isinstance(node, ast.Assign | ast.AnnAssign) and comment.startswith("#")):
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name) and target.id.islower():  # else it is a constant
            annotation = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else ""
            yield target.id, annotation, comment.lstrip("# ")


def configure(namespace, argv=None, takes=None, positional=None):
    """
    Set a script's options from its command line, and return them as a dict. `--help` prints them and exits.

    `namespace` is the script's globals(), changed in place; `argv` the arguments, by default the command line's.
    An argument without --key= is a config file, or else the value of the option that `positional` names: then a script
    takes no config files. `takes` is how the help shows such arguments. Raises UserError for what no option can be,
    before any config file runs.
    """
    arguments = sys.argv[1:] if argv is None else argv
    options = read_options(namespace)
    if "--help" in arguments or "-h" in arguments:
        print_help(namespace, options, takes or (f"[{positional}]" if positional else "[config.py ...]"))
        sys.exit(0)
    files, plain, given = [], [], {}
    for i, argument in enumerate(arguments):
        name, equals, text = argument.removeprefix("--").partition("=")
        if positional and (argument == "-" or not argument.startswith("-")):
            plain.append(argument)
        elif not argument.startswith("-") and argument.endswith(".py"):
            files.append(find_config_file(argument))
        elif not argument.startswith("--") or not equals:
            raise UserError(f"cannot read the argument {argument!r}: {advice(arguments, i, options, positional)}")
        elif name not in options:
            raise UserError(f"there is no option --{name}: {suggestion(name, options, '--')}")
        else:
            given[name] = parse(name, text, options[name])
    if len(plain) > 1:
        raise UserError(
            f"--{positional} takes one value, and {len(plain)} are there, {plain[0]!r} and {plain[1]!r} the first: put "
            "a pattern, or a name with spaces, in quotes"
        )
    if plain:
        given[positional] = parse(positional, plain[0], options[positional])
    config = {name: option.default for name, option in options.items()}
    for path in files:
        config |= read_config_file(path, config, options)
    config |= given
    namespace.update(config)
    return config


def advice(arguments, i, options, positional):
    """What to write in place of the argument number i, which is none."""
    argument, following = arguments[i], arguments[i + 1 : i + 2]
    name = argument.removeprefix("--")
    if argument.startswith("--") and name in options:
        option = options[name]
        value = True if option.kinds[0] is bool else option.default
        value = following[0] if following and not following[0].startswith("--") else value
        value = "text" if "\n" in str(value) else value  # an error has one line
        return f"write --key=value, as in --{name}={quote(str(value))}"
    near = difflib.get_close_matches(f"{name}.py", known_config_files(), 1, 0.8)
    if near and not positional:
        return f"did you mean {near[0]}?"
    return "write --key=value, or --help for the options" + ("" if positional else "; a config file ends in .py")


def parse(name, text, option):
    """The value of a text from the command line, in the option's type."""
    if type(None) in option.kinds and text == "None":
        return None
    read = {bool: truth, int: whole_number}.get(option.kinds[0], option.kinds[0])
    try:
        value = read(text)
    except ValueError:
        raise UserError(f"--{name}={text} should be {wanted(option)}") from None
    return check(name, value, option)


def truth(text):
    """The bool that a text stands for. Raises ValueError."""
    if text.lower() not in ("true", "1", "false", "0"):
        raise ValueError(text)
    return text.lower() in ("true", "1")


def whole_number(text):
    """The int that a text stands for: 12, or 1e3. Raises ValueError."""
    with contextlib.suppress(ValueError):
        return int(text)
    if not float(text).is_integer():
        raise ValueError(text)
    return int(float(text))


def check(name, value, option):
    """
    `value`, if it has the option's type. An int becomes a float where one is wanted, and 1e3 an int; a path in the home
    folder, ~/x, is written out. Raises UserError otherwise.
    """
    if type(value) is float and float not in option.kinds and int in option.kinds and value.is_integer():
        value = int(value)
    if type(value) is int and abs(value) >= 2**63 or type(value) is float and not math.isfinite(value):
        huge = type(value) is int and value.bit_length() > 200  # Python refuses to print the largest
        given = f"an integer of {value.bit_length()} bits" if huge else value
        raise UserError(f"{name} = {given} is out of range: it should be {wanted(option)}")
    if type(value) is int and float in option.kinds:
        return float(value)
    if type(value) not in option.kinds:
        raise UserError(f"{name} = {value!r:.80} should be {wanted(option)}")
    return value if type(value) is not str else check_text(name, value, option)


def check_text(name, value, option):
    """A text, or a path without its ~. Raises UserError for a character that no text or path can have."""
    if "\0" in value:
        raise UserError(f"{name} = {value!r:.80} has a null character: it should be {wanted(option)}")
    if "FILE:" not in option.comment:  # a path, or a name
        return without_tilde(value)
    if value.startswith("FILE:"):
        return "FILE:" + without_tilde(value.removeprefix("FILE:"))
    with contextlib.suppress(UnicodeError):  # in an ASCII locale Python keeps what was typed as single bytes
        value = value.encode("ascii", "surrogateescape").decode("utf-8")
    try:
        value.encode("utf-8")
    except UnicodeError:
        raise UserError(f"{name} = {ascii(value):.80} is not UTF-8: it should be {wanted(option)}") from None
    return value


def without_tilde(path):
    """A path in the home folder, ~/x, written out; all others as they are."""
    return os.path.expanduser(path) if re.match(r"~([/\\]|$)", path) else path


def check_range(config, limits):
    """Raise UserError for a number in `config` outside its limits, {name: (the least, the most)}. None is within."""
    for name, (least, most) in limits.items():
        value = config[name]
        if value is not None and value < least:
            raise UserError(f"--{name}={value} should be at least {least}")
        if value is not None and value > most:
            raise UserError(f"--{name}={value} should be at most {most}")


def wanted(option):
    """An option's type and default in words, for error messages."""
    words = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", type(None): "None"}
    return f"{' or '.join(words[kind] for kind in option.kinds)} (the default is {option.default!r})"


def suggestion(name, known, prefix=""):
    """'did you mean ...?' with the nearest of the known names, or else all of them."""
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {prefix}{near[0]}?" if near else f"there are {', '.join(prefix + k for k in known)}"


IMPORTED = (ModuleType, FunctionType, BuiltinFunctionType, type)  # what a config file may also give names to


def known_config_files():
    """The config files that come with the scripts, by the names that the command line takes."""
    folder = os.path.join(HERE, "config")
    return [f"config/{name}" for name in sorted(os.listdir(folder))] if os.path.isdir(folder) else []


def find_config_file(path):
    """The path of a config file: as it is, or in the scripts' own folder. Raises UserError where there is none."""
    if os.path.exists(path):
        return path
    if path not in (known := known_config_files()):
        raise UserError(f"there is no config file {path!r}: {suggestion(path, known)}")
    return os.path.join(HERE, path)


def read_config_file(path, config, options):
    """
    The options that a config file sets, as a dict. It sees the values so far, `config`, and may import, define
    functions and compute. A note names what else it sets, but for names that begin with an underscore: options of
    other scripts, and helpers. Raises UserError for a name that looks like an option's.
    """
    result, others = {}, []
    for name, value in run_config_file(path, config).items():
        if name in options:
            try:
                result[name] = check(name, value, options[name])
            except UserError as mistake:
                raise UserError(f"{path}: {mistake}") from None
        elif not name.startswith("_") and not isinstance(value, IMPORTED):
            others.append(name)
    elsewhere = other_options() if others else set()
    for name in others:
        if name not in elsewhere and difflib.get_close_matches(name, options, 1, 0.8):
            raise UserError(f"{path} sets {name!r}, which is no option: {suggestion(name, options)}")
    if others and RANK == 0:
        names = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        note(f"note: {path} sets {names}: no {'option' if len(others) == 1 else 'options'} of this script")
    return result


def other_options():
    """The names of all scripts' options."""
    names = set()
    for path in glob.glob(os.path.join(glob.escape(HERE), "*.py")):
        with contextlib.suppress(OSError, SyntaxError, ValueError):  # a file of the user's own
            names |= {name for name, _, _ in commented_assignments(path)}
    return names


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
    """Print a script's docstring, and each option with its default and comment, at most as wide as the terminal."""
    script = os.path.relpath(namespace["__file__"])
    with open(namespace["__file__"], encoding="utf-8") as f:
        docstring = ast.get_docstring(ast.parse(f.read())) or ""  # python -OO leaves __doc__ empty
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    print(f"{rewrapped(docstring, width)}\n")
    print(fill(f"usage: python {script} {takes} [--key=value ...]", width, " " * 4) + "\n")
    settings = [f"--{name}={option.default!r}" for name, option in options.items()]
    longest = max(map(len, settings), default=0)
    for setting, option in zip(settings, options.values()):
        if longest > width / 2:  # no room for two columns
            print(fill(f"  {setting}", width, " " * 4))
            print(fill(f"      {option.comment}", width, " " * 6))
        else:
            print(fill(f"  {setting:{longest}}  {option.comment}", width, " " * (longest + 4)))


def rewrapped(text, width):
    """A text that is wrapped already, wrapped anew where it is too wide; indented lines each for itself."""
    lines = text.splitlines()
    if max(map(len, lines), default=0) <= width:
        return text
    paragraphs = []
    for prose, group in groupby(lines, lambda line: bool(re.match(r"\S", line))):
        group = list(group)
        paragraphs += [" ".join(group)] if prose else group
    return "\n".join(fill(paragraph, width, " " * 8 * paragraph.startswith(" ")) for paragraph in paragraphs)


def fill(line, width, indent):
    """A line that is cut between words where it is wider than `width`; the further lines begin with `indent`."""
    if len(line) <= width:
        return line
    return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


# -----------------------------------------------------------------------------
# files


def data_folder(dataset):
    """The folder of a dataset, data/NAME beside the scripts."""
    return os.path.join(HERE, "data", dataset)


def read_text(path, what="file"):
    """The whole of a UTF-8 text file, `-` for standard input. Raises UserError, which calls it `what`."""
    try:
        if path == "-":
            return re.sub("\r\n?", "\n", standard_input().read().decode("utf-8"))  # as open() does for files
        with open(path, encoding="utf-8") as f:
            return f.read()
    except OSError as failure:
        raise UserError(f"cannot read the {what} {path!r}: {failure.strerror}") from None
    except UnicodeDecodeError as failure:
        raise UserError(f"the {what} {path!r} is not UTF-8 (byte {failure.start}): save it as UTF-8 first") from None


def text_or_file(value, what):
    """The text of an option: itself, or after FILE: that of the file whose path follows. Raises UserError."""
    return read_text(value.removeprefix("FILE:"), what) if value.startswith("FILE:") else value


def standard_input():
    """Standard input as a binary stream. Raises UserError where it is closed, or a notebook's."""
    if not hasattr(sys.stdin, "buffer"):
        raise UserError("there is no standard input to read from: name a file, or give it a file or a pipe")
    return sys.stdin.buffer


def read_json(path):
    """The dict in a JSON file. Raises OSError, or ValueError if it is damaged."""
    try:
        with open(path, encoding="utf-8") as f:
            content = json.load(f)
    except (ValueError, RecursionError) as failure:
        raise ValueError(f"{path!r} is damaged ({failure})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path!r} is damaged: it should hold a dict")
    return content


def hub_folder(repos, files, local_dir):
    """
    The folder of a model on the Hugging Face hub: from the cache if all `files` are there, or else fetched.

    `repos` are the names the cache may have it under; the first is the one to fetch. Raises FileNotFoundError where
    the hub has no such file; otherwise OSError with the reason, and with the command that makes a folder `local_dir`
    of it on a machine that has a network.
    """
    import huggingface_hub as hub
    from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError

    for repo in repos:
        with contextlib.suppress(OSError, ValueError):
            folder = hub.snapshot_download(repo, allow_patterns=files, local_files_only=True)
            if all(os.path.exists(os.path.join(folder, file)) for file in files):
                return folder
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(repos[0], files[0]))  # fails at once without a network
        return hub.snapshot_download(repos[0], allow_patterns=files)
    except (RemoteEntryNotFoundError, RepositoryNotFoundError):
        raise FileNotFoundError(f"the hub has no {repos[0]} with {files[0]}") from None
    except Exception as failure:  # of many kinds: the hub's own and httpx'
        why = f"{type(failure).__name__}: {first_line(failure).partition('. ')[0]:.150}"
        raise OSError(
            f"it is not in the cache {hub.constants.HF_HUB_CACHE!r} and cannot be fetched from the hub ({why}): on a "
            f"machine with a network, 'hf download {repos[0]} {' '.join(files)} --local-dir {local_dir}' makes a "
            f"folder {local_dir} to copy here"
        ) from None


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
