"""
GPT-2 in one file: the network, its optimizer, and how it writes.

The architecture is that of "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019): pre-norm
blocks, learned positions, and an output layer that shares its weights with the token embedding. The names and shapes of
the parameters are nanoGPT's, so that checkpoints of either load in the other.

In the shape comments B is the batch, T the time (tokens of a window), C the channels (n_embd), nh the heads, hs the
channels of a head, and V the vocabulary.
"""

import math
import re
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as compute_twice

from fast import Muon, captured, linear_cross_entropy, worth_capturing
from pretrained import MASKS, find_pretrained, find_tensors, read_sizes, read_tensors
from tokenizer import GPT2_VOCAB

MOST = {"block_size": 2**24, "vocab_size": 2**24, "n_layer": 1000, "n_head": 1000, "n_embd": 2**17}  # beyond is a typo


@dataclass
class GPTConfig:
    """A model's sizes, nanoGPT's `model_args`. Raises ValueError for sizes that make no model."""

    block_size: int = 1024  # the longest window, in tokens
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True  # biases in the linear and norm layers, as in GPT-2; without them a model is a little faster
    gelu: str = "erf"  # the exact GELU, or "tanh", the approximation that GPT-2 was trained with
    n_ids: int | None = None  # token ids that there are; further rows only pad vocab_size, and are never drawn

    def __post_init__(self):
        for name, most in MOST.items():
            if not 1 <= (value := getattr(self, name)) <= most:
                raise ValueError(f"{name}={value} should be at {'least 1' if value < 1 else f'most {most}'}")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} should be a multiple of n_head={self.n_head}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} should be from 0 up to, not including, 1")
        if self.gelu not in ("erf", "tanh"):
            raise ValueError(f"gelu={self.gelu} should be erf or tanh")
        if self.n_ids is None:
            self.n_ids = GPT2_VOCAB if self.vocab_size == GPTConfig.vocab_size else self.vocab_size
        if not 1 <= self.n_ids <= self.vocab_size:
            raise ValueError(f"n_ids={self.n_ids} should be at least 1 and at most vocab_size={self.vocab_size}")

    def model_args(self):
        """The sizes as a checkpoint keeps them: nanoGPT's keys, and `gelu` only if it is one that nanoGPT lacks."""
        return {k: v for k, v in vars(self).items() if k != "n_ids" and (k != "gelu" or v != "erf")}


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head = config.n_head
        self.dropout = config.dropout

    def forward(self, x, kv_cache=None, cached=0, mask=None):
        B, T, C = x.shape
        heads = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv = heads.permute(2, 0, 3, 1, 4)  # each (B, nh, T, hs)
        if mask is not None:  # GPT.decode's, and `cached` is a position (1,)
            k, v = kv_cache.index_copy_(3, cached, qkv[1:])
        elif kv_cache is not None:  # (2, B, nh, length, hs), of which the first `cached` positions are filled
            kv_cache[:, :, :, cached : cached + T] = qkv[1:]
            k, v = kv_cache[:, :, :, : cached + T]
        # with a cache, either T is 1 and the token sees all positions, or cached is 0 and the mask is the usual one
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=T > 1)  # (B, nh, T, hs)
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

    def forward(self, x, kv_cache=None, cached=0, mask=None):
        x = x + self.attn(self.ln_1(x), kv_cache, cached, mask)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.checkpoint_activations = False  # True: compute the blocks again in backward, which saves memory
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
            # each block adds to the residual stream twice: this keeps its variance from growing with depth
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
        The model that a checkpoint holds, ours or nanoGPT's (its `model_args`, `model`, and `meta` if there is one).
        Raises ValueError where its weights are not those of the sizes it names.
        """
        try:
            n_ids = checkpoint.get("meta", {}).get("vocab_size")
            model = cls(GPTConfig(**{**checkpoint["model_args"], "dropout": dropout, "n_ids": n_ids}))
            weights = plain_weights(checkpoint["model"])
            check_shapes(weights, model.state_dict())
            model.load_state_dict(weights)
        except (TypeError, KeyError, AttributeError, RuntimeError) as failure:
            raise ValueError(f"holds no model of its own model_args ({str(failure).splitlines()[0]})") from None
        return model

    @classmethod
    def from_pretrained(cls, name, block_size=None, dropout=0.0):
        """
        A GPT-2 with the weights, and the logits, that it has in Hugging Face's transformers: "gpt2", "gpt2-medium",
        "gpt2-large" or "gpt2-xl", from the cache or the hub, or a folder with config.json and model.safetensors.

        `block_size` keeps only the first positions, None all of them. The weights are float32.
        Raises OSError where the files are missing, ValueError where they are damaged or no GPT-2.
        """
        folder = find_pretrained(name)
        config = GPTConfig(**read_sizes(folder), dropout=dropout)
        if block_size is not None and block_size > config.block_size:
            raise ValueError(f"block_size={block_size} is more than the {config.block_size} positions of {name}")
        places = find_tensors(folder, config.n_layer)
        with torch.device("meta"):  # takes no memory: the weights that are read take these parameters' places
            model = cls(config)
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        model.load_state_dict(read_tensors(places, shapes), assign=True)
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
        Floating point operations to train on one token, forward and backward: 6 per parameter, and 12 per channel,
        layer and position for attention ("PaLM", Chowdhery et al., 2022, appendix B).
        """
        c = self.config
        return 6 * self.num_params() + 12 * c.n_layer * c.n_embd * c.block_size

    def features(self, idx, kv_cache=None, cached=0):
        """
        The input of the output layer, (B, T, C), for token ids (B, T). `model.lm_head(model.features(idx))` gives the
        logits of every position, (B, T, V).

        With a `kv_cache` (see new_kv_cache) the tokens follow on the `cached` tokens that it holds, and are added to
        it; either T is 1 or `cached` is 0. Raises ValueError beyond block_size.
        """
        end = cached + idx.shape[1]
        if end > self.config.block_size:
            raise ValueError(f"{end} tokens do not fit into block_size={self.config.block_size}")
        positions = torch.arange(cached, end, device=idx.device)
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(positions))
        for i, block in enumerate(self.transformer.h):
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = compute_twice(block, x, use_reentrant=False)
            else:
                x = block(x, None if kv_cache is None else kv_cache[i], cached)
        return self.transformer.ln_f(x)

    def forward(self, idx, targets=None):
        """
        Token ids (B, T) to (logits, loss).

        Without targets: the logits of the last position, (B, 1, V), and None. With targets (B, T): None, and the mean
        cross entropy in nats. A target of -1 is ignored. The logits are never held all at once: they would be most of
        a small model's memory.
        """
        x = self.features(idx)
        if targets is None:
            return self.lm_head(x[:, [-1]]), None
        return None, linear_cross_entropy(x.flatten(0, 1), self.lm_head.weight, targets.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type, optimizer="adamw"):
        """
        The optimizers of a training run, as a list.

        "adamw": AdamW, with weight decay on matrices and embeddings only. The groups and their order are nanoGPT's, so
        that its optimizer states load. "muon": Muon (Jordan et al., 2024), whose updates are orthogonal matrices, for
        the matrices inside the blocks, and AdamW for the rest.
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
            # updates as large as AdamW's, so that both share a learning rate and weight decay
            muon = {"lr": learning_rate, "weight_decay": weight_decay, "adjust_lr_fn": "match_rms_adamw"}
            optimizers.append(Muon(matrices, **muon))
        return optimizers

    def new_kv_cache(self, batch_size, length):
        """An empty key/value cache for at least `length` tokens: (n_layer, 2, B, nh, length, hs)."""
        c, weight = self.config, self.transformer.wte.weight
        length = -(-length // 16) * 16  # otherwise CUDA's attention pads `decode`'s mask anew in each layer
        shape = (c.n_layer, 2, batch_size, c.n_head, length, c.n_embd // c.n_head)
        return torch.empty(shape, dtype=weight.dtype, device=weight.device)

    def decode(self, ids, position, kv_cache):
        """
        The logits, (B, V), after one more token of each row: ids (B, 1) at a position (1,), a tensor. They are those of
        `features` without dropout. All shapes and addresses are the same at each position, so it can be captured; for
        that the whole cache is read, which must hold zeros where it is unfilled: the mask's 0 times NaN would be NaN.
        """
        x = self.transformer.wte(ids) + self.transformer.wpe(position)
        unseen = torch.arange(kv_cache.shape[4], device=ids.device) > position
        mask = x.new_zeros(1, 1, 1, len(unseen)).masked_fill(unseen, -torch.inf)  # not boolean: layers would convert it
        for i, block in enumerate(self.transformer.h):
            x = block(x, kv_cache[i], position, mask)
        return self.lm_head(self.transformer.ln_f(x[:, -1]))

    @torch.no_grad()
    def stream(
        self,
        idx,
        max_new_tokens,
        temperature=1.0,
        top_k=None,
        top_p=None,
        stop_token=None,
        vocab_size=None,
        repetition_penalty=1.0,
    ):
        """
        Continue the token ids idx (B, T): yields the next ids, (B, 1), until there are max_new_tokens.

        temperature: 0 takes the likeliest token; below 1 favours likely tokens, above 1 unlikely ones.
        top_k: draw from the k likeliest tokens only. top_p: from the fewest that together have probability p.
        stop_token: a row that has drawn it repeats it; once all rows have, the stream ends.
        vocab_size: draw only ids below it. The default leaves out the padding of the vocabulary (see GPTConfig.n_ids).
        repetition_penalty: above 1, ids in the window, the prompt's too, are less likely (see penalize); 1 is off.
        Raises ValueError for values out of range.
        """
        if idx.shape[1] == 0:
            raise ValueError("the prompt is empty: it should have at least one token")
        if temperature < 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
            raise ValueError(
                f"temperature={temperature} should be 0 or more, top_k={top_k} None or 1 or more, "
                f"top_p={top_p} None or above 0 and at most 1"
            )
        if not 0.01 <= repetition_penalty <= 100:
            raise ValueError(f"repetition_penalty={repetition_penalty} should be from 0.01 to 100")
        block_size, vocab_size = self.config.block_size, vocab_size or self.config.n_ids
        window = idx[:, -block_size:]
        kv_cache = self.new_kv_cache(idx.shape[0], min(block_size, window.shape[1] + max_new_tokens))
        cached = 0  # tokens in the cache
        decode, positions = None, torch.arange(block_size, device=idx.device)
        stopped = torch.zeros_like(idx[:, :1], dtype=torch.bool)
        for i in range(max_new_tokens):
            if window.shape[1] > block_size:  # the window is full: begin again with its later half
                window, cached = window[:, -max(block_size // 2, 1) :], 0
            ids, position = window[:, cached:], positions[cached : cached + 1]
            # the first token should not wait, and a graph has no dropout
            if i == 1 and not self.training and worth_capturing(ids.device, max_new_tokens):
                kv_cache[:, :, :, :, cached:] = 0
                decode = captured(lambda *inputs: self.decode(*inputs, kv_cache), ids[:, :1], position)
            if decode and ids.shape[1] == 1:
                logits = decode(ids, position)
            else:
                logits = self.lm_head(self.features(ids, kv_cache, cached)[:, -1])
            cached = window.shape[1]
            logits = penalize(logits, window, repetition_penalty)[:, :vocab_size]
            next_ids = draw_ids(logits, temperature, top_k, top_p)
            if stop_token is not None:
                next_ids = torch.where(stopped, stop_token, next_ids)
                stopped |= next_ids == stop_token
            yield next_ids
            if stop_token is not None and stopped.all():
                return
            window = torch.cat((window, next_ids), dim=1)

    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, **options):
        """
        Continue the token ids idx (B, T): returns (B, T + max_new_tokens), or fewer once all rows have drawn the
        stop_token. The options are those of `stream`. Call `model.eval()` first.
        """
        return torch.cat([idx, *self.stream(idx, max_new_tokens, temperature, top_k, **options)], dim=1)


def plain_weights(weights):
    """
    A checkpoint's weights by our names. torch.compile and DDP put prefixes before them, and nanoGPT without flash
    attention keeps the causal mask of each layer among them, which is no weight.
    """
    names = {name: re.sub(r"^(module\.|_orig_mod\.)+", "", name) for name in weights}
    return {names[name]: weight for name, weight in weights.items() if not names[name].endswith(MASKS)}


def check_shapes(weights, wanted):
    """Raise ValueError, which names the first weight that has another shape than the `wanted` of this name."""
    for name in [*wanted, *weights]:
        found, asked = (getattr(tensors.get(name), "shape", None) for tensors in (weights, wanted))
        if found != asked:
            found, asked = ("none" if shape is None else tuple(shape) for shape in (found, asked))
            raise ValueError(f"does not fit its model_args: of {name} it has {found}, and they ask for {asked}")


def penalize(logits, ids, penalty):
    """
    Logits (B, V) with those of the token ids (B, T) divided by the penalty where they are positive, and multiplied by
    it where they are negative ("CTRL", Keskar et al., 2019).
    """
    if penalty == 1:
        return logits
    logits, ids = logits.float(), ids.long()  # half precision could overflow
    seen = logits.gather(1, ids)
    return logits.scatter(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))


def draw_ids(logits, temperature, top_k, top_p):
    """Draw one token id for each row of logits: (B, V) to (B, 1). The options are those of GPT.stream."""
    tiny = torch.finfo(torch.float32).tiny  # what is less may count as 0
    if temperature < tiny:
        return logits.argmax(dim=-1, keepdim=True)
    if top_k is None and top_p is None:
        return torch.multinomial(softmax(logits, temperature), num_samples=1)
    logits, ids = logits.topk(min(top_k or logits.shape[-1], logits.shape[-1]))  # sorted, the likeliest first
    probs = softmax(logits, temperature)
    if top_p is not None:
        before = probs.cumsum(dim=-1) - probs  # the probability of all likelier tokens; 0 for the first, which stays
        probs = probs.masked_fill(before >= max(top_p, tiny), 0)
    return ids.gather(-1, torch.multinomial(probs, num_samples=1))


def softmax(logits, temperature):
    """Probabilities of the logits over temperature; without their maximum, so that nothing overflows."""
    logits = logits.float()
    return F.softmax((logits - logits.amax(dim=-1, keepdim=True)) / temperature, dim=-1)
