"""sample.py's promises. Most are tested on a model with weights set by hand, so that its text is known."""

import fcntl
import io
import os
import pickle
import pty
import re
import select
import shlex
import struct
import subprocess
import sys
import termios

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


@pytest.mark.slow
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
    (model, chars), text = load(trained), "the"
    while len(text) < 16:  # the whole window, each token computed from all before it
        ids = torch.tensor([[chars.index(char) for char in text]])
        text += chars[model(ids)[0][0, -1].argmax()]
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


def load(trained):
    """The model of --out_dir=..., and its characters."""
    checkpoint = torch.load(f"{trained.removeprefix('--out_dir=')}/ckpt.pt", weights_only=True)
    model = GPT(GPTConfig(**checkpoint["model_args"]))
    model.load_state_dict(checkpoint["model"])
    return model.eval(), checkpoint["meta"]["chars"]


def test_a_repetition_penalty_is_obeyed(sample, trained):
    model, chars = load(trained)
    idx = torch.tensor([[chars.index(char) for char in "the"]])
    ids = model.generate(idx, 12, temperature=0, repetition_penalty=5)[0].tolist()
    assert ids != model.generate(idx, 12, temperature=0)[0].tolist()
    options = ("--start=the", "--max_new_tokens=12", "--temperature=0", "--repetition_penalty=5")
    for num_samples in (1, 2):
        expected = "".join(chars[i] for i in ids) + "\n" + DASHES
        assert sample(trained, *options, f"--num_samples={num_samples}") == expected * num_samples


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
# by turns


@pytest.fixture
def turns(inside, monkeypatch):
    """turns("line", "/command", ..., options=[]) pipes in these lines; returns the lines of both outputs."""

    def run(*lines, options=()):
        piped = b"".join((line if type(line) is bytes else line.encode()) + b"\n" for line in lines)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped)))
        done = inside("sample.py", "--out_dir=out", "--device=cpu", "--interactive=True", *options)
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\n")[:-1], done.stderr.split("\n")[:-1]

    return run


GREEDY = ("--temperature=0", "--max_new_tokens=5")
ANSWER = "the answer to the question is a number"


def test_the_model_goes_on_from_what_is_typed_and_enter_alone_goes_on_from_there(turns, written):
    written(ANSWER)
    assert turns("the answer", "", "", options=GREEDY) == ([ANSWER[10:15], ANSWER[15:20], ANSWER[20:25]], [])
    assert turns("the answer", " to", options=GREEDY) == ([ANSWER[10:15], ANSWER[18:23]], [])


def test_a_text_may_begin_with_nothing_or_with_start(turns, written):
    written("\n" + ANSWER)
    assert turns("", "", options=GREEDY) == (["", ANSWER[:5], ANSWER[5:10]], [])
    assert turns("", options=[*GREEDY, "--start=\nthe a"]) == (["nswer", " to t"], ["", "the a"])


def test_again_draws_another_continuation_in_place_of_the_last(turns, trained, tmp_path):
    lines = [line for i in range(6) for line in ("" if i == 3 else "/again", f"/save {i}.txt")]
    _, said = turns("the cat", *lines, options=(trained, "--temperature=2", "--max_new_tokens=20"))
    assert all(line.startswith("saved") for line in said) and len(said) == 6
    texts = [(tmp_path / f"{i}.txt").read_text(encoding="utf-8").strip() for i in range(6)]
    assert len(set(texts)) == 6 and all(text.startswith("the cat") for text in texts)
    for text in texts[:3]:
        assert 20 <= len(text) <= 27 and not text.startswith(texts[0][:15]) or text == texts[0]
    assert all(text.startswith(texts[2]) and len(text) > 40 for text in texts[3:])


