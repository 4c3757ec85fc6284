"""sample.py's promises. Most are tested on a model with weights set by hand, so that its text is known."""

import os
import pickle
import re
import shlex
import subprocess
import sys

import nbformat
import pytest
import torch
from nbclient import NotebookClient

import sample as script
from model import GPT, GPTConfig

DASHES = "---------------\n"
CHARS = "\n abcdefghijklmnopqrstuvwxyzö€"
END, PADDING = 50256, 50257  # <|endoftext|>, and the first id that GPT-2's encoding has not


def writer(ids, block_size, vocab_size, logit=100.0):
    """
    A model that writes ids[p + 1] after position p, whatever stood before. With less of a `logit` it is less certain.

    Its blocks do nothing, and each position has a channel of its own, from which the output layer reads the next id.
    """
    width = 2 * block_size  # half of the channels stay empty
    model = GPT(GPTConfig(block_size, vocab_size, n_layer=1, n_head=1, n_embd=width, bias=False))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "ln_" not in name:
                weight.zero_()
        model.transformer.wpe.weight[:, :block_size] = 1000 * torch.eye(block_size)
        for position, token in enumerate(ids[1:]):
            model.lm_head.weight[token, position] = logit / width**0.5
    return model


def save(path, model, **more):
    """Save a model as nanoGPT does, without an encoding."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    checkpoint = {
        "model": {f"_orig_mod.{name}": weight for name, weight in model.state_dict().items()},
        "optimizer": model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")[0].state_dict(),
        "model_args": vars(model.config),
        "iter_num": 5,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "gone", "batch_size": 12, "compile": True},
    }
    torch.save(checkpoint | more, path)


def char_meta(chars=CHARS):
    return {"encoding": "char", "vocab_size": len(chars), "chars": chars}


@pytest.fixture
def written(tmp_path):
    """written("text") makes out/ckpt.pt a model of characters that writes this text, given its first character."""

    def make(text, block_size=64, logit=100.0):
        ids = [CHARS.index(char) for char in text]
        save(tmp_path / "out" / "ckpt.pt", writer(ids, block_size, len(CHARS), logit), meta=char_meta())

    return make


@pytest.fixture
def sample(inside):
    """sample("--key=value", ...) returns standard output. Standard error should be empty, or as given."""

    def run(*args, stderr=""):
        done = inside("sample.py", "--out_dir=out", "--device=cpu", "--dtype=float32", "--compile=False", *args)
        assert (done.returncode, done.stderr) == (0, stderr)
        return done.stdout

    return run


@pytest.fixture(scope="session")
def trained(dataset, command, tmp_path_factory):
    """--out_dir of a model that was trained for a few seconds."""
    folder = tmp_path_factory.mktemp("trained")
    dataset("trained", "the cat sat on the mat.\n" * 40)
    options = ["--n_layer=2", "--n_head=2", "--n_embd=32", "--block_size=16", "--batch_size=8", "--max_iters=40"]
    options += ["--gradient_accumulation_steps=1", "--learning_rate=1e-2", "--warmup_iters=1", "--lr_decay_iters=40"]
    options += ["--dataset=trained", "--device=cpu", "--compile=False", f"--out_dir={folder / 'out'}"]
    subprocess.run(**command("train.py", *options), check=True, stdout=subprocess.DEVNULL)
    return f"--out_dir={folder / 'out'}"


# -----------------------------------------------------------------------------
# what is written


def test_samples_begin_with_the_prompt_and_are_divided_by_a_line_of_dashes(sample, trained):
    pieces = sample(trained, "--start=the ", "--num_samples=3", "--max_new_tokens=20").split("\n" + DASHES)
    assert len(pieces) == 4 and pieces.pop() == ""
    assert all(piece.startswith("the ") and len(piece) == 4 + 20 for piece in pieces)
    assert len(set(pieces)) == 3


def test_a_single_sample_looks_like_one_of_many(sample, written):
    written("hello world")
    options = ("--start=he", "--max_new_tokens=9", "--temperature=0")
    one = sample(*options, "--num_samples=1")
    assert one == "hello world\n" + DASHES
    assert sample(*options, "--num_samples=2") == one * 2


def test_sampling_needs_no_data_folder(sample, written, repo):
    assert not (repo / "data" / "gone").exists()  # which the checkpoint's config names
    written("hello world")
    assert sample("--start=h", "--max_new_tokens=4", "--temperature=0", "--num_samples=1") == "hello\n" + DASHES


def test_the_command_that_a_training_ends_with_works_in_a_shell(inside, trained):
    sizes = ["--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=8", "--batch_size=2", "--max_iters=1"]
    sizes += ["--gradient_accumulation_steps=1", "--dataset=trained", "--device=cpu"]
    done = inside("train.py", *sizes, "--out_dir=out dir ü $x")
    python, script, *args = shlex.split(done.stdout.strip().rpartition("let it write: ")[2])
    assert (python, script) == ("python", "sample.py")
    assert inside(script, *args, "--num_samples=2", "--max_new_tokens=3", "--device=cpu").stdout.count(DASHES) == 2


@pytest.mark.parametrize("num_samples", [1, 3])
def test_the_same_seed_gives_the_same_text_and_another_gives_another(sample, trained, num_samples):
    options = (trained, f"--num_samples={num_samples}", "--max_new_tokens=60", "--temperature=2")
    assert sample(*options, "--seed=1") == sample(*options, "--seed=1") != sample(*options, "--seed=2")


@pytest.mark.parametrize(
    "greedy",
    ["--temperature=0", "--temperature=1e-46", "--temperature=5e-324", "--temperature=1e-38", "--temperature=1e-30"]
    + ["--top_k=1", "--top_p=1e-9", "--top_p=1e-46", "--top_p=5e-324"],
)
def test_greedy_takes_the_likeliest_token_in_every_sample(sample, trained, greedy):
    checkpoint = torch.load(f"{trained.removeprefix('--out_dir=')}/ckpt.pt", weights_only=True)
    model = GPT(GPTConfig(**checkpoint["model_args"]))
    model.load_state_dict(checkpoint["model"])
    chars, text = checkpoint["meta"]["chars"], "the"
    while len(text) < 16:  # the whole window, each token computed from all before it
        ids = torch.tensor([[chars.index(char) for char in text]])
        text += chars[model.eval()(ids)[0][0, -1].argmax()]
    written = sample(trained, "--start=the", "--max_new_tokens=13", "--num_samples=3", greedy)
    assert written == f"{text}\n{DASHES}" * 3


def test_a_high_temperature_is_bolder_than_a_low_one(sample, written):
    written("a" * 60, logit=4.0)
    letters = [
        sample("--start=a", "--max_new_tokens=59", "--num_samples=4", f"--temperature={t}").count("a")
        for t in (0.5, 1, 5)
    ]
    assert letters[0] > letters[1] > letters[2]


@pytest.mark.parametrize("limit", ["--top_k=2", "--top_p=0.9"])
def test_a_limit_to_the_likely_tokens_excludes_the_others(sample, tmp_path, limit):
    # always "a" has the probability 0.6, "b" 0.35, and the others share the rest
    model = writer("", 32, len(CHARS))
    share = torch.full((len(CHARS),), 0.05 / (len(CHARS) - 2))
    share[CHARS.index("a")], share[CHARS.index("b")] = 0.6, 0.35
    with torch.no_grad():
        model.transformer.wpe.weight[:] = torch.tensor([1000.0] + [0.0] * 63)
        model.lm_head.weight[:, 0] = share.log() / model.features(torch.tensor([[0]]))[0, 0, 0]
    save(tmp_path / "out" / "ckpt.pt", model, meta=char_meta())
    options = ("--start=a", "--max_new_tokens=31", "--num_samples=20", "--temperature=1")
    free = sample(*options, "--top_k=None").replace("\n" + DASHES, "")
    assert set(free) > {"a", "b"}
    limited = sample(*options, "--top_k=None", limit).replace("\n" + DASHES, "")
    assert set(limited) == {"a", "b"}
    # the two keep their proportion, 12 to 7
    assert limited.count("b") / len(limited) == pytest.approx(7 / 19, abs=0.08)


def test_compile_of_nanogpt_is_a_note(sample, written):
    written("hello world")
    options = ("--start=h", "--max_new_tokens=4", "--temperature=0", "--num_samples=1", "--compile=True")
    note = "note: --compile=True means nothing here: sampling is not compiled\n"
    assert sample(*options, stderr=note) == "hello\n" + DASHES


# -----------------------------------------------------------------------------
# on a terminal


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_long_lines_are_cut_between_words_on_a_terminal_only(monkeypatch, size):
    text = "the answer to life, the universe\nand everything is a number\n\n  forty-two  tablespoons\n"
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert "".join(script.wrapped(pieces)) == text
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    for columns in (12, 20, 33, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        shown = "".join(script.wrapped(pieces))
        assert all(len(line) <= columns for line in shown.split("\n"))
        # blanks have become line ends, and nothing else has changed
        assert [(a, b) for a, b in zip(text, shown) if a != b] == [(" ", "\n")] * (shown.count("\n") - text.count("\n"))
        assert len(shown) == len(text) and (shown == text) is (columns == 33 or columns == 200)


def test_a_word_longer_than_the_line_stays_whole(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "5")
    assert "".join(script.wrapped(["to the universe"])) == "to\nthe\nuniverse"


# -----------------------------------------------------------------------------
# prompts


def test_the_prompt_may_come_from_a_file(sample, written, tmp_path):
    written("hello world")
    (tmp_path / "prompt.txt").write_text("hell", encoding="utf-8")
    options = ("--max_new_tokens=7", "--temperature=0", "--num_samples=1")
    assert sample("--start=FILE:prompt.txt", *options) == "hello world\n" + DASHES


@pytest.mark.slow
def test_the_prompt_may_come_from_standard_input(script, written):
    written("hellö € world")
    options = ("--start=FILE:-", "--out_dir=out", "--max_new_tokens=8", "--temperature=0", "--device=cpu")
    done = script("sample.py", *options, "--num_samples=2", input="hellö")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ("hellö € world\n" + DASHES) * 2


def test_a_prompt_longer_than_the_window_is_cut_and_said_so(inside, trained):
    options = (trained, "--device=cpu", "--max_new_tokens=5", "--temperature=0", "--num_samples=2")
    prompt = "the cat sat on the mat.\nthe cat"
    long = inside("sample.py", *options, f"--start={prompt}")
    assert long.returncode == 0
    assert long.stderr.count("\n") == 1 and "16" in long.stderr and str(len(prompt)) in long.stderr
    cut = inside("sample.py", *options, f"--start={prompt[-16:]}")
    assert cut.stderr == ""
    assert long.stdout == cut.stdout.replace(prompt[-16:], prompt)


def test_a_prompt_of_just_the_window_is_not_cut(sample, written):
    written("hello", block_size=4)
    assert sample("--start=hell", "--max_new_tokens=1", "--temperature=0", "--num_samples=1") == "hello\n" + DASHES


# -----------------------------------------------------------------------------
# GPT-2's encoding


def gpt2_writer(path, ids, more=(), **options):
    model = writer([END, *ids], 16, 50304)
    for token, position, logit in more:
        with torch.no_grad():
            model.lm_head.weight[token, position] = logit
    save(path, model, meta={"encoding": "gpt2", "vocab_size": 50257}, **options)


@pytest.mark.parametrize("num_samples", [1, 2])
def test_stop_at_end_ends_a_sample_at_the_end_of_text(sample, tmp_path, num_samples):
    gpt2_writer(tmp_path / "out" / "ckpt.pt", [15496, 995, END, 15496, 995])  # "Hello world" in GPT-2's ids
    options = ("--start=<|endoftext|>", "--max_new_tokens=5", "--temperature=0", f"--num_samples={num_samples}")
    said = "<|endoftext|>Hello world"
    assert sample(*options, "--stop_at_end=True") == f"{said}\n{DASHES}" * num_samples
    assert sample(*options) == f"{said}{said}\n{DASHES}" * num_samples


@pytest.mark.parametrize("num_samples", [1, 2])
def test_characters_that_end_in_another_token_are_written_whole(sample, tmp_path, num_samples):
    # a butterfly's four bytes, F0 9F A6 8B, in GPT-2's ids: "ðŁ", "¦", "ĭ"
    gpt2_writer(tmp_path / "out" / "ckpt.pt", [8582, 99, 233, 15496])
    options = ("--start=<|endoftext|>", "--max_new_tokens=4", "--temperature=0", f"--num_samples={num_samples}")
    assert sample(*options) == f"<|endoftext|>\N{BUTTERFLY}Hello\n{DASHES}" * num_samples


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0, 1, 100])
def test_an_id_of_the_padding_is_never_written(sample, tmp_path, temperature):
    padding = [(token, position, 1000.0) for token in range(PADDING, 50304) for position in range(16)]
    gpt2_writer(tmp_path / "out" / "ckpt.pt", [15496, 995], more=padding)
    options = ("--start=<|endoftext|>", "--max_new_tokens=40", "--num_samples=20", f"--temperature={temperature}")
    assert sample(*options, "--top_k=None").count(DASHES) == 20  # decoding an id of the padding would fail
    if temperature == 0:
        assert sample(*options, "--max_new_tokens=2") == f"<|endoftext|>Hello world\n{DASHES}" * 20


# -----------------------------------------------------------------------------
# nanoGPT's checkpoints, and precision


def test_nanogpts_checkpoint_is_sampled_with_the_data_folders_meta(sample, repo, tmp_path):
    model = writer([CHARS.index(char) for char in "hello"], 8, len(CHARS))
    save(tmp_path / "out" / "ckpt.pt", model, config={"dataset": "pickled"})
    (folder := repo / "data" / "pickled").mkdir()
    itos = dict(enumerate(CHARS))
    with open(folder / "meta.pkl", "wb") as f:
        pickle.dump({"vocab_size": len(itos), "itos": itos, "stoi": {c: i for i, c in itos.items()}}, f)
    options = ("--start=h", "--max_new_tokens=4", "--temperature=0")
    assert sample(*options, "--num_samples=2") == ("hello\n" + DASHES) * 2


TOKENS = ["e4", "e5", "Nf3", " ", "e4", ""]


def test_a_model_of_tokens_reads_and_writes_them(sample, inside, tmp_path):
    meta = {"encoding": "tokens", "vocab_size": 6, "tokens": TOKENS}
    save(tmp_path / "out" / "ckpt.pt", writer([0, 3, 1, 3, 2, 5, 4], 8, 6), meta=meta)
    options = ("--max_new_tokens=6", "--temperature=0", "--num_samples=1")
    assert sample("--start=e4", *options) == "e4 e5 Nf3e4\n" + DASHES
    done = inside("sample.py", "--start=e4 d5", "--out_dir=out")
    assert done.returncode == 2 and re.fullmatch("error: .*'d5'.*\n", done.stderr)


@pytest.mark.parametrize(
    "meta, prompt",
    [
        ({"encoding": "char", "vocab_size": 4, "chars": " آبش"}, " "),
        ({"encoding": "char", "vocab_size": 4, "chars": "آبشی"}, "آ"),
        ({"encoding": "tokens", "vocab_size": 4, "tokens": ["", "d4", "d5", "c4"]}, "d4"),
    ],
    ids=["blank", "letter", "token"],
)
def test_where_the_model_knows_no_line_end_the_default_prompt_is_one_that_it_knows(inside, tmp_path, meta, prompt):
    save(tmp_path / "out" / "ckpt.pt", writer([0, 1, 2, 3], 8, 4), meta=meta)
    done = inside("sample.py", "--out_dir=out", "--max_new_tokens=3", "--num_samples=2")
    assert done.returncode == 0 and done.stdout.startswith(prompt) and done.stdout.count(DASHES) == 2
    assert done.stderr == f"note: the model knows no line end, so the text begins with {prompt!r}\n"


def test_a_model_of_which_only_the_number_of_ids_is_known_is_not_sampled_and_says_so(inside, tmp_path):
    save(tmp_path / "out" / "ckpt.pt", writer([0, 1], 8, 9), meta={"encoding": "tokens", "vocab_size": 9})
    done = inside("sample.py", "--out_dir=out")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch("error: .*only their number is known, 9.*neither reads nor writes text\n", done.stderr)


@pytest.mark.parametrize(
    "config, said",
    [
        ({"dataset": "nowhere"}, "its 9 token ids mean, which are not GPT-2's: put the meta.pkl .* into data/nowhere"),
        ({"dataset": "larger"}, "its 9 token ids mean, which are not the 29 of data/larger: put the meta.pkl "),
        ({}, "its 9 token ids mean, which are not GPT-2's: nor which dataset they are of"),
    ],
    ids=["no folder", "another's meta.pkl", "no name"],
)
def test_nanogpts_checkpoint_without_its_meta_pkl_says_that_this_is_missing(inside, repo, tmp_path, config, said):
    save(tmp_path / "out" / "ckpt.pt", writer([0, 1], 8, 9), config=config)
    (repo / "data" / "larger").mkdir(exist_ok=True)
    (repo / "data" / "larger" / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 29, "itos": list(CHARS[:29])}))
    done = inside("sample.py", "--out_dir=out")
    assert done.returncode == 2 and re.fullmatch(f"error: .*{said}.*\n", done.stderr)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_samples_on_a_cpu(sample, trained, dtype):
    options = (trained, "--start=the ", "--num_samples=2", "--max_new_tokens=30", f"--dtype={dtype}")
    pieces = sample(*options).split("\n" + DASHES)
    assert [len(piece) for piece in pieces] == [34, 34, 0]
    assert sum(piece.count("cat") + piece.count("mat") + piece.count("sat") for piece in pieces) >= 2


# -----------------------------------------------------------------------------
# a process of its own


@pytest.fixture
def stream(command, trained):
    """A process that writes a single sample, which would take it hours."""
    options = (trained, "--start=the ", "--num_samples=1", "--max_new_tokens=100000000", "--device=cpu")
    process = subprocess.Popen(**command("sample.py", *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_a_single_sample_appears_while_it_is_drawn(stream):
    seen = b""
    while len(seen) < 50:
        part = os.read(stream.stdout.fileno(), 8192)
        assert 0 < len(part) < 4096  # not a whole buffer at once
        seen += part
    assert stream.poll() is None


@pytest.mark.slow
def test_in_a_notebook_scripts_run_and_leave_its_signal_handlers_alone(repo, trained, tmp_path, monkeypatch):
    for name in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    sizes = (
        "--dataset=trained --device=cpu --n_layer=1 --n_head=1 --n_embd=8 --block_size=8 --batch_size=2 --max_iters=2"
    )
    cells = [
        "import signal\nbefore = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]",
        f"%run {repo / 'train.py'} {sizes} --gradient_accumulation_steps=1 --out_dir=notebook",
        "assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]",
        f"%run {repo / 'sample.py'} {trained} --num_samples=2 --max_new_tokens=9 --device=cpu",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        NotebookClient(notebook, timeout=100, kernel_name="python3").execute()
    outputs = ["".join(o.get("text", "") for o in cell.outputs) for cell in notebook.cells]
    assert "the model is in notebook" in outputs[1] and outputs[3].count(DASHES) == 2


@pytest.mark.slow
def test_under_torchrun_one_voice_writes(command, trained, tmp_path):
    sample = command("sample.py", trained, "--num_samples=2", "--max_new_tokens=9", "--device=cpu")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *sample["args"][1:]]
    done = subprocess.run(**sample | {"args": start}, cwd=tmp_path, capture_output=True, timeout=120)
    assert done.returncode == 0 and done.stdout.count(DASHES) == 2, done.stderr


@pytest.mark.slow
def test_a_reader_who_has_seen_enough_ends_it_quietly(stream):
    stream.stdout.read(10)
    stream.stdout.close()
    assert stream.wait(timeout=20) == 1
    assert stream.stderr.read() == ""
    stream.stdout = None  # it was closed
