"""
GPT-2 in one file: the network, its loss, its optimizer, and how it writes.

The parameters' names and shapes are nanoGPT's, so that checkpoints of either load in the other; the architecture is
that of "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019): pre-norm blocks, learned
positions, and an output layer that shares its weights with the token embedding.

In the shape comments B is the batch, T the time (tokens of a window), C the channels (n_embd), nh the heads, hs the
channels of a head, and V the vocabulary.
"""

import contextlib
import json
import math
import os
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recomputed

GPT2_VOCAB = 50257  # GPT-2's token ids; models have 50304 rows for them, as multiples of 64 are faster


@dataclass
class GPTConfig:
    """A model's sizes, nanoGPT's `model_args`. Raises ValueError for sizes that make no model."""

    block_size: int = 1024  # the longest window, in tokens
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True  # in the linear and norm layers; GPT-2 has them, a model without is a little faster
    gelu: str = "erf"  # the exact one, or "tanh", the approximation that GPT-2 was trained with

    def __post_init__(self):
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} should be at least 1")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} should be a multiple of n_head={self.n_head}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} should be from 0 up to, not including, 1")
        if self.gelu not in GELU:
            raise ValueError(f"gelu={self.gelu} should be {' or '.join(GELU)}")

    def model_args(self):
        """What a checkpoint says of the model: nanoGPT's keys and no others, but for a GELU that nanoGPT has not."""
        return {name: value for name, value in vars(self).items() if name != "gelu" or value != "erf"}


