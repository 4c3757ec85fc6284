"""export.py's folder, read by transformers and by ourselves. The models are small and random."""

import json
import os
import random
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, GPT2LMHeadModel, pipeline

from conftest import ROOT
from export import write_folder
from model import GPT, GPTConfig
from tokenizer import gpt2_tokenizer, learn_tokenizer, read_tokenizer

META = {"encoding": "gpt2", "vocab_size": 50257}
NOVEL = (ROOT / "data" / "hitchikersguide" / "transcriptions.txt").read_text(encoding="utf-8")
KINDS = [(True, "erf"), (False, "erf"), (True, "tanh"), (False, "tanh")]


def make(bias=False, gelu="erf", **sizes):
    torch.manual_seed(0)
    sizes = {"block_size": 64, "vocab_size": 50304, "n_layer": 2, "n_head": 4, "n_embd": 32, **sizes}
    model = GPT(GPTConfig(bias=bias, gelu=gelu, **sizes)).eval()
    with torch.no_grad():
        for p in model.parameters():  # biases and norms begin as 0 and 1, which would hide mistakes in them
            p.add_(torch.randn_like(p) * 0.2)
    return model


def save(folder, model, meta=META, masks=False, prefix=""):
    """Save a checkpoint: with `masks` as nanoGPT does without flash attention, and with something before each name."""
    folder.mkdir()
    weights = {}
    for name, weight in model.state_dict().items():
        if masks and name.endswith("attn.c_attn.weight"):
            T = model.config.block_size
            weights[f"{prefix}{name.removesuffix('c_attn.weight')}bias"] = torch.ones(1, 1, T, T).tril()
        weights[f"{prefix}{name}"] = weight
    checkpoint = {"model": weights, "model_args": model.config.model_args(), "iter_num": 5, "best_val_loss": 1.5}
    torch.save({**checkpoint, **({"meta": meta} if meta else {})}, folder / "ckpt.pt")


@pytest.fixture
def export(inside):
    """export("--key=value", ...) exports the model in out, and saves the seconds that a tokenizer takes."""

    def run(*args):
        done = inside("export.py", "--out_dir=out", *args, tokenizer_json=lambda tokenizer: {})
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


@pytest.fixture(scope="module", params=["gpt2", "bpe"])
def exported(request, tmp_path_factory):
    """The folder with an exported model, its tokenizer and all; that model, and its tokenizer: GPT-2's or learnt."""
    folder = tmp_path_factory.mktemp("exported")
    tokenizer = gpt2_tokenizer() if request.param == "gpt2" else learn_tokenizer([NOVEL[:100_000]], 900)
    rows = 50304 if request.param == "gpt2" else 960
    save(folder / "out", model := make(vocab_size=rows, n_ids=tokenizer.vocab_size), tokenizer.meta())
    write_folder(str(folder / "hf"), model, tokenizer, {})
    return folder / "hf", model, tokenizer


