"""
Turn a text into train.bin and val.bin (token ids, uint16) and meta.json, in this folder.

The text is transcriptions.txt, or any other with --input: put your own words there. The first 90% of its characters
are for training, the rest for validation.
"""

import json
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", ".."))

import numpy as np  # noqa: E402

from configurator import UserError, configure, read_text, replacing, run  # noqa: E402
from tokenizer import ENCODINGS, CharTokenizer, GPT2Tokenizer  # noqa: E402

# -----------------------------------------------------------------------------
input: str | None = None  # the text, in UTF-8; None is transcriptions.txt in this folder
encoding = "gpt2"  # gpt2 (byte pairs) or char (characters)
clean = True  # take out what a transcript has and a book has not: spoken chapter numbers, doubled white space
# -----------------------------------------------------------------------------

NUMBERS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred and"
).replace(" ", "|")
CHAPTER = re.compile(rf"^Chapter (?:\d+|(?:{NUMBERS})(?:[ -](?:{NUMBERS}))*)[.:,]\s+", re.IGNORECASE | re.MULTILINE)
MINIMUM = 65  # tokens in a split: one window of the smallest config's block_size, and its target


def cleaned(text):
    """`text` without chapter numbers at the beginnings of lines and without doubled white space; says what it took."""
    text, chapters = CHAPTER.subn("", text.lstrip("\ufeff"))
    text, blanks = re.subn(r"[ \t]{2,}|\t", " ", text)
    text, lines = re.subn(r"\n{3,}", "\n\n", text)
    print(f"took out {chapters:,} spoken chapter numbers and {blanks + lines:,} runs of white space")
    return text


def main():
    configure(globals())
    if encoding not in ENCODINGS:
        raise UserError(f"--encoding={encoding} is unknown: it may be {' or '.join(ENCODINGS)}")
    path = os.path.join(HERE, "transcriptions.txt") if input is None else input
    text = read_text(path, "text")
    if clean:
        text = cleaned(text)

    tokenizer = GPT2Tokenizer() if encoding == "gpt2" else CharTokenizer("".join(sorted(set(text))))
    if tokenizer.vocab_size > 2**16:
        raise UserError(f"{path!r} has {tokenizer.vocab_size:,} different characters, and uint16 counts 65,536 of them")
    meta, ids = tokenizer.meta(), {}
    middle = int(len(text) * 0.9)
    for split, part in {"train": text[:middle], "val": text[middle:]}.items():
        ids[split] = np.array(tokenizer.encode(part), dtype="<u2")
        meta[split] = {"tokens": len(ids[split]), "bytes": len(part.encode("utf-8"))}
        if len(ids[split]) < MINIMUM:
            raise UserError(f"{path!r} is too short: {split} would have {len(ids[split])} tokens, and needs {MINIMUM}")

    with (
        replacing(os.path.join(HERE, "meta.json")) as meta_file,
        replacing(os.path.join(HERE, "val.bin")) as val_file,
        replacing(os.path.join(HERE, "train.bin")) as train_file,
    ):
        train_file.write(ids["train"].tobytes())
        val_file.write(ids["val"].tobytes())
        meta_file.write(json.dumps(meta, indent=1).encode("utf-8"))
        for f in (train_file, val_file, meta_file):  # a full disk shows here, before the first file takes its place
            f.flush()
            os.fsync(f.fileno())
    for split in ids:
        print(f"{split} has {meta[split]['tokens']:,} tokens ({meta[split]['bytes']:,} bytes of text)")


if __name__ == "__main__":
    run(main)
