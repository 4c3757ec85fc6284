"""The network against transformers' GPT-2, its loss against plain float64 arithmetic, its cache against itself."""

import copy
import platform
import weakref
from unittest.mock import MagicMock

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GPT2Config, GPT2LMHeadModel, RepetitionPenaltyLogitsProcessor

import fast
import model as network
from fast import buffers, linear_cross_entropy, pack
from model import GPT, GPTConfig, draw_ids, penalize

SIZES = {"block_size": 32, "vocab_size": 97, "n_layer": 3, "n_head": 4, "n_embd": 32}


def make_model(seed=0, **sizes):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{**SIZES, **sizes}))
    with torch.no_grad():  # biases and norms begin as 0 and 1, which would hide mistakes in them
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def reference(model):
    """transformers' GPT-2 with the same weights."""
    c = model.config
    config = GPT2Config(
        vocab_size=c.vocab_size,
        n_positions=c.block_size,
        n_embd=c.n_embd,
        n_layer=c.n_layer,
        n_head=c.n_head,
        activation_function="gelu",  # by erf, as a model from scratch has it
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        eos_token_id=None,
        bos_token_id=None,
    )
    reference = GPT2LMHeadModel(config).eval()
    linear = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # which GPT-2 keeps as (in, out)
    weights = {k: v.t() if k.endswith(linear) else v for k, v in model.state_dict().items()}
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert not unexpected and all(k.endswith(("attn.bias", "masked_bias")) for k in missing)
    return reference


def tokens(*shape, below=97, seed=0):
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def all_logits(model, idx):
    return model.lm_head(model.features(idx))


def test_logits_are_those_of_transformers(model, reference):
    idx = tokens(3, 32)
    torch.testing.assert_close(all_logits(model, idx), reference(idx).logits, atol=1e-5, rtol=1e-4)


