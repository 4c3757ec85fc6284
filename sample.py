"""
Let a trained model write.

    python sample.py --out_dir=out-hitchikers
    python sample.py --out_dir=out-hitchikers --start="The answer is" --num_samples=1
    python sample.py --out_dir=out-hitchikers --start=FILE:prompt.txt
    python sample.py --init_from=gpt2-xl --start="What is the answer to life, the universe, and everything?"
    python sample.py --out_dir=out-hitchikers --interactive=True --max_new_tokens=60

Only the samples go to standard output, each followed by a line of dashes. A single sample appears word by word. With
--interactive you and the model write by turns: /help there says how.
"""

from configurator import UserError, check_range, configure, note, replacing, run
from configurator import standard_input, suggestion, text_or_file, without_tilde

import codecs
import contextlib
import math
import os
import re
import shutil
import signal
import sys
from itertools import chain, takewhile

import torch
from tqdm import tqdm

from checkpoint import check_init_from, load_pretrained, load_trained
from fast import pack
from machine import resolve_device, set_up_torch

# -----------------------------------------------------------------------------
init_from = "resume"  # resume: the model in out_dir; gpt2, gpt2-medium, gpt2-large, gpt2-xl, or a folder with a GPT-2
out_dir = "out"  # the folder with ckpt.pt
start = "\n"  # the prompt; FILE:prompt.txt reads it from a file, FILE:- from standard input
interactive = False  # write by turns with the model: it goes on from what you type
num_samples = 10  # how many to draw, all at once
max_new_tokens = 500  # the length of each; of each continuation with --interactive, where 60, three lines, are handy
temperature = 0.8  # below 1 the likely tokens are likelier still; 0 always takes the likeliest
top_k: int | None = 200  # draw from the k likeliest tokens only; None from all
top_p: float | None = None  # draw from the likeliest tokens that together have this probability; None from all
repetition_penalty = 1.0  # above 1, tokens that are there already are less likely, as in transformers; 1 is off
stop_at_end = False  # end a sample where the model writes <|endoftext|>
seed = 1337  # of the draws
device = "auto"  # auto, cpu, cuda, cuda:1, mps
dtype = "auto"  # of the weights: auto, float32, bfloat16, float16
compile: str | bool = False  # nanoGPT's: means nothing here, sampling is not compiled
# -----------------------------------------------------------------------------

HELP = """\
Write something, or nothing, and press Enter: the model goes on, until Ctrl-C
stops it. What you write follows on the text, after a blank where a new word
begins. Lines that begin with / are commands:
    /again           draw the last continuation anew
    /undo            take back the last continuation, or else what you wrote
    /new             begin a new text
    /save story.txt  write the text to a new file, or to one saved here before
    /help            show this
    /quit            end, as Ctrl-D does"""
COMMANDS = re.findall("^ +(/[a-z]+)", HELP, re.MULTILINE)


def check_options():
    """Raise UserError for values out of range."""
    limits = {"num_samples": (1, 10**4), "max_new_tokens": (1, 10**9), "temperature": (0, math.inf)}
    check_range(globals(), limits | {"repetition_penalty": (0.01, 100), "seed": (0, math.inf)})
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


def text_of(ids, tokenizer):
    """The text of token ids. A character that is cut off is shown as such."""
    return tokenizer.decode_bytes(ids).decode("utf-8", errors="replace")


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
        if len(rest) > 30:  # no word, but a language without blanks
            column += len(rest)
            yield rest
            rest = ""


def draw(ids, rows, model, tokenizer, end):
    """The stream of ids, (rows, 1) at a time, that the model writes after these."""
    idx = torch.tensor([ids], device=model.transformer.wte.weight.device).expand(rows, -1)  # (B, T)
    limits = (temperature, top_k, top_p, end, tokenizer.vocab_size, repetition_penalty)
    return model.stream(idx, max_new_tokens, *limits)


def written(ids, stream, end, tokenizer):
    """The text of the ids, and then that of a stream of a single sample, token by token, which is added to the ids."""
    # a token can end within a character: the decoder keeps its bytes until the character is whole
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    yield decoder.decode(tokenizer.decode_bytes(ids))
    for next_ids in stream:
        new = until(end, next_ids[0].tolist())
        ids += new
        yield decoder.decode(tokenizer.decode_bytes(new))
    yield decoder.decode(b"", final=True)


# -----------------------------------------------------------------------------
# by turns


def typed_lines():
    """The lines that the user types or pipes in, until they end."""
    typed = sys.stdin.isatty()
    if typed:
        note("Write a beginning, or just press Enter. /help says what else there is.")
        with contextlib.suppress(ImportError):  # Windows' console has a history without it
            import readline  # noqa: F401  input() uses it
    while True:
        try:
            if typed:  # while the model writes it is another one
                signal.signal(signal.SIGINT, signal.default_int_handler)
            line = input("> " if typed and sys.stdout.isatty() else "")
        except EOFError:
            return note("") if typed else None  # what follows begins a line
        except KeyboardInterrupt:
            if not typed:
                raise
            note("\nCtrl-D or /quit ends the program")
        else:
            yield line


def following(text, line):
    """A line as it follows on the text: after a blank where two words meet, if blanks divide words."""
    words_meet = re.search(r"""[\w.,;:!?)”’]["']?\Z""", text) and re.match(r"""["“‘(]?\w""", line)
    return f" {line}" if words_meet and " " in text + line else line


