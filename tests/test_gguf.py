"""export.py's GGUF file, read by llama.cpp itself. The models are small and random."""

import json
import os
import re
import resource
import urllib.request

import pytest
import torch
import xllamacpp
import yaml
from gguf import GGUFReader
from transformers import GPT2LMHeadModel

import configurator
from conftest import ROOT
from export import write_file
from model import GPT
from test_export import NASTY, NOVEL, all_logits, make, save, tokens
from tokenizer import gpt2_tokenizer, learn_tokenizer

BLOCK = 128
BPE = {"encoding": "bpe", "vocab_size": 258, "merges": [[97, 98]]}


class LlamaCpp:
    """A GGUF file in llama.cpp, which answers over HTTP, on the loopback address."""

    def __init__(self, path):
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(path), BLOCK, 1, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = xllamacpp.Server(params)

    def ask(self, what, **body):
        url = f"{self.server.listening_address}/{what}"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def encode(self, text, special=False):
        return self.ask("tokenize", content=text, add_special=True, parse_special=special)["tokens"]

    def log_probs(self, ids, vocab_size):
        """What it gives all ids after these. It is made to write 64, since it tells of whole characters only."""
        options = {"n_predict": 1, "n_probs": vocab_size, "temperature": 0, "logit_bias": [[64, 1000]]}
        answer = self.ask("completion", prompt=ids, **options)["completion_probabilities"][0]["top_logprobs"]
        found = {token["id"]: token["logprob"] for token in answer}
        return torch.tensor([found[i] for i in range(vocab_size)])

    def greedy(self, ids, count):
        options = {"n_predict": count, "temperature": 0, "return_tokens": True}
        return self.ask("completion", prompt=ids, **options)["tokens"]


@pytest.fixture(scope="module", params=["gpt2", "bpe"])
def tokenizer(request):
    return gpt2_tokenizer() if request.param == "gpt2" else learn_tokenizer([NOVEL[:100_000]], 900)


@pytest.fixture(scope="module")
def learnt():
    return learn_tokenizer([NOVEL[:100_000]], 900)


