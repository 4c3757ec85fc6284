"""
Let a trained model write.

    python sample.py --out_dir=out-hitchikers
    python sample.py --out_dir=out-hitchikers --start="The answer is" --num_samples=1
    python sample.py --out_dir=out-hitchikers --start=FILE:prompt.txt
    python sample.py --init_from=gpt2-xl --start="What is the answer to life, the universe, and everything?"

Only the samples go to standard output, each followed by a line of dashes. A single sample appears word by word.
"""

from configurator import UserError, check_range, configure, note, run, text_or_file

import codecs
import math
import re
import shutil
import sys
from itertools import chain

import torch
from tqdm import tqdm

from checkpoint import check_init_from, load_pretrained, load_trained
from fast import pack
from machine import resolve_device, set_up_torch

# -----------------------------------------------------------------------------
init_from = "resume"  # resume: the model in out_dir; gpt2, gpt2-medium, gpt2-large, gpt2-xl, or a folder with a GPT-2
out_dir = "out"  # the folder with ckpt.pt
start = "\n"  # the prompt; FILE:prompt.txt reads it from a file, FILE:- from standard input
num_samples = 10  # how many to draw, all at once
max_new_tokens = 500  # the length of each
temperature = 0.8  # below 1 the likely tokens are likelier still; 0 always takes the likeliest
top_k: int | None = 200  # draw from the k likeliest tokens only; None from all
top_p: float | None = None  # draw from the likeliest tokens that together have this probability; None from all
stop_at_end = False  # end a sample where the model writes <|endoftext|>
seed = 1337  # of the draws
device = "auto"  # auto, cpu, cuda, cuda:1, mps
dtype = "auto"  # of the weights: auto, float32, bfloat16, float16
compile: str | bool = False  # nanoGPT's: means nothing here, sampling is not compiled
# -----------------------------------------------------------------------------


def check_options():
    """Raise UserError for values out of range."""
    limits = {"num_samples": (1, 10**4), "max_new_tokens": (1, 10**9), "temperature": (0, math.inf)}
    check_range(globals(), limits | {"seed": (0, math.inf)})
    if top_k is not None and top_k < 1:
        raise UserError(f"--top_k={top_k} should be at least 1, or None to draw from all tokens")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"--top_p={top_p} should be above 0 and at most 1, or None to draw from all tokens")
    check_init_from(init_from, "resume")


def read_prompt(tokenizer):
    """The text of `start`, or if that is the default and unknown to the model, the most natural one that it knows."""
    if start == "\n" != tokenizer.prompt:
        note(f"note: the model knows no line end, so the text begins with {tokenizer.prompt!r}")
        return tokenizer.prompt
    return text_or_file(start, "prompt")


def until(end, ids):
    """The ids before the first `end`, if there is one."""
    return ids[: ids.index(end)] if end in ids else ids


def wrapped(pieces):
    """
    A text that comes in pieces, in pieces again: on a terminal with a line end in place of each blank after which a
    word would cross its edge, elsewhere as it is.
    """
    if not sys.stdout.isatty():
        yield from pieces
        return
    width, column, rest = shutil.get_terminal_size().columns, 0, ""
    for piece in chain(pieces, "\n"):  # the last word may go on in the next piece; the line end lets it out
        *words, rest = re.split(r"(?=\s)", rest + piece)  # with the white space before them
        for word in words:
            if word.startswith(" ") and column + len(word) > width:
                word = "\n" + word[1:]
            column = len(word) - 1 if word.startswith("\n") else column + len(word)
            yield word


def written(prompt, stream, end, tokenizer):
    """The prompt, and then the text of a stream of a single sample, token by token."""
    # a token can end within a character: the decoder keeps its bytes until the character is whole
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    yield prompt
    for next_ids in stream:
        yield decoder.decode(tokenizer.decode_bytes(until(end, next_ids[0].tolist())))
    yield decoder.decode(b"", final=True)


def main():
    configure(globals())
    check_options()
    torch_device, torch_dtype, _ = resolve_device(device, dtype, compile)
    if str(compile).lower() in ("true", "1"):  # each new length would be compiled anew, for minutes
        note(f"note: --compile={compile} means nothing here: sampling is not compiled")
    if not sys.stdout.isatty() and hasattr(sys.stdout, "reconfigure"):  # not in Jupyter
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # as speak.py reads it, on any system
    set_up_torch(seed)

    model, tokenizer = load_trained(out_dir) if init_from == "resume" else load_pretrained(init_from)
    model.eval().to(torch_device, torch_dtype)
    pack(model)

    prompt = read_prompt(tokenizer)
    ids = tokenizer.encode(prompt, special=True)
    if not ids:
        raise UserError(f"the prompt --start={start} is empty: it should have at least a character")
    if len(ids) > (block_size := model.config.block_size):
        note(f"note: of the prompt's {len(ids)} tokens the model sees the last {block_size}")
    idx = torch.tensor([ids], device=torch_device).expand(num_samples, -1)  # (B, T)
    end = tokenizer.end_of_text if stop_at_end else None
    stream = model.stream(idx, max_new_tokens, temperature, top_k, top_p, end, tokenizer.vocab_size)

    if num_samples == 1:
        for piece in wrapped(written(prompt, stream, end, tokenizer)):
            print(piece, end="", flush=True)
        print("\n---------------")
        return
    bar = tqdm(stream, total=max_new_tokens, unit="tok", leave=False, disable=not sys.stderr.isatty())
    for row in torch.cat(list(bar), dim=1).tolist():
        text = prompt + tokenizer.decode_bytes(until(end, row)).decode("utf-8", errors="replace")
        print(*wrapped([text]), "\n---------------", sep="")


if __name__ == "__main__":
    run(main)