def go_on(ids, turns, model, tokenizer, end):
    """Let the model add to the text of the ids, and show it. Ctrl-C in a terminal stops it; what is shown stays."""
    begin, stopped = len(ids), []
    ids += [] if ids else tokenizer.encode(tokenizer.prompt)
    stream = draw(ids[-model.config.block_size :], 1, model, tokenizer, end)
    pieces = written(ids, takewhile(lambda _: not stopped, stream), end, tokenizer)
    if begin:
        next(pieces)  # the text so far, which is on the screen
    if sys.stdin.isatty():  # an exception would come in the midst of a word
        signal.signal(signal.SIGINT, lambda *_: stopped.append(True))
    for piece in wrapped(pieces):
        print(piece, end="", flush=True)
    print(flush=True)
    turns.append((begin, "model"))
    if len(ids) - begin < max_new_tokens and not stopped:
        note("note: the model ends the text here: /again draws anew, /new begins another")


def save(text, path, saved):
    """Write the text to a new file, or to one as it was `saved` before: its path, and the time when it was changed."""
    if not path or os.path.isdir(path):
        raise UserError(f"/save should name a file, as in /save {os.path.join(path, 'story.txt')}")
    if os.path.lexists(path) and os.lstat(path).st_mtime_ns != saved.get(os.path.abspath(path)):
        raise UserError(f"{path!r} is there, and not as saved in this session: name a new file, or remove it first")
    with replacing(path) as f:
        f.write(f"{text.strip()}\n".encode())
    saved[os.path.abspath(path)] = os.lstat(path).st_mtime_ns
    note(f"saved the text, {len(text.strip()):,} characters, as {path}")


def take_turns(ids, model, tokenizer, end):
    """Write by turns on the text that begins with these ids: the user a line, or a command, and then the model."""
    standard_input()  # raises UserError where it is closed
    sys.stdin.reconfigure(encoding="utf-8-sig", errors="replace", newline=None)  # on any system
    turns, saved = [], {}  # where the parts of the text begin, and whose they are; the files
    if ids:
        note("".join(wrapped([text_of(ids, tokenizer)])))
        turns.append((0, "user"))
        go_on(ids, turns, model, tokenizer, end)
    for line in typed_lines():
        text = text_of(ids, tokenizer)
        command, _, path = line.strip().partition(" ")
        try:
            if re.search("[\0\N{REPLACEMENT CHARACTER}]", line):
                raise UserError("this line is no UTF-8 text, and is left out")
            elif not line.startswith("/"):
                new = tokenizer.encode(following(text, line), special=True)
                turns += [(len(ids), "user")] if line else []
                ids += new
                go_on(ids, turns, model, tokenizer, end)
            elif command not in COMMANDS or path and command != "/save":
                raise UserError(f"there is no command {line.strip()}: {suggestion(command, COMMANDS)}")
            elif command == "/help":
                note(HELP)
            elif command == "/quit":
                return
            elif command == "/new":
                ids, turns = [], []
            elif not turns:
                raise UserError("there is no text yet: write a beginning, or just press Enter")
            elif command == "/save":
                save(text, without_tilde(path.strip()), saved)
            elif command == "/undo":
                del ids[turns.pop()[0] :]
                note(f"the text now ends: {text_of(ids, tokenizer)[-60:]}" if ids else "the text is empty")
            elif temperature == 0:  # and /again
                raise UserError("/again would draw the same: --temperature=0 always takes the likeliest token")
            else:
                if turns[-1][1] == "model":
                    del ids[turns.pop()[0] :]
                go_on(ids, turns, model, tokenizer, end)
        except UserError as mistake:
            note(f"error: {mistake}")


def main():
    usual = num_samples
    configure(globals())
    check_options()
    torch_device, torch_dtype, _ = resolve_device(device, dtype, compile)
    if str(compile).lower() in ("true", "1"):  # each new length would be compiled anew, for minutes
        note(f"note: --compile={compile} means nothing here: sampling is not compiled")
    if interactive and num_samples not in (1, usual):
        note(f"note: --num_samples={num_samples} means nothing with --interactive: one text is written")
    if not sys.stdout.isatty() and hasattr(sys.stdout, "reconfigure"):  # not in Jupyter
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # as speak.py reads it, on any system
    set_up_torch(seed)

    model, tokenizer = load_trained(out_dir) if init_from == "resume" else load_pretrained(init_from)
    model.eval().to(torch_device, torch_dtype)
    pack(model)

    end = tokenizer.end_of_text if stop_at_end else None
    prompt = "" if interactive and start == "\n" else read_prompt(tokenizer)
    ids = tokenizer.encode(prompt, special=True)
    if not ids and not interactive:
        raise UserError(f"the prompt --start={start} is empty: it should have at least a character")
    if len(ids) > (block_size := model.config.block_size):
        note(f"note: of the prompt's {len(ids)} tokens the model sees the last {block_size}")
    if interactive:
        return take_turns(ids, model, tokenizer, end)
    stream = draw(ids, num_samples, model, tokenizer, end)

    if num_samples == 1:
        for piece in wrapped(written(ids, stream, end, tokenizer)):
            print(piece, end="", flush=True)
        print("\n---------------")
        return
    bar = tqdm(stream, total=max_new_tokens, unit="tok", leave=False, disable=not sys.stderr.isatty())
    for row in torch.cat(list(bar), dim=1).tolist():
        text = prompt + text_of(until(end, row), tokenizer)
        print(*wrapped([text]), "\n---------------", sep="")


if __name__ == "__main__":
    run(main)
