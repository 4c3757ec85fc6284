"""What README.md, --help and the config files name is there: commands, options with their values, files, targets."""

import ast
import os
import re
import shlex
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
}


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
        if line.lstrip().startswith("```"):
            fenced = not fenced
        # an indented line is code after an empty line, or after code; else it goes on with a list's item
        elif fenced or line.startswith("    ") and (not before.strip() or before.startswith("    ")):
            lines.append(line.strip())
        else:
            prose.append(line)
        before = line
    continued = "\n".join(lines).replace("\\\n", " ").splitlines()
    return continued, [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", "\n".join(prose))]


def commands_in(text):
    """The commands that start a script of ours, as lists of words that begin with the script."""
    for code in (code for part in code_in(text) for code in part):
        for command in re.split(r"\s(?:\||&&|;)\s", code):
            try:
                words = shlex.split(command, comments=True)
            except ValueError:  # a line of output, with an apostrophe
                continue
            words = words[next((i for i, w in enumerate(words) if not re.match(r"^(\$|!|[A-Z_]+=.*)$", w)), 0) :]
            program = re.sub(r"^.*[/\\]|\.exe$", "", words[0].lstrip("!%")) if words else ""
            if not re.fullmatch(r"python[\d.]*|torchrun", program) or words[1:2] in (["-m"], ["-c"]):
                continue
            script = next((i for i, word in enumerate(words) if word.endswith(".py")), None)
            if script is not None:
                yield words[script:]


def wrong_in_command(words):
    """What of a command the script would not take, one line each."""
    script, *arguments = words
    if script not in OPTIONS:
        yield f"there is no script {script}"
        return
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        if argument in ("-h", "--help", "...", ">") or script == "plot.py" and not argument.startswith("-"):
            continue
        if not argument.startswith("-"):
            if not (argument.endswith(".py") and (ROOT / argument).is_file()):
                yield f"{script}: there is no config file {argument}"
        elif not argument.startswith("--") or not equals or name not in OPTIONS[script]:
            yield f"{script} has no option {argument}"
        else:
            try:
                parse(name, value, OPTIONS[script][name])
            except UserError as mistake:
                yield f"{script}: {mistake}"


def wrong_options(text):
    """The options in code that neither a script of ours has nor a program that we name."""
    ours = {f"--{name}" for options in OPTIONS.values() for name in options}
    for code in (code for part in code_in(text) for code in part):
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", code):
            if option not in ours | OTHERS | {"--help", "--key"}:
                yield f"no script has the option {option}"


def wrong_files(text):
    """The files in links and in tables' first columns, and the make targets, that are not there."""
    links = re.findall(r"\]\((?!\w+:|#)([^)\s#]+)", text) + re.findall(
        r'(?:src|srcset|href)="(?!\w+:|#)([^"#]+)"', text
    )
    rows = re.findall(r"^\| *((?:`[^`|]+`[, and]*)+) *\|", text, re.MULTILINE)
    named = [code for row in rows for code in re.findall(r"`([^`]+)`", row) if re.search(r"^[\w./*-]+(\.\w+|/)$", code)]
    inline = [code for code in code_in(text)[1] if re.fullmatch(r"(config|data|tests)/[\w./-]+\.(py|md|txt)", code)]
    for name in links + named + inline:
        if not list(ROOT.glob(name.rstrip("/"))):
            yield f"there is no file {name}"
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for code in (code for part in code_in(text) for code in part):
        made = re.match(r"make ([\w-]+)", code)
        if made and made[1] not in targets:
            yield f"there is no make target {made[1]}"


def wrong_in(text):
    """All that is wrong in a README, one line each."""
    wrong = [line for words in commands_in(text) for line in wrong_in_command(words)]
    return [*wrong, *wrong_options(text), *wrong_files(text)]


def test_the_readme_names_only_what_there_is():
    assert not wrong_in(README)


def test_the_readme_shows_how_to_prepare_train_and_sample():
    shown = {words[0] for words in commands_in(README)}
    assert {"train.py", "sample.py", "data/hitchikersguide/prepare.py"} <= shown


@pytest.mark.parametrize(
    "more, said",
    [
        ("    python trian.py", "no script trian.py"),
        ("```\n$ .venv/bin/python sample.py --out_dri=out\n```", "no option --out_dri=out"),
        ("```sh\nWANDB_MODE=offline python3 train.py \\\n  --lerning_rate=1\n```", "no option --lerning_rate=1"),
        ("    python sample.py --start='a b' | python nospeak.py", "no script nospeak.py"),
        ("    torchrun --nproc_per_node=2 train.py --max_iters=1e3", "--max_iters=1e3 should be a whole number"),
        ("    torchrun --nproc_per_nod=2 train.py", "the option --nproc_per_nod"),
        ("    python train.py --wandb_log", "no option --wandb_log"),
        ("    python train.py -wandb_log=True", "no option -wandb_log=True"),
        ("    python train.py config/train_hitchiker.py", "no config file config/train_hitchiker.py"),
        ("Say `python\nsample.py --temperature=warm`.", "--temperature=warm should be a number"),
        ("`--topp=0.5` is no option", "the option --topp"),
        ("See [the novel](data/hitchhikersguide/README.md).", "no file data/hitchhikersguide/README.md"),
        ('<img src="no-such.png">', "no file no-such.png"),
        ("| `modell.py` | the model |", "no file modell.py"),
        ("| `model.py`, `data/no/` | |", "no file data/no/"),
        ("`config/train_hitch.py` is small", "no file config/train_hitch.py"),
        ("    make demmo     # a demo", "no make target demmo"),
    ],
)
def test_a_readme_that_names_something_else_is_found_out(more, said):
    assert any(said in line for line in wrong_in(f"{README}\n\n{more}\n"))


@pytest.mark.parametrize(
    "line", ["python train.py config/train_gpt2.py", "make demo", "sample.py --out_dir=out", "`--top_p`"]
)
def test_what_is_there_is_not_found_fault_with(line):
    assert not wrong_in(f"{README}\n\n    {line}\n")


@pytest.mark.parametrize("old, new", [("--out_dir=", "--outdir="), ("train.py", "traim.py"), ("(data/", "(date/")])
def test_a_renaming_that_the_readme_missed_is_found_out(old, new):
    assert old in README and wrong_in(README.replace(old, new))


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_lists_every_option_with_its_default_and_its_comment(program, capsys):
    options = OPTIONS[program]
    namespace = {
        "__file__": str(ROOT / program),
        "__doc__": ast.get_docstring(ast.parse((ROOT / program).read_text("utf-8"))),
    }
    assert namespace["__doc__"] and options
    with pytest.raises(SystemExit):
        configure({**namespace, **{name: option.default for name, option in options.items()}}, ["--help"])
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