def tokens(*shape):
    return torch.randint(50257, shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def all_logits(model, idx):
    return model.lm_head(model.features(idx))


# -----------------------------------------------------------------------------
# the model


@pytest.mark.parametrize("bias, gelu", KINDS)
def test_transformers_gives_our_logits(export, tmp_path, bias, gelu):
    save(tmp_path / "out", model := make(bias, gelu))
    assert "--init_from=hf" in export("--to=hf")
    theirs, report = GPT2LMHeadModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(report.values())
    idx = tokens(2, 64)
    torch.testing.assert_close(theirs(idx).logits, all_logits(model, idx), atol=1e-4, rtol=0)


@pytest.mark.parametrize("bias, gelu", KINDS)
def test_an_exported_model_comes_back_bit_for_bit_with_zeros_for_biases_it_had_not(export, tmp_path, bias, gelu):
    save(tmp_path / "out", model := make(bias, gelu))
    export("--to=hf")
    back = GPT.from_pretrained("hf").eval()
    assert back.config == GPTConfig(64, 50304, 2, 4, 32, 0.0, True, gelu)
    ours = model.state_dict()
    for name, weight in back.state_dict().items():
        assert torch.equal(weight, ours[name]) if name in ours else not weight.any()
    assert torch.equal(all_logits(back, tokens(2, 64)), all_logits(model, tokens(2, 64)))


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod."])
@pytest.mark.parametrize("masks", [False, True])
def test_nanogpts_checkpoint_is_exported_with_or_without_masks_whatever_stands_before_its_names(
    export, tmp_path, masks, prefix
):
    # it says nothing of the encoding
    save(tmp_path / "out", model := make(bias=masks), None, masks, prefix)
    export("--to=hf")
    idx = tokens(2, 64)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "hf")
    torch.testing.assert_close(theirs(idx).logits, all_logits(model, idx), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("meta", [META, {"encoding": "bpe", "vocab_size": 258, "merges": [[97, 98]]}])
def test_the_padding_of_the_vocabulary_is_never_drawn(export, inside, tmp_path, meta):
    ids = meta["vocab_size"]
    model = make(vocab_size=-(-ids // 64) * 64)
    with torch.no_grad():
        model.lm_head.weight[ids:] *= 100
    assert (all_logits(model, tokens(1, 64) % ids).argmax(-1) >= ids).any()
    save(tmp_path / "out", model, meta)
    export("--to=hf")
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "hf")
    options = {"attention_mask": torch.ones(20, 4), "max_new_tokens": 20, "pad_token_id": ids - 1}
    for sample in (False, True):
        assert theirs.generate(tokens(20, 4) % ids, do_sample=sample, **options).max() < ids
    back = GPT.from_pretrained("hf").eval()
    assert back.config.n_ids == ids and back.generate(tokens(20, 4) % ids, 20).max() < ids


def test_a_vocabulary_without_padding_stays_so(export, tmp_path):
    save(tmp_path / "out", make(True, "tanh", vocab_size=50257))
    export("--to=hf")
    assert AutoConfig.from_pretrained(tmp_path / "hf").vocab_size == 50257
    assert "suppress_tokens" not in json.loads((tmp_path / "hf" / "generation_config.json").read_text(encoding="utf-8"))


OPENAI = {  # the config.json of openai-community/gpt2
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}


def test_config_json_has_all_that_openais_own_has(export, tmp_path):
    save(tmp_path / "out", make(True, "tanh"))
    export("--to=hf")
    written = json.loads((tmp_path / "hf" / "config.json").read_text(encoding="utf-8"))
    ours = {"n_ctx": 64, "n_positions": 64, "n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 50304}
    ours |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    assert {name: written.get(name, "missing") for name in OPENAI} == OPENAI | ours


# -----------------------------------------------------------------------------
# the tokenizer


NASTY = [
    "",
    " ",
    "\n\n  \t \r\n",
    "a" * 1000,
    "I'll they've WE'RE 'S it's",
    "naïve façade Ångström — “quotes” … ‽",
    "日本語の文章。中文，한국어",
    "\N{BUTTERFLY}\N{WOMAN}\N{ZERO WIDTH JOINER}\N{ROCKET} e\N{COMBINING ACUTE ACCENT}",
    "\0\x01\x7f\x80\xa0\xad\u2028\u3000\ufeff\ufffd\U0010ffff",
    "12345678901234567890 3.14 ½ ² Ⅷ ٣",
    "<|endoftext|>one<|endoftext|> two <|endoftext|>\n<|endoftex",
    "    indented\n\tcode(x)  # comment   \n",
    "مرحبا بالعالم שלום עולם नमस्ते",
]


@pytest.fixture(scope="module")
def auto(exported):
    """transformers' tokenizer of the exported folder."""
    return AutoTokenizer.from_pretrained(exported[0])


@pytest.mark.slow
@pytest.mark.parametrize("text", [*NASTY, NOVEL], ids=lambda text: f"{ascii(text):.50}")
def test_the_tokenizer_gives_our_ids_and_our_text(exported, auto, text):
    ids = auto(text)["input_ids"]
    assert ids == exported[2].encode(text, special=True)
    assert auto.decode(ids, clean_up_tokenization_spaces=False) == text


def test_the_tokenizer_knows_every_id_and_its_special_token(exported, auto):
    _, _, ours = exported
    assert type(auto).__name__.startswith("GPT2Tokenizer")
    assert len(auto) == ours.vocab_size and auto.model_max_length == 64
    assert auto.eos_token_id == auto.bos_token_id == auto.pad_token_id == ours.vocab_size - 1
    for i in range(0, ours.vocab_size, 7):
        assert auto.decode([i]) == ours.decode_bytes([i]).decode("utf-8", errors="replace")


def test_the_tokenizer_comes_back_also_as_transformers_saves_it(exported, auto, tmp_path):
    folder, _, ours = exported
    auto.save_pretrained(tmp_path / "again")
    for path in (folder, tmp_path / "again"):
        assert read_tokenizer(str(path)).meta() == ours.meta()


PROMPTS = ["The answer is", "Once upon a time there was a robot who", "\n", "<|endoftext|>The", "a"]


@pytest.mark.slow
def test_a_padded_batch_is_continued_as_each_text_alone(exported):
    folder, _, _ = exported
    tokenizer, model = AutoTokenizer.from_pretrained(folder), GPT2LMHeadModel.from_pretrained(folder)
    options = {"max_new_tokens": 20, "do_sample": False}
    alone = [model.generate(**tokenizer(text, return_tensors="pt"), **options)[0] for text in PROMPTS]
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    assert 0 < batch["attention_mask"].sum() < batch["attention_mask"].numel()  # some are padded
    together = model.generate(**batch, **options)
    assert tokenizer.batch_decode(together[:, batch["input_ids"].shape[1] :]) == [
        tokenizer.decode(ids[len(tokenizer(text)["input_ids"]) :]) for ids, text in zip(alone, PROMPTS)
    ]


@pytest.mark.slow
def test_a_pipeline_of_batches_writes_what_one_of_single_texts_writes(exported):
    pipe = pipeline("text-generation", model=str(exported[0]), device="cpu")
    options = {"max_new_tokens": 20, "do_sample": False}
    assert pipe(PROMPTS, batch_size=2, **options) == [pipe(text, **options) for text in PROMPTS]


PIPELINE = """
import sys, torch, transformers
pipe = transformers.pipeline("text-generation", model="hf")
ids = pipe.tokenizer("The answer is", return_tensors="pt").input_ids
with torch.no_grad():
    torch.save(pipe.model(ids).logits, "logits.pt")
text = pipe("The answer is", max_new_tokens=20, do_sample=False)[0]["generated_text"]
sys.stdout.buffer.write(text.encode("utf-8"))
"""


@pytest.mark.slow
def test_a_pipeline_writes_what_we_write(exported, tmp_path, inside):
    folder, model, tokenizer = exported
    env = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", PIPELINE], cwd=folder.parent, env=env, capture_output=True)
    assert done.returncode == 0, done.stderr
    ids = torch.tensor([tokenizer.encode("The answer is")])
    logits = torch.load(folder.parent / "logits.pt", weights_only=True)
    torch.testing.assert_close(logits, all_logits(model, ids), atol=1e-4, rtol=0)
    assert greedy(inside, f"--init_from={folder}") == done.stdout.decode("utf-8") + "\n---------------\n"


def greedy(inside, origin, start="The answer is"):
    options = ("--max_new_tokens=20", "--temperature=0", "--num_samples=1", "--device=cpu")
    done = inside("sample.py", origin, f"--start={start}", *options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("start", ["The answer is", "\n", "<|endoftext|>東京"])
def test_an_exported_model_writes_what_the_checkpoint_writes(exported, inside, start):
    folder, _, _ = exported
    text = greedy(inside, f"--init_from={folder}", start)
    assert text.startswith(start) and text == greedy(inside, f"--out_dir={folder.parent / 'out'}", start)


# -----------------------------------------------------------------------------
# training goes on from it


TRAIN = ["--block_size=16", "--batch_size=2", "--gradient_accumulation_steps=1", "--eval_iters=2", "--device=cpu"]
TRAIN += ["--max_iters=1", "--dtype=float32", "--compile=False", "--sample_tokens=5", "--out_dir=tuned"]


@pytest.fixture
def datasets(repo):
    """datasets(name, tokenizer) writes a dataset with this vocabulary."""
    folders = []

    def write(name, tokenizer):
        folders.append(folder := repo / "data" / name)
        folder.mkdir()
        for split, text in {"train": NOVEL[:5000], "val": NOVEL[5000:6000]}.items():
            np.array(tokenizer.encode(text), dtype="<u2").tofile(folder / f"{split}.bin")
        (folder / "meta.json").write_text(json.dumps(tokenizer.meta()), encoding="utf-8")

    yield write
    for folder in folders:
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("multiple", [None, 1, 128])
def test_training_goes_on_from_it_on_a_dataset_with_its_vocabulary(exported, datasets, inside, tmp_path, multiple):
    folder, _, tokenizer = exported
    if multiple:  # of rows, as other programs have it
        theirs = GPT2LMHeadModel.from_pretrained(folder)
        theirs.resize_token_embeddings(tokenizer.vocab_size, pad_to_multiple_of=multiple)
        theirs.save_pretrained(tmp_path / "resized")
        AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "resized")
        folder = tmp_path / "resized"
        assert greedy(inside, f"--init_from={folder}") == greedy(inside, f"--init_from={exported[0]}")
    datasets("same", tokenizer)
    done = inside("train.py", *TRAIN, f"--init_from={folder}", "--dataset=same")
    assert done.returncode == 0 and "it writes: " in done.stdout, done.stderr
    done = inside("train.py", *TRAIN, "--init_from=resume", "--dataset=same", "--max_iters=2")
    assert done.returncode == 0 and "iter 1:" in done.stdout, done.stderr
    checkpoint = torch.load("tuned/ckpt.pt", weights_only=True)
    assert {key: checkpoint["meta"][key] for key in tokenizer.meta()} == tokenizer.meta()
    assert greedy(inside, "--out_dir=tuned").startswith("The answer is")


def test_training_from_it_on_a_dataset_with_another_vocabulary_is_refused(exported, datasets, inside):
    folder, _, tokenizer = exported
    learnt = learn_tokenizer([NOVEL[:50_000]], 900)  # as many as those of the model, but others
    others = {"learnt": learnt} if tokenizer.vocab_size > 50_000 else {"learnt": learnt, "gpt2s": gpt2_tokenizer()}
    for name, other in others.items():
        datasets(name, other)
        done = inside("train.py", *TRAIN, f"--init_from={folder}", f"--dataset={name}")
        right = "--encoding=gpt2" if tokenizer.vocab_size > 50_000 else "--tokenizer="
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(f"error: --dataset={name} has other token ids than .*{right}.*\n", done.stderr)


def swapped(content):
    """Another vocabulary: two tokens have changed their ids."""
    vocab = content["model"]["vocab"]
    vocab["he"], vocab["in"] = vocab["in"], vocab["he"]
    return json.dumps(content)


def shuffled(content):
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = dict(zip(vocab, random.Random(0).sample([*vocab.values()], len(vocab))))
    return json.dumps(content)


def changed(**model):
    return lambda content: json.dumps(content | {"model": content["model"] | model})


def without_a_token(content):
    vocab = content["model"]["vocab"]
    return changed(vocab={token: i for token, i in vocab.items() if token != "in"})(content)


def merged_twice(content):
    return changed(merges=content["model"]["merges"] + content["model"]["merges"][:1])(content)


FOREIGN = {
    "two swapped": swapped,
    "shuffled": shuffled,
    "one more token": lambda content: changed(vocab=content["model"]["vocab"] | {"zzzzzz": 60000})(content),
    "one token less": without_a_token,
}
DAMAGED = {
    "truncated": lambda content: json.dumps(content)[:-5],
    "half": lambda content: json.dumps(content)[:3000],
    "empty": lambda content: "",
    "no dict": lambda content: "[]",
    "nested": lambda content: "[" * 100_000,
    "no model": lambda content: "{}",
    "no model of any kind": lambda content: '{"model": 3}',
    "words": lambda content: '{"model": {"type": "WordLevel", "vocab": {"the": 0, "answer": 1}, "unk_token": "?"}}',
    "pieces": lambda content: '{"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0]]}}',
    "not UTF-8": lambda content: b"\xff\xfe" + json.dumps(content).encode(),
}
BROKEN = {  # of byte pairs in our order
    "merges gone": changed(merges=[]),
    "merged twice": merged_twice,
    "a merge of strangers": changed(merges=[["zzz", "yyy"]]),
    "a merge of three": changed(merges=[["a", "b", "c"]]),
    "a merge of numbers": changed(merges=[[1, 2]]),
    "merges that are no list": changed(merges=3),
    "a merge of nothing": changed(merges=[None]),
}


@pytest.fixture
def small(tmp_path):
    """A folder with an exported model of a few byte pairs, to change, and a dataset's name."""
    tokenizer = learn_tokenizer([NOVEL[:20_000]], 300)
    write_folder(str(tmp_path / "small"), make(vocab_size=320, n_ids=300), tokenizer, {})
    return tmp_path / "small"


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [*FOREIGN.values(), *DAMAGED.values(), *BROKEN.values()], ids=[*FOREIGN, *DAMAGED, *BROKEN]
)
def test_a_tokenizer_of_another_kind_or_a_damaged_one_is_one_line_of_error(small, datasets, inside, change):
    path = small / "tokenizer.json"
    content = change(json.loads(path.read_text(encoding="utf-8")))
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    datasets("mine", gpt2_tokenizer())
    for script, *options in (["sample.py"], ["train.py", *TRAIN, "--dataset=mine"]):
        done = inside(script, f"--init_from={small}", *options)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(f"error: --init_from={small}: .*tokenizer.json.*\n", done.stderr)
        said = "damaged, or holds no byte pairs" if change in DAMAGED.values() else "tokenizer.json"
        assert said in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("exported", ["gpt2"], indirect=True)
@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_a_vocabulary_like_gpt2s_with_other_ids_is_one_line_of_error(exported, inside, tmp_path, change):
    shutil.copytree(exported[0], tmp_path / "foreign")
    path = tmp_path / "foreign" / "tokenizer.json"
    path.write_text(change(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
    done = inside("sample.py", "--init_from=foreign")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        "error: --init_from=foreign: .*tokenizer.json' has neither GPT-2's token ids nor ids of ours.*\n", done.stderr
    )


# -----------------------------------------------------------------------------
# what is refused, and what is kept


@pytest.fixture
def mistake(inside):
    def run(*args):
        done = inside("export.py", *args, tokenizer_json=lambda tokenizer: {})
        assert (done.returncode, done.stdout) == (2, "") and re.fullmatch("error: .+\n", done.stderr)
        return done.stderr

    return run


def test_a_model_of_characters_is_refused(mistake, tmp_path):
    save(tmp_path / "out", make(vocab_size=3), meta={"encoding": "char", "vocab_size": 3, "chars": "abc"})
    assert re.search("single characters.*--encoding=bpe", mistake("--out_dir=out", "--to=hf"))
    assert os.listdir(tmp_path) == ["out"]


def test_a_model_of_tokens_is_refused_with_the_reason(mistake, tmp_path):
    meta = {"encoding": "tokens", "vocab_size": 3, "tokens": ["C4", "D4", "E4"]}
    save(tmp_path / "out", make(vocab_size=3), meta=meta)
    assert re.search("tokens of its dataset's own.*--encoding=bpe", mistake("--out_dir=out", "--to=hf"))
    save(tmp_path / "numbers", make(vocab_size=3), meta={"encoding": "tokens", "vocab_size": 3})
    assert "only their number is known" in mistake("--out_dir=numbers", "--to=hf")
    assert sorted(os.listdir(tmp_path)) == ["numbers", "out"]


def test_what_is_there_is_kept(mistake, export, tmp_path):
    save(tmp_path / "out", make())
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for name in ("file", "full", "full/"):
        assert f"--to={name} exists" in mistake("--out_dir=out", f"--to={name}")
    assert "cannot write 'file/below'" in mistake("--out_dir=out", "--to=file/below")
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "file").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["file", "full", "out"]
    (tmp_path / "empty").mkdir()
    export("--to=empty/")
    assert "config.json" in os.listdir(tmp_path / "empty")


def test_an_empty_name_of_the_folder_to_write_is_refused(mistake, tmp_path):
    save(tmp_path / "out", make())
    assert "--to= is empty: it should name the folder" in mistake("--out_dir=out", "--to=")
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_appears_only_whole(mistake, tmp_path, monkeypatch):
    save(tmp_path / "out", make())

    def full(tensors, path, metadata):
        with open(path, "wb") as f:
            f.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    assert "No space left" in mistake("--out_dir=out", "--to=hf")
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_without_a_checkpoint_is_refused(mistake):
    assert "nothing/ckpt.pt" in mistake("--out_dir=nothing")