def small(tokenizer, bias=True, gelu="tanh"):
    rows = -(-tokenizer.vocab_size // 64) * 64
    return make(bias, gelu, vocab_size=rows, n_ids=tokenizer.vocab_size, block_size=BLOCK)


# -----------------------------------------------------------------------------
# llama.cpp reads it


@pytest.mark.slow
def test_llama_cpp_gives_our_ids_for_the_whole_novel_and_for_nasty_texts(tokenizer, tmp_path):
    write_file(str(tmp_path / "x.gguf"), small(tokenizer), tokenizer)
    llama = LlamaCpp(tmp_path / "x.gguf")
    for text in [*NASTY, NOVEL]:
        assert llama.encode(text) == tokenizer.encode(text)
        assert llama.encode(text, special=True) == tokenizer.encode(text, special=True)


def differences(llama, model, tokenizer, positions):
    """How much the logarithms of the probabilities at positions of a text differ: each the most over all ids."""
    ids, vocab_size = tokenizer.encode(NOVEL[:1000])[: max(positions) + 1], tokenizer.vocab_size
    ours = all_logits(model, torch.tensor([ids]))[0, :, :vocab_size].log_softmax(-1)
    return [(llama.log_probs(ids[: i + 1], vocab_size) - ours[i]).abs().max() for i in positions]


@pytest.mark.slow
@pytest.mark.parametrize("bias", [True, False])
def test_llama_cpp_gives_our_logits_for_the_first_50_positions(learnt, tmp_path, bias):
    write_file(str(tmp_path / "x.gguf"), model := small(learnt, bias), learnt)
    assert max(differences(LlamaCpp(tmp_path / "x.gguf"), model, learnt, range(50))) < 1e-2


@pytest.mark.slow
def test_llama_cpp_gives_our_logits_with_gpt2s_vocabulary(tmp_path):
    write_file(str(tmp_path / "x.gguf"), model := small(gpt2_tokenizer()), gpt2_tokenizer())
    assert max(differences(LlamaCpp(tmp_path / "x.gguf"), model, gpt2_tokenizer(), [0, 1, 49])) < 1e-2


@pytest.mark.slow
def test_llama_cpp_computes_another_gelu_than_a_model_trained_from_scratch_and_it_matters_little(learnt, tmp_path):
    write_file(str(tmp_path / "x.gguf"), model := small(learnt, gelu="erf"), learnt)
    assert 1e-5 < max(differences(LlamaCpp(tmp_path / "x.gguf"), model, learnt, [0, 10, 49])) < 3e-2


@pytest.mark.slow
def test_llama_cpp_writes_our_100_greedy_tokens(tokenizer, tmp_path):
    write_file(str(tmp_path / "x.gguf"), model := small(tokenizer), tokenizer)
    start = {"gpt2": "The answer is", "bpe": "She kept it in the innerm"}[tokenizer.meta()["encoding"]]
    ids = tokenizer.encode(start)
    ours = model.generate(torch.tensor([ids]), 100, temperature=0)[0]
    best = all_logits(model, ours[None])[0, len(ids) - 1 : -1, : tokenizer.vocab_size].topk(2).values
    assert (best[:, 0] - best[:, 1]).min() > 1e-2  # no tie, which rounding would decide
    assert LlamaCpp(tmp_path / "x.gguf").greedy(ids, 100) == ours[len(ids) :].tolist()


# -----------------------------------------------------------------------------
# what is in it


@pytest.fixture
def export(inside):
    def run(*args):
        done = inside("export.py", "--out_dir=out", *args)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


def test_a_gguf_file_says_what_it_holds_and_leaves_the_licence_to_the_user(export, tmp_path):
    save(tmp_path / "out", make(vocab_size=320), BPE)
    export("--to=towel.gguf")
    assert sorted(os.listdir(tmp_path)) == ["out", "towel.gguf"]
    said = {name: field.contents() for name, field in GGUFReader(tmp_path / "towel.gguf").fields.items()}
    wanted = {"general.architecture": "gpt2", "general.name": "towel", "general.file_type": 0}
    wanted |= {"gpt2.context_length": 64, "gpt2.embedding_length": 32, "gpt2.feed_forward_length": 128}
    wanted |= {"gpt2.block_count": 2, "gpt2.attention.head_count": 4, "tokenizer.ggml.pre": "gpt-2"}
    wanted |= {"tokenizer.ggml.eos_token_id": 257, "tokenizer.ggml.merges": ["a b"]}
    wanted |= {"tokenizer.ggml.token_type": [1] * 257 + [3]}
    assert {name: said.get(name) for name in wanted} == wanted
    assert said["tokenizer.ggml.tokens"][96:99] == ["`", "a", "b"]
    assert said["tokenizer.ggml.tokens"][256:] == ["ab", "<|endoftext|>"]
    assert not [name for name in said if "license" in name]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_its_weights_are_those_of_the_model_without_the_padding_of_the_vocabulary(export, tmp_path, dtype):
    save(tmp_path / "out", model := make(vocab_size=320), BPE)
    export("--to=x.gguf", f"--dtype={dtype}")
    found = {tensor.name: torch.tensor(tensor.data) for tensor in GGUFReader(tmp_path / "x.gguf").tensors}
    ours = model.state_dict()
    rows, matrix = ours["transformer.wte.weight"][:258], ours["transformer.h.1.mlp.c_fc.weight"]
    assert torch.equal(found["token_embd.weight"], rows.to(getattr(torch, dtype)))
    assert torch.equal(found["blk.1.ffn_up.weight"], matrix.to(getattr(torch, dtype)))
    assert found["output_norm.weight"].dtype == found["position_embd.weight"].dtype == torch.float32
    assert not found["blk.0.attn_qkv.bias"].any()  # which the model has not, and llama.cpp asks for


def test_the_erf_gelu_is_told_in_one_line(export, tmp_path):
    save(tmp_path / "out", make(vocab_size=320), BPE)
    assert len(re.findall("^note: .*GELU.*$", export("--to=x.gguf"), re.MULTILINE)) == 1
    save(tmp_path / "tanh", make(gelu="tanh", vocab_size=320), BPE)
    assert "GELU" not in export("--out_dir=tanh", "--to=y.gguf")


# -----------------------------------------------------------------------------
# the folder


def test_a_folder_in_float16_is_read_by_transformers_and_by_us(export, tmp_path):
    save(tmp_path / "out", model := make(vocab_size=320), BPE)
    export("--to=hf", "--dtype=float16")
    idx = tokens(1, 64) % 258
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    for logits in (theirs(idx).logits, all_logits(GPT.from_pretrained("hf").eval(), idx)):
        torch.testing.assert_close(logits, all_logits(model, idx), atol=3e-2, rtol=0)


def test_a_folder_has_a_model_card_with_sizes_text_and_bits_per_byte_and_leaves_the_licence_to_the_user(
    export, tmp_path
):
    counts = {"tokens": 1000, "bytes": 3000}
    save(tmp_path / "out", make(vocab_size=320), BPE | {"val": counts})
    checkpoint = torch.load(tmp_path / "out" / "ckpt.pt", weights_only=True)
    torch.save(checkpoint | {"config": {"dataset": "towels"}, "tokens": 12345}, tmp_path / "out" / "ckpt.pt")
    export("--to=hf-towels")
    card = (tmp_path / "hf-towels" / "README.md").read_text(encoding="utf-8")
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front) == {"library_name": "transformers", "pipeline_tag": "text-generation"}
    # a loss of 1.5 is 1.5 / ln 2 * 1000 / 3000 bits
    for word in ("2 layers of 32 channels", "64 tokens", "258 token ids", "'towels'", "12,345", "1.5000", "0.721 bits"):
        assert word in text
    assert "--init_from=hf-towels --dataset=towels --block_size=64" in text and str(tmp_path) not in card


@pytest.mark.slow
def test_what_a_card_says_of_loading_works_when_it_is_pasted(export, tmp_path, capsys):
    save(tmp_path / "out", make(vocab_size=320), BPE)
    export("--to=hf")
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall("```python\n(.*?)```", card, re.DOTALL)
    capsys.readouterr()
    exec(code, {})
    assert capsys.readouterr().out.startswith("The answer is")