def test_undo_takes_back_the_continuation_and_then_what_was_typed(turns, written):
    written(ANSWER)
    out, said = turns("the answer", "", "/undo", "", "/undo", "/undo", "/undo", "/undo", "/again", options=GREEDY)
    assert out == [ANSWER[10:15], ANSWER[15:20], ANSWER[15:20]]
    ends = [f"the text now ends: {ANSWER[:end]}" for end in (15, 15, 10)]
    assert said[:4] == [*ends, "the text is empty"]
    assert len(said) == 6 and all(line.startswith("error: there is no text yet") for line in said[4:])


def test_new_begins_another_text(turns, written):
    written(ANSWER)
    assert turns("the answer", "/new", "the", options=GREEDY) == ([ANSWER[10:15], ANSWER[3:8]], [])


def test_quit_ends_it_and_so_does_the_end_of_the_input(turns, written):
    written(ANSWER)
    assert turns("/quit", "the answer", options=GREEDY) == ([], [])
    assert turns(options=GREEDY) == ([], [])


def test_save_writes_the_whole_text_and_overwrites_only_what_it_wrote(turns, written, tmp_path):
    written(ANSWER)
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "link.txt").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    bad = ["/save mine.txt", "/save link.txt", "/save folder", "/save gone/x.txt", "/save", "/save a\0b"]
    lines = ["/save early.txt", "the answer", *bad, "/save my story.txt", "", "/save my story.txt"]
    out, said = turns(*lines, options=GREEDY)
    assert (tmp_path / "my story.txt").read_text() == ANSWER[:20].strip() + "\n"
    errors = ["no text", "'mine.txt' is there", "'link.txt' is there", "folder/story.txt", "'gone/x.txt'", "story.txt"]
    for error, line in zip([*errors, "no UTF-8"], said):
        assert re.fullmatch(f"error: .*{error}.*", line)
    assert said[7:] == [f"saved the text, {count} characters, as my story.txt" for count in (15, 20)]
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["folder", "link.txt", "mine.txt", "my story.txt", "out"]


def test_save_does_not_overwrite_its_file_once_another_has_changed_it(tmp_path):
    saved = {}
    path = str(tmp_path / "story.txt")
    script.save("one", path, saved)
    script.save("two", path, saved)
    with open(path, "a", encoding="utf-8") as f:
        f.write("by hand")
    os.utime(path, ns=(1, 1))  # a clock may be coarse
    with pytest.raises(script.UserError, match="not as saved in this session"):
        script.save("three", path, saved)
    assert (tmp_path / "story.txt").read_text() == "two\nby hand"


@pytest.mark.parametrize(
    "line, named",
    [
        ("/agian", "/agian: did you mean /again?"),
        ("/sav story.txt", "/sav story.txt: did you mean /save?"),
        ("/again 2", "/again 2: did you mean /again?"),
        ("/", "/: there are /again, /undo, /new, /save, /help, /quit"),
        ("/again", "--temperature=0"),
        ("tschüß", "'ü'"),
        (b"caf\xe9", "no UTF-8"),
        ("nul\0", "no UTF-8"),
    ],
)
def test_what_cannot_be_obeyed_is_one_line_and_the_text_goes_on(turns, written, line, named):
    written(ANSWER)
    out, (error,) = turns("the answer", line, "", options=GREEDY)
    assert error.startswith("error: ") and named in error
    assert out == [ANSWER[10:15], ANSWER[15:20]]


def test_help_tells_all_commands(turns, written):
    written(ANSWER)
    out, said = turns("/help", options=GREEDY)
    assert out == [] and said == script.HELP.splitlines()
    assert script.COMMANDS == ["/again", "/undo", "/new", "/save", "/help", "/quit"]
    assert max(map(len, said)) < 80


@pytest.mark.parametrize(
    "text, line, joined",
    [
        ("", "The", "The"),
        ("the answer", "is", "the answer is"),
        ("the answer", " is", "the answer is"),
        ("the answer\n", "is", "the answer\nis"),
        ("the answer", ", he", "the answer, he"),
        ("the answer.", '"Oh', 'the answer. "Oh'),
        ('the answer."', "He", 'the answer." He'),
        ('he said "', "Oh", 'he said "Oh'),
        ('he said "Oh', '" and', 'he said "Oh" and'),
        ("the answer", "", "the answer"),
        ("e4e5", "e4", "e4e5e4"),
        ("答えは", "何", "答えは何"),
    ],
)
def test_a_blank_divides_what_is_typed_from_the_text_where_two_words_meet(text, line, joined):
    assert text + script.following(text, line) == joined


