"""
Write a trained model in the format of Hugging Face's transformers, together with its tokenizer.

    python export.py --out_dir=out-hitchikers --to=hf-hitchikers

    transformers.pipeline("text-generation", model="hf-hitchikers")    then reads it in Python, without a network
    python sample.py --init_from=hf-hitchikers                         and so does this

The folder holds config.json, generation_config.json, model.safetensors, tokenizer.json and tokenizer_config.json. It
appears once all of it is written.
"""

from configurator import UserError, check_installed, command, configure, run

import os

from checkpoint import load_trained
from pretrained import write_pretrained
from tokenizer import END_OF_TEXT, BytePairTokenizer, tokenizer_json

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


def write_folder(folder, model, tokenizer):
    """Write a model and its tokenizer of byte pairs to a folder. Raises UserError where that fails."""
    files = {
        "tokenizer_config.json": tokenizer_config(model.config.block_size),
        "tokenizer.json": tokenizer_json(tokenizer),
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
    if not isinstance(tokenizer, BytePairTokenizer):
        kind = "single characters" if tokenizer.meta()["encoding"] == "char" else "tokens of its dataset's own"
        raise UserError(
            f"the model in {out_dir!r} writes {kind}, for which transformers has no tokenizer: "
            "only a model of byte pairs (prepare.py --encoding=bpe, or gpt2) can be exported"
        )
    write_folder(os.path.normpath(to), model, tokenizer)
    print(f"the model is in {to}; let it write: {command('sample.py', init_from=to)}")


if __name__ == "__main__":
    run(main)
