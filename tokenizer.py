"""
Text to token ids and back: GPT-2's byte pairs, single characters, or a list of strings. The only place that knows
encodings.

A dataset's `meta.json` says which encoding its .bin files have:

    {"encoding": "gpt2", "vocab_size": 50257,
     "train": {"tokens": 163840, "bytes": 741376}, "val": {"tokens": 18432, "bytes": 83968}}

and for `char` also "chars", the characters in the order of their ids; for `tokens` also "tokens", the list of their
strings: words, notes, chess moves. Without this list only the number of the ids is known. A model can be trained on
them, but neither reads nor writes text.
"""

import base64
import importlib.util
import json
import os
import pickle

from configurator import UserError, first_line

ENCODINGS = ("gpt2", "char")  # those that prepare.py writes
END_OF_TEXT = "<|endoftext|>"
MAX_VOCAB = 2**16  # what a uint16 can number


def natural_prompt(known):
    """What a text begins with best, of the strings that a model knows: a line end as in nanoGPT, a blank, or any."""
    return next((prompt for prompt in ("\n", " ", *known) if prompt in known), "\n")


class GPT2Tokenizer:
    """GPT-2's byte pair encoding: ids 0 to 50255, and 50256 for <|endoftext|>. Works without a network."""

    vocab_size = 50257
    end_of_text = 50256
    prompt = "\n"  # where none is given

    def __init__(self):
        self.bpe = gpt2_bpe()

    def encode(self, text, special=False):
        """Token ids of a text. With `special`, "<|endoftext|>" is one token, else thirteen characters."""
        return self.bpe.encode(text, allowed_special={END_OF_TEXT}) if special else self.bpe.encode_ordinary(text)

    def decode_bytes(self, ids):
        """UTF-8 bytes of token ids. A character may begin in one token and end in the next."""
        return self.bpe.decode_bytes(ids)

    def meta(self):
        return {"encoding": "gpt2", "vocab_size": self.vocab_size}


class CharTokenizer:
    """One id a character, in the order of `chars`."""

    end_of_text = None

    def __init__(self, chars):
        self.chars, self.vocab_size = chars, len(chars)
        self.ids = {char: i for i, char in enumerate(chars)}
        self.prompt = natural_prompt(chars)

    def encode(self, text, special=False):
        """Token ids of a text. Raises UserError for a character that is not among `chars`."""
        try:
            return [self.ids[char] for char in text]
        except KeyError as missing:
            raise UserError(
                f"the model does not know the character {missing.args[0]!r}; it knows {self.chars!r}"
            ) from None

    def decode_bytes(self, ids):
        """UTF-8 bytes of token ids."""
        return "".join(self.chars[i] for i in ids).encode("utf-8", errors="replace")

    def meta(self):
        return {"encoding": "char", "vocab_size": self.vocab_size, "chars": self.chars}


class TokensTokenizer:
    """One id for each string of a list. Of equal strings the first one counts for texts; an empty one is in none."""

    def __init__(self, tokens):
        self.tokens, self.vocab_size = tokens, len(tokens)
        self.ids = {}
        for i, token in enumerate(tokens):
            if token:
                self.ids.setdefault(token, i)
        self.lengths = sorted({len(token) for token in self.ids}, reverse=True)
        self.end_of_text = self.ids.get(END_OF_TEXT)
        self.prompt = natural_prompt(self.ids)

    def encode(self, text, special=False):
        """Token ids of a text: always the longest token that matches. Raises UserError where none does."""
        ids, start = [], 0
        while start < len(text):
            parts = (text[start : start + length] for length in self.lengths)
            token = next((part for part in parts if part in self.ids), None)
            if token is None:
                few = ", ".join(f"{token!r:.40}" for token in list(self.ids)[:10])
                more = ", ..." if len(self.ids) > 10 else ""
                raise UserError(
                    f"the model knows no token that {text[start : start + 20]!r} begins with (character {start + 1} "
                    f"of the text); it knows {few}{more}"
                )
            ids.append(self.ids[token])
            start += len(token)
        return ids

    def decode_bytes(self, ids):
        """UTF-8 bytes of token ids."""
        return "".join(self.tokens[i] for i in ids).encode("utf-8", errors="replace")

    def meta(self):
        return {"encoding": "tokens", "vocab_size": self.vocab_size, "tokens": self.tokens}


def gpt2_bpe():
    """
    tiktoken's "gpt2" encoding, made without a network from the ranks that openai-whisper brings. They are the file that
    tiktoken itself would download, r50k_base.tiktoken: tests/test_tokenizer.py compares the checksum.
    """
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    whisper = importlib.util.find_spec("whisper")  # finds the folder without importing torch and numba
    folder = (whisper and whisper.submodule_search_locations or [""])[0]  # another module may have that name
    path = os.path.join(folder, "assets", "gpt2.tiktoken")
    if not os.path.exists(path):
        try:
            return tiktoken.get_encoding("gpt2")
        except Exception as failure:  # requests' and tiktoken's own, of many kinds
            raise UserError(
                f"GPT-2's byte pairs are not installed and cannot be downloaded ({first_line(failure)}): "
                "'pip install openai-whisper' brings them"
            ) from None
    with open(path, "rb") as f:
        ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in f)}
    return tiktoken.Encoding(
        "gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: GPT2Tokenizer.end_of_text}
    )


