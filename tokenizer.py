"""
Text to token ids and back: byte pairs, GPT-2's own or a dataset's, or a list of strings, such as characters. The only
place that knows encodings.

A dataset's `meta.json` says which encoding its .bin files have:

    {"encoding": "gpt2", "vocab_size": 50257,
     "train": {"tokens": 163840, "bytes": 741376}, "val": {"tokens": 18432, "bytes": 83968}}

For `bpe`, the byte pairs that were learnt from its text, it has also "merges": pairs of token ids, each of which makes
the next id, from 256 on. Ids 0 to 255 are the bytes, the last one is <|endoftext|>. For `char` it has "chars", the
characters in the order of their ids; for `tokens` "tokens", the list of their strings: words, notes, chess moves.
Without this list only the number of the ids is known. A model can be trained on them, but neither reads nor writes
text. "options" are those with which prepare.py was run.
"""

import base64
import importlib.util
import json
import os
import pickle
import threading

from configurator import UserError, check_installed, first_line

ENCODINGS = ("gpt2", "bpe", "char")  # those that prepare.py writes
END_OF_TEXT = "<|endoftext|>"
GPT2_VOCAB = 50257  # GPT-2's token ids
MAX_VOCAB = 2**16  # what a uint16 can number
MAX_BYTES = 128  # in a learnt token; GPT-2's longest has as many

# Hugging Face's files spell each byte of a token as a visible character: itself, or one from 256 on
VISIBLE = (*range(33, 127), *range(161, 173), *range(174, 256))
LETTERS = {byte: chr(byte) for byte in VISIBLE}
LETTERS |= {byte: chr(256 + i) for i, byte in enumerate(sorted({*range(256)} - LETTERS.keys()))}
BYTES = {letter: byte for byte, letter in LETTERS.items()}


class BytePairTokenizer:
    """
    Byte pairs, as GPT-2 splits texts: its own, or with `merges` those of a dataset. Any text can be encoded. The last
    id is <|endoftext|>.
    """

    prompt = "\n"  # where none is given

    def __init__(self, bpe, merges=None):
        self.bpe, self.merges = bpe, merges  # a tiktoken.Encoding
        self.vocab_size, self.end_of_text = bpe.n_vocab, bpe.n_vocab - 1

    def encode(self, text, special=False):
        """Token ids of a text. With `special`, "<|endoftext|>" is one token, else plain text."""
        return self.bpe.encode(text, allowed_special={END_OF_TEXT}) if special else self.bpe.encode_ordinary(text)

    def decode_bytes(self, ids):
        """UTF-8 bytes of token ids. A character may begin in one token and end in the next."""
        return self.bpe.decode_bytes(ids)

    def meta(self):
        merges = {} if self.merges is None else {"merges": self.merges}
        return {"encoding": "bpe" if merges else "gpt2", "vocab_size": self.vocab_size, **merges}