@pytest.mark.parametrize("known", ["no loss", float("inf"), torch.ones(2), 1.5], ids=str)
def test_a_card_says_nothing_that_the_checkpoint_does_not_know(export, tmp_path, known):
    save(tmp_path / "out", make(vocab_size=320), BPE | {"val": {"bytes": 3000}})
    checkpoint = torch.load(tmp_path / "out" / "ckpt.pt", weights_only=True)
    del checkpoint["best_val_loss"]
    checkpoint |= {} if known == "no loss" else {"best_val_loss": known}
    torch.save(checkpoint, tmp_path / "out" / "ckpt.pt")
    export("--to=hf")
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    assert "not known" in card and not re.search(r"None|\binf\b|tensor|bits", card)
    assert ("1.5000 nats" in card) == (str(known) == "1.5")


# -----------------------------------------------------------------------------
# mistakes


@pytest.fixture
def mistake(inside, tmp_path):
    """mistake("--key=value", ...): the error of an export that leaves nothing behind."""

    def run(*args, **replaced):
        before = sorted(os.listdir(tmp_path))
        done = inside("export.py", "--out_dir=out", *args, **replaced)
        assert (done.returncode, done.stdout) == (2, "") and re.fullmatch("error: .+\n", done.stderr)
        assert sorted(os.listdir(tmp_path)) == before
        return done.stderr

    return run


def test_a_vocabulary_that_llama_cpp_has_not_is_refused_with_the_reason(mistake, tmp_path):
    save(tmp_path / "out", make(vocab_size=3), {"encoding": "char", "vocab_size": 3, "chars": "abc"})
    assert re.search("single characters.*llama.cpp.*--encoding=bpe", mistake("--to=x.gguf"))
    save(tmp_path / "notes", make(vocab_size=2), {"encoding": "tokens", "vocab_size": 2, "tokens": ["C4", "D4"]})
    assert re.search("tokens of its dataset's own.*llama.cpp", mistake("--out_dir=notes", "--to=x.gguf"))
    save(tmp_path / "bytes", make(vocab_size=320), {"encoding": "bpe", "vocab_size": 257, "merges": []})
    assert re.search("single bytes.*--vocab_size", mistake("--out_dir=bytes", "--to=x.gguf"))


def test_what_is_there_is_kept(mistake, tmp_path):
    save(tmp_path / "out", make(vocab_size=320), BPE)
    (tmp_path / "x.gguf").write_text("mine", encoding="utf-8")
    (tmp_path / "folder.GGUF").mkdir()
    assert "--to=x.gguf exists already" in mistake("--to=x.gguf")
    assert "--to=folder.GGUF is a folder, and should be a file" in mistake("--to=folder.GGUF")
    assert "cannot write 'nowhere/x.gguf': No such file" in mistake("--to=nowhere/x.gguf")
    assert "cannot write 'x.gguf/y.gguf': Not a directory" in mistake("--to=x.gguf/y.gguf")
    assert (tmp_path / "x.gguf").read_text(encoding="utf-8") == "mine"


def test_without_permission_to_write_there_is_one_line_of_error(mistake, tmp_path, monkeypatch):
    save(tmp_path / "out", make(vocab_size=320), BPE)

    def refuse(path, *args, **more):  # for root, too
        if path == "x.gguf.tmp":
            raise PermissionError(13, "Permission denied", path)
        return open(path, *args, **more)

    monkeypatch.setattr(configurator, "open", refuse, raising=False)
    assert "cannot write 'x.gguf': Permission denied" in mistake("--to=x.gguf")


@pytest.mark.parametrize("room", [1000, 50_000])  # in what the file says, and in its weights
def test_on_a_full_disk_no_half_a_file_is_left(mistake, tmp_path, room):
    save(tmp_path / "out", make(vocab_size=320), BPE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        error = mistake("--to=x.gguf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert re.match("error: cannot write 'x.gguf': (File too large|.*is it full)", error)


def test_an_unknown_dtype_and_weights_too_large_for_float16_are_refused(mistake, tmp_path):
    save(tmp_path / "out", model := make(vocab_size=320), BPE)
    assert "--dtype=int8 is unknown: it may be float32 or float16" in mistake("--to=x.gguf", "--dtype=int8")
    with torch.no_grad():
        model.transformer.wpe.weight[3, 4] = 1e6
    save(tmp_path / "large", model, BPE)
    for to in ("x.gguf", "hf"):
        assert "weight of 1e+06: export it with --dtype=float32" in mistake(
            "--out_dir=large", f"--to={to}", "--dtype=float16"
        )


def test_without_the_package_gguf_the_error_says_how_to_install_it(mistake, tmp_path, monkeypatch):
    save(tmp_path / "out", make(vocab_size=320), BPE)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "'pip install gguf'" in mistake("--to=x.gguf")


def test_gguf_is_not_among_what_make_demo_installs():
    assert "gguf" not in (ROOT / "requirements.txt").read_text(encoding="utf-8")
