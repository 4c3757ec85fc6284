"""Whatever input the readers of options, files and text get, they return a value or say what is wrong."""

import json
import math
import os
import pickle
import re
import signal
import struct
import subprocess
from functools import reduce
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import bench
import configurator
import sample
import train
from configurator import UserError, configure, read_options
from report import bits_per_byte
from tokenizer import TokensTokenizer, gpt2_tokenizer, make_tokenizer, read_meta

TRIES = settings(
    max_examples=500,
    derandomize=True,  # the same in each run
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
OPTIONS = read_options(vars(sample)) | read_options(vars(train))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(configurator, "read_options", lambda namespace: OPTIONS)  # parsing takes too long


def examples(*values):
    """Has a test try these values first."""
    return lambda test: reduce(lambda test, value: example(value)(test), values, test)


def outcome(function, *given):
    """What a function returns, or None if it raises a UserError of one line that can be shown. All else fails."""
    try:
        return function(*given)
    except UserError as mistake:
        assert str(mistake) and len(str(mistake).splitlines()) == 1
        str(mistake).encode("utf-8", "backslashreplace")  # as Python writes standard error
        return None


def namespace():
    return {name: option.default for name, option in OPTIONS.items()} | {"__file__": train.__file__, "__doc__": "-"}


def assert_options(config):
    """Accepted options have the right types, and their numbers fit into 64 bits."""
    for name, value in (config or {}).items():
        assert type(value) in OPTIONS[name].kinds
        assert type(value) is not int or -(2**63) < value < 2**63
        assert type(value) is not float or math.isfinite(value)


# -----------------------------------------------------------------------------
# options and config files

numbers = st.one_of(st.integers(), st.floats(), st.integers(-(2**70), 2**70))
values = st.one_of(
    st.text(max_size=20),
    numbers.map(str),
    st.sampled_from(["True", "false", "None", "1e400", "nan", str(2**63), "١٢", "1_0"]),
)
names = st.one_of(st.sampled_from(sorted(OPTIONS)), st.text(max_size=12), st.from_regex("[a-z_]{1,15}", fullmatch=True))
arguments = st.one_of(
    st.builds("--{}={}".format, names, values),
    st.builds("--{}={}".format, st.sampled_from(sorted(OPTIONS)), values),
    st.builds("{}{}".format, st.sampled_from(["--", "-", ""]), st.text(max_size=20)),
)


@pytest.mark.slow
@TRIES
@given(st.lists(arguments, max_size=4).filter(lambda line: not {"-h", "--help"} & set(line)))
def test_option_lines_give_values_of_the_options_types_or_an_error(line):
    config = outcome(configure, namespace(), line)
    assert config is None or config.keys() == OPTIONS.keys()
    assert_options(config)


def read_by_python(text, kinds):
    if type(None) in kinds and text == "None":
        return None
    if kinds[0] is bool:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if kinds[0] is int:
        try:
            return int(text)
        except ValueError:
            return int(float(text)) if float(text).is_integer() else None  # 1e3 is a whole number
    return os.path.expanduser(text) if re.match(r"~([/\\]|$)", text) else kinds[0](text)


@TRIES
@given(st.sampled_from(sorted(OPTIONS)), values)
def test_a_value_that_is_accepted_is_the_one_that_python_reads(name, text):
    config = outcome(configure, namespace(), [f"--{name}={text}"])
    assert_options(config)
    if config is not None:
        assert config[name] == read_by_python(text, OPTIONS[name].kinds)


# assignments of literals, arithmetic, broken syntax and random characters: no calls, no imports, no attributes
harmless = st.text(st.characters(exclude_characters="(.", exclude_categories=["Cs"]), max_size=15).filter(
    lambda text: not re.search(r"import|while|for|\*|@|<<", text)
)
literals = st.recursive(
    st.one_of(
        numbers.map(repr), st.text(max_size=9).map(ascii), st.sampled_from(["None", "True", "batch_size", "x", "1/0"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.builds("{} {} {}".format, inner, st.sampled_from(["+", "-", "/", "<", "and", "if"]), inner),
    ),
    max_leaves=4,
)
statements = st.one_of(
    st.builds("{} = {}".format, names, literals),
    st.builds("{}: int = {}".format, names, literals),
    st.builds("{} = {}".format, st.sampled_from(sorted(OPTIONS)), literals),
    st.builds("if {}:\n    {} = 1".format, literals, names),
    st.sampled_from(
        ["raise ValueError", "assert False", "pass", "return", "{", "'''", "\\", "\t", "\0", "# coding: utf-7"]
    ),
    harmless,
)


@pytest.mark.slow
@TRIES
@given(st.lists(statements, max_size=5).map("\n".join).filter(lambda text: "(" not in text))
def test_config_files_give_options_or_an_error(text):
    with open("fuzz.py", "wb") as f:
        f.write(text.encode("utf-8", "surrogatepass"))
    assert_options(outcome(configure, namespace(), ["fuzz.py"]))


@TRIES
@given(st.binary(max_size=60).filter(lambda text: b"(" not in text and b"import" not in text and b"." not in text))
def test_bytes_as_a_config_file_give_options_or_an_error(content):
    with open("bytes.py", "wb") as f:
        f.write(content)
    assert_options(outcome(configure, namespace(), ["bytes.py"]))


@settings(TRIES, max_examples=50)
@given(st.lists(arguments, max_size=4).filter(lambda line: not {"-h", "--help"} & set(line)))
def test_the_script_itself_ends_with_status_2_and_one_line(inside, line):
    done = inside("train.py", *line, "--n_head=0")  # so no run gets as far as training
    assert done.returncode == 2 and re.fullmatch("error: .+\n", done.stderr)


@pytest.mark.parametrize("argument", ["\x1b[31m", "--é=\x0b", "--x=\ud800", "--to=\x85", "a\nb.py"])
def test_a_real_command_line_ends_so_too(script, argument):
    # plot.py starts fastest; errors are in the encoding of the console
    done = script("plot.py", argument.encode("utf-8", "surrogatepass"), errors="replace")
    assert (done.returncode, done.stdout) == (2, "") and re.fullmatch("error: .+\n", done.stderr)


# -----------------------------------------------------------------------------
# numbers of any size

TINY = ["--device=cpu", "--dtype=float32", "--compile=False", "--n_layer=1", "--n_head=1", "--n_embd=8"]
TINY += ["--block_size=8", "--batch_size=2", "--gradient_accumulation_steps=1", "--max_iters=1", "--warmup_iters=0"]
BENCH = ["--model=laptop", "--batch_size=1", "--block_size=8", "--steps=1", "--runs=1", "--num_samples=1"]
BENCH += ["--device=cpu", "--compile=False"]
EXTREMES = [-1, 0, 1, 2**31, 2**53 + 1, 10**12, 10**17, 2**62, 2**63 - 1]
EXTREMES += [5e-324, 1e-46, 1e-38, 1e-30, 1 - 1e-16, 1e30, 1e38, 1e39, 1.7e308]


@pytest.fixture(scope="session")
def trained(dataset, command, tmp_path_factory):
    """A folder with a tiny model in `out`, which knows the characters of the dataset "extremes"."""
    folder = tmp_path_factory.mktemp("trained")
    dataset("extremes", "größer als 42 € sind die Katzen\n" * 20)
    subprocess.run(**command("train.py", *TINY, "--dataset=extremes"), cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def in_time():
    """Fails a test that has not ended after a minute."""

    def fail(number, frame):
        raise TimeoutError("it does not end")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def numeric(script):
    options = read_options(vars(script)).items()
    return [(f"{script.__name__}.py", name) for name, option in options if {int, float} & set(option.kinds)]


@pytest.mark.slow
@pytest.mark.parametrize("name, option", numeric(train) + numeric(sample) + numeric(bench))
def test_a_number_of_any_size_is_obeyed_or_an_error(inside, trained, in_time, monkeypatch, name, option):
    monkeypatch.setattr(configurator, "read_options", read_options)
    more = {
        "train.py": [*TINY, "--dataset=extremes", f"--eval_only={option == 'max_iters'}"],
        "sample.py": [f"--out_dir={trained / 'out'}", "--device=cpu", "--max_new_tokens=9", "--num_samples=2"],
        "bench.py": BENCH,
    }[name]
    for value in EXTREMES:
        done = inside(name, *more, f"--{option}={value}")
        wrong = done.returncode == 2 and re.fullmatch("(note: .+\n)*error: .+\n", done.stderr)
        assert wrong or done.returncode == 0, (value, done.stderr)


# -----------------------------------------------------------------------------
# streams and environments of any kind

SCRIPTS = ["train.py", "sample.py", "plot.py", "bench.py", "export.py", "speak.py", "play.py"]


def closed(*descriptors):
    return {"preexec_fn": lambda: [os.close(descriptor) for descriptor in descriptors]}


def full(descriptor):
    return {("stdin", "stdout", "stderr")[descriptor]: os.open("/dev/full", os.O_WRONLY)}


@pytest.fixture
def process(command, trained, tmp_path):
    """process("sample.py", "--key=value", ..., env={}, stdout=...) runs a script with such streams to its end."""

    def run(name, *args, env=None, **streams):
        given = command(name, *args)
        given["env"] = given["env"] | (env or {})
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.run(**{**given, **pipes, **streams, "cwd": trained, "timeout": 120, "errors": "replace"})

    return run


def train_args(folder):
    return [*TINY, "--dataset=extremes", "--max_iters=3", "--eval_interval=2", f"--out_dir={folder / 'run'}"]


def unread_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return {"stdout": writer}


@pytest.mark.slow
@pytest.mark.parametrize(
    "streams",
    [lambda: closed(1), lambda: closed(0, 1, 2), lambda: full(1), lambda: full(1) | full(2), unread_pipe],
    ids=["closed", "all closed", "full", "both full", "unread"],
)
def test_a_training_goes_on_without_its_console(process, tmp_path, streams):
    assert process("train.py", *train_args(tmp_path), **streams()).returncode == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["iter"] for line in log if "loss" in line] == [0, 1, 2] and (tmp_path / "run" / "last.pt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS[1:])
@pytest.mark.parametrize("stream", [closed, full])
def test_a_script_without_standard_output_ends_in_one_line(process, name, stream):
    done = process(name, "--help", **stream(1))
    assert done.returncode == 2 and re.fullmatch("error: .*standard output.*\n", done.stderr)


@pytest.mark.slow
def test_samples_that_nobody_can_read_are_an_error(process):
    few = ["--num_samples=2", "--max_new_tokens=9", "--device=cpu"]
    done = process("sample.py", *few, **full(1))
    assert done.returncode == 2 and re.fullmatch("error: cannot write to standard output: No space.*\n", done.stderr)
    done = process("sample.py", *few, **unread_pipe())
    assert (done.returncode, done.stderr) == (1, "")  # as after `| head`
    done = process("sample.py", *few, "--start=FILE:-", **closed(0))
    assert done.returncode == 2 and re.fullmatch("error: .*(standard input|empty).*\n", done.stderr)
    assert process("sample.py", "--out_dir=nothing", **closed(2)).stdout == ""  # no error among the samples


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_an_error_can_be_shown_on_any_console(process, name):
    locale_c = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    env = locale_c if name in ("plot.py", "sample.py") else {"PYTHONIOENCODING": "ascii:strict"}
    done = process(name, "--größe=東京", env=env)
    assert done.returncode == 2 and re.fullmatch("error: there is no option --gr.+\n", done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "ascii:strict"])
def test_text_that_a_console_cannot_show_ends_nothing(process, tmp_path, dataset, encoding):
    env = {"PYTHONIOENCODING": encoding}
    done = process("train.py", *train_args(tmp_path), "--learning_rate=0.1", env=env)
    assert done.returncode == 0 and "it writes:" in done.stdout, done.stderr
    done = process("sample.py", "--start=€ größer", "--num_samples=1", "--max_new_tokens=9", env=env)
    assert done.returncode == 0 and done.stdout.startswith("€ größer"), done.stderr  # in UTF-8, as speak.py reads it


numbers_of_processes = st.one_of(st.none(), st.integers().map(str), st.text(max_size=5), st.sampled_from("0124"))


@TRIES
@given(st.tuples(numbers_of_processes, numbers_of_processes, numbers_of_processes))
def test_an_environment_gives_numbers_that_fit_together_or_an_error(given):
    environment = {name: text for name, text in zip(("RANK", "LOCAL_RANK", "WORLD_SIZE"), given) if text is not None}
    if found := outcome(configurator.process_numbers, environment):
        rank, local_rank, world_size = found
        assert 0 <= rank < world_size and 0 <= local_rank < world_size


@pytest.mark.slow
@pytest.mark.parametrize(
    "env, named",
    [
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE=x"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR, MASTER_PORT not"),
        ({"LOCAL_RANK": "one"}, "LOCAL_RANK=one"),
    ],
)
def test_a_training_in_a_wrong_environment_ends_in_one_line(process, tmp_path, env, named):
    done = process("train.py", *train_args(tmp_path), "--gradient_accumulation_steps=2", env=env)
    assert done.returncode == 2 and re.fullmatch(f"error: .*{named}.*\n", done.stderr)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train.py", "sample.py", "speak.py"])
def test_help_needs_no_docstrings(command, tmp_path, name):
    given = command(name, "--help")
    python, *rest = given.pop("args")
    done = subprocess.run([python, "-OO", *rest], **given, capture_output=True, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and len(done.stdout.split("usage:")[0]) > 50


# -----------------------------------------------------------------------------
# datasets

plain = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=9)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=9), inner, max_size=3)),
    max_leaves=6,
)
chars = st.one_of(plain, st.text(max_size=9), st.lists(st.characters(), unique=True, max_size=9).map("".join))
counts = st.one_of(
    plain, st.fixed_dictionaries({}, optional={"tokens": st.one_of(plain, st.integers()), "bytes": plain})
)
some_ids = st.one_of(st.integers(96, 98), st.integers(255, 259), st.just(-1))
pairs = st.lists(st.lists(some_ids, min_size=2, max_size=2), min_size=1, max_size=4)
merges = st.one_of(pairs, plain, st.builds(list.__add__, pairs, st.lists(plain, max_size=1)))
metas = st.fixed_dictionaries(
    {"encoding": st.one_of(st.sampled_from(["gpt2", "bpe", "char", "tokens"]), plain)},
    optional={
        "vocab_size": st.one_of(st.sampled_from([50257, 0, 1, 2, 3, 257, 258]), plain),
        "merges": merges,
        "chars": chars,
        "tokens": st.one_of(plain, st.lists(st.text(max_size=3), max_size=3)),
        "train": counts,
        "val": counts,
        "options": st.one_of(plain, st.fixed_dictionaries({}, optional={"input": plain, "clean": plain, "x": plain})),
    },
)
byte_pairs = st.one_of(pairs, merges).map(
    lambda made: {"encoding": "bpe", "merges": made, "vocab_size": 257 + len(made if isinstance(made, list) else [])}
)
metas = st.one_of(metas, byte_pairs, st.builds(dict.__or__, metas, byte_pairs))