class TokensTokenizer:
    """
    One id for each string of a list. A str of different characters is such a list, too, one of single characters. Of
    equal strings the first one counts for texts; an empty one is in none.
    """

    def __init__(self, tokens):
        self.tokens, self.vocab_size = tokens, len(tokens)
        self.ids = {}
        for i, token in enumerate(tokens):
            if token:
                self.ids.setdefault(token, i)
        self.lengths = sorted({len(token) for token in self.ids}, reverse=True)
        self.end_of_text = self.ids.get(END_OF_TEXT)
        # what a text begins with best: a line end as in nanoGPT, a blank, or any
        self.prompt = next((prompt for prompt in ("\n", " ", *self.ids) if prompt in self.ids), "\n")

    def encode(self, text, special=False):
        """Token ids of a text: always the longest token that matches. Raises UserError where none does."""
        if self.lengths == [1] and self.ids.keys() >= set(text):  # quicker
            return [self.ids[char] for char in text]
        ids, start = [], 0
        while start < len(text):
            parts = (text[start : start + length] for length in self.lengths)
            token = next((part for part in parts if part in self.ids), None)
            if token is None:
                raise UserError(self.unknown(text, start))
            ids.append(self.ids[token])
            start += len(token)
        return ids

    def unknown(self, text, start):
        """What to say of a text which from `start` on begins with no token."""
        if isinstance(self.tokens, str):
            return f"the vocabulary has no character {text[start]!r}; it has {self.tokens!r}"
        few = ", ".join(f"{token!r:.40}" for token in list(self.ids)[:10]) + (", ..." if len(self.ids) > 10 else "")
        place = f"(character {start + 1} of the text)"
        return f"the vocabulary has no token that {text[start : start + 20]!r} begins with {place}; it has {few}"

    def decode_bytes(self, ids):
        """UTF-8 bytes of token ids."""
        return "".join(self.tokens[i] for i in ids).encode("utf-8", errors="replace")

    def meta(self):
        encoding, key = ("char", "chars") if isinstance(self.tokens, str) else ("tokens", "tokens")
        return {"encoding": encoding, "vocab_size": self.vocab_size, key: self.tokens}


# -----------------------------------------------------------------------------
# byte pairs: GPT-2's, and learnt ones


def gpt2_tokenizer():
    """
    tiktoken's "gpt2" encoding, made without a network from the ranks that openai-whisper brings. They are the file that
    tiktoken itself would download, r50k_base.tiktoken: tests/test_tokenizer.py compares the checksum.
    """
    whisper = importlib.util.find_spec("whisper")  # finds the folder without importing torch and numba
    folder = (whisper and whisper.submodule_search_locations or [""])[0]  # another module may have that name
    path = os.path.join(folder, "assets", "gpt2.tiktoken")
    if os.path.exists(path):
        with open(path, "rb") as f:
            tokens = [base64.b64decode(line.split()[0]) for line in f]
        return BytePairTokenizer(encoding_of("gpt2", tokens))
    import tiktoken

    try:
        return BytePairTokenizer(tiktoken.get_encoding("gpt2"))
    except Exception as failure:  # requests' and tiktoken's own, of many kinds
        raise UserError(
            f"GPT-2's byte pairs are not installed and cannot be downloaded ({first_line(failure)}): "
            "'pip install openai-whisper' brings them"
        ) from None


def encoding_of(name, tokens):
    """The tiktoken.Encoding of byte strings in the order of their ids, which is that of their merges."""
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    ranks = {token: rank for rank, token in enumerate(tokens)}
    return tiktoken.Encoding(
        name, pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(tokens)}
    )


def learn_tokenizer(blocks, vocab_size):
    """
    The tokenizer of at most `vocab_size` byte pairs that Hugging Face's tokenizers learns from blocks of text: again
    and again the most frequent pair of neighbours becomes a token, as long as it is there twice ("Neural Machine
    Translation of Rare Words with Subword Units", Sennrich et al., 2016). The same blocks always give the same.
    """
    check_installed("tokenizers")
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    # splits by GPT-2's pattern too; each merge goes through a whole word, so words without an end are cut
    words, parts = pre_tokenizers.ByteLevel(add_prefix_space=False), Regex(f"[\\s\\S]{{1,{2 * MAX_BYTES}}}")
    learner.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.Split(parts, "isolated")])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # the last is <|endoftext|>
        min_frequency=2,
        max_token_length=MAX_BYTES,
        initial_alphabet=list(BYTES),
        show_progress=False,
    )
    in_a_thread(learner.train_from_iterator, blocks, trainer)
    return make_tokenizer(bpe_meta(json.loads(learner.to_str())["model"]["merges"]))


def in_a_thread(function, *arguments):
    """
    Call a function that takes long outside of Python in a thread of its own: Ctrl-C need not wait for it then. Raises
    what it raises.
    """
    failures = []

    def call():
        try:
            function(*arguments)
        except BaseException as failure:  # is raised below
            failures.append(failure)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
    for failure in failures:
        raise failure


