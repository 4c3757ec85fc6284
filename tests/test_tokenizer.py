"""
What tokenizer.py promises: GPT-2's own ids without a network, byte pairs learnt from a text, characters, and safe
reading of meta files.
"""

import base64
import codecs
import hashlib
import importlib.util
import json
import os
import pickle
import random
import subprocess
import sys
import time
import tempfile
import types
from pathlib import Path

import pytest
import regex
import requests
import tiktoken
import tiktoken.registry
import tokenizers
from conftest import plain_merges

from configurator import UserError
from tokenizer import TokensTokenizer, gpt2_tokenizer, learn_tokenizer, make_tokenizer, read_meta, rows_for, same_ids
from tokenizer import tokenizer_json

ROOT = Path(__file__).resolve().parent.parent
NOVEL = ROOT / "data" / "hitchikersguide" / "transcriptions.txt"
URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
R50K_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"  # what tiktoken's r50k_base expects

ODD_TEXTS = [
    "",
    " ",
    "\n",
    "   \n\n \t  x  ",
    "\u00a0\u2003\u3000\u2028\u0085 wide blanks\u00a0",
    "I'll don't WE'VE 's'S 'tis",
    "12345 ٣٤٥ ½ Ⅷ",
    "東京は夜の七時 🙂👩‍👩‍👧‍👦🏳️‍🌈",
    "e\u0301 Å שלום مرحبا \u202eabc",
    "\0\x01\x7f\ufeff\ufffd\U0010ffff",
    "<|endoftext|> as plain text <|endoftext",
    "a" * 2000,
    " " * 2000 + "x",
    "lone \ud83d surrogate",
]


def whispers_ranks():
    [folder] = importlib.util.find_spec("whisper").submodule_search_locations
    return Path(folder, "assets", "gpt2.tiktoken").read_bytes()


def openais_files():
    """vocab.bpe and encoder.json as OpenAI published them with GPT-2, rebuilt from the ranks."""
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, whispers_ranks().splitlines())}
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    letters = {b: chr(b) for b in printable}
    letters |= {b: chr(256 + n) for n, b in enumerate(b for b in range(256) if b not in letters)}

    def halves(token):
        # merges of lower rank leave two parts of a token, and its own merge joins them
        parts = [bytes([b]) for b in token]
        while len(parts) > 2:
            _, i = min((ranks.get(a + b, len(ranks)), i) for i, (a, b) in enumerate(zip(parts, parts[1:])))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return parts

    def spelt(token):
        return "".join(letters[b] for b in token)

    tokens = sorted(ranks, key=ranks.get)
    merges = [" ".join(map(spelt, halves(token))) for token in tokens if len(token) > 1]
    encoder = {spelt(token): ranks[token] for token in tokens} | {"<|endoftext|>": 50256}
    return {
        "vocab.bpe": "".join(f"{line}\n" for line in ["#version: 0.2", *merges]).encode("utf-8"),
        "encoder.json": json.dumps(encoder).encode("ascii"),
    }


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder with the files that tiktoken would otherwise download."""
    folder = tmp_path_factory.mktemp("tiktoken")
    for name, content in openais_files().items():
        (folder / hashlib.sha1((URL + name).encode()).hexdigest()).write_bytes(content)
    return folder


def no_network(*args, **kwargs):
    raise requests.ConnectionError("no network\nin the tests")


@pytest.fixture
def offline(monkeypatch, cache):
    """tiktoken as in a new process, with the cache and without a network."""
    isolate_tiktoken(monkeypatch, cache)


def isolate_tiktoken(monkeypatch, cache):
    monkeypatch.setattr(requests, "get", no_network)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))


@pytest.fixture(scope="module")
def tiktokens_own(cache):
    with pytest.MonkeyPatch.context() as monkeypatch:
        isolate_tiktoken(monkeypatch, cache)
        return tiktoken.get_encoding("gpt2")  # checks both files against OpenAI's checksums


@pytest.fixture(scope="module")
def gpt2():
    return gpt2_tokenizer()


@pytest.fixture(scope="module")
def novel():
    return NOVEL.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def bpe(novel):
    """2,000 byte pairs learnt from a part of the novel."""
    return learn_tokenizer([novel[:200_000]], 2000)


@pytest.fixture(scope="module")
def hugging_faces(bpe):
    """The same ones in Hugging Face's tokenizers."""
    return tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(bpe)))