def assert_meta(meta):
    """An accepted meta describes a tokenizer with as many ids as it says, and counts that are numbers."""
    if meta is not None and meta["encoding"] == "char":
        tokenizer = make_tokenizer(meta)
        assert type(meta["vocab_size"]) is int and type(meta["chars"]) is str
        assert tokenizer.encode(meta["chars"]) == list(range(meta["vocab_size"])) == list(range(tokenizer.vocab_size))
        assert tokenizer.decode_bytes([meta["vocab_size"] - 1])
    elif meta is not None and meta["encoding"] == "tokens":
        assert type(meta["vocab_size"]) is int and 0 < meta["vocab_size"] <= 2**16
        if tokenizer := make_tokenizer(meta):
            assert len(meta["tokens"]) == meta["vocab_size"] == tokenizer.vocab_size
            ids = tokenizer.encode(tokenizer.prompt + "".join(meta["tokens"]))
            assert tokenizer.decode_bytes(ids) == tokenizer.decode_bytes(
                [*tokenizer.encode(tokenizer.prompt), *range(meta["vocab_size"])]
            )
    elif meta is not None and meta["encoding"] == "bpe":
        tokenizer, text = make_tokenizer(meta), "abc aabb ``aa\0ÿ東"
        assert (
            type(meta["vocab_size"]) is int and len(meta["merges"]) + 257 == meta["vocab_size"] == tokenizer.vocab_size
        )
        assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode()
        made = [b"".join(map(tokenizer.decode_bytes, ([left], [right]))) for left, right in meta["merges"]]
        assert [tokenizer.decode_bytes([i]) for i in range(256, tokenizer.end_of_text)] == made
        assert meta.get("options", {}).keys() <= {"input", "val_fraction", "clean", "split_documents"}
    elif meta is not None:
        assert (meta["encoding"], meta["vocab_size"]) == ("gpt2", 50257)
    for counts in [meta[split] for split in ("train", "val") if split in (meta or {})]:
        assert all(type(counts.get(of, 0)) is int for of in ("tokens", "bytes"))
        bits_per_byte(1.0, counts)