def bpe_meta(merges):
    """The meta of byte pairs that merge pairs of strings, as transformers spells them, in this order."""
    ids = dict(BYTES)
    pairs = []
    for left, right in merges:
        pairs.append([ids[left], ids[right]])
        ids[left + right] = 255 + len(pairs)
    return {"encoding": "bpe", "vocab_size": 257 + len(pairs), "merges": pairs}


def merged(merges):
    """The tokens that merges make, as byte strings in the order of their ids, the 256 bytes first."""
    tokens = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return tokens


def spelled(tokenizer):
    """The tokens of byte pairs but <|endoftext|>, and the pairs that merge, as other programs' files spell both."""
    tokens = [tokenizer.decode_bytes([i]) for i in range(tokenizer.end_of_text)]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    pairs = [tuple(map(spell, last_pair(token, ranks))) for token in tokens if len(token) > 1]
    return [spell(token) for token in tokens], pairs


def tokenizer_json(tokenizer):
    """The content of tokenizer.json: byte pairs in the format of Hugging Face's tokenizers."""
    import tokenizers

    tokens, merges = spelled(tokenizer)
    bpe = tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, merges)
    result = tokenizers.Tokenizer(bpe)
    result.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)  # splits by GPT-2's pattern too
    result.decoder = tokenizers.decoders.ByteLevel()
    result.add_special_tokens([tokenizers.AddedToken(END_OF_TEXT, normalized=False, special=True)])
    return json.loads(result.to_str())


