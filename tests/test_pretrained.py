"""GPT-2 in Hugging Face's format, read here, against transformers' own. The models are small and random."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from conftest import ROOT
from model import GPT, GPTConfig
from pretrained import config_json, gpt2_tensors
from tokenizer import gpt2_tokenizer, read_meta

SIZES = {"vocab_size": 50257, "n_positions": 256, "n_embd": 32, "n_layer": 3, "n_head": 4}
ON_CPU = ("--device=cpu", "--dtype=float32", "--compile=False")


def make(**config):
    """A random model of transformers'."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**{**SIZES, **config})).eval()
    with torch.no_grad():
        for p in model.parameters():  # biases and norms begin as 0 and 1, which would hide mistakes in them
            p.add_(torch.randn_like(p) * 0.2)
    return model


@pytest.fixture(scope="module")
def theirs():
    return make()


@pytest.fixture(scope="module")
def saved(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    theirs.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A folder of its own, to change, with the model that transformers saved."""
    return shutil.copytree(saved, tmp_path / "small")


def tokens(*shape, seed=0):
    return torch.randint(50257, shape, generator=torch.Generator().manual_seed(seed))


def all_logits(model, idx):
    with torch.no_grad():
        return model.eval().lm_head(model.features(idx))


def assert_same(model, theirs, length=256):
    idx = tokens(2, length)
    with torch.no_grad():
        expected = theirs(idx).logits
    assert expected.std() > 0.5  # or else everything would be the same
    torch.testing.assert_close(all_logits(model, idx), expected, atol=1e-4, rtol=0)


# -----------------------------------------------------------------------------
# what is read


@pytest.mark.slow
def test_logits_are_those_of_transformers(theirs, saved):
    model = GPT.from_pretrained(str(saved))
    assert_same(model, theirs)
    assert model.config == GPTConfig(256, 50257, 3, 4, 32, 0.0, True, "tanh")
    assert model.lm_head.weight is model.transformer.wte.weight
    assert all(p.requires_grad and p.is_contiguous() for p in model.parameters())


@pytest.mark.slow
def test_greedy_text_is_that_of_transformers_for_200_tokens(theirs, saved):
    idx = tokens(2, 8)
    options = {"max_new_tokens": 200, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = theirs.generate(idx, attention_mask=torch.ones_like(idx), **options)
    assert len(set(expected[0].tolist())) > 20
    assert torch.equal(GPT.from_pretrained(str(saved)).eval().generate(idx, 200, temperature=0), expected)


def test_a_model_in_several_files_is_read(theirs, tmp_path):
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2 and not (tmp_path / "model.safetensors").exists()
    assert_same(GPT.from_pretrained(str(tmp_path)), theirs)


def test_the_original_files_are_read_which_have_shorter_names_and_the_mask(theirs, folder):
    weights = {k.removeprefix("transformer."): v for k, v in load_file(folder / "model.safetensors").items()}
    for layer in range(3):
        weights[f"h.{layer}.attn.bias"] = torch.ones(256, 256).tril()[None, None]
        weights[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    weights["lm_head.weight"] = weights["wte.weight"].clone()  # some keep the tied weights twice
    save_file(weights, folder / "model.safetensors")
    sizes = {"model_type": "gpt2", "n_ctx": 256, **SIZES}  # and a config with little more than sizes
    (folder / "config.json").write_text(json.dumps(sizes), encoding="utf-8")
    assert_same(GPT.from_pretrained(str(folder)), theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_become_float32(theirs, tmp_path, dtype):
    half = make().to(dtype)
    half.save_pretrained(tmp_path)
    model = GPT.from_pretrained(str(tmp_path))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert_same(model, half.float())


def test_a_model_with_the_exact_gelu_keeps_it(tmp_path):
    theirs = make(activation_function="gelu")
    theirs.save_pretrained(tmp_path)
    model = GPT.from_pretrained(str(tmp_path))
    assert model.config.gelu == "erf"
    assert_same(model, theirs)


def test_a_smaller_block_size_keeps_the_first_positions(theirs, saved):
    model = GPT.from_pretrained(str(saved), block_size=20)
    assert model.config.block_size == 20 and model.transformer.wpe.weight.shape == (20, 32)
    assert_same(model, theirs, length=20)
    with pytest.raises(ValueError, match="block_size=20"):
        model(tokens(1, 21))


def test_a_larger_block_size_is_refused(saved):
    with pytest.raises(ValueError, match="block_size=257 .* 256"):
        GPT.from_pretrained(str(saved), block_size=257)


def test_dropout_is_what_is_asked_for(theirs, saved):
    model = GPT.from_pretrained(str(saved), dropout=0.5)
    assert not torch.equal(model(tokens(2, 9))[0], model(tokens(2, 9))[0])
    assert_same(model.eval(), theirs)


MEASURE = """
import re, resource, sys
import huggingface_hub, safetensors.torch, torch
from model import GPT, GPTConfig

def peak():
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/status") as f:  # on Linux getrusage gives the parent's peak too
        return int(re.search("VmHWM:(.*)kB", f.read())[1]) * 1024

with torch.device("meta"):  # which imports a good deal of torch
    GPT(GPTConfig())
before = peak()
model = GPT.from_pretrained(sys.argv[1])
print(peak() - before, sum(p.numel() * 4 for p in model.parameters()))
"""


@pytest.mark.slow
def test_loading_takes_the_models_memory_once(repo, tmp_path):
    with torch.device("meta"):
        model = GPT(GPTConfig(64, 50257, n_layer=8, n_head=8, n_embd=512)).to_empty(device="cpu")
    model.lm_head.weight = model.transformer.wte.weight
    for p in model.parameters():
        p.data.zero_()
    (tmp_path / "config.json").write_text(json.dumps(config_json(model.config.model_args())), encoding="utf-8")
    save_file(gpt2_tensors(model.state_dict()), tmp_path / "model.safetensors")
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], cwd=repo, capture_output=True, text=True)
    taken, size = map(int, done.stdout.split())
    assert 200e6 < size < 220e6
    assert taken < 1.25 * size


# -----------------------------------------------------------------------------
# by name


def greedy_text(theirs, start, length):
    tokenizer = gpt2_tokenizer()
    idx = torch.tensor([tokenizer.encode(start)])
    options = {"max_new_tokens": length, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ids = theirs.generate(idx, attention_mask=torch.ones_like(idx), **options)
    return tokenizer.decode_bytes(ids[0].tolist()).decode("utf-8", errors="replace")


GREEDY = ("--start=The answer is", "--max_new_tokens=30", "--temperature=0", *ON_CPU)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The cache of the Hugging Face hub, an empty one, on a machine without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    # and for processes of their own
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    return tmp_path / "home" / "hub"


@pytest.mark.slow
@pytest.mark.parametrize("repository, way", [("openai-community--gpt2", "script"), ("gpt2", "inside")])  # now, formerly
def test_a_name_is_looked_up_in_the_hubs_cache(theirs, saved, hub, request, repository, way):
    snapshot = hub / f"models--{repository}" / "snapshots" / "607a30d783dfa663caf39e06633721c8d4cfcd7e"
    shutil.copytree(saved, snapshot)
    (hub / f"models--{repository}" / "refs").mkdir()
    (hub / f"models--{repository}" / "refs" / "main").write_text(snapshot.name)
    run = request.getfixturevalue(way)
    done = run("sample.py", "--init_from=gpt2", "--num_samples=1", *GREEDY)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == greedy_text(theirs, "The answer is", 30) + "\n---------------\n"


def test_without_network_and_cache_the_error_says_what_was_tried_and_what_would_do(hub, inside):
    done = inside("sample.py", "--init_from=gpt2-medium", *ON_CPU)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch("error: .+\n", done.stderr)
    for part in ("gpt2-medium", str(hub), "Offline", "hf download openai-community/gpt2-medium"):
        assert part in done.stderr


def test_a_folder_named_as_a_model_is_that_model(theirs, folder, hub, monkeypatch, tmp_path):
    folder.rename(tmp_path / "gpt2-xl")  # as 'hf download --local-dir gpt2-xl' makes it
    monkeypatch.chdir(tmp_path)
    assert_same(GPT.from_pretrained("gpt2-xl"), theirs)


@pytest.mark.parametrize("num_samples", [1, 2])
def test_sampling_begins_from_a_folder(theirs, saved, inside, num_samples):
    done = inside("sample.py", f"--init_from={saved}", *GREEDY, f"--num_samples={num_samples}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (greedy_text(theirs, "The answer is", 30) + "\n---------------\n") * num_samples


# -----------------------------------------------------------------------------
# what is refused


@pytest.fixture
def refusal(folder):
    """refusal() gives the reason for which the folder is refused."""

    def run():
        with pytest.raises((OSError, ValueError)) as info:
            GPT.from_pretrained(str(folder))
        return str(info.value)

    return run


CONFIGS = {
    "activation_function": "relu",
    "scale_attn_by_inverse_layer_idx": True,
    "scale_attn_weights": False,
    "tie_word_embeddings": False,
    "layer_norm_epsilon": 1e-6,
    "n_inner": 100,
    "model_type": "llama",
    "n_layer": 2,
    "n_head": 5,
    "n_embd": 64,
    "n_positions": 128,
    "vocab_size": 50304,
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", ["other", "missing", "absurd"])
def test_a_config_of_another_model_is_refused(folder, refusal, name, kind):
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if kind == "missing":
        if name not in SIZES:  # which then has its default, and this is GPT-2's
            return
        del config[name]
    else:
        config[name] = CONFIGS[name] if kind == "other" else ["much"] * 100
    path.write_text(json.dumps(config), encoding="utf-8")
    about = {"n_embd": "wte", "n_positions": "wpe", "vocab_size": "wte"}.get(name, name) if kind == "other" else name
    assert about in refusal()


@pytest.mark.parametrize("size", [0, -1, True, 1.5, 10**30, None])
def test_a_size_that_is_none_is_refused(folder, refusal, size):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "n_layer": size}), encoding="utf-8")
    assert "n_layer" in refusal()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100000])
def test_a_damaged_config_is_refused(folder, refusal, content):
    (folder / "config.json").write_bytes(content)
    assert re.search("config.json.* damaged", refusal())


@pytest.mark.parametrize("length", [0, 5, 1000, 400000])
def test_a_damaged_file_of_weights_is_refused(folder, refusal, length):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:length])
    assert re.search("model.safetensors.* damaged", refusal())


def test_weights_that_are_missing_strange_or_of_another_shape_are_refused(folder, refusal):
    path = folder / "model.safetensors"
    whole = load_file(path)
    name = "transformer.h.1.mlp.c_fc.weight"
    for about, weights in {
        name: {k: v for k, v in whole.items() if k != name},
        "transformer.h.1.adapter.weight": {**whole, "transformer.h.1.adapter.weight": torch.zeros(3)},
        "lm_head": {**whole, "lm_head.weight": torch.zeros(50257, 32)},
        rf"{name}.*\(128, 32\)": {**whole, name: whole[name].T.contiguous()},
        rf"{name}.*int8": {**whole, name: whole[name].to(torch.int8)},
        f"{name}.*float32": {**whole, name: torch.tensor(1.0)},
    }.items():
        save_file(weights, path)
        assert re.search(about, refusal())


def test_a_folder_without_weights_is_refused(folder, refusal):
    (folder / "model.safetensors").unlink()
    assert "no model.safetensors" in refusal()
    (folder / "pytorch_model.bin").touch()
    assert "pickle" in refusal()
    (folder / "config.json").unlink()
    assert "config.json" in refusal()


@pytest.mark.parametrize(
    "index", [{}, {"weight_map": 3}, {"weight_map": {"wte.weight": 3}}, {"weight_map": {"a": "b"}}]
)
def test_an_index_that_leads_nowhere_is_refused(folder, refusal, index):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert "model.safetensors.index.json" in refusal() or "/b" in refusal()


def test_sampling_and_training_name_the_option_and_the_reason_in_one_line(folder, inside, text):
    (folder / "model.safetensors").write_bytes(b"")
    for script, *options in (["sample.py"], ["train.py", "--dataset=hitchikersguide", "--block_size=64"]):
        done = inside(script, f"--init_from={folder}", *ON_CPU, *options)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(f"error: --init_from={folder}: .*model.safetensors.*damaged.*\n", done.stderr)


def test_a_model_of_another_encoding_is_not_sampled(inside, tmp_path):
    make(vocab_size=21128).save_pretrained(tmp_path / "chinese")
    done = inside("sample.py", "--init_from=chinese", *ON_CPU)
    assert done.returncode == 2 and re.fullmatch("error: .*21128.*50257.*\n", done.stderr)


# -----------------------------------------------------------------------------
# training


@pytest.fixture(scope="module")
def text(repo):
    """A data set of GPT-2's token ids; returns those to validate on."""
    (folder := repo / "data" / "hitchikersguide").mkdir()
    ids = {"train": tokens(600, seed=1) % 500, "val": tokens(1281, seed=2) % 500}
    for split in ids:
        ids[split].numpy().astype("<u2").tofile(folder / f"{split}.bin")
    return ids["val"]


@pytest.mark.slow
def test_evaluation_gives_transformers_loss(theirs, saved, text, inside):
    done = inside(
        "train.py",
        "config/eval_gpt2.py",
        f"--init_from={saved}",
        "--block_size=256",
        *ON_CPU,
        "--dataset=hitchikersguide",
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        logits = theirs(text[:-1].view(5, 256)).logits
    expected = F.cross_entropy(logits.flatten(0, 1), text[1:])
    assert float(re.search(r"step .*val loss ([\d.]+)", done.stdout)[1]) == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.slow
def test_finetuning_makes_the_weights_better_and_is_resumed(saved, text, inside, tmp_path):
    options = ("config/finetune_hitchikers.py", "--block_size=64", *ON_CPU, "--gradient_accumulation_steps=1")
    done = inside(
        "train.py", *options, f"--init_from={saved}", "--learning_rate=1e-2", "--max_iters=4", "--eval_iters=3"
    )
    assert done.returncode == 0, done.stderr
    before, after = map(float, re.findall(r"step .*val loss ([\d.]+)", done.stdout))
    assert after < before
    model = GPT.from_checkpoint(torch.load("out-hitchikers/ckpt.pt", weights_only=True))
    assert model.config == GPTConfig(64, 50257, 3, 4, 32, 0.0, True, "tanh")
    done = inside("train.py", *options, "--init_from=resume", "--max_iters=5", "--eval_iters=1")
    assert done.returncode == 0 and "iter 4:" in done.stdout
    assert inside("sample.py", "--out_dir=out-hitchikers", *GREEDY, "--num_samples=1").returncode == 0


STORY = "Chapter One. The kettle had opinions, and  on Thursdays it aired them.\n" * 100
OTHERS = {  # how a dataset with other token ids was prepared: script, options, the dataset for GPT-2
    "a text": ("data/prepare.py", ["--input=it's mine.txt", "--clean=True", "--val_fraction=0.2"], "tale-gpt2"),
    "several": ("data/prepare.py", ["--input=texts/*.txt", "--split_documents=False"], "tale-gpt2"),
    "standard input": ("data/prepare.py", ["--input=-"], "tale-gpt2"),
    "its own script": (
        "data/tale/prepare.py",
        ["--clean=False", "--val_fraction=0.2", "--input=it's mine.txt"],
        "tale",
    ),
}


@pytest.fixture
def tale(repo):
    """The repository's copy with both scripts that prepare any text, one of them as that of the dataset tale."""
    (repo / "data" / "tale").mkdir()
    shutil.copy(ROOT / "data" / "prepare.py", repo / "data")
    shutil.copy(ROOT / "data" / "hitchikersguide" / "prepare.py", repo / "data" / "tale")
    yield repo / "data" / "tale"
    os.remove(repo / "data" / "prepare.py")
    for folder in ("tale", "tale-gpt2", "__pycache__"):
        shutil.rmtree(repo / "data" / folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("script, options, prepared", OTHERS.values(), ids=OTHERS)
def test_a_dataset_with_other_token_ids_is_refused_with_the_command_that_prepares_it_for_gpt2(
    saved, inside, command, repo, tale, tmp_path, script, options, prepared
):
    if script == "data/prepare.py":
        shutil.rmtree(tale)
    (tmp_path / "it's mine.txt").write_text(STORY, encoding="utf-8")
    (tmp_path / "texts").mkdir()
    for i in range(12):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"{i} {STORY}", encoding="utf-8")
    given = command(script, *options, "--encoding=bpe", *(["--dataset=tale"] if script == "data/prepare.py" else []))
    done = subprocess.run(**given, cwd=tmp_path, input=STORY, capture_output=True)
    assert done.returncode == 0, done.stderr
    before = read_meta(tale)
    assert before["encoding"] == "bpe"

    train = ["train.py", f"--init_from={saved}", "--block_size=16", *ON_CPU, "--gradient_accumulation_steps=1"]
    train += ["--batch_size=2", "--max_iters=1", "--eval_iters=1", "--sample_tokens=0"]
    done = inside(*train, "--dataset=tale")
    assert (done.returncode, done.stdout) == (2, "")
    printed = re.fullmatch(
        "error: --dataset=tale has other token ids than .*prepare its text for that with '(.*)'\n", done.stderr
    )
    python, *arguments = shlex.split(printed[1])
    assert python == "python" and ("--input=TEXT" in arguments) == (options == ["--input=-"])
    arguments = [a.replace("--input=TEXT", f"--input={tmp_path / 'texts'}") for a in arguments]
    # as printed, in the folder of the scripts
    done = subprocess.run([sys.executable, *arguments], cwd=repo, env=os.environ, capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")
    after = read_meta(repo / "data" / prepared)
    assert after["encoding"] == "gpt2"
    if options != ["--input=-"]:
        assert after["options"] == before["options"] and after["val"]["bytes"] == before["val"]["bytes"]
    done = inside(*train, f"--dataset={prepared}")
    assert done.returncode == 0, done.stderr


def test_a_checkpoint_says_which_gelu_only_where_it_is_not_nanogpts(saved):
    assert "gelu" not in GPTConfig().model_args()
    model = GPT.from_pretrained(str(saved)).eval()
    checkpoint = {"model_args": model.config.model_args(), "model": model.state_dict()}
    assert checkpoint["model_args"]["gelu"] == "tanh"
    assert torch.equal(all_logits(GPT.from_checkpoint(checkpoint), tokens(1, 9)), all_logits(model, tokens(1, 9)))
    with pytest.raises(ValueError, match="gelu=relu"):
        GPTConfig(gelu="relu")


def test_checkpointing_gives_the_same_gradients_from_a_fraction_of_the_activations(saved):
    model = GPT.from_pretrained(str(saved), dropout=0.1)
    idx, results = tokens(2, 128), {}
    for model.checkpoint_activations in (False, True):
        sizes = {}

        def note(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            x = model.features(idx)
        held = sum(sizes.values()) - sum(sizes.get(p.data_ptr(), 0) for p in model.parameters())
        model.zero_grad()
        x.square().sum().backward()
        results[model.checkpoint_activations] = held, [p.grad.clone() for p in model.parameters() if p.grad is not None]
    (whole, expected), (less, grads) = results[False], results[True]
    assert less < whole / 4
    assert all(map(torch.equal, grads, expected))