@pytest.mark.slow
@TRIES
@given(st.one_of(metas.map(json.dumps), plain.map(json.dumps), st.text(max_size=40)))
@examples("", " \n", "\udcff", "\0" * 100, "[" * 100_000, '"gpt2"', '{"encoding": "gpt2", "vocab_si')
@examples('{"encoding": ["gpt2"], "vocab_size": 50257}', '{"encoding": "gpt2\\nchar", "vocab_size": 50257}')
@examples('{"encoding": "gpt2", "vocab_size": "50257"}', '{"encoding": "gpt2", "vocab_size": 1e999}')
@examples('{"encoding": "gpt2", "vocab_size": 50304}', '{"encoding": "gpt2", "vocab_size": ' + "9" * 5000 + "}")
@examples('{"encoding": "char", "vocab_size": 2}', '{"encoding": "char", "vocab_size": 0, "chars": ""}')
@examples('{"encoding": "char", "vocab_size": 2, "chars": "aa"}', '{"encoding": "char", "chars": "abc"}')
@examples('{"encoding": "char", "vocab_size": 2, "chars": ["a", "b"]}')
@examples('{"encoding": "char", "vocab_size": true, "chars": "a"}')
@examples('{"encoding": "char", "vocab_size": 2.0, "chars": "ab"}')
@examples('{"encoding": "tokens", "vocab_size": 2, "tokens": ["a", ["b"]]}', '{"encoding": "tokens"}')
@examples('{"encoding": "tokens", "vocab_size": true}', '{"encoding": "tokens", "vocab_size": 1, "tokens": null}')
@examples('{"encoding": "bpe", "vocab_size": 257}', '{"encoding": "bpe", "vocab_size": 257, "merges": []}')
@examples('{"encoding": "bpe", "vocab_size": 258, "merges": [[97, 1e999]]}')
@examples('{"encoding": "bpe", "vocab_size": 258, "merges": [[97, ' + "9" * 5000 + "]]}")
@examples('{"encoding": "bpe", "vocab_size": 258, "merges": [' + "[" * 900 + "]" * 900 + "]}")
@examples('{"encoding": "gpt2", "vocab_size": 50257, "options": null}')
@examples('{"encoding": "gpt2", "vocab_size": 50257, "val": null}')
@examples('{"encoding": "gpt2", "vocab_size": 50257, "train": {"tokens": "3", "bytes": 9}}')
def test_texts_as_a_meta_json_give_a_tokenizer_or_an_error(text):
    with open("meta.json", "wb") as f:
        f.write(text.encode("utf-8", "surrogatepass"))
    assert_meta(outcome(read_meta, "."))


