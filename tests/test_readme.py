"""What README.md, --help and the config files name is there: commands, options with their values, files, targets."""

import ast
import os
import re
import shlex
from functools import cache
from itertools import dropwhile, groupby
from pathlib import Path

import pytest

from configurator import UserError, configure, parse, read_config_file, read_options

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = [
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.py", "data/*.py", "data/*/*.py")
    for path in sorted(ROOT.glob(pattern))
    if "\nif __name__ ==" in path.read_text(encoding="utf-8")
]
OTHERS = {  # options of other programs that the README may name
    *("--standalone", "--nproc_per_node", "--nnodes", "--node_rank", "--master_addr", "--master_port"),  # torchrun
    *("--max_restarts", "--rdzv_backend", "--rdzv_endpoint", "--rdzv_id"),
    *("--index-url", "--extra-index-url", "--upgrade"),  # pip
    *("--depth", "--branch"),  # git
    "--local-dir",  # hf
    *("--help", "--key"),  # what every script has, and what stands for any option
}
PLACEHOLDER = re.compile(r"\b(N|M|NAME|FOLDER|PATH)\b|\.\.\.")  # what the reader is to fill in


def assigned_in(program):
    """The names in small letters that a script assigns above its first function, with their values' syntax trees."""
    for node in ast.parse((ROOT / program).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            break
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id.islower():
                yield target.id, node.value


def options_of(program):
    """A script's options, without running it: their defaults need nothing, or the module os."""
    defaults = {name: eval(ast.unparse(value), {"os": os}) for name, value in assigned_in(program)}
    return read_options({**defaults, "__file__": str(ROOT / program)})


OPTIONS = {program: options_of(program) for program in PROGRAMS}


def code_in(text):
    """The lines of all fenced or indented blocks, and the pieces of inline code, joined where one has two lines."""
    lines, prose, fenced, before = [], [], False, ""
    for line in text.splitlines():
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        # an indented line is code after an empty line, or after code; else it goes on with a list's item
        elif fenced or line.startswith("    ") and (not before.strip() or before.startswith("    ")):
            lines.append(line.strip())
        else:
            prose.append(line)
        before = line
    continued = "\n".join(lines).replace("\\\n", " ").splitlines()
    inline = re.findall(r"`((?:[^`\n]|\n(?!\n))+)`", "\n".join(prose))  # which no empty line interrupts
    return continued, [" ".join(code.split()) for code in inline]


def commands_in(code):
    """The commands in a line of code, as lists of words, without the values that they set for variables."""
    lexer = shlex.shlex(code, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # a line of output, with an apostrophe
        words = code.split()
    for divides, command in groupby(words, lambda word: not word.strip("|&;")):
        if not divides:
            yield list(dropwhile(lambda word: re.match(r"[A-Z_]+=|\$$", word), command))


def calls_in(text):
    """The commands that start a script of ours, as lists of words that begin with the script."""
    lines, inline = code_in(text)
    for words in (words for code in lines + inline for words in commands_in(code)):
        programs = [re.sub(r"^.*[/\\!]|\.exe$", "", word) for word in words]
        start = next((i for i, name in enumerate(programs) if re.fullmatch(r"python[\d.]*|torchrun", name)), None)
        if start is not None and words[start + 1 : start + 2] not in (["-m"], ["-c"]):
            yield from [words[i:] for i, word in enumerate(words) if i > start and word.endswith(".py")][:1]
    for words in (words for code in inline for words in commands_in(code)):
        if words and words[0] in OPTIONS:  # as in `sample.py --top_k=5`
            yield words


def wrong_value(script, name, value):
    """Why a script would not take `value` for its option, or None."""
    if not PLACEHOLDER.search(value):
        try:
            parse(name, value, OPTIONS[script][name])
        except UserError as mistake:
            return f"{script}: {mistake}"


def wrong_in_call(words):
    """What of a command the script would not take, one line each."""
    script, *arguments = words
    if script not in OPTIONS:
        yield f"there is no script {script}"
        return
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        if argument in ("-h", "--help", "...", ">"):
            continue
        if not argument.startswith("-"):
            known = re.match(r"config/.*\.py$", argument) and (ROOT / argument).is_file()
            if not (known or PLACEHOLDER.search(argument) or script == "plot.py"):
                yield f"{script}: there is no config file {argument}"
        elif not argument.startswith("--") or not equals or name not in OPTIONS[script]:
            yield f"{script} has no option {argument}"
        elif wrong := wrong_value(script, name, value):
            yield wrong


def wrong_options(text):
    """The options in code that no script of ours has, nor a program that we name, or none with this value."""
    lines, inline = code_in(text)
    for option in re.findall(r"(?<![\w-])--(?=[a-zA-Z])[\w-]+", "\n".join(lines + inline)):
        name = option.removeprefix("--")
        if option not in OTHERS and not any(name in options for options in OPTIONS.values()):
            yield f"no script has the option {option}"
    for name, value in re.findall(r"(?m)^--(\w+)=(\S+)$", "\n".join(word for code in inline for word in code.split())):
        wrong = [wrong_value(script, name, value) for script, options in OPTIONS.items() if name in options]
        if wrong and all(wrong):
            yield wrong[0]


def wrong_files(text):
    """The files in links, in tables' first columns and in inline code that are not there, nor made by a command."""
    links = re.findall(r"\]\((?!\w+:|#)([^)\s#]+)", text)
    links += re.findall(r'(?:src|srcset|href)="(?!\w+:|#)([^"#]+)"', text)
    rows = re.findall(r"^\| *((?:`[^`|]+`[, and]*)+) *\|", text, re.MULTILINE)
    named = [code for row in rows for code in re.findall(r"`([^`]+)`", row) if re.search(r"^[\w./*-]+(\.\w+|/)$", code)]
    inline = [code for code in code_in(text)[1] if re.fullmatch(r"[\w./-]+\.(py|ipynb)|(config|data|tests)/.+", code)]
    for name in links + named + inline:
        made = PLACEHOLDER.search(name) or re.search(r"^out\b|\.(bin|pt|jsonl|wav)$", name)
        folders = ["", "config/", "data/", "data/*/", "tests/"] if name not in links else [""]
        if not made and not any(list(ROOT.glob(folder + name.rstrip("/"))) for folder in folders):
            yield f"there is no file {name}"


def wrong_places(text):
    """The headings that links within the README want, and the make targets, that are not there."""
    titles = [re.sub(r"[^\w\- ]", "", title.lower()) for title in re.findall(r"(?m)^#+ +(.+?) *$", text)]
    for anchor in re.findall(r'(?:\]\(|href=")#([^)"]+)', text):
        if anchor not in [title.replace(" ", "-") for title in titles]:
            yield f"there is no heading #{anchor}"
    targets = re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"))
    for words in (words for part in code_in(text) for code in part for words in commands_in(code)):
        if words[:1] == ["make"]:
            yield from (f"there is no make target {word}" for word in words[1:] if word not in targets)


@cache
def wrong_in(text):
    """All that is wrong in a README, one line each."""
    wrong = [line for words in calls_in(text) for line in wrong_in_call(words)]
    return [*wrong, *wrong_options(text), *wrong_files(text), *wrong_places(text)]


def test_the_readme_names_only_what_there_is():
    assert not wrong_in(README)


def test_the_readme_shows_how_to_prepare_train_and_sample():
    shown = {words[0] for words in calls_in(README)}
    assert {"train.py", "sample.py", "data/hitchikersguide/prepare.py"} <= shown


@pytest.mark.parametrize(
    "more, said",
    [
        ("    python trian.py", "no script trian.py"),
        ("```\n$ .venv/bin/python sample.py --out_dri=out\n```", "no option --out_dri=out"),
        ("```sh\nWANDB_MODE=offline python3 train.py \\\n  --lerning_rate=1\n```", "no option --lerning_rate=1"),
        ("    python sample.py --start='a b' | python nospeak.py", "no script nospeak.py"),
        ("    python sample.py --start='a | b'|python nospeak.py", "no script nospeak.py"),
        ("    next: python train.py --top_k=5", "train.py has no option --top_k=5"),
        ("    torchrun --nproc_per_node=2 train.py --max_iters=1e3", "--max_iters=1e3 should be a whole number"),
        ("    torchrun --nproc_per_nod=2 train.py", "the option --nproc_per_nod"),
        ("    python train.py --wandb_log", "no option --wandb_log"),
        ("    python train.py -wandb_log=True", "no option -wandb_log=True"),
        ("    python train.py config/train_hitchiker.py", "no config file config/train_hitchiker.py"),
        ("    python train.py model.py", "no config file model.py"),
        ("    python plot.py out-a out-b --z=tokens", "plot.py has no option --z=tokens"),
        ("Say `python\nsample.py --temperature=warm`.", "--temperature=warm should be a number"),
        ("`sample.py --max_iters=5` is train.py's", "sample.py has no option --max_iters=5"),
        ("`--topp=0.5` is no option", "the option --topp"),
        ("`--top_p=most` is no number", "--top_p=most should be a number"),
        ("See [the novel](data/hitchhikersguide/README.md).", "no file data/hitchhikersguide/README.md"),
        ("See [below](#troubleshoting).", "no heading #troubleshoting"),
        ('<img src="no-such.png">', "no file no-such.png"),
        ("| `modell.py` | the model |", "no file modell.py"),
        ("| `model.py`, `data/no/` | |", "no file data/no/"),
        ("| `config/` | `train_hitch.py` is small |", "no file train_hitch.py"),
        ("    make demmo     # a demo", "no make target demmo"),
        ("    cd here && make demo tset", "no make target tset"),
    ],
)
def test_a_readme_that_names_something_else_is_found_out(more, said):
    new = set(wrong_in(f"{README}\n\n{more}\n")) - set(wrong_in(README))
    assert any(said in line for line in new)


@pytest.mark.parametrize(
    "text",
    [
        "    PYTHON=python3.12 make demo     # a demo",
        "    torchrun --nproc_per_node=2 train.py config/train_gpt2.py --zero=True",
        "    !python train.py config/NAME.py --max_iters=... --out_dir=FOLDER",
        "    python plot.py out-a out-b --x=tokens",
        "`sample.py --top_p=0.9`, `--top_k=None`, `--wandb_log`, `eval_gpt2_xl.py` and `out-mine/loss.png`",
        "## What's this?\n\n[this](#whats-this), [here](Makefile), [there](https://example.org/no.py)",
    ],
)
def test_what_is_there_is_not_found_fault_with(text):
    assert not wrong_in(text)


@pytest.mark.parametrize("old, new", [("--out_dir=", "--outdir="), ("train.py", "traim.py"), ("(data/", "(date/")])
def test_a_renaming_that_the_readme_missed_is_found_out(old, new):
    assert set(wrong_in(README.replace(old, new))) - set(wrong_in(README))


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_lists_every_option_with_its_default_and_its_comment(program, capsys):
    source, options = (ROOT / program).read_text(encoding="utf-8"), OPTIONS[program]
    assert "configure(globals()" in source and options
    namespace = {name: option.default for name, option in options.items()}
    namespace |= {"__file__": str(ROOT / program), "__doc__": ast.get_docstring(ast.parse(source))}
    with pytest.raises(SystemExit):
        configure(namespace, ["--help"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for name, option in options.items():
        assert option.comment
        assert any(line.startswith(f"--{name}={option.default!r} ") and line.endswith(option.comment) for line in lines)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_option_of_a_script_has_a_comment(program):
    assert [name for name, _ in assigned_in(program)] == list(OPTIONS[program])


@pytest.mark.parametrize("path", sorted(ROOT.glob("config/*.py")), ids=lambda path: path.name)
def test_a_config_file_sets_known_options_of_train_py(path):
    defaults = {name: option.default for name, option in OPTIONS["train.py"].items()}
    assert read_config_file(str(path), defaults, OPTIONS["train.py"]) != defaults