def make_tokenizer(meta):
    """The tokenizer that a meta describes, or None where only the number of token ids is known."""
    if meta["encoding"] == "gpt2":
        return GPT2Tokenizer()
    if meta["encoding"] == "char":
        return CharTokenizer(meta["chars"])
    return TokensTokenizer(meta["tokens"]) if "tokens" in meta else None


def same_ids(meta, other):
    """Whether two metas give the same meaning to token ids."""
    return all(meta.get(key) == other.get(key) for key in ("encoding", "vocab_size", "chars", "tokens"))


def read_meta(folder):
    """
    The meta of the dataset in `folder`: its meta.json, else nanoGPT's meta.pkl, else that of GPT-2's byte pairs.
    Raises UserError for a file that is damaged, or a pickle that would run something.
    """
    path = os.path.join(folder, "meta.json")
    try:
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                return check_meta(json.load(f), path)
        path = os.path.join(folder, "meta.pkl")
        if os.path.exists(path):
            with open(path, "rb") as f:
                return from_nanogpt(PlainUnpickler(f).load(), path)
    except UserError:
        raise
    except Exception as failure:  # a damaged pickle can raise almost anything
        raise UserError(f"cannot read {path!r} ({first_line(failure)}): prepare the dataset again") from None
    return {"encoding": "gpt2", "vocab_size": GPT2Tokenizer.vocab_size}


def from_nanogpt(pickled, path):
    """
    Our meta for what a meta.pkl holds. `itos` names the ids, usually by characters. nanoGPT trains without it too.
    """
    meta = check_meta({"encoding": "tokens", "vocab_size": pickled["vocab_size"]}, path)
    itos = pickled.get("itos")
    names = dict(enumerate(itos)) if isinstance(itos, list | tuple) else itos if isinstance(itos, dict) else {}
    tokens = [names.get(i, "") for i in range(meta["vocab_size"])]
    if not all(isinstance(token, str) for token in tokens) or not any(tokens):
        return meta
    if len(set(tokens)) == len(tokens) == len("".join(tokens)) and all(tokens):
        return meta | {"encoding": "char", "chars": "".join(tokens)}
    return meta | {"tokens": tokens}


def check_meta(meta, path):
    """Return `meta`. Raises UserError, which names its `path`, where it describes no encoding."""

    def demand(truth, what):
        if not truth:
            raise UserError(f"{path!r}: {what}: prepare the dataset again")

    demand(isinstance(meta, dict), "is not a dict of encoding, vocab_size and so on")
    encoding, vocab_size = meta.get("encoding"), meta.get("vocab_size")
    demand(encoding in (*ENCODINGS, "tokens"), f"encoding {encoding!r:.40} is none of gpt2, char, tokens")
    if encoding == "gpt2":
        demand(vocab_size == GPT2Tokenizer.vocab_size, f"vocab_size {vocab_size!r:.40} should be 50257 for gpt2")
    elif encoding == "char":
        chars = meta.get("chars")
        demand(isinstance(chars, str) and 0 < len(chars) == len(set(chars)), "chars should be different characters")
        demand(
            type(vocab_size) is int and vocab_size == len(chars),
            f"vocab_size {vocab_size!r:.40} should be {len(chars)}, the number of chars",
        )
    else:
        fits = type(vocab_size) is int and 0 < vocab_size <= MAX_VOCAB
        demand(fits, f"vocab_size {vocab_size!r:.40} should be from 1 to {MAX_VOCAB}, which a uint16 can number")
    if encoding == "tokens" and "tokens" in meta:
        tokens = meta["tokens"]
        strings = isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)
        demand(strings and any(tokens), "tokens should be a list of strings that are not all empty")
        demand(len(tokens) == vocab_size, f"vocab_size {vocab_size} should be {len(tokens)}, the number of tokens")
    for split in ("train", "val"):
        counts = meta.get(split, {})
        demand(isinstance(counts, dict), f"{split} should hold token and byte counts")
        demand(all(type(counts.get(k, 0)) is int for k in ("tokens", "bytes")), f"{split}'s counts should be numbers")
    return meta


class PlainUnpickler(pickle.Unpickler):
    """
    Reads dict, list, tuple, set, str, bytes, bool, int and float, and refuses everything for which a pickle must import
    or call something.
    """

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it would call {module}.{name}, and is not run")

    def persistent_load(self, pid):
        raise pickle.UnpicklingError("it refers to objects outside the file")