class PackedLinear(nn.Module):
    """
    A trained linear layer, (..., in) to (..., out), with its weights in the order that oneDNN likes best: the same
    products to rounding, in a half to a quarter of the time for a few rows. torch.compile's `freezing` uses the same
    operators; where there is no oneDNN they raise AttributeError or RuntimeError.
    """

    def __init__(self, linear):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = linear.bias

    def forward(self, x):
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head = config.n_head
        self.dropout = config.dropout

    def forward(self, x, kv_cache=None, start=0):
        B, T, C = x.shape
        heads = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (B, nh, T, hs)
        if kv_cache is not None:  # (2, B, nh, time, hs), filled up to `start`
            kv_cache[0, :, :, start : start + T] = k
            kv_cache[1, :, :, start : start + T] = v
            k, v = kv_cache[:, :, :, : start + T]
        # with a cache T is 1, which sees all that came before, or the whole of a prompt, of which start is 0
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1, dropout_p=dropout)  # (B, nh, T, hs)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).reshape(B, T, C)))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)
        self.gelu = nn.GELU("tanh" if config.gelu == "tanh" else "none")

    def forward(self, x):
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x, kv_cache=None, start=0):
        x = x + self.attn(self.ln_1(x), kv_cache, start)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.checkpointing = False  # True: compute the blocks once more in backward, rather than keep all they compute
        self.transformer = nn.ModuleDict(
            dict(
                wte=nn.Embedding(config.vocab_size, config.n_embd),
                wpe=nn.Embedding(config.block_size, config.n_embd),
                drop=nn.Dropout(config.dropout),
                h=nn.ModuleList([Block(config) for _ in range(config.n_layer)]),
                ln_f=nn.LayerNorm(config.n_embd, bias=config.bias),
            )
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight  # tied, as in GPT-2
        self.apply(self._init_weights)
        for name, p in self.named_parameters():
            # each block adds to the residual stream twice; scaled so that its variance does not grow with depth
            if name.endswith("c_proj.weight"):
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer))

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @classmethod
    def from_checkpoint(cls, checkpoint, dropout=0.0):
        """
        The model that a checkpoint holds, ours or nanoGPT's (its `model_args` and `model`).
        Raises ValueError where its weights are not those of the sizes it names.
        """
        try:
            model = cls(GPTConfig(**{**checkpoint["model_args"], "dropout": dropout}))
            # a model saved while compiled has this before each name
            model.load_state_dict({k.removeprefix("_orig_mod."): v for k, v in checkpoint["model"].items()})
        except (TypeError, KeyError, AttributeError, RuntimeError) as failure:
            raise ValueError(f"holds no model of its own model_args ({str(failure).splitlines()[0]})") from None
        return model

    @classmethod
    def from_pretrained(cls, name, block_size=None, dropout=0.0):
        """
        A GPT-2 with the weights, and the logits, that it has in Hugging Face's transformers: "gpt2", "gpt2-medium",
        "gpt2-large" or "gpt2-xl", from the cache or the hub, or a folder with config.json and model.safetensors.

        block_size keeps so many of its positions, None all. The weights come as float32, one after the other.
        Raises OSError where there are no such files, ValueError where they are damaged or no GPT-2.
        """
        folder = find_pretrained(name)
        config = replace(read_pretrained_config(folder), dropout=dropout)
        if block_size is not None and block_size > config.block_size:
            raise ValueError(f"block_size={block_size} is more than the {config.block_size} positions of {name}")
        places = find_pretrained_tensors(folder, config.n_layer)
        with torch.device("meta"):  # without memory, since the weights bring theirs
            model = cls(config)
        model.load_state_dict(read_pretrained_tensors(places, model), assign=True)
        model.transformer.wte.weight = model.lm_head.weight
        if block_size is not None:
            model.config = replace(config, block_size=block_size)
            model.transformer.wpe.weight = nn.Parameter(model.transformer.wpe.weight[:block_size].detach().clone())
        return model

    def num_params(self):
        """The number of parameters without the position embeddings, as nanoGPT counts them."""
        return sum(p.numel() for p in self.parameters()) - self.transformer.wpe.weight.numel()

    def flops_per_token(self):
        """
        Floating point operations to train on one token, forward and backward: 6 a parameter, and 12 a channel, layer
        and position for attention ("PaLM", Chowdhery et al., 2022, appendix B).
        """
        c = self.config
        return 6 * self.num_params() + 12 * c.n_layer * c.n_embd * c.block_size

    def features(self, idx, kv_cache=None, start=0):
        """
        What the output layer sees, (B, T, C), of token ids (B, T). `model.lm_head(model.features(idx))` gives the
        logits of every position, (B, T, V).

        With a `kv_cache` (see new_kv_cache) the tokens follow on the `start` tokens that it holds already, and are
        added to it; T is then 1, or else start is 0. Raises ValueError beyond block_size.
        """
        end = start + idx.shape[1]
        if end > self.config.block_size:
            raise ValueError(f"{end} tokens do not fit into block_size={self.config.block_size}")
        positions = torch.arange(start, end, device=idx.device)
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(positions))
        for i, block in enumerate(self.transformer.h):
            if self.checkpointing and torch.is_grad_enabled():
                x = recomputed(block, x, use_reentrant=False)
            else:
                x = block(x, None if kv_cache is None else kv_cache[i], start)
        return self.transformer.ln_f(x)

    def forward(self, idx, targets=None):
        """
        Token ids (B, T) to (logits, loss).

        Without targets: the logits of the last position, (B, 1, V), and None. With targets (B, T), of which -1 is
        ignored: None and the mean cross entropy in nats; the logits, most of a small model's memory, are never built
        all at once.
        """
        x = self.features(idx)
        if targets is None:
            return self.lm_head(x[:, [-1]]), None
        return None, linear_cross_entropy(x.flatten(0, 1), self.lm_head.weight, targets.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type, optimizer="adamw"):
        """
        The optimizers of a training run, as a list.

        adamw: AdamW, with weight decay on matrices and embeddings, and none on biases and norms; the groups and their
        order are nanoGPT's, so that its optimizer states load. muon: AdamW for embeddings, biases and norms, and Muon
        (Jordan et al., 2024), whose updates are orthogonal matrices, for the matrices inside the blocks.
        """
        named = {name: p for name, p in self.named_parameters() if p.requires_grad}
        matrices = [p for name, p in named.items() if p.dim() == 2 and ".h." in name] if optimizer == "muon" else []
        rest = [p for p in named.values() if not any(p is m for m in matrices)]
        groups = [
            {"params": [p for p in rest if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
        ]
        fused = device_type in ("cpu", "cuda", "mps")
        optimizers = [torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)]
        if matrices:
            # its updates are scaled to the size of AdamW's, so that the two share a learning rate and weight decay
            muon = {"lr": learning_rate, "weight_decay": weight_decay, "adjust_lr_fn": "match_rms_adamw"}
            optimizers.append(torch.optim.Muon(matrices, **muon))
        return optimizers

    def pack(self):
        """
        Make a model that is to write, and no more, quick at it on a CPU: it can then be neither trained nor saved.
        On a GPU, and where torch has no oneDNN for the CPU or the weights' type, this changes nothing.
        """
        try:
            PackedLinear(self.transformer.h[0].attn.c_proj)(self.transformer.wte.weight[:1].detach())
        except (AttributeError, RuntimeError):
            return
        for module in list(self.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Linear):
                    setattr(module, name, PackedLinear(child))

    def new_kv_cache(self, batch_size, length):
        """An empty key/value cache for `length` tokens: (n_layer, 2, B, nh, length, hs)."""
        c, weight = self.config, self.transformer.wte.weight
        shape = (c.n_layer, 2, batch_size, c.n_head, length, c.n_embd // c.n_head)
        return torch.empty(shape, dtype=weight.dtype, device=weight.device)

    @torch.no_grad()
    def stream(self, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=None, stop_token=None, vocab_size=None):
        """
        Continue the token ids idx (B, T), and yield the next ids, (B, 1), until there are max_new_tokens.

        temperature: 0 takes the likeliest token, below 1 is bolder to the likely ones, above 1 to the others.
        top_k, top_p: draw from only the k likeliest tokens; from only the likeliest that together have probability p.
        stop_token: a row that has drawn it repeats it from there on; all of them have: the end.
        vocab_size: draw ids below it; by default those of GPT-2 where the model has its padded vocabulary.
        Raises ValueError for values that cannot be meant.
        """
        if idx.shape[1] == 0:
            raise ValueError("the prompt is empty: it should have at least one token")
        if temperature < 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
            raise ValueError(
                f"temperature={temperature} should be 0 or more, top_k={top_k} None or 1 or more, "
                f"top_p={top_p} None or above 0 and at most 1"
            )
        block_size, V = self.config.block_size, self.config.vocab_size
        vocab_size = vocab_size or (GPT2_VOCAB if V == GPTConfig.vocab_size else V)
        window = idx[:, -block_size:]
        cache = self.new_kv_cache(idx.shape[0], min(block_size, window.shape[1] + max_new_tokens))
        start = 0  # tokens in the cache
        done = torch.zeros_like(idx[:, :1], dtype=torch.bool)
        for _ in range(max_new_tokens):
            if window.shape[1] > block_size:  # the window is full: begin anew with its later half
                window, start = window[:, -max(block_size // 2, 1) :], 0
            x = self.features(window[:, start:], cache, start)
            start = window.shape[1]
            logits = self.lm_head(x[:, -1])[:, :vocab_size]  # (B, V)
            next_ids = draw(logits, temperature, top_k, top_p)
            if stop_token is not None:
                next_ids = torch.where(done, stop_token, next_ids)
                done |= next_ids == stop_token
            yield next_ids
            if stop_token is not None and done.all():
                return
            window = torch.cat((window, next_ids), dim=1)

    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, **options):
        """
        Continue the token ids idx (B, T): returns (B, T + max_new_tokens), or fewer where all rows have drawn the
        stop_token. The options are those of `stream`. Call `model.eval()` first.
        """
        return torch.cat([idx, *self.stream(idx, max_new_tokens, temperature, top_k, **options)], dim=1)


def draw(logits, temperature, top_k, top_p):
    """One token id for each row of logits, (B, V) to (B, 1); the options are those of GPT.stream."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    if top_k is None and top_p is None:
        return torch.multinomial(F.softmax(scaled(logits, temperature), dim=-1), num_samples=1)
    logits, ids = logits.topk(min(top_k or logits.shape[-1], logits.shape[-1]))  # sorted, the likeliest first
    probs = F.softmax(scaled(logits, temperature), dim=-1)
    if top_p is not None:
        before = probs.cumsum(dim=-1) - probs  # the probability of all likelier tokens; 0 for the first, which stays
        probs = probs.masked_fill(before >= top_p, 0)
    return ids.gather(-1, torch.multinomial(probs, num_samples=1))


def scaled(logits, temperature):
    """Logits by temperature; the largest becomes 0 first, so that a tiny one overflows to nothing worse than -inf."""
    logits = logits.float()
    return (logits - logits.amax(dim=-1, keepdim=True)) / temperature


# -----------------------------------------------------------------------------
# the loss


def linear_cross_entropy(x, weight, targets):
    """
    Mean cross entropy, in nats, of the logits x @ weight.T: x (N, C), weight (V, C), targets (N,), of which -1 is
    ignored. It never holds more than a chunk of the logits (N, V): each chunk's gradients are computed on its way
    (as in Liger Kernel, Hsu et al., 2024, and "Cut Your Losses", Wijmans et al., 2024).
    """
    return LinearCrossEntropy.apply(x, weight, targets, torch.is_grad_enabled())


class LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, targets, with_gradients):
        # the weight and its gradient are read anew for each chunk: so few of them that this hardly shows on a CPU; and
        # large enough to keep a GPU busy
        rows = 384 if x.device.type == "cpu" else 4096
        keep = (targets >= 0).unsqueeze(1)  # (N, 1)
        count = keep.sum().clamp(min=1)
        dx, dweight = torch.empty_like(x) if with_gradients else None, None
        dtype = F.linear(x[:0], weight[:0]).dtype  # autocast's, where there is one
        exact, cast = torch.promote_types(dtype, torch.float32), weight.to(dtype)
        loss = 0.0
        for i in range(0, len(x), rows):
            chunk, mask, target = x[i : i + rows], keep[i : i + rows], targets[i : i + rows, None].clamp(min=0)
            shape = len(chunk), len(weight)  # (rows, V)
            logits = torch.mm(chunk.to(dtype), cast.T, out=scratch("logits", shape, dtype, x.device))
            probs = torch.softmax(logits, -1, dtype=exact, out=scratch("probs", shape, exact, x.device))
            # -log(probs) of the target by way of the likeliest token, whose probability cannot round to zero
            behind = logits.amax(dim=-1, keepdim=True).to(exact) - logits.gather(1, target)
            loss = loss + ((behind - probs.amax(dim=-1, keepdim=True).log()) * mask).sum()
            if with_gradients:
                # the gradient of the sum of the losses by the logits is probs - one_hot(target); the division by their
                # number waits for backward, since float16 would round these small numbers to zero
                probs.scatter_add_(1, target, -torch.ones_like(probs[:, :1]))
                dlogits = probs if dtype == exact else logits.copy_(probs)
                dx[i : i + rows] = (dlogits @ cast) * mask
                dweight = add_product(dweight, dlogits.T, (chunk * mask).to(dtype), weight.dtype)
        ctx.save_for_backward(dx, dweight, count)
        return loss / count

    @staticmethod
    def backward(ctx, grad):
        dx, dweight, count = ctx.saved_tensors
        grad = grad / count
        return dx * grad, dweight * grad, None, None


scratches = {}


def scratch(name, shape, dtype, device):
    """
    A matrix to write into, on a CPU the same memory at each call: to be given as much anew, filled with zeros by the
    kernel, takes a quarter of a step of the laptop model, and a heap that keeps it breaks up around blocks so large.
    None on a GPU, for which torch keeps memory itself.
    """
    if device.type != "cpu" or torch.compiler.is_compiling():
        return None
    kept = scratches.get(name)
    if kept is None or kept.dtype != dtype or kept.shape[1] != shape[1] or len(kept) < shape[0]:
        with torch.inference_mode(False):
            kept = scratches[name] = torch.empty(shape, dtype=dtype)
    return kept[: shape[0]]


def add_product(total, a, b, dtype):
    """total + a @ b as dtype, where possible in place; total may be None, for the first of several."""
    if total is None:
        return (a @ b).to(dtype)
    return total.addmm_(a, b) if total.dtype == a.dtype else total.add_(a @ b)


# -----------------------------------------------------------------------------
# GPT-2 in Hugging Face's format

PRETRAINED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
GELU = {"erf": "gelu", "tanh": "gelu_new"}
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # stored as (in, out), where nn.Linear has (out, in)
PRETRAINED_CONFIG = {  # what a config.json may say if this file is to compute the same, and says if it says nothing
    "model_type": "gpt2",
    "n_inner": None,
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
}


def find_pretrained(name):
    """The folder that GPT.from_pretrained means by a name; downloads what is missing. Raises OSError."""
    if name not in PRETRAINED or os.path.exists(os.path.join(name, "config.json")):
        return name
    import huggingface_hub as hub

    def folder_of(repo, **options):
        files = [hub.hf_hub_download(repo, file, **options) for file in ("config.json", "model.safetensors")]
        return os.path.dirname(files[0])

    repo = f"openai-community/{name}"
    for cached in (repo, name):  # older programs kept it under the second
        with contextlib.suppress(OSError):
            return folder_of(cached, local_files_only=True)
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(repo, "config.json"))  # says at once if there is no network
        return folder_of(repo)
    except Exception as failure:  # the hub's own and httpx', of many kinds
        raise OSError(
            f"{name} is neither in the cache {hub.constants.HF_HUB_CACHE!r} nor to be had from the hub "
            f"({failure!r:.150}): where there is a network, 'hf download {repo} config.json model.safetensors "
            f"--local-dir {name}' makes a folder {name} of it, to bring here"
        ) from None


def read_pretrained_config(folder):
    """The sizes in a folder's config.json. Raises OSError without one, ValueError for a model that is not the above."""
    path = os.path.join(folder, "config.json")
    found = {"activation_function": GELU["tanh"], **PRETRAINED_CONFIG, **read_json(path)}
    sizes = {name: found.get(name) for name in ("n_positions", "vocab_size", "n_layer", "n_head", "n_embd")}
    for name, size in sizes.items():
        if type(size) is not int or not 0 < size < 2**20:
            raise ValueError(f"{path!r} has {name}={size!r:.40}, which is no size of a GPT-2")
    known = {name: [value] for name, value in PRETRAINED_CONFIG.items()}
    known |= {"n_inner": [None, 4 * sizes["n_embd"]], "activation_function": list(GELU.values())}
    for name, values in known.items():
        if found[name] not in values:
            can = " or ".join(map(repr, values))
            raise ValueError(f"{path!r} has {name}={found[name]!r:.40}, and only {can} is supported")
    gelu = next(ours for ours, theirs in GELU.items() if theirs == found["activation_function"])
    return GPTConfig(*sizes.values(), gelu=gelu)


def find_pretrained_tensors(folder, n_layer):
    """Where a folder's weights are: {our name: (file, name in the file)}. Raises OSError or ValueError."""
    path = os.path.join(folder, "model.safetensors")
    index = f"{path}.index.json"
    paths = [path]
    if not os.path.exists(path) and os.path.exists(index):  # a large model in several files
        files = read_json(index).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
            raise ValueError(f"{index!r} has no weight_map, from tensors to files")
        paths = [os.path.join(folder, os.path.basename(file)) for file in sorted(set(files.values()))]
    elif not os.path.exists(path):
        if os.path.exists(os.path.join(folder, "pytorch_model.bin")):
            raise OSError(
                f"{folder!r} has only pytorch_model.bin, a pickle, which may run anything and is not read: let "
                "transformers load it and save it anew, which makes a model.safetensors of it"
            )
        raise OSError(f"{folder!r} has no model.safetensors")
    places = {}
    for path in paths:
        with open_safetensors(path) as f:
            for key in f.keys():
                name = key if key == "lm_head.weight" else "transformer." + key.removeprefix("transformer.")
                if not name.endswith((".attn.bias", ".attn.masked_bias")):  # the causal mask, in older files
                    places[name] = path, key
    found = sum(name.endswith(".ln_1.weight") for name in places)
    if found != n_layer:
        raise ValueError(f"{folder!r} has the weights of {found} layers, and its config.json says n_layer={n_layer}")
    return places


def read_pretrained_tensors(places, model):
    """The weights at `places` as float32, by name, for a `model` on any device. Raises ValueError if it has others."""
    wte, head = "transformer.wte.weight", "lm_head.weight"
    wanted = {name: p.shape for name, p in model.state_dict().items() if name != head or head in places}
    if others := wanted.keys() ^ places.keys():
        raise ValueError(f"the weights {'have no' if min(others) in wanted else 'have a strange'} {min(others)}")
    weights = {}
    for name, shape in wanted.items():
        path, key = places[name]
        with open_safetensors(path) as f:
            tensor = f.get_tensor(key)
        if name.endswith(TRANSPOSED) and tensor.dim() == 2:
            tensor = tensor.T
        if tensor.shape != shape or not tensor.is_floating_point():
            given = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise ValueError(f"{path!r} has {key} as {given}, and the config asks for floats {tuple(shape)}")
        weights[name] = torch.empty(shape).copy_(tensor)
    if not torch.equal(weights.setdefault(head, weights[wte]), weights[wte]):
        raise ValueError("the weights have a lm_head of their own, and only one tied to wte is supported")
    return weights


@contextlib.contextmanager
def open_safetensors(path):
    """Open a file of tensors to read one of them after the other. Raises OSError, or ValueError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as f:
            yield f
    except SafetensorError as failure:
        raise ValueError(f"{path!r} is damaged ({failure})") from None


def read_json(path):
    """The dict in a JSON file. Raises OSError, or ValueError if it is damaged."""
    try:
        with open(path, encoding="utf-8") as f:
            content = json.load(f)
    except (ValueError, RecursionError) as failure:
        raise ValueError(f"{path!r} is damaged ({failure})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path!r} is damaged: it should hold a dict")
    return content