def nanogpts(chars):
    return {"vocab_size": len(chars), "itos": dict(enumerate(chars)), "stoi": {c: i for i, c in enumerate(chars)}}


@st.composite
def damaged(draw, contents):
    """Bytes, some of them changed, removed or added."""
    content = bytearray(draw(contents))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        content[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(content)


pickles = st.one_of(
    st.builds(pickle.dumps, st.lists(st.characters(), unique=True, max_size=9).map(nanogpts), st.integers(0, 5)),
    st.builds(pickle.dumps, plain, st.integers(0, 5)),
)


def pickled(vocab_size, *tokens):
    return pickle.dumps({"vocab_size": vocab_size, "itos": dict(enumerate(tokens))})


@pytest.mark.slow
@TRIES
@given(st.one_of(damaged(pickles), st.binary(max_size=60)))
@examples(b"", bytes(100), b"Pelsewhere\n.", pickle.dumps(nanogpts("abc"))[:-5], pickle.dumps({}), pickle.dumps(3))
@examples(*(head + struct.pack("<Q", 2**60) + b"a" for head in (b"\x80\x04\x95", b"\x80\x04\x8e", b"\x80\x04\x8d")))
@examples(pickle.dumps({"vocab_size": 3}), pickle.dumps({"itos": {0: "a"}}), pickled(0), pickled(3, "a", "b"))
@examples(pickled(2, "a", "a"), pickled(2, 1, 2), pickled(2, "one", "two"), pickled(2.0, "a", "b"))
@examples(pickle.dumps({"vocab_size": 2, "itos": {0: "a", 2: "b"}}), pickle.dumps({"vocab_size": 2**40, "itos": []}))
def test_bytes_as_a_meta_pkl_give_a_tokenizer_or_an_error(content):
    with open("meta.pkl", "wb") as f:
        f.write(content)
    assert_meta(outcome(read_meta, "."))


@pytest.mark.slow
@TRIES
@given(
    st.one_of(
        st.binary(max_size=40), st.lists(st.integers(0, 12), max_size=40).map(lambda i: np.array(i, "<u2").tobytes())
    ),
    st.one_of(metas, st.just({})),
    st.integers(1, 12),
    st.integers(1, 13),
)
def test_bytes_as_a_train_bin_give_token_ids_of_the_model_or_an_error(content, meta, block_size, vocab_size):
    os.makedirs("data/fuzz", exist_ok=True)
    with open("data/fuzz/train.bin", "wb") as f:
        f.write(content)
    with open("data/fuzz/meta.json", "w", encoding="utf-8") as f:
        json.dump(meta, f)
    meta = {} if meta == {} else outcome(read_meta, "data/fuzz")
    if meta is None:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configurator, "HERE", os.getcwd())
        patch.setattr(train, "dataset", "fuzz")
        tokens = outcome(train.open_tokens, "train", meta, SimpleNamespace(block_size=block_size, n_ids=vocab_size))
    if tokens is not None:
        assert len(tokens) > block_size and max(tokens) < vocab_size and tokens.tobytes() == content
        starts = train.evaluation_starts(len(tokens), block_size, 5)
        assert 0 <= min(starts) and max(starts) + block_size < len(tokens)