# -----------------------------------------------------------------------------
# GPT-2's byte pairs


def test_the_ids_of_the_novel_are_tiktokens_own(gpt2, tiktokens_own, novel):
    ids = gpt2.encode(novel)
    assert len(ids) > 200_000 and ids == tiktokens_own.encode_ordinary(novel)


@pytest.mark.parametrize("text", ODD_TEXTS, ids=ascii)
def test_the_ids_of_odd_texts_are_tiktokens_own(gpt2, tiktokens_own, text):
    assert gpt2.encode(text) == tiktokens_own.encode_ordinary(text)
    assert gpt2.encode(text, special=True) == tiktokens_own.encode(text, allowed_special="all")


def test_the_ids_of_characters_from_all_of_unicode_are_tiktokens_own(gpt2, tiktokens_own):
    draw = random.Random(1337)
    points = [draw.randrange(draw.choice((0x80, 0x800, 0x10000, 0x110000))) for _ in range(50_000)]
    text = "".join(chr(i) for i in points if not 0xD800 <= i < 0xE000)
    assert gpt2.encode(text) == tiktokens_own.encode_ordinary(text)


def test_every_id_has_the_bytes_of_tiktokens_own(gpt2, tiktokens_own):
    assert tiktokens_own.n_vocab == gpt2.vocab_size == 50257
    for i in range(gpt2.vocab_size):
        assert gpt2.decode_bytes([i]) == tiktokens_own.decode_bytes([i])


@pytest.mark.parametrize(
    "text, ids",
    [
        ("hello world", [31373, 995]),
        ("Hello, my dog is cute", [15496, 11, 616, 3290, 318, 13779]),
        ("<|endoftext|>", [50256]),
    ],
)
def test_published_ids_are_reproduced(gpt2, text, ids):
    assert gpt2.encode(text, special=True) == ids
    assert gpt2.decode_bytes(ids) == text.encode()


def test_end_of_text_is_one_token_only_where_asked(gpt2):
    assert gpt2.encode("a<|endoftext|>b", special=True) == [64, gpt2.end_of_text, 65]
    assert gpt2.end_of_text not in gpt2.encode("a<|endoftext|>b")


def test_whispers_file_is_the_one_that_tiktoken_would_download():
    assert hashlib.sha256(whispers_ranks()).hexdigest() == R50K_SHA256


@pytest.mark.parametrize("tokenizer", ["gpt2", "bpe"])
def test_loading_a_tokenizer_imports_nothing_that_takes_seconds(request, tokenizer):
    meta = request.getfixturevalue(tokenizer).meta()
    code = (
        "import sys, tokenizer\n"
        "meta = eval(sys.stdin.read())\n"
        "print(tokenizer.make_tokenizer(meta).encode('hello world'))\n"
        "print(sorted({'torch', 'numba', 'whisper', 'transformers', 'tokenizers'} & sys.modules.keys()))"
    )
    options = {"env": os.environ | {"PYTHONPATH": str(ROOT)}, "capture_output": True, "encoding": "utf-8"}
    result = subprocess.run([sys.executable, "-c", code], input=repr(meta), **options)
    assert (result.stdout, result.stderr) == (f"{make_tokenizer(meta).encode('hello world')}\n[]\n", "")


def test_the_tokenizer_needs_no_network(monkeypatch, tmp_path, offline):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))  # an empty one
    assert gpt2_tokenizer().encode("hello world") == [31373, 995]
    assert os.listdir(tmp_path) == []


