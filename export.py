"""
Write a trained model, with its tokenizer, for other programs: Hugging Face's transformers, or llama.cpp and what is
built on it, such as Ollama and LM Studio.

    python export.py --out_dir=out-hitchikers --to=hf-hitchikers

    transformers.pipeline("text-generation", model="hf-hitchikers")    then reads it in Python, without a network
    python sample.py --init_from=hf-hitchikers                         and so does this

    python export.py --out_dir=out-hitchikers --to=hitchikers.gguf

    llama-completion -m hitchikers.gguf -no-cnv -p "The answer is"     then writes with it

The folder holds config.json, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json and
README.md, a model card. Folder and file appear once all of them is written.
"""

from configurator import UserError, check_installed, command, configure, quote, run

import importlib.util
import math
import os

import torch

from checkpoint import load_run
from pretrained import write_gguf, write_pretrained
from report import bits_per_byte
from tokenizer import END_OF_TEXT, BytePairTokenizer, spelled, tokenizer_json

# -----------------------------------------------------------------------------
out_dir = "out"  # the folder with ckpt.pt
to = "hf"  # the folder to write, or with .gguf at its end the file; it should not exist yet
dtype = "float32"  # of the weights; float16 takes half the space
# -----------------------------------------------------------------------------

DTYPES = ("float32", "float16")
# what docs/gpt2.md measures
ERF_NOTE = "note: llama.cpp computes GELU by tanh, this model by erf: logits differ by some 0.003, the loss by 0.00001"

# -----------------------------------------------------------------------------
# a folder for transformers


def tokenizer_config(block_size):
    """The content of tokenizer_config.json."""
    return {
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": block_size,
        "add_prefix_space": False,
        "padding_side": "left",  # a text is continued at its right end
        **{f"{name}_token": END_OF_TEXT for name in ("bos", "eos", "unk", "pad")},
    }


FINETUNE = "config/finetune_hitchikers.py"
CARD = """---
library_name: transformers
pipeline_tag: text-generation
# license: it is for you to choose, and depends on the text that the model has read
---

# {name}

A GPT-2 that continues texts: {sizes}.

{trained}

In transformers:

```python
from transformers import pipeline

pipe = pipeline("text-generation", model="{name}")  # this folder
print(pipe("The answer is", max_new_tokens={new})[0]["generated_text"])
```

The prompt and what is written must fit into the window: transformers fails beyond it.

And back in the scripts that trained it, to write or to train on:

    {sample}
    {train}
"""


