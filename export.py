"""
Write a trained model in the format of Hugging Face's transformers, together with its tokenizer.

    python export.py --out_dir=out-hitchikers --to=hf-hitchikers

    transformers.pipeline("text-generation", model="hf-hitchikers")    then reads it in Python, without a network
    python sample.py --init_from=hf-hitchikers                         and so does this

The folder holds config.json, generation_config.json, model.safetensors, tokenizer.json and tokenizer_config.json. It
appears once all of it is written.
"""

from configurator import UserError, check_installed, command, configure, run

import json
import os

from checkpoint import load_trained
from pretrained import write_pretrained
from tokenizer import END_OF_TEXT, CharTokenizer, GPT2Tokenizer

# -----------------------------------------------------------------------------
out_dir = "out"  # the folder with ckpt.pt
to = "hf"  # the folder to write, which should not exist yet
# -----------------------------------------------------------------------------


def tokenizer_config(block_size):
    """The content of tokenizer_config.json."""
    return {
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": block_size,
        "add_prefix_space": False,
        "padding_side": "left",  # a text is continued at its right end
        **{f"{name}_token": END_OF_TEXT for name in ("bos", "eos", "unk", "pad")},
    }


def gpt2_tokenizer(tokenizer):
    """The content of tokenizer.json: GPT-2's byte pairs in the format of Hugging Face's tokenizers."""
    import tokenizers

    tokens = [tokenizer.decode_bytes([i]) for i in range(tokenizer.end_of_text)]
    # the format spells each byte as a visible character: itself, or one from 256 on
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}

    def spell(token):
        return "".join(letters[byte] for byte in token)

    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = [tuple(map(spell, last_pair(token, ranks))) for token in tokens if len(token) > 1]
    bpe = tokenizers.models.BPE({spell(token): rank for token, rank in ranks.items()}, merges)
    result = tokenizers.Tokenizer(bpe)
    result.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)  # splits by GPT-2's pattern too
    result.decoder = tokenizers.decoders.ByteLevel()
    result.add_special_tokens([tokenizers.AddedToken(END_OF_TEXT, normalized=False, special=True)])
    return json.loads(result.to_str())


def last_pair(token, ranks):
    """The two tokens, as bytes, whose merge makes a token."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in zip(parts, parts[1:])]
        i = pairs.index(min(pairs))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def write_folder(folder, model, tokenizer):
    """Write a model and GPT-2's tokenizer to a folder. Raises UserError where that fails."""
    files = {
        "tokenizer_config.json": tokenizer_config(model.config.block_size),
        "tokenizer.json": gpt2_tokenizer(tokenizer),
    }
    write_pretrained(folder, model.config.model_args(), model.state_dict(), files, tokenizer.end_of_text)


def main():
    configure(globals())
    if not to:
        raise UserError("--to= is empty: it should name the folder to write")
    check_installed("safetensors", "tokenizers")  # transformers brings them along
    if os.path.lexists(to) and not (os.path.isdir(to) and not os.listdir(to)):
        raise UserError(f"--to={to} exists already, and nothing in it is replaced: name another, or remove it first")
    model, tokenizer = load_trained(out_dir)
    if not isinstance(tokenizer, GPT2Tokenizer):
        kind = "single characters" if isinstance(tokenizer, CharTokenizer) else "tokens of its dataset's own"
        raise UserError(
            f"the model in {out_dir!r} writes {kind}, for which transformers has no tokenizer: "
            "only a model of GPT-2's byte pairs (prepare.py --encoding=gpt2) can be exported"
        )
    write_folder(os.path.normpath(to), model, tokenizer)
    print(f"the model is in {to}; let it write: {command('sample.py', init_from=to)}")


if __name__ == "__main__":
    run(main)