def test_loss_and_gradients_are_those_of_transformers(model, reference):
    idx, targets = tokens(3, 32), tokens(3, 32, seed=1)
    _, loss = model(idx, targets)
    logits = reference(idx).logits
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss, expected)
    model.zero_grad(), loss.backward()
    reference.zero_grad(), expected.backward()
    theirs = dict(reference.named_parameters())
    for name, p in model.named_parameters():
        grad = theirs[name].grad
        grad = grad.t() if p.dim() == 2 and "wte" not in name and "wpe" not in name else grad
        torch.testing.assert_close(p.grad, grad, atol=1e-5, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def test_without_targets_the_last_position_has_logits(model):
    idx = tokens(2, 9)
    logits, loss = model(idx)
    assert loss is None and logits.shape == (2, 1, 97)
    torch.testing.assert_close(logits[:, 0], all_logits(model, idx)[:, -1])


def test_a_model_without_biases_has_none():
    assert not [name for name, _ in make_model(bias=False).named_parameters() if name.endswith("bias")]


# -----------------------------------------------------------------------------
# the loss


def loss_inputs(dtype, rows=900, channels=24, vocabulary=211, ignored=True):
    torch.manual_seed(3)
    x = torch.randn(rows, channels, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, channels, dtype=dtype, requires_grad=True)
    targets = torch.randint(vocabulary, (rows,))
    if ignored:
        targets[::7] = -1
    return x, weight, targets


@pytest.mark.parametrize("rows", [1, 384, 900])  # in chunks of 384
@pytest.mark.parametrize("ignored", [True, False])
def test_the_chunked_loss_is_the_plain_one_in_float64(rows, ignored):
    x, weight, targets = loss_inputs(torch.float64, rows, ignored=ignored and rows > 1)
    plain = F.cross_entropy(x @ weight.T, targets, ignore_index=-1)
    chunked = linear_cross_entropy(x, weight, targets)
    torch.testing.assert_close(chunked, plain, rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad(3 * plain, (x, weight))
    got = torch.autograd.grad(3 * chunked, (x, weight), retain_graph=True)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(3 * chunked, (x, weight)), expected, rtol=1e-10, atol=1e-12)


def test_the_chunked_loss_passes_gradcheck():
    x, weight, targets = loss_inputs(torch.float64, rows=5, channels=3, vocabulary=7)
    assert torch.autograd.gradcheck(lambda x, w: linear_cross_entropy(x, w, targets), (x, weight))


def test_the_chunked_loss_without_gradients_is_the_same():
    x, weight, targets = loss_inputs(torch.float64)
    with torch.no_grad():
        assert linear_cross_entropy(x, weight, targets) == linear_cross_entropy(x.detach(), weight.detach(), targets)
        torch.testing.assert_close(
            linear_cross_entropy(x, weight, targets), F.cross_entropy(x @ weight.T, targets, ignore_index=-1)
        )


def test_the_chunked_loss_is_right_where_the_targets_probability_rounds_to_zero():
    x, weight, targets = loss_inputs(torch.float32)
    x, weight = x.detach() * 30, weight.detach() * 30
    exact = F.cross_entropy(x.double() @ weight.double().T, targets, ignore_index=-1)
    assert exact > 1000, "exp(-1000) is 0 in float32"
    torch.testing.assert_close(linear_cross_entropy(x, weight, targets).double(), exact, rtol=1e-5, atol=0)


def test_losses_of_several_sizes_and_types_do_not_disturb_each_other_before_their_backward():
    cases = [loss_inputs(torch.float32), loss_inputs(torch.float32, rows=500, vocabulary=300)]
    cases += [loss_inputs(torch.float64, rows=10), loss_inputs(torch.float32, rows=20, vocabulary=300)]
    with torch.inference_mode():
        linear_cross_entropy(*loss_inputs(torch.float32, vocabulary=400))
    losses = [linear_cross_entropy(*case) for case in cases]
    for loss, (x, weight, targets) in zip(losses, cases):
        plain = F.cross_entropy(x @ weight.T, targets, ignore_index=-1)
        torch.testing.assert_close(loss, plain)
        expected = torch.autograd.grad(plain, (x, weight))
        torch.testing.assert_close(torch.autograd.grad(loss, (x, weight)), expected)


def test_on_a_cpu_the_logits_of_batches_of_any_size_lie_in_the_same_memory():
    inputs = [loss_inputs(torch.float32, rows) for rows in (900, 1, 500, 900)]
    places = set()
    for x, weight, targets in inputs:
        linear_cross_entropy(x, weight, targets).backward()
        places.add(tuple(kept.data_ptr() for kept in buffers.values()))
    assert len(places) == 1 and len(buffers) == 2


def test_a_batch_with_nothing_but_ignored_targets_has_loss_zero_and_no_gradient():
    x, weight, targets = loss_inputs(torch.float32)
    loss = linear_cross_entropy(x, weight, torch.full_like(targets, -1))
    loss.backward()
    assert loss == 0 and not x.grad.any() and not weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_chunked_loss_is_as_close_to_float64_as_the_plain_one(dtype):
    x, weight, targets = loss_inputs(torch.float32)
    exact = F.cross_entropy(x.double() @ weight.double().T, targets, ignore_index=-1)
    exact_grads = torch.autograd.grad(exact, (x, weight))

    def errors(loss):
        grads = torch.autograd.grad(loss, (x, weight))
        distances = [(g.double() - e).norm() / e.norm() for g, e in zip(grads, exact_grads)]
        return torch.stack([abs(loss.double() - exact) / exact, *distances])

    with torch.autocast("cpu", dtype):
        plain = F.cross_entropy(F.linear(x, weight), targets, ignore_index=-1)
        chunked = linear_cross_entropy(x, weight, targets)
    assert (errors(chunked) < 2 * errors(plain) + 1e-3).all()


def test_in_float16_small_gradients_are_not_rounded_to_zero():
    x, weight, targets = loss_inputs(torch.float32, rows=2000, vocabulary=5000)
    with torch.autocast("cpu", torch.float16):
        loss = linear_cross_entropy(x * 0.01, weight * 0.01, targets)
    (grad,) = torch.autograd.grad(loss * 1024, weight)
    assert (grad != 0).float().mean() > 0.99


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is on: `peak` is the most that live at a time."""

    def __init__(self):
        super().__init__()
        self.sizes, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for storage in [t.untyped_storage() for t in tree_leaves(made) if isinstance(t, torch.Tensor)]:
            if storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, storage._cdata)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return made


@pytest.mark.parametrize("rows", [384, 3 * 384 + 1])
def test_where_no_buffers_are_reused_the_loss_takes_the_memory_of_one_chunk(monkeypatch, rows):
    monkeypatch.setattr(fast, "reused_buffer", lambda *args: None)  # as on a GPU
    x, weight, targets = loss_inputs(torch.float32, rows, vocabulary=3000)
    with LiveBytes() as live, torch.autocast("cpu", torch.bfloat16):
        linear_cross_entropy(x, weight, targets)
    chunk = 384 * 3000 * (2 + 4 + 4)  # the logits, and their softmax before and after it has been computed
    assert chunk < live.peak < 1.2 * chunk


def test_the_gradient_of_the_weights_does_not_overflow_in_float16_added_in_float32_or_not(monkeypatch):
    x, weight, targets = loss_inputs(torch.float32, ignored=False)
    x, weight = (1000 + x).detach().requires_grad_(), (weight / 1e4).detach().requires_grad_()

    def gradient():
        with torch.autocast("cpu", torch.float16):
            return torch.autograd.grad(linear_cross_entropy(x, weight, targets.clamp(max=2)), weight)[0]

    def exact_mm(a, b, out=None, out_dtype=None):
        return mm(a.double(), b.double()).to(out_dtype) if out_dtype else mm(a, b, out=out)

    def exact_addmm(total, a, b, out_dtype, out):
        return out.copy_(total + exact_mm(a, b, out_dtype=out_dtype))

    mm = torch.mm
    monkeypatch.setattr(torch, "mm", exact_mm)  # torch has these two for CUDA only
    monkeypatch.setattr(torch, "addmm", exact_addmm)
    assert gradient().isfinite().all()  # in chunks of a 64th
    monkeypatch.setattr(fast, "adds_to_float32", lambda dtype, device: True)
    (exact,) = torch.autograd.grad(F.cross_entropy(x.double() @ weight.double().T, targets.clamp(max=2)), weight)
    torch.testing.assert_close(gradient(), exact, rtol=1e-2, atol=1e-2)


def test_a_device_that_lacks_products_into_float32_is_found_out(monkeypatch):
    fast.adds_to_float32.cache_clear()
    assert not fast.adds_to_float32(torch.float16, torch.device("cpu"))
    assert not fast.adds_to_float32(torch.float32, torch.device("cuda"))
    full = torch.full
    monkeypatch.setattr(torch, "full", lambda *args, device, **more: full(*args, **more))
    assert not fast.adds_to_float32(torch.float16, torch.device("cuda"))  # torch's CPU says that it has none
    fast.adds_to_float32.cache_clear()


@pytest.mark.slow
def test_the_compiled_loss_is_the_same():
    x, weight, targets = loss_inputs(torch.float32)
    plain, compiled = linear_cross_entropy, torch.compile(linear_cross_entropy, fullgraph=True)
    expected = torch.autograd.grad(plain(x, weight, targets), (x, weight))
    torch.testing.assert_close(torch.autograd.grad(compiled(x, weight, targets), (x, weight)), expected)


# -----------------------------------------------------------------------------
# writing


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("prompt", [1, 5, 31])
def test_cached_logits_are_the_uncached_ones(model, batch_size, prompt):
    idx = tokens(batch_size, 32)
    cache = model.new_kv_cache(batch_size, 32)
    x = [model.features(idx[:, :prompt], cache, 0)]
    x += [model.features(idx[:, i : i + 1], cache, i) for i in range(prompt, 32)]
    torch.testing.assert_close(model.lm_head(torch.cat(x, dim=1)), all_logits(model, idx), atol=1e-5, rtol=1e-4)


def test_greedy_text_is_that_of_transformers(model, reference):
    idx = tokens(3, 4)
    expected = reference.generate(idx, attention_mask=torch.ones_like(idx), max_new_tokens=28, do_sample=False)
    assert torch.equal(model.generate(idx, 28, temperature=0), expected)


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 5.0])
def test_the_repetition_penalty_is_that_of_transformers(model, reference, penalty):
    idx = tokens(3, 20, below=9)  # most of them several times
    for dtype in (torch.float32, torch.float64):
        logits = torch.randn(3, 97, generator=torch.Generator().manual_seed(0)).to(dtype)
        logits[:, 0] = 0
        expected = RepetitionPenaltyLogitsProcessor(penalty)(idx, logits.clone())
        torch.testing.assert_close(penalize(logits, idx, penalty), expected, check_dtype=False)
    more = {"attention_mask": torch.ones_like(idx), "max_new_tokens": 12, "do_sample": False}
    written = model.generate(idx, 12, temperature=0, repetition_penalty=penalty)
    assert torch.equal(written, reference.generate(idx, repetition_penalty=penalty, **more))
    assert torch.equal(written, model.generate(idx, 12, temperature=0)) is (penalty == 1)


@pytest.mark.parametrize("penalty", [0.01, 100])
def test_the_strongest_penalty_leaves_something_to_draw_in_half_precision_too(model, penalty):
    for logits in (torch.full((2, 97), -60000.0), torch.full((2, 97), 60000.0), torch.zeros(2, 97)):
        penalized = penalize(logits.half(), torch.arange(97).expand(2, -1), penalty)
        assert draw_ids(penalized, 1.0, None, None).max() < 97
    assert model.generate(tokens(2, 4), 60, repetition_penalty=penalty).max() < 97  # beyond the window


@pytest.mark.parametrize("rows", [1, 2, 10])
def test_a_packed_model_has_the_logits_and_the_greedy_text_of_transformers(model, reference, rows):
    packed = copy.deepcopy(model)
    pack(packed)
    idx = tokens(rows, 12)
    torch.testing.assert_close(all_logits(packed, idx), reference(idx).logits, rtol=0, atol=1e-4)
    expected = reference.generate(idx, attention_mask=torch.ones_like(idx), max_new_tokens=20, do_sample=False)
    assert torch.equal(packed.generate(idx, 20, temperature=0), expected)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="torch has oneDNN for x86")
def test_a_packed_model_holds_no_weights_twice_but_those_of_the_embedding(model):
    packed = copy.deepcopy(model)
    pack(packed)
    assert not any(isinstance(module, torch.nn.Linear) for module in packed.modules())
    matrices = {name for name, p in packed.named_parameters() if p.dim() == 2}
    assert matrices == {"transformer.wte.weight", "transformer.wpe.weight"}


def test_a_model_in_a_type_that_cannot_be_packed_stays_as_it_is(model):
    double = copy.deepcopy(model).double()
    expected = double.generate(tokens(2, 12), 8, temperature=0)
    pack(double)
    assert torch.equal(double.generate(tokens(2, 12), 8, temperature=0), expected)
    assert double.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("prompt", [1, 20, 32, 50])
def test_past_the_window_the_text_goes_on_from_its_later_half(model, prompt):
    idx = tokens(2, prompt)
    got = model.generate(idx, 60, temperature=0)
    assert got.shape == (2, prompt + 60) and torch.equal(got[:, :prompt], idx)
    window = idx[:, -32:]
    for i in range(60):  # the same, by the rule and without a cache
        window = window[:, -16:] if window.shape[1] > 32 else window
        next_ids = all_logits(model, window)[:, -1].argmax(dim=-1, keepdim=True)
        assert torch.equal(got[:, prompt + i : prompt + i + 1], next_ids)
        window = torch.cat((window, next_ids), dim=1)


def test_each_sample_of_a_batch_is_drawn_for_itself(model):
    torch.manual_seed(0)
    rows = model.generate(tokens(1, 4).expand(8, -1), 12)
    assert len({tuple(row) for row in rows.tolist()}) == 8


def test_generate_can_be_followed_by_training(model):
    idx = model.generate(tokens(1, 4), 8)
    model(idx[:, :-1], idx[:, 1:])[1].backward()


def wants_padding(vocab_size, n_ids=None, first=50257):
    """A model that wants nothing but the padding, from the id `first` on."""
    model = make_model(vocab_size=vocab_size, n_ids=n_ids, n_layer=1, n_embd=8, n_head=1)
    with torch.no_grad():
        model.lm_head.weight[first:] = 100 * model.transformer.ln_f(torch.ones(8))
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(model.lm_head.weight[first] / 100)
        assert model(tokens(1, 4, below=first))[0].argmax() >= first
    return model


@pytest.mark.slow
@pytest.mark.parametrize("vocab_size, n_ids", [(50304, None), (320, 257), (320, 319), (64, 1)])
@pytest.mark.parametrize("loaded", [False, True], ids=["new", "from a checkpoint"])
def test_the_padding_of_the_vocabulary_is_never_drawn(vocab_size, n_ids, loaded):
    ids = n_ids or 50257
    model = wants_padding(vocab_size, n_ids, ids)
    if loaded:  # which names the ids in its meta
        meta = {"meta": {"vocab_size": ids}} if n_ids else {}
        checkpoint = {"model_args": model.config.model_args(), "model": model.state_dict(), **meta}
        assert "n_ids" not in checkpoint["model_args"]
        model = GPT.from_checkpoint(checkpoint).eval()
    assert model.config.n_ids == ids
    idx = tokens(4, 4, below=ids)
    for temperature in (0, 1.0, 5.0):
        for limit in ({}, {"top_k": 2 * ids}, {"top_p": 0.9}):
            assert model.generate(idx, 20, temperature, **limit).max() < ids
    below = min(ids, 65)
    assert model.generate(tokens(4, 4, below=below), 20, 100.0, vocab_size=below).max() < below


def test_without_a_meta_all_rows_but_gpt2s_padding_are_ids():
    for vocab_size, ids in ((97, 97), (320, 320), (50257, 50257), (50304, 50257)):
        assert GPTConfig(vocab_size=vocab_size).n_ids == ids
    assert GPTConfig(vocab_size=50304, n_ids=50304).n_ids == 50304  # a list of as many tokens


def test_model_args_are_nanogpts():
    nanogpts = {"n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout"}
    assert GPTConfig(vocab_size=320, n_ids=300).model_args().keys() == nanogpts


def test_top_k_draws_from_exactly_k_even_where_logits_are_equal():
    drawn = draw_ids(torch.zeros(2000, 10), 1.0, 3, None).flatten().tolist()
    assert len(set(drawn)) == 3


def test_top_p_draws_from_the_fewest_tokens_that_reach_p():
    probs = torch.tensor([0.1, 0.5, 0.15, 0.25])
    for p, allowed in {0.3: {1}, 0.6: {1, 3}, 0.8: {1, 3, 2}, 1.0: {0, 1, 2, 3}}.items():
        torch.manual_seed(0)
        drawn = draw_ids(probs.log().expand(2000, 4), 1.0, None, p)
        assert set(drawn.flatten().tolist()) == allowed


@pytest.mark.parametrize("top_k, top_p", [(None, None), (4, None), (None, 0.999999), (3, 0.999999)])
def test_the_draws_have_the_softmax_frequencies(top_k, top_p):
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    torch.manual_seed(0)
    drawn = draw_ids(logits.expand(40000, 4), 0.8, top_k, top_p).flatten()
    expected = F.softmax((logits / 0.8).masked_fill(logits < (0 if top_k == 3 else -9), -torch.inf), dim=0)
    torch.testing.assert_close(torch.bincount(drawn, minlength=4) / 40000, expected, atol=0.01, rtol=0)


def test_a_tiny_temperature_is_as_good_as_greedy():
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(0)) * 30
    for top_k in (None, 5):
        assert torch.equal(draw_ids(logits, 1e-30, top_k, None), logits.argmax(dim=-1, keepdim=True))


def test_a_row_that_has_drawn_the_stop_token_stays_there_and_all_of_them_end_the_text(model):
    torch.manual_seed(0)
    idx = tokens(4, 4)
    free = model.generate(idx, 200)
    torch.manual_seed(0)
    stopped = model.generate(idx, 200, stop_token=5)
    assert stopped.shape[1] <= free.shape[1]
    for row, free_row in zip(stopped[:, 4:].tolist(), free[:, 4:].tolist()):
        end = row.index(5)
        assert set(row[end:]) == {5} and row[:end] == free_row[:end]
    assert stopped[:, 4:-1].ne(5).all(dim=1).any(), "it went on although all rows had ended"


OUT_OF_RANGE = [{"temperature": -1}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}]
OUT_OF_RANGE += [{"repetition_penalty": penalty} for penalty in (0, -1, 101.0, float("nan"))]


@pytest.mark.parametrize("bad", OUT_OF_RANGE)
def test_options_of_drawing_that_cannot_be_meant_are_refused(model, bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}={next(iter(bad.values()))}"):
        model.generate(tokens(1, 4), 5, **bad)
    with pytest.raises(ValueError, match="empty"):
        model.generate(tokens(1, 0), 5)


# -----------------------------------------------------------------------------
# the captured step


class StandIn(TorchDispatchMode):
    """
    What a CUDA graph does, on a CPU: the operators of a step, once recorded, run again on the same memory with the same
    numbers. What Python does between them is not done again.
    """

    made = []

    def __init__(self, step):
        super().__init__()
        self.calls, self.replays = [], 0
        with self:
            self.output = step()
        self.output.fill_(torch.nan)  # a graph has no output before its first replay
        self.made.append(weakref.ref(self))

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        output = operator(*args, **(kwargs or {}))
        self.calls.append((operator, args, kwargs or {}, output))
        return output

    def replay(self):
        self.replays += 1
        for operator, args, kwargs, output in self.calls:
            for old, new in zip(tree_leaves(output), tree_leaves(operator(*args, **kwargs))):
                if old.data_ptr() != new.data_ptr():  # neither a view nor in place
                    old.copy_(new)


RECORD = fast.record


@pytest.fixture
def capturing(monkeypatch):
    """A list of the stand-ins that are made, weakly, where streams of 16 tokens and more capture their step."""
    monkeypatch.setattr(StandIn, "made", [])
    monkeypatch.setattr(fast, "LEAST_TOKENS", 16)  # which `written_both_ways` changes
    monkeypatch.setattr(fast, "captures", {"made": 0, "failed": 0})
    monkeypatch.setattr(fast, "record", lambda step, device: (graph := StandIn(step), graph.output))
    as_if_cuda = lambda device, tokens: fast.worth_capturing(torch.device("cuda"), tokens)  # noqa: E731
    monkeypatch.setattr(network, "worth_capturing", as_if_cuda)
    return StandIn.made


def written_both_ways(model, idx, *args, **options):
    """The texts without and with a captured step, drawn from the same random numbers."""
    texts = []
    for least in (10**9, 16):
        fast.LEAST_TOKENS = least
        torch.manual_seed(0)
        texts.append(model.generate(idx, *args, **options))
    return texts


@pytest.mark.parametrize(
    "block_size, prompt",
    [(32, 1), (32, 4), (32, 31), (32, 32), (32, 50), (17, 3), (3, 1), (3, 9), (2, 1), (2, 2), (1, 1), (1, 4)],
)
@pytest.mark.parametrize("rows", [1, 3])
def test_captured_or_not_the_greedy_text_is_the_same_also_past_the_window(capturing, block_size, prompt, rows):
    model = make_model(block_size=block_size)
    eager, captured = written_both_ways(model, tokens(rows, prompt), 70, 0)
    assert torch.equal(eager, captured) and eager.shape == (rows, prompt + 70)
    assert len(capturing) == fast.captures["made"] == 1


@pytest.mark.parametrize(
    "options",
    [{}, {"top_k": 5}, {"top_p": 0.8}, {"stop_token": 5}, {"vocab_size": 50}, {"temperature": 3.0}],
    ids=str,
)
def test_captured_or_not_the_same_tokens_are_drawn(capturing, model, options):
    eager, captured = written_both_ways(model, tokens(4, 4), 200, **options)
    assert torch.equal(eager, captured) and len(capturing) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("position", [0, 9, 31])
def test_the_step_that_is_captured_has_the_logits_of_the_usual_one(model, dtype, position):
    half, idx = copy.deepcopy(model).to(dtype), tokens(3, 32)
    for net, close in ((model, {"rtol": 1e-4, "atol": 1e-5}), (half, {"rtol": 0.02, "atol": 0.1})):
        cache = net.new_kv_cache(3, 32).zero_()
        if position:
            net.features(idx[:, :position], cache)
        got = net.decode(idx[:, position : position + 1], torch.tensor([position]), cache)
        expected = all_logits(net, idx[:, : position + 1])[:, -1]
        torch.testing.assert_close(got, expected, **close)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_captured_or_not_a_model_in_half_precision_writes_the_same(capturing, model, dtype):
    eager, captured = written_both_ways(copy.deepcopy(model).to(dtype), tokens(2, 4), 60)
    assert torch.equal(eager, captured) and len(capturing) == 1


def test_captured_or_not_a_model_with_the_padding_of_gpt2_writes_the_same(capturing):
    model = make_model(vocab_size=50304, n_layer=1, n_embd=8, n_head=1)
    eager, captured = written_both_ways(model, tokens(2, 4), 40, top_k=200)
    assert torch.equal(eager, captured) and captured.max() < 50257 and len(capturing) == 1


def test_what_lay_in_the_memory_of_the_cache_does_not_matter(capturing, model, monkeypatch):
    idx, new_kv_cache = tokens(2, 4), GPT.new_kv_cache
    expected = model.generate(idx, 60, temperature=0)
    monkeypatch.setattr(GPT, "new_kv_cache", lambda *args: new_kv_cache(*args).fill_(torch.nan))
    for text in written_both_ways(model, idx, 60, temperature=0):
        assert torch.equal(text, expected)


def test_the_graph_replays_every_token_but_the_first_and_the_windows_anew(capturing, model):
    stream = model.stream(tokens(2, 4), 60, temperature=0)
    for _ in range(60):
        next(stream)
    assert capturing[0]().replays == 59 - 2  # the window of 32 is full twice


def test_two_streams_at_once_each_have_a_graph_of_their_own(capturing, model):
    prompts = [tokens(2, 4), tokens(2, 9, seed=1)]
    expected = [model.generate(idx, 50, temperature=0)[:, idx.shape[1] :] for idx in prompts]
    pairs = list(zip(*(model.stream(idx, 50, temperature=0) for idx in prompts)))
    assert all(torch.equal(torch.cat(text, dim=1), want) for text, want in zip(zip(*pairs), expected))


@pytest.mark.parametrize("to_the_end", [True, False])
def test_the_graph_is_gone_with_the_stream(capturing, model, to_the_end):
    stream = model.stream(tokens(1, 4), 40)
    next(stream), next(stream)
    assert capturing[0]()
    list(stream) if to_the_end else stream.close()
    assert capturing[0]() is None


def test_nothing_is_captured_for_a_few_tokens_nor_on_a_cpu_or_an_apple_gpu(capturing, model):
    assert len(list(model.stream(tokens(1, 4), 15))) == 15 and not capturing
    assert len(list(model.stream(tokens(1, 4), 16))) == 16 and len(capturing) == 1
    assert not any(fast.worth_capturing(torch.device(kind), 10**6) for kind in ("cpu", "mps"))


def test_nothing_is_captured_of_a_model_in_training_which_may_have_dropout(capturing, model):
    assert len(list(copy.deepcopy(model).train().stream(tokens(1, 4), 16))) == 16 and not capturing


FAILURES = [RuntimeError("no driver\nat all"), torch.OutOfMemoryError("no memory"), AttributeError("no graphs")]


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
@pytest.mark.parametrize("after_a_step", [True, False])
def test_where_the_capture_fails_the_text_is_the_same_with_one_note(
    capturing, model, monkeypatch, capsys, failure, after_a_step
):
    def record(step, device):
        if after_a_step:
            step()
        raise failure

    monkeypatch.setattr(fast, "record", record)
    for _ in range(2):  # the second does not try
        eager, captured = written_both_ways(model, tokens(2, 4), 60, 0)
        assert torch.equal(eager, captured)
    said = capsys.readouterr().err
    assert said == f"note: sampling goes on without a CUDA graph, slower: {str(failure).splitlines()[0]}\n"
    assert fast.captures == {"made": 0, "failed": 1}


def test_the_capture_itself_fails_on_a_cpu_without_harm(capturing, model, monkeypatch, capsys):
    monkeypatch.setattr(fast, "record", RECORD)
    eager, captured = written_both_ways(model, tokens(2, 4), 40)
    assert torch.equal(eager, captured) and fast.captures == {"made": 0, "failed": 1}
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("failing", [None, 1, 2], ids=["", "in the first step", "while it records"])
def test_a_recording_comes_after_a_first_step_and_its_stream_is_always_left(monkeypatch, failing):
    cuda = MagicMock()
    for context in (cuda.stream, cuda.graph):
        context.return_value.__exit__.return_value = False  # exceptions pass
    monkeypatch.setattr(torch, "cuda", cuda)

    def step():
        cuda.step()
        if cuda.step.call_count == failing:
            raise RuntimeError("no")

    if failing:
        with pytest.raises(RuntimeError):
            RECORD(step, torch.device("cuda:1"))
    else:
        assert RECORD(step, torch.device("cuda:1"))[0] is cuda.CUDAGraph()
    enter, leave = "stream().__enter__", "stream().__exit__"
    record, end, replay = "graph().__enter__", "graph().__exit__", "CUDAGraph().replay"
    done = [name for name, _, _ in cuda.mock_calls if name in (enter, "step", record, end, replay, leave)]
    whole = [enter, "step", record, "step", end, replay, leave]
    assert done == {None: whole, 1: [enter, "step", leave], 2: [*whole[:5], leave]}[failing]
    assert cuda.Stream.call_args.args == (torch.device("cuda:1"),)  # where the model is


if torch.cuda.is_available():

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_on_a_gpu_the_captured_step_writes_the_same(model, monkeypatch, dtype):
        monkeypatch.setattr(fast, "captures", {"made": 0, "failed": 0})
        monkeypatch.setattr(fast, "LEAST_TOKENS", 16)
        for options in ({"temperature": 0}, {"top_k": 5}):
            eager, captured = written_both_ways(
                copy.deepcopy(model).to("cuda", dtype), tokens(2, 4).cuda(), 60, **options
            )
            assert torch.equal(eager, captured)
        assert fast.captures == {"made": 2, "failed": 0}


# -----------------------------------------------------------------------------
# sizes and the optimizer


@pytest.mark.parametrize(
    "sizes",
    [
        *({"n_embd": 33}, {"n_layer": 0}, {"block_size": 0}, {"vocab_size": 0}, {"dropout": 1.0}, {"n_head": -4}),
        *({"n_ids": 98}, {"n_ids": 0}, {"n_ids": -1}),
    ],
)
def test_sizes_that_make_no_model_are_refused(sizes):
    with pytest.raises(ValueError, match=next(iter(sizes))):
        GPTConfig(**{**SIZES, **sizes})


def test_a_window_longer_than_block_size_is_refused(model):
    with pytest.raises(ValueError, match="33 tokens.*block_size=32"):
        model(tokens(1, 33))


def test_gpt2_has_124_million_parameters():
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=50257))
    assert model.num_params() == 124_439_808 - 1024 * 768
    assert model.flops_per_token() == 6 * model.num_params() + 12 * 12 * 12 * 64 * 1024


def test_matrices_decay_and_biases_and_norms_do_not(model):
    (optimizer,) = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
    decay, rest = optimizer.param_groups
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert {p.dim() for p in decay["params"]} == {2} and {p.dim() for p in rest["params"]} == {1}
    assert len(decay["params"]) + len(rest["params"]) == len(list(model.parameters()))


def test_muon_takes_the_matrices_inside_the_blocks_and_adamw_the_rest(model):
    adamw, muon = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu", "muon")
    names = {id(p): name for name, p in model.named_parameters()}
    theirs = {names[id(p)] for p in muon.param_groups[0]["params"]}
    assert theirs == {name for name, p in model.named_parameters() if ".h." in name and p.dim() == 2}
    assert theirs.isdisjoint(rest := {names[id(p)] for group in adamw.param_groups for p in group["params"]})
    assert theirs | rest == set(names.values())


MATRICES = [(16, 48), (48, 16), (16, 48), (20, 20), (40, 8), (20, 20), (8, 40), (16, 48), (5, 7)]


def make_muon(kind, dtype=torch.float32, lr=1e-4, **options):
    torch.manual_seed(0)
    matrices = [torch.nn.Parameter((torch.randn(shape) * 0.1).to(dtype)) for shape in MATRICES]
    return kind(matrices, lr=lr, **options)


def make_steps(muon, numbers):
    """Update the matrices, some of which have no gradient, by the gradients of steps with these numbers."""
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        for i, p in enumerate(muon.param_groups[0]["params"]):
            grad = torch.randn(p.shape, generator=generator) * 10.0 ** (i - 4)
            p.grad = None if i == 5 or i == number else grad.to(p.dtype)
        muon.step()
    return [p.detach() for p in muon.param_groups[0]["params"]]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 3.0},
        {"nesterov": False, "momentum": 0.5},
        {"ns_coefficients": (2.0, -1.5, 0.5), "ns_steps": 3, "eps": 1e-2},
        {"lr": torch.tensor(1e-4), "adjust_lr_fn": "original"},
    ],
    ids=str,
)
def test_muon_makes_the_steps_of_torchs_own(options):
    expected = make_steps(make_muon(torch.optim.Muon, **options), range(5))
    got = make_steps(make_muon(fast.Muon, **options), range(5))
    # a step changes elements by 5e-5, of which bfloat16 may round a hundredth otherwise in batched products
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_muon_makes_the_steps_of_torchs_own_in_half_precision(dtype):
    expected = make_steps(make_muon(torch.optim.Muon, dtype, lr=0.01), range(5))
    got = make_steps(make_muon(fast.Muon, dtype, lr=0.01), range(5))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("first, second", [(torch.optim.Muon, fast.Muon), (fast.Muon, torch.optim.Muon)])
def test_muon_goes_on_from_the_state_of_torchs_own_and_torchs_from_its(first, second):
    before, after = make_muon(first), make_muon(second)
    with torch.no_grad():
        for p, q in zip(after.param_groups[0]["params"], make_steps(before, range(3))):
            p.copy_(q)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    torch.testing.assert_close(after.state_dict(), before.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(make_steps(after, range(3, 6)), make_steps(before, range(3, 6)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("most, stacks", [(2**24, [4, 1, 2, 1]), (2000, [2, 2, 1, 2, 1]), (1, [1] * 8)])
def test_muon_takes_equal_sizes_together_up_to_a_bound_which_changes_nothing(monkeypatch, most, stacks):
    expected, seen, orthogonalize = make_steps(make_muon(fast.Muon), range(20, 23)), [], fast.orthogonalize
    monkeypatch.setattr(fast, "STACK", most)
    monkeypatch.setattr(fast, "orthogonalize", lambda m, *rest: seen.append(len(m)) or orthogonalize(m, *rest))
    torch.testing.assert_close(make_steps(make_muon(fast.Muon), range(20, 23)), expected, rtol=0, atol=1e-6)
    assert seen == stacks * 3


def test_a_checkpoint_of_other_sizes_than_it_says_is_refused(model):
    checkpoint = {"model_args": {**SIZES, "n_layer": 2}, "model": model.state_dict()}
    with pytest.raises(ValueError, match="model_args"):
        GPT.from_checkpoint(checkpoint)
    checkpoint = {"model_args": {**SIZES, "flavour": 1}, "model": model.state_dict()}
    with pytest.raises(ValueError, match="flavour"):
        GPT.from_checkpoint(checkpoint)


def test_a_checkpoint_of_a_compiled_model_loads(model):
    checkpoint = {"model_args": SIZES, "model": {f"_orig_mod.{k}": v for k, v in model.state_dict().items()}}
    idx = tokens(2, 9)
    assert torch.equal(all_logits(GPT.from_checkpoint(checkpoint).eval(), idx), all_logits(model, idx))
