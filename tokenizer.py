"""
Text to token ids and back: GPT-2's byte pairs, or single characters. The only place that knows encodings.

A dataset's `meta.json` says which encoding its .bin files have:

    {"encoding": "gpt2", "vocab_size": 50257,
     "train": {"tokens": 163840, "bytes": 741376}, "val": {"tokens": 18432, "bytes": 83968}}

and for `char` also "chars", the characters in the order of their ids.
"""

import base64
import importlib.util
import json
import os
import pickle

from configurator import UserError, first_line

ENCODINGS = ("gpt2", "char")
END_OF_TEXT = "<|endoftext|>"


class GPT2Tokenizer:
    """GPT-2's byte pair encoding: ids 0 to 50255, and 50256 for <|endoftext|>. Works without a network."""

    vocab_size = 50257
    end_of_text = 50256

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
    """The tokenizer that a meta describes."""
    return GPT2Tokenizer() if meta["encoding"] == "gpt2" else CharTokenizer(meta["chars"])


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
                meta = PlainUnpickler(f).load()
            chars = "".join(meta["itos"][i] for i in range(len(meta["itos"])))
            return check_meta({"encoding": "char", "vocab_size": meta["vocab_size"], "chars": chars}, path)
    except UserError:
        raise
    except Exception as failure:  # a damaged pickle can raise almost anything
        raise UserError(f"cannot read {path!r} ({first_line(failure)}): prepare the dataset again") from None
    return {"encoding": "gpt2", "vocab_size": GPT2Tokenizer.vocab_size}


def check_meta(meta, path):
    """Return `meta`. Raises UserError, which names its `path`, where it describes no encoding."""

    def demand(truth, what):
        if not truth:
            raise UserError(f"{path!r}: {what}: prepare the dataset again")

    demand(isinstance(meta, dict), "is not a dict of encoding, vocab_size and so on")
    encoding, vocab_size = meta.get("encoding"), meta.get("vocab_size")
    demand(encoding in ENCODINGS, f"encoding {encoding!r:.40} is neither gpt2 nor char")
    if encoding == "gpt2":
        demand(vocab_size == GPT2Tokenizer.vocab_size, f"vocab_size {vocab_size!r:.40} should be 50257 for gpt2")
    else:
        chars = meta.get("chars")
        demand(isinstance(chars, str) and 0 < len(chars) == len(set(chars)), "chars should be different characters")
        demand(
            type(vocab_size) is int and vocab_size == len(chars),
            f"vocab_size {vocab_size!r:.40} should be {len(chars)}, the number of chars",
        )
    for split in ("train", "val"):
        counts = meta.get(split, {})
        demand(isinstance(counts, dict), f"{split} should hold token and byte counts")
        demand(all(type(counts.get(k, 0)) is int for k in ("tokens", "bytes")), f"{split}'s counts should be numbers")
    return meta


class PlainUnpickler(pickle.Unpickler):
    """Reads dict, list, str and int, and refuses everything for which a pickle must import or call something."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it would call {module}.{name}, and is not run")

    def persistent_load(self, pid):
        raise pickle.UnpicklingError("it refers to objects outside the file")