def model_card(name, model, tokenizer, checkpoint):
    """The content of README.md: what is known of a model that goes into a folder of this name."""
    c, dataset = model.config, checkpoint.get("config", {}).get("dataset", "DATASET")
    kind = "GPT-2's byte pairs" if tokenizer.merges is None else "byte pairs learnt from its text"
    sizes = (
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {c.n_layer} layers of {c.n_embd} channels and "
        f"{c.n_head} heads, windows of {c.block_size} tokens, {tokenizer.vocab_size:,} token ids ({kind})"
    )
    return CARD.format(
        name=name,
        sizes=sizes,
        trained=training(checkpoint),
        new=min(100, c.block_size // 2),
        sample=command("sample.py", init_from=name),
        train=command(
            "train.py", FINETUNE, init_from=name, dataset=dataset, block_size=c.block_size, out_dir="out-finetuned"
        ),
    )


def training(checkpoint):
    """What a checkpoint says of its training, in a sentence or two."""
    dataset, tokens = checkpoint.get("config", {}).get("dataset"), checkpoint.get("tokens")
    loss = torch.as_tensor(checkpoint.get("best_val_loss", math.inf))
    counts = checkpoint.get("meta", {}).get("val", {})
    read = f" and has read {tokens:,} tokens of it" if tokens else ""
    line = f"It was trained on the dataset {dataset!r}{read}." if dataset else "What it was trained on is not known."
    if loss.numel() != 1 or not loss.isfinite():
        return line
    bits = bits_per_byte(loss.item(), counts) if "tokens" in counts else None
    in_bits = f", or {bits:.3f} bits per byte of text" if bits else ""
    return f"{line} On text that it has not seen its loss is {loss:.4f} nats per token{in_bits}."


def write_folder(folder, model, tokenizer, checkpoint):
    """Write a model, its tokenizer of byte pairs and a model card to a folder. Raises UserError where that fails."""
    files = {
        "tokenizer_config.json": tokenizer_config(model.config.block_size),
        "tokenizer.json": tokenizer_json(tokenizer),
        "README.md": model_card(os.path.basename(os.path.abspath(folder)), model, tokenizer, checkpoint),
    }
    write_pretrained(folder, model.config.model_args(), model.state_dict(), files, tokenizer.end_of_text)


# -----------------------------------------------------------------------------
# either of the two


def write_file(path, model, tokenizer):
    """Write a model and its tokenizer of byte pairs to a GGUF file. Raises UserError where that fails."""
    tokens, merges = spelled(tokenizer)
    write_gguf(path, model.config.model_args(), model.state_dict(), [*tokens, END_OF_TEXT], merges)


def check_options(as_gguf):
    """Raise UserError for options that cannot be, and where a package is missing."""
    if not to:
        raise UserError("--to= is empty: it should name the folder to write, or a file that ends in .gguf")
    if dtype not in DTYPES:
        raise UserError(f"--dtype={dtype} is unknown: it may be {' or '.join(DTYPES)}")
    if as_gguf and importlib.util.find_spec("gguf") is None:
        raise UserError("a GGUF file is written with the package gguf, which is not installed: 'pip install gguf'")
    if not as_gguf:
        check_installed("safetensors", "tokenizers")  # transformers brings them along
    if os.path.lexists(to) and (as_gguf or not (os.path.isdir(to) and not os.listdir(to))):
        what = "is a folder, and should be a file" if as_gguf and os.path.isdir(to) else "exists already"
        raise UserError(f"--to={to} {what}, and nothing there is replaced: name another, or remove it first")


def check_tokenizer(tokenizer, as_gguf):
    """Raise UserError where other programs have no such tokenizer."""
    program = "llama.cpp" if as_gguf else "transformers"
    if not isinstance(tokenizer, BytePairTokenizer):
        kind = "single characters" if tokenizer.meta()["encoding"] == "char" else "tokens of its dataset's own"
        raise UserError(
            f"the model in {out_dir!r} writes {kind}, for which {program} has no tokenizer: "
            "only a model of byte pairs (prepare.py --encoding=bpe, or gpt2) can be exported"
        )
    if as_gguf and tokenizer.merges == []:
        raise UserError(
            f"the model in {out_dir!r} writes single bytes, which merge to no pairs, and llama.cpp reads no such "
            "vocabulary: prepare the dataset with a larger --vocab_size"
        )


def narrow(model):
    """Change a model's weights to float16. Raises UserError where one is too large for it."""
    largest = max(p.abs().max().item() for p in model.parameters())
    if not largest < torch.finfo(torch.float16).max:
        raise UserError(f"--dtype=float16 has no room for a weight of {largest:.3g}: export it with --dtype=float32")
    model.half()


def main():
    configure(globals())
    as_gguf = to.lower().endswith(".gguf")
    check_options(as_gguf)
    model, tokenizer, checkpoint = load_run(out_dir)
    check_tokenizer(tokenizer, as_gguf)
    if dtype == "float16":
        narrow(model)
    if not as_gguf:
        write_folder(os.path.normpath(to), model, tokenizer, checkpoint)
        print(f"the model is in {to}; let it write: {command('sample.py', init_from=to)}")
        return
    write_file(to, model, tokenizer)
    print(f"the model is in {to}; let llama.cpp write with it: llama-completion -m {quote(to)} -no-cnv -p Hello")
    if model.config.gelu == "erf":
        print(ERF_NOTE)


if __name__ == "__main__":
    run(main)