@pytest.fixture
def without_whisper(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "whisper" else find_spec(name, *a)
    )


def test_without_whisper_tiktokens_own_is_taken(without_whisper, offline):
    assert gpt2_tokenizer().encode("hello world") == [31373, 995]


def test_without_whisper_and_network_the_error_says_what_to_install(without_whisper, offline, monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(UserError) as caught:
        gpt2_tokenizer()
    assert "pip install openai-whisper" in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("file", ["whisper.py", "whisper/__init__.py"])
def test_another_package_called_whisper_is_in_nobodys_way(offline, monkeypatch, tmp_path, file):
    # Graphite's whisper is a single file
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("")
    monkeypatch.delitem(sys.modules, "whisper", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert gpt2_tokenizer().encode("hello world") == [31373, 995]


def test_a_character_may_begin_in_one_token_and_end_in_the_next(gpt2):
    text = "東京 🙂é"
    ids = gpt2.encode(text)
    pieces = [gpt2.decode_bytes([i]) for i in ids]
    assert b"".join(pieces) == gpt2.decode_bytes(ids) == text.encode("utf-8")
    with pytest.raises(UnicodeDecodeError):
        pieces[0].decode("utf-8")
    decoder = codecs.getincrementaldecoder("utf-8")()
    assert "".join(decoder.decode(piece) for piece in pieces) == text


# -----------------------------------------------------------------------------
# byte pairs learnt from a text


SMALL_TEXTS = {
    "prose": None,  # of the novel
    "odd": "".join(ODD_TEXTS[:11]) * 3,
    "ties": "ab ba !! aa\n\x80b bb a\x80 \xff\xfe!" * 2,  # all kinds of bytes, and few counts
    "nothing twice": "abcdefg",
    "nothing": "",
}


@pytest.mark.parametrize("vocab_size", [257, 258, 320, 65536])
@pytest.mark.parametrize("text", SMALL_TEXTS.values(), ids=SMALL_TEXTS)
def test_learnt_merges_are_those_of_a_plain_learner_as_many_as_asked_for_or_as_the_text_has(novel, text, vocab_size):
    prose = novel[:1000]
    learnt = learn_tokenizer([prose if text is None else text], vocab_size)
    assert learnt.merges == plain_merges(prose if text is None else text, vocab_size)
    assert learnt.vocab_size == 257 + len(learnt.merges) <= vocab_size
    if text is None:  # of which 320 and more are worth learning
        assert 320 < learnt.vocab_size < 600 if vocab_size == 65536 else learnt.vocab_size == vocab_size


@pytest.mark.slow
def test_the_ids_of_the_novel_are_hugging_faces(bpe, hugging_faces, novel):
    ids = bpe.encode(novel)
    assert 200_000 < len(ids) < 300_000 and ids == hugging_faces.encode(novel).ids
    assert hugging_faces.decode(ids) == novel == bpe.decode_bytes(ids).decode("utf-8")


@pytest.mark.parametrize("text", ODD_TEXTS, ids=ascii)
def test_the_ids_of_odd_texts_are_hugging_faces_and_make_the_round_trip(bpe, hugging_faces, text):
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # as tiktoken reads a lone surrogate
    for special in (True, False):
        hugging_faces.encode_special_tokens = not special
        ids = bpe.encode(text, special)
        assert ids == hugging_faces.encode(whole).ids
        assert bpe.decode_bytes(ids) == b"".join(bpe.decode_bytes([i]) for i in ids) == whole.encode("utf-8")


def test_the_ids_of_characters_from_all_of_unicode_make_the_round_trip(bpe):
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000, 7)]))
    assert bpe.decode_bytes(bpe.encode(text)) == text.encode("utf-8")


