"""
Write a trained model in the format of Hugging Face's transformers, together with its tokenizer.

    python export.py --out_dir=out-hitchikers --to=hf-hitchikers

    transformers.pipeline("text-generation", model="hf-hitchikers")    then reads it in Python, without a network
    python sample.py --init_from=hf-hitchikers                         and so does this

The folder holds config.json, generation_config.json, model.safetensors, tokenizer.json and tokenizer_config.json. It
appears once all of it is written.
"""

from configurator import UserError, check_installed, configure, first_line, run

import json
import os
import shutil

import torch

from model import GELU, GPT2_VOCAB, PRETRAINED_CONFIG, TRANSPOSED
from sample import load_trained
from tokenizer import END_OF_TEXT, GPT2Tokenizer

# -----------------------------------------------------------------------------
out_dir = "out"  # the folder with ckpt.pt
to = "hf"  # the folder to write, which should not exist yet
# -----------------------------------------------------------------------------

SPECIAL_IDS = {"bos_token_id": GPT2Tokenizer.end_of_text, "eos_token_id": GPT2Tokenizer.end_of_text}


def pretrained_config(c):
    """What config.json says of a model with the GPTConfig c."""
    sizes = {name: getattr(c, name) for name in ("vocab_size", "n_layer", "n_head", "n_embd")}
    dropout = {name: c.dropout for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop")}
    kind = {"architectures": ["GPT2LMHeadModel"], "activation_function": GELU[c.gelu], "n_positions": c.block_size}
    return PRETRAINED_CONFIG | kind | sizes | dropout | SPECIAL_IDS


def generation_config(c):
    """What generation_config.json says: the ids that only fill up the vocabulary are never drawn."""
    padding = list(range(GPT2_VOCAB, c.vocab_size))
    return SPECIAL_IDS | ({"suppress_tokens": padding} if padding else {})


def pretrained_tensors(model):
    """The weights as GPT2LMHeadModel has them, by name: with biases always, which are zero where there are none."""
    tensors = {}
    for name, p in model.named_parameters():  # of tied weights only the first, wte
        p = p.detach()
        tensors[name] = p.T.contiguous() if name.endswith(TRANSPOSED) else p
        if name.endswith("weight") and "wte" not in name and "wpe" not in name:
            tensors[name.removesuffix("weight") + "bias"] = torch.zeros(len(p))  # a real one follows, and replaces it
    return tensors


def gpt2_tokenizer(tokenizer):
    """GPT-2's byte pairs as tokenizer.json has them."""
    import tokenizers

    tokens = [tokenizer.decode_bytes([i]) for i in range(tokenizer.end_of_text)]
    # in this format each byte is a visible character: itself, or one from 256 on
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}

    def spell(token):
        return "".join(letters[byte] for byte in token)

    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = [tuple(map(spell, last_pair(token, ranks))) for token in tokens if len(token) > 1]
    bpe = tokenizers.models.BPE({spell(token): rank for token, rank in ranks.items()}, merges)
    result = tokenizers.Tokenizer(bpe)
    result.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)  # it has GPT-2's pattern too
    result.decoder = tokenizers.decoders.ByteLevel()
    result.add_special_tokens([tokenizers.AddedToken(END_OF_TEXT, normalized=False, special=True)])
    return json.loads(result.to_str())


def last_pair(token, ranks):
    """The two tokens, as bytes, that byte pair encoding merges last on its way to a token."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in zip(parts, parts[1:])]
        i = pairs.index(min(pairs))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def tokenizer_config(c):
    """What tokenizer_config.json says."""
    special = {f"{name}_token": END_OF_TEXT for name in ("bos", "eos", "unk")}
    return {"tokenizer_class": "GPT2Tokenizer", "model_max_length": c.block_size, "add_prefix_space": False, **special}


def write_folder(folder, model, tokenizer):
    """Write all files of a folder under a temporary name, and have it take its place. Raises UserError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    files = {
        "config.json": pretrained_config(model.config),
        "generation_config.json": generation_config(model.config),
        "tokenizer_config.json": tokenizer_config(model.config),
        "tokenizer.json": gpt2_tokenizer(tokenizer),
    }
    temporary = f"{folder}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of an export that was killed
        os.makedirs(temporary)
        for name, content in files.items():
            with open(os.path.join(temporary, name), "w", encoding="utf-8") as f:
                json.dump(content, f, indent=2, ensure_ascii=False)
        save_file(pretrained_tensors(model), os.path.join(temporary, "model.safetensors"), metadata={"format": "pt"})
        for name in os.listdir(temporary):
            shutil.copymode(os.path.join(temporary, "config.json"), os.path.join(temporary, name))  # not 0600
            with open(os.path.join(temporary, name), "rb+") as f:
                os.fsync(f.fileno())
        if os.path.exists(folder):  # and is empty
            os.rmdir(folder)
        os.rename(temporary, folder)
    except (OSError, SafetensorError) as failure:
        raise UserError(f"cannot write {folder!r}: {first_line(failure)}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main():
    configure(globals())
    check_installed("safetensors", "tokenizers")  # transformers brings them along
    if os.path.exists(to) and not (os.path.isdir(to) and not os.listdir(to)):
        raise UserError(f"--to={to} exists already, and nothing in it is replaced: name another, or remove it first")
    model, tokenizer = load_trained(out_dir)
    if not isinstance(tokenizer, GPT2Tokenizer):
        raise UserError(
            f"the model in {out_dir!r} writes single characters, for which transformers has no tokenizer: "
            "only a model of GPT-2's byte pairs (prepare.py --encoding=gpt2) can be exported"
        )
    write_folder(os.path.normpath(to), model, tokenizer)
    print(f"the model is in {to}; let it write: python sample.py --init_from={to}")


if __name__ == "__main__":
    run(main)