def test_beyond_the_window_the_text_goes_on_as_sampling_does(turns, trained, tmp_path):
    model, chars = load(trained)
    ids = [chars.index(char) for char in "the cat"]
    for _ in range(5):
        ids += model.generate(torch.tensor([ids[-16:]]), 9, temperature=0)[0, min(len(ids), 16) :].tolist()
    out, said = turns(
        "the cat", *[""] * 4, "/save story.txt", options=(trained, "--temperature=0", "--max_new_tokens=9")
    )
    assert (tmp_path / "story.txt").read_text() == "".join(chars[i] for i in ids).strip() + "\n"


def test_the_model_may_end_the_text_and_says_so(turns, tmp_path):
    gpt2_writer(tmp_path / "out" / "ckpt.pt", [15496, 995, END, 15496, 995])  # "Hello world" in GPT-2's ids
    lines = ("<|endoftext|>", "/save story.txt", "/undo")
    out, said = turns(*lines, options=("--temperature=0", "--max_new_tokens=4", "--stop_at_end=True"))
    assert out == ["Hello world"] and said[0].startswith("note: the model ends the text here")
    assert said[1:] == ["saved the text, 24 characters, as story.txt", "the text now ends: <|endoftext|>"]


def test_a_character_that_begins_in_one_continuation_and_ends_in_the_next_is_whole(turns, tmp_path):
    gpt2_writer(tmp_path / "out" / "ckpt.pt", [8582, 99, 233, 15496])  # a butterfly, and "Hello"
    lines = ("<|endoftext|>", "", "/save story.txt")
    out, _ = turns(*lines, options=("--temperature=0", "--max_new_tokens=2"))
    assert out[1] == "\N{BUTTERFLY}Hello"
    assert (tmp_path / "story.txt").read_text(encoding="utf-8") == "<|endoftext|>\N{BUTTERFLY}Hello\n"


def test_tokens_are_typed_too(turns, tmp_path):
    meta = {"encoding": "tokens", "vocab_size": 6, "tokens": TOKENS}
    save(tmp_path / "out" / "ckpt.pt", writer([0, 3, 1, 3, 2, 5, 4], 8, 6), meta=meta)
    out, said = turns("e4", "d5", "", options=("--temperature=0", "--max_new_tokens=3"))
    assert out == [" e5 ", "Nf3e4"] and re.fullmatch("error: .*'d5'.*", *said)


def test_one_text_is_written_by_turns_whatever_num_samples(turns, written):
    written(ANSWER)
    for num_samples, notes in {1: 0, 10: 0, 3: 1}.items():
        out, said = turns("the answer", options=[*GREEDY, f"--num_samples={num_samples}"])
        assert out == [ANSWER[10:15]] and len(said) == notes


def test_without_standard_input_it_is_an_error(inside, written, monkeypatch):
    written(ANSWER)
    monkeypatch.setattr(sys, "stdin", None)
    for start in ((), ("--start=the",)):
        done = inside("sample.py", "--out_dir=out", "--interactive=True", "--device=cpu", *start)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch("error: there is no standard input .*\n", done.stderr)


@pytest.mark.slow
def test_lines_may_be_piped_in_from_any_system(command, written, tmp_path):
    written("hellö € world and more")
    run = command("sample.py", "--out_dir=out", "--interactive=True", "--device=cpu", *GREEDY)
    run["env"] = run["env"] | {"PYTHONIOENCODING": "ascii:strict"}
    lines = "hel\r\n€\n/undo\n/undo\n\n/save story.txt\n/qiut"
    done = subprocess.run(**run, cwd=tmp_path, input=lines, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "lö € \norld \nworld\n")
    told = ["the text now ends: hell\\xf6 \\u20ac \\u20ac", "the text now ends: hell\\xf6 \\u20ac "]
    told += ["saved the text, 13 characters, as story.txt"]
    assert done.stderr.splitlines() == [*told, "error: there is no command /qiut: did you mean /quit?"]
    assert (tmp_path / "story.txt").read_text(encoding="utf-8") == "hellö € world\n"