def test_the_first_256_ids_are_the_bytes_and_the_last_one_is_the_end_of_text(bpe):
    assert [bpe.decode_bytes([i]) for i in range(256)] == [bytes([i]) for i in range(256)]
    assert len({bpe.decode_bytes([i]) for i in range(2000)}) == bpe.vocab_size == 2000
    assert bpe.end_of_text == 1999 and bpe.decode_bytes([1999]) == b"<|endoftext|>"
    assert bpe.encode("a<|endoftext|>b", special=True) == [ord("a"), 1999, ord("b")]
    assert bpe.end_of_text not in bpe.encode("a<|endoftext|>b")


def test_the_end_of_text_is_never_learnt_as_text():
    learnt = learn_tokenizer(["<|endoftext|>" * 99], 300)
    assert learnt.end_of_text not in learnt.encode("<|endoftext|>") and len(learnt.encode("<|endoftext|>")) > 1


def test_hugging_faces_file_has_exactly_the_learnt_merges(bpe):
    model = tokenizer_json(bpe)["model"]
    assert [[model["vocab"][left], model["vocab"][right]] for left, right in model["merges"]] == bpe.merges
    assert all(model["vocab"][left + right] == 256 + i for i, (left, right) in enumerate(model["merges"]))


LEARN = """
import sys, tokenizer
print(tokenizer.learn_tokenizer([sys.stdin.read()], 3000).merges)
"""


@pytest.mark.slow
def test_the_same_text_gives_the_same_merges_with_any_number_of_threads(novel):
    expected = f"{learn_tokenizer([novel], 3000).merges}\n"
    for threads in ("1", "4"):
        env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "RAYON_NUM_THREADS": threads}
        done = subprocess.run([sys.executable, "-c", LEARN], env=env, input=novel.encode(), capture_output=True)
        assert (done.stdout.decode(), done.stderr) == (expected, b"")


