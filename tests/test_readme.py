"""What the README, docs/, --help and the config files name exists: commands, options and values, files, links."""

import ast
import os
import re
import shlex
from itertools import dropwhile, groupby
from pathlib import Path

import pytest

from configurator import UserError, configure, parse, read_config_file, read_options

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted(ROOT.glob("docs/*.md"))
PAGES = [ROOT / "README.md", *DOCS, *sorted(ROOT.glob("data/*/README.md"))]
PROGRAMS = [
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.py", "data/*.py", "data/*/*.py", "tests/gpu_suite.py")
    for path in sorted(ROOT.glob(pattern))
    if "\nif __name__ ==" in path.read_text(encoding="utf-8")
]
OTHERS = {  # options of other programs that the pages may name
    *("--standalone", "--nproc_per_node", "--nnodes", "--node_rank", "--master_addr", "--master_port"),  # torchrun
    "--max_restarts",
    "--local-dir",  # hf
    *("--help", "--key"),  # what every script has, and what stands for any option
}
PLACEHOLDER = re.compile(r"\b(N|M|NAME|FILE|FOLDER|PATH)\b|\.\.\.|\$")  # for the reader, or the shell, to fill in


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def assigned_in(program):
    """The lower-case names that a script assigns above its first function, with the syntax trees of their values."""
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
        # an indented line is code after an empty line or after code; otherwise it continues a list item
        elif fenced or line.startswith("    ") and (not before.strip() or before.startswith("    ")):
            lines.append(line.strip())
        else:
            prose.append(line)
        before = line
    continued = "\n".join(lines).replace("\\\n", " ").splitlines()
    inline = re.findall(r"`((?:[^`\n]|\n(?!\n))+)`", "\n".join(prose))  # no empty line interrupts it
    return continued, [" ".join(code.split()) for code in inline]


def commands_in(code):
    """The commands in a line of code, as lists of words, without the variables set in front of them."""
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
        programs = [re.sub(r"^.*[/\\!]", "", word) for word in words]
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
    """What of a command the script would not take."""
    script, *arguments = words
    if script not in OPTIONS:
        yield f"there is no script {script}"
        return
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        if argument in ("--help", "...", ">"):
            continue
        if not argument.startswith("-"):
            known = re.match(r"config/.*\.py$", argument) and (ROOT / argument).is_file()
            if not (known or PLACEHOLDER.search(argument) or script in ("plot.py", "data/prepare.py")):
                yield f"{script}: there is no config file {argument}"
        elif not argument.startswith("--") or not equals or name not in OPTIONS[script]:
            yield f"{script} has no option {argument}"
        elif wrong := wrong_value(script, name, value):
            yield wrong


def wrong_options(text):
    """The options in code that no script has, nor another program that we name, or none with this value."""
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
    """The files in the first columns of tables and in inline code that neither exist nor are made by a command."""
    rows = re.findall(r"^\| *((?:`[^`|]+`[, and]*)+) *\|", text, re.MULTILINE)
    named = [code for row in rows for code in re.findall(r"`([\w./*-]+(?:\.\w+|/))`", row)]
    inline = code_in(text)[1]
    for name in named + [c for c in inline if re.fullmatch(r"[\w./-]+\.(py|ipynb|md)|(config|data|tests)/.+", c)]:
        made = PLACEHOLDER.search(name) or re.search(r"^out\b|\.(bin|pt|jsonl|wav|txt)$", name)
        folders = ("", "config/", "data/", "data/*/", "tests/")
        if not made and not any(list(ROOT.glob(folder + name.rstrip("/"))) for folder in folders):
            yield f"there is no file {name}"


def links_in(page):
    """The links and pictures of a page that lead to this repository, as pairs of a path and an anchor."""
    for link in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        yield (page.parent / name).resolve() if name else page, anchor


def wrong_links(page):
    """The files, and the headings in pages, that links lead to and that do not exist."""
    for path, anchor in links_in(page):
        if not path.exists():
            yield f"there is no {path}"
        elif anchor:
            titles = re.findall(r"(?m)^#+ +(.+?) *$", path.read_text(encoding="utf-8"))
            if anchor not in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]:
                yield f"there is no heading #{anchor} in {path}"


def wrong_targets(text):
    """The make targets that do not exist."""
    targets = re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"))
    for words in (words for part in code_in(text) for code in part for words in commands_in(code)):
        if words[:1] == ["make"]:
            yield from (f"there is no make target {word}" for word in words[1:] if word not in targets)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_names_only_what_exists(page):
    text = page.read_text(encoding="utf-8")
    wrong = [line for words in calls_in(text) for line in wrong_in_call(words)]
    assert not [*wrong, *wrong_options(text), *wrong_files(text), *wrong_links(page), *wrong_targets(text)]


def test_the_readme_is_a_tour_that_shows_the_chain_and_leads_to_every_page():
    text = PAGES[0].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 260
    assert {"train.py", "sample.py", "data/hitchikersguide/prepare.py"} <= {words[0] for words in calls_in(text)}
    assert set(PAGES[1:]) <= {path for path, _ in links_in(PAGES[0])}


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


@pytest.mark.parametrize("path", sorted(ROOT.glob("config/*.py")), ids=name_of)
def test_a_config_file_sets_known_options_of_train_py(path):
    defaults = {name: option.default for name, option in OPTIONS["train.py"].items()}
    assert read_config_file(str(path), defaults, OPTIONS["train.py"]) != defaults