class Terminal:
    """A script in a terminal of 80 columns; what is typed there, and what is seen."""

    def __init__(self, run, folder):
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        del run["encoding"]
        own = "import os, sys; os.setsid(); os.open(os.ttyname(0), os.O_RDWR); os.execv(sys.argv[1], sys.argv[1:])"
        run["args"] = [sys.executable, "-c", own, *map(str, run["args"])]
        run["env"] = {name: value for name, value in run["env"].items() if name != "COLUMNS"} | {"TERM": "xterm"}
        self.process = subprocess.Popen(**run, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder)
        os.close(theirs)

    def type(self, text):
        os.write(self.ours, text.encode())

    def until(self, pattern):
        """What is seen until it matches the pattern at its end."""
        seen = b""
        while not re.search(pattern + r"\Z", text := seen.decode(errors="replace").replace("\r\n", "\n")):
            assert select.select([self.ours], [], [], 60)[0], f"{pattern!r} does not come after {text!r}"
            seen += os.read(self.ours, 4096)
        return text


@pytest.fixture
def terminal(command, tmp_path):
    """terminal("--key=value", ...) starts sample.py --interactive=True in a terminal, up to the first prompt."""
    started = []

    def start(*options):
        run = command("sample.py", "--interactive=True", "--device=cpu", *options)
        started.append(Terminal(run, tmp_path))
        assert started[0].until("> ").startswith("Write a beginning")
        return started[0]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()
        os.close(each.ours)


@pytest.mark.slow
def test_ctrl_c_stops_the_writing_in_a_terminal_and_ctrl_d_ends_the_program(terminal, trained, tmp_path):
    there = terminal(trained, "--max_new_tokens=100000000")
    there.type("the cat\n")
    shown = there.until(r"(\n.+){9}")  # while it is written
    there.type("\x03")
    shown = (shown + there.until("\n> ")).replace("^C", "").removesuffix("\n> ")
    lines = shown.split("\n")
    assert lines[0] == "the cat" and all(len(line) <= 80 for line in lines)
    there.type("/save story.txt\n")
    said = there.until("> ")
    text = (tmp_path / "story.txt").read_text(encoding="utf-8")
    assert f"saved the text, {len(text) - 1:,} characters, as story.txt" in said
    assert text.split() == "".join([lines[0], *lines[1:2], *("\n" + line for line in lines[2:])]).split()
    there.type("half a line\x03")  # is given up
    assert "Ctrl-D or /quit" in there.until("program\n> ")
    there.type("/save story.txt\n")
    assert f"saved the text, {len(text) - 1:,} characters" in there.until("story.txt\n> ")
    there.type("\x04")
    assert there.process.wait(timeout=20) == 0


@pytest.mark.slow
def test_in_a_terminal_lines_are_cut_between_words_and_typed_lines_come_back(terminal, written):
    pytest.importorskip("readline")
    words = "a beautiful tablespoon of water " * 6
    written(words, block_size=256)
    there = terminal("--out_dir=out", "--temperature=0", "--max_new_tokens=150")
    there.type("a beaux\x7f\n")  # a backspace
    first, *lines = there.until("\n> ").removesuffix("\n> ").split("\n")
    assert " ".join(lines) == words[6:156] and [len(line) <= 80 for line in lines] == [True, True]
    there.type("/new\n")
    there.until("> ")
    there.type("\x1b[A\x1b[A\n")  # twice up
    assert there.until("\n> ").split("\n")[1:-1] == lines
    there.type("/quit\n")
    assert there.process.wait(timeout=20) == 0


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