@pytest.mark.parametrize("mean", [1, 10, 1000])
def test_the_same_text_gives_the_same_merges_however_it_is_cut_between_words(novel, mean):
    text, draw = novel[:20_000], random.Random(mean)
    words = regex.findall(r"\s*\S+", text) + regex.findall(r"\s*\Z", text)[:1]
    starts = sorted(draw.sample(range(1, len(words)), len(words) // (mean + 1)))
    blocks = ["".join(words[i:j]) for i, j in zip([0, *starts], [*starts, None])]
    assert "".join(blocks) == text and len(blocks) > 3
    assert learn_tokenizer(blocks, 600).merges == learn_tokenizer([text], 600).merges
    assert learn_tokenizer(draw.sample(blocks, len(blocks)), 600).merges == learn_tokenizer([text], 600).merges


def test_no_learnt_token_has_more_than_128_bytes():
    learnt = learn_tokenizer([f"{'-' * 2000}\n{'=' * 130}x{'東' * 300}" * 5], 600)
    longest = max(len(learnt.decode_bytes([i])) for i in range(learnt.end_of_text))
    assert 64 <= longest <= 128
    assert read_again(learnt).merges == learnt.merges


def read_again(tokenizer):
    """The tokenizer that a meta.json with its meta describes."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "meta.json").write_text(json.dumps(tokenizer.meta()), encoding="utf-8")
        return make_tokenizer(read_meta(folder))


@pytest.mark.parametrize("vocab_size, rows", [(257, 320), (320, 320), (321, 384), (8192, 8192)])
def test_the_rows_of_byte_pairs_are_a_multiple_of_64(vocab_size, rows):
    assert rows_for({"encoding": "bpe", "vocab_size": vocab_size}) == rows
    assert rows_for({"encoding": "char", "vocab_size": vocab_size}) == vocab_size
    assert rows_for(gpt2_tokenizer().meta()) == 50304


# -----------------------------------------------------------------------------
# characters


def test_characters_have_ids_in_their_order_and_make_the_round_trip():
    tokenizer = TokensTokenizer("\n abé東🙂")
    assert tokenizer.vocab_size == 7
    assert tokenizer.encode("\n abé東🙂") == [0, 1, 2, 3, 4, 5, 6]
    text = "🙂 baba\n東é"
    assert tokenizer.decode_bytes(tokenizer.encode(text)).decode("utf-8") == text


def test_a_character_tokenizer_knows_no_special_tokens():
    tokenizer = TokensTokenizer("".join(sorted(set("<|endoftext|>"))))
    assert tokenizer.end_of_text is None
    assert len(tokenizer.encode("<|endoftext|>", special=True)) == len("<|endoftext|>")


@pytest.mark.parametrize("char", ["z", "\n", "🙂", "\ud83d"])
def test_an_unknown_character_is_named_with_the_known_ones(char):
    with pytest.raises(UserError) as caught:
        TokensTokenizer("ab\t").encode(f"ab{char}")
    message = str(caught.value)
    assert repr(char) in message and repr("ab\t") in message and len(message.splitlines()) == 1


# -----------------------------------------------------------------------------
# tokens: any list of strings


def test_a_text_is_encoded_by_the_longest_token_that_matches_and_equal_ones_by_the_first():
    tokenizer = TokensTokenizer(["a", "ab", "abc", " ", "ab", "", "東京"])
    assert tokenizer.vocab_size == 7
    assert tokenizer.encode("abcab a東京aab") == [2, 1, 3, 0, 6, 0, 1]
    assert tokenizer.decode_bytes([4, 5, 2]).decode() == "ababc"  # the later of equal ones is written all the same


def test_what_no_token_matches_is_named_with_its_place_and_some_tokens():
    tokenizer = TokensTokenizer(["Nf3", "e4", " "] + [f"word{i}" for i in range(7331)])
    with pytest.raises(UserError) as caught:
        tokenizer.encode("e4 Nf3 e5 and so on, for a long while")
    message = str(caught.value)
    assert "'e5 and so on, for a '" in message and "character 8 " in message and "'Nf3', 'e4'" in message
    assert len(message) < 300 and len(message.splitlines()) == 1


def test_a_token_that_ends_texts_is_known_as_their_end():
    assert TokensTokenizer(["a", "<|endoftext|>"]).end_of_text == 1
    assert TokensTokenizer(["a", "b"]).end_of_text is None


@pytest.mark.parametrize(
    "tokenizer, prompt",
    [
        (TokensTokenizer("\n ab"), "\n"),
        (TokensTokenizer(" ab"), " "),
        (TokensTokenizer("آب"), "آ"),
        (TokensTokenizer(["the", " ", "\n"]), "\n"),
        (TokensTokenizer(["", "Nf3", "e4"]), "Nf3"),
    ],
    ids=["line end", "blank", "letter", "line end among tokens", "token"],
)
def test_the_natural_prompt_is_a_line_end_a_blank_or_the_first_that_is_known(tokenizer, prompt):
    assert tokenizer.prompt == prompt and tokenizer.encode(prompt)


# -----------------------------------------------------------------------------
# meta.json and meta.pkl


def nanogpts(chars):
    """The meta that nanoGPT's prepare.py for characters pickles."""
    stoi = {char: i for i, char in enumerate(chars)}
    return {"vocab_size": len(chars), "stoi": stoi, "itos": {i: char for char, i in stoi.items()}}


@pytest.fixture
def refusal(tmp_path):
    """refusal("meta.json", content) gives the message: one line that names the file and what to do."""

    def of(name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError) as caught:
            read_meta(tmp_path)
        message = str(caught.value)
        assert str(tmp_path / name) in message and "prepare the dataset again" in message
        assert len(message.splitlines()) == 1
        return message

    return of


def test_without_a_meta_file_the_encoding_is_gpt2s(tmp_path):
    assert read_meta(tmp_path) == {"encoding": "gpt2", "vocab_size": 50257}


TOKENS = ["\n", " ", '"', "\\", "a", "aé", "a", "é", "東", "🙂", ""]


@pytest.mark.parametrize(
    "tokenizer",
    [
        gpt2_tokenizer(),
        learn_tokenizer(['a\n "\\東é🙂' * 3], 265),
        TokensTokenizer('\n "\\aé東🙂'),
        TokensTokenizer(TOKENS),
    ],
    ids=["gpt2", "bpe", "char", "tokens"],
)
def test_a_tokenizer_is_made_again_from_its_meta(tokenizer, tmp_path):
    meta = tokenizer.meta() | {"train": {"tokens": 9, "bytes": 30}, "val": {"tokens": 1, "bytes": 3}}
    (tmp_path / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    assert read_meta(tmp_path) == meta
    again = make_tokenizer(read_meta(tmp_path))
    text = 'a\n "\\東é🙂'
    assert type(again) is type(tokenizer) and again.vocab_size == tokenizer.vocab_size
    assert again.encode(text) == tokenizer.encode(text) and again.meta() == tokenizer.meta()
    assert again.decode_bytes(again.encode(text)).decode("utf-8") == text


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nanogpts_meta_pkl_is_read(tmp_path, protocol):
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(nanogpts("\n abé東🙂"), protocol))
    assert read_meta(tmp_path) == {"encoding": "char", "vocab_size": 7, "chars": "\n abé東🙂"}


WORDS = [f"word{i} " for i in range(7334)]
NOTES = ["C4", "C4", "D#4", "rest", ""] + ["G" * n for n in range(1, 28)]
TOKENS_32 = {"encoding": "tokens", "vocab_size": 32, "tokens": NOTES}


@pytest.mark.parametrize(
    "pickled, meta",
    [
        ({"vocab_size": 7334, "itos": WORDS}, {"encoding": "tokens", "vocab_size": 7334, "tokens": WORDS}),
        ({"vocab_size": 32, "itos": dict(enumerate(NOTES)), "stoi": {"C4": 1}}, TOKENS_32),
        ({"vocab_size": 32, "itos": tuple(NOTES), "more": {"of": {2, 2.5, b"any", True, None}}}, TOKENS_32),
        ({"vocab_size": 2, "itos": ["a", "a"]}, {"encoding": "tokens", "vocab_size": 2, "tokens": ["a", "a"]}),
        # a vocabulary that was rounded up: the last ids have no string
        ({"vocab_size": 4, "itos": ["a", "b"]}, {"encoding": "tokens", "vocab_size": 4, "tokens": ["a", "b", "", ""]}),
        ({"vocab_size": 512}, {"encoding": "tokens", "vocab_size": 512}),
        ({"vocab_size": 2, "itos": {0: 60, 1: (62, 0.5)}}, {"encoding": "tokens", "vocab_size": 2}),
        ({"vocab_size": 2, "itos": None}, {"encoding": "tokens", "vocab_size": 2}),
        ({"vocab_size": 3, "itos": "abc"}, {"encoding": "tokens", "vocab_size": 3}),
    ],
    ids=["words", "notes", "notes and more", "equal", "rounded up", "only a number", "no strings", "none", "a string"],
)
def test_a_meta_pkl_of_nanogpt_may_name_words_or_notes_or_only_a_number(tmp_path, pickled, meta):
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(pickled))
    assert read_meta(tmp_path) == meta
    tokenizer = make_tokenizer(meta)
    assert (tokenizer and tokenizer.meta()) == (meta if "tokens" in meta else None)


def test_only_the_same_meaning_makes_token_ids_the_same():
    metas = [TokensTokenizer("ab").meta(), TokensTokenizer("ba").meta(), TokensTokenizer(["a", "b"]).meta()]
    metas += [TokensTokenizer(["b", "a"]).meta(), {"encoding": "tokens", "vocab_size": 2}]
    metas += [{"encoding": "tokens", "vocab_size": 3}, gpt2_tokenizer().meta()]
    metas += [json.loads(bpe_json(merges)) for merges in ([], [[97, 98]], [[98, 97]], [[97, 98], [98, 97]])]
    for i, meta in enumerate(metas):
        more = {"train": {"tokens": 9}, "options": {"clean": True}}
        assert [same_ids(meta, other | more) for other in metas] == [i == j for j in range(len(metas))]


def test_meta_json_goes_before_meta_pkl(tmp_path):
    (tmp_path / "meta.pkl").write_bytes(b"not even a pickle")
    (tmp_path / "meta.json").write_text(json.dumps({"encoding": "char", "vocab_size": 1, "chars": "x"}))
    assert read_meta(tmp_path)["chars"] == "x"


class Trap:
    """Calls a function when a pickle of it is loaded."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


TRAPS = {
    "open": lambda path: Trap(open, path, "w"),
    "os.mkdir": lambda path: Trap(os.mkdir, path),
    "eval": lambda path: Trap(eval, f"open({path!r}, 'w')"),
    "os.system": lambda path: Trap(os.system, f'echo > "{path}"'),
}


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("trap", TRAPS)
def test_a_malicious_meta_pkl_is_not_run(refusal, tmp_path, trap, protocol):
    target = tmp_path / "trapped"
    content = pickle.dumps(nanogpts("ab") | {"trap": TRAPS[trap](str(target))}, protocol)
    refusal("meta.pkl", content)
    assert not target.exists()
    pickle.loads(content)
    assert target.exists()  # the trap would have worked


@pytest.mark.parametrize("value", [print, set, range(3), ValueError(), types.SimpleNamespace(a=1)])
def test_a_meta_pkl_with_more_than_plain_data_is_refused(refusal, value):
    assert "not run" in refusal("meta.pkl", pickle.dumps(nanogpts("ab") | {"more": value}))


def bpe_json(merges, **more):
    return json.dumps({"encoding": "bpe", "vocab_size": 257 + len(merges), "merges": merges, **more}).encode()


def test_a_token_may_have_128_bytes(tmp_path):
    doubling = [[97, 97], *([i, i] for i in range(256, 262))]
    (tmp_path / "meta.json").write_bytes(bpe_json(doubling))
    assert make_tokenizer(read_meta(tmp_path)).encode("a" * 129) == [262, 97]


# tests/test_fuzz.py tries many more
@pytest.mark.parametrize(
    "content, said",
    [
        (b"not JSON", "cannot read"),
        (b"[]", "is not a dict"),
        (b'{"encoding": "gpt4", "vocab_size": 50257}', "encoding 'gpt4' is none of gpt2, bpe, char, tokens"),
        (b'{"encoding": "gpt2", "vocab_size": 50304}', "vocab_size 50304 should be 50257, the number of ids of gpt2"),
        (b'{"encoding": "char", "vocab_size": 2, "chars": "aa"}', "chars should be different characters"),
        (b'{"encoding": "char", "vocab_size": 2, "chars": "abc"}', "vocab_size 2 should be 3, the number of ids"),
        (b'{"encoding": "tokens", "vocab_size": 3, "tokens": ["a", "b"]}', "should be 2, the number of ids of tokens"),
        (b'{"encoding": "tokens", "vocab_size": 1, "tokens": "a"}', "tokens should be a list of strings"),
        (b'{"encoding": "tokens", "vocab_size": 2, "tokens": ["a", 7]}', "tokens should be a list of strings"),
        (b'{"encoding": "tokens", "vocab_size": 2, "tokens": ["", ""]}', "that are not all empty"),
        (b'{"encoding": "tokens", "vocab_size": 65537}', "vocab_size 65537 should be from 1 to 65536"),
        (b'{"encoding": "tokens", "vocab_size": 0}', "vocab_size 0 should be from 1 to 65536"),
        (b'{"encoding": "gpt2", "vocab_size": 50257, "train": 3}', "train should hold token and byte counts"),
        (b'{"encoding": "gpt2", "vocab_size": 50257, "val": {"bytes": 9.5}}', "val's counts should be numbers"),
        (b'{"encoding": "bpe", "vocab_size": 257}', "merges should be a list of pairs of token ids"),
        (b'{"encoding": "bpe", "vocab_size": 258, "merges": {"97": 98}}', "merges should be a list of pairs"),
        (b'{"encoding": "bpe", "vocab_size": 258, "merges": "ab"}', "merges should be a list of pairs"),
        (bpe_json([[97, 98], 3]), "the merge 3 should be two token ids below 257, the one that it makes"),
        (bpe_json([[97, 256]]), "the merge [97, 256] should be two token ids below 256"),
        (bpe_json([[97, 98], [257, 98]]), "the merge [257, 98] should be two token ids below 257"),
        (bpe_json([[97, 98, 99]]), "the merge [97, 98, 99] should be two token ids"),
        (bpe_json([[97]]), "the merge [97] should be two token ids"),
        (bpe_json([[True, 98]]), "the merge [True, 98] should be two token ids"),
        (bpe_json([[-1, 98]]), "the merge [-1, 98] should be two token ids"),
        (bpe_json([[97.0, 98]]), "the merge [97.0, 98] should be two token ids"),
        (bpe_json(["ab"]), "the merge 'ab' should be two token ids"),
        (bpe_json([[97, [["deep"]] * 99]]), "the merge [97, [['deep'], ['deep'], "),
        (bpe_json([[97, 98], [97, 98]]), "the merge [97, 98] makes a token that is known already"),
        (bpe_json([[97, 98], [98, 99], [256, 99], [97, 257]]), "the merge [97, 257] makes a token that is known"),
        (
            bpe_json([[97, 97], *([i, i] for i in range(256, 263))]),
            "[262, 262] makes a token that is known already, or",
        ),
        (bpe_json([[97, 97], *([i, i] for i in range(256, 999))]), "or has more than 128 bytes"),
        (bpe_json([[97, 98]], vocab_size=257), "vocab_size 257 should be 258, the number of ids of bpe"),
        (bpe_json([[97, 98]], vocab_size=320), "vocab_size 320 should be 258, the number of ids of bpe"),
        (bpe_json([[97, 98]], vocab_size=65537), "vocab_size 65537 should be from 1 to 65536"),
        (bpe_json([[97, 98]], vocab_size=True), "vocab_size True should be from 1 to 65536"),
        (bpe_json([], options=["clean"]), "options should be those of prepare.py"),
        (bpe_json([], options={"clean": 1}), "options should be those of prepare.py"),
        (bpe_json([], options={"input": None}), "options should be those of prepare.py"),
        (bpe_json([], options={"val_fraction": "0.1"}), "options should be those of prepare.py"),
        (bpe_json([], options={"flavour": True}), "options should be those of prepare.py"),
    ],
)
def test_a_damaged_meta_json_is_refused_with_what_is_wrong(refusal, content, said):
    assert said in refusal("meta.json", content)


@pytest.mark.parametrize("name", ["meta.json", "meta.pkl"])
def test_a_folder_in_place_of_a_meta_file_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="cannot read"):
        read_meta(tmp_path)


def seconds_to_learn(letters):
    text = "".join(random.Random(1).choices("abcdefghijkl", k=letters))
    began = time.process_time()
    tokenizer = learn_tokenizer([text], 1024)
    assert tokenizer.vocab_size == 1024
    return time.process_time() - began


@pytest.mark.slow
def test_a_text_without_blanks_is_learnt_from_in_a_time_that_grows_with_its_length():
    assert seconds_to_learn(160_000) < 8 * seconds_to_learn(40_000) + 0.5  # its square would be 16 times


def test_what_fails_in_a_thread_fails_where_it_was_called():
    def broken():
        yield "text"
        raise UserError("the text is broken")

    with pytest.raises(UserError, match="the text is broken"):
        learn_tokenizer(broken(), 300)