# -----------------------------------------------------------------------------
# text

GPT2 = gpt2_tokenizer()


@TRIES
@given(st.text(), st.booleans())
def test_every_text_makes_the_round_trip_through_gpt2s_tokens(text, special):
    ids = GPT2.encode(text, special)
    assert GPT2.decode_bytes(ids) == text.encode("utf-8")
    assert all(0 <= i < GPT2.vocab_size for i in ids)


@TRIES
@given(st.text(min_size=1), st.text())
def test_every_text_makes_the_round_trip_through_characters_or_has_one_that_is_unknown(known, text):
    tokenizer = TokensTokenizer("".join(sorted(set(known))))
    assert tokenizer.decode_bytes(tokenizer.encode(known)) == known.encode("utf-8")
    ids = outcome(tokenizer.encode, text)
    assert (ids is None) == (not set(text) <= set(known))


@pytest.mark.slow
@TRIES
@given(st.lists(st.text("ab\n ", max_size=4), min_size=1, max_size=6).filter(any), st.text("ab\n c", max_size=9))
def test_every_text_makes_the_round_trip_through_a_list_of_tokens_or_has_a_place_where_none_matches(tokens, text):
    tokenizer = TokensTokenizer(tokens)
    ids = outcome(tokenizer.encode, text)
    assert ids is None or tokenizer.decode_bytes(ids) == text.encode()
    assert ids is not None or not set("ab\n c") <= set(tokens)
    assert all(tokens.index(tokens[i]) == i for i in ids or [])


@pytest.mark.slow
@TRIES
@given(st.lists(st.integers(0, 50256), max_size=20))
def test_any_ids_of_gpt2_can_be_written(ids):
    assert GPT2.decode_bytes(ids) == b"".join(GPT2.decode_bytes([i]) for i in ids)