def read_tokenizer(folder):
    """
    The tokenizer of a folder in transformers' format: what its tokenizer.json holds, or without one GPT-2's. Raises
    OSError, or ValueError where that is neither GPT-2's nor one that `tokenizer_json` wrote.
    """
    path = os.path.join(folder, "tokenizer.json")
    if not os.path.exists(path):
        return gpt2_tokenizer()
    try:
        with open(path, encoding="utf-8") as f:
            content = json.load(f)
        model, cut = content["model"], content.get("pre_tokenizer") or {}
        as_gpt2 = cut.get("type") == "ByteLevel" and not cut.get("add_prefix_space") and cut.get("use_regex", True)
        ids = {token: i for token, i in model["vocab"].items() if token != END_OF_TEXT}
        ours = all(ids.get(letter) == byte for letter, byte in BYTES.items())
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        meta = bpe_meta(pairs) if ours else {"encoding": "gpt2"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as failure:
        raise ValueError(f"{path!r} is damaged, or holds no byte pairs ({first_line(failure)})") from None
    if wrong := wrong_merge(meta.get("merges", [])):
        raise ValueError(f"{path!r}: {wrong}")
    tokenizer = make_tokenizer(meta)
    same = ids == {spell(tokenizer.decode_bytes([i])): i for i in range(tokenizer.end_of_text)}
    if not same or not as_gpt2 or content.get("normalizer"):
        raise ValueError(f"{path!r} has neither GPT-2's token ids nor ids of ours: it uses another encoding")
    return tokenizer


def spell(token):
    """A byte string as transformers' files have it."""
    return "".join(LETTERS[byte] for byte in token)


def last_pair(token, ranks):
    """The two tokens, as bytes, whose merge makes a token."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in zip(parts, parts[1:])]
        i = pairs.index(min(pairs))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


# -----------------------------------------------------------------------------
# meta.json, and nanoGPT's meta.pkl


def make_tokenizer(meta):
    """The tokenizer that a meta describes, or None where only the number of token ids is known."""
    if meta["encoding"] == "gpt2":
        return gpt2_tokenizer()
    if meta["encoding"] == "bpe":
        return BytePairTokenizer(encoding_of("bpe", merged(meta["merges"])), meta["merges"])
    tokens = meta.get("chars" if meta["encoding"] == "char" else "tokens")
    return TokensTokenizer(tokens) if tokens else None


def rows_for(meta):
    """
    How many rows of a model's vocabulary token ids take. Those of byte pairs are rounded up to a multiple of 64, which
    is faster: GPT-2's 50257 take 50304.
    """
    return -(-meta["vocab_size"] // 64) * 64 if meta["encoding"] in ("gpt2", "bpe") else meta["vocab_size"]


def same_ids(meta, other):
    """Whether two metas give the same meaning to token ids."""
    return all(meta.get(key) == other.get(key) for key in ("encoding", "vocab_size", "merges", "chars", "tokens"))


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
    return {"encoding": "gpt2", "vocab_size": GPT2_VOCAB}


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


def check_meta(meta, path, advice="prepare the dataset again"):
    """Return `meta`. Raises UserError, which names its `path` and gives advice, where it describes no encoding."""

    def demand(truth, what):
        if not truth:
            raise UserError(f"{path!r}: {what}: {advice}")

    demand(isinstance(meta, dict), "is not a dict of encoding, vocab_size and so on")
    encoding, vocab_size = meta.get("encoding"), meta.get("vocab_size")
    demand(encoding in (*ENCODINGS, "tokens"), f"encoding {encoding!r:.40} is none of {', '.join(ENCODINGS)}, tokens")
    fits = type(vocab_size) is int and 0 < vocab_size <= MAX_VOCAB
    demand(fits, f"vocab_size {vocab_size!r:.40} should be from 1 to {MAX_VOCAB}, which a uint16 can number")
    ids = {"gpt2": GPT2_VOCAB, "tokens": vocab_size}.get(encoding)
    if encoding == "bpe":
        merges = meta.get("merges")
        demand(isinstance(merges, list), "merges should be a list of pairs of token ids")
        wrong, ids = wrong_merge(merges), 257 + len(merges)
        demand(wrong is None, wrong)
    elif encoding == "char":
        chars = meta.get("chars")
        demand(isinstance(chars, str) and 0 < len(chars) == len(set(chars)), "chars should be different characters")
        ids = len(chars)
    elif "tokens" in meta:
        tokens = meta["tokens"]
        strings = isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)
        demand(strings and any(tokens), "tokens should be a list of strings that are not all empty")
        ids = len(tokens)
    demand(vocab_size == ids, f"vocab_size {vocab_size} should be {ids}, the number of ids of {encoding}")
    options = meta.get("options", {})
    kinds = {"input": str, "val_fraction": float, "clean": bool, "split_documents": bool}
    plain = isinstance(options, dict) and all(type(value) is kinds.get(key) for key, value in options.items())
    demand(plain, "options should be those of prepare.py")
    for split in ("train", "val"):
        counts = meta.get(split, {})
        demand(isinstance(counts, dict), f"{split} should hold token and byte counts")
        demand(all(type(counts.get(k, 0)) is int for k in ("tokens", "bytes")), f"{split}'s counts should be numbers")
    return meta


def wrong_merge(merges):
    """What is wrong with the first of the merges that cannot be, or None."""
    tokens = [bytes([byte]) for byte in range(256)]
    known = set(tokens)
    for pair in merges:
        made = len(tokens)
        if not isinstance(pair, list) or len(pair) != 2 or not all(type(i) is int and 0 <= i < made for i in pair):
            return f"the merge {pair!r:.40} should be two token ids below {made}, the one that it makes"
        token = tokens[pair[0]] + tokens[pair[1]]
        if token in known or len(token) > MAX_BYTES:
            return f"the merge {pair} makes a token that is known already, or has more than {MAX_BYTES} bytes"
        tokens.append(token)
        known.add(token)
    return None


class PlainUnpickler(pickle.Unpickler):
    """
    Reads dict, list, tuple, set, str, bytes, bool, int and float, and refuses everything for which a pickle must import
    or call something.
    """

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it would call {module}.{name}, and is not run")

    def persistent_load(self, pid):
        raise pickle.UnpicklingError("it refers to objects outside the file")
