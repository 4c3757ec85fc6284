"""
Turn a text into train.bin and val.bin (token ids, uint16) and meta.json, in this folder.

The text is transcriptions.txt, or the file that --input names. The first 90% of its characters are for training, the
rest for validation. To prepare a text in a folder of its own, use data/prepare.py, which does the work here too.
"""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, ".."), os.path.join(HERE, "..", "..")]
sys.dont_write_bytecode = True  # data/__pycache__ would look like a dataset

from configurator import configure, run  # noqa: E402
from prepare import prepare  # noqa: E402

# -----------------------------------------------------------------------------
input: str | None = None  # the text, in UTF-8, or - for standard input; None is transcriptions.txt in this folder
encoding = "gpt2"  # gpt2 (its byte pairs), bpe (byte pairs learnt from this text) or char (characters)
vocab_size: int | None = None  # of --encoding=bpe: the number of token ids; None goes by the size of the text
tokenizer: str | None = None  # a dataset, as data/other, or a folder of export.py, whose vocabulary is to be used
val_fraction = 0.1  # the fraction of the text that is for validation
clean = True  # remove what only transcripts have: spoken chapter numbers and doubled white space
# -----------------------------------------------------------------------------


def main():
    config = configure(globals(), positional="input")
    path = os.path.join(HERE, "transcriptions.txt") if input is None else input
    meta = prepare([path], HERE, **config, split_documents=False)  # as nanoGPT
    small = "train_hitchikers_cpu.py"
    if meta["encoding"] == "bpe":
        small = "train_demo.py --dataset=hitchikersguide --out_dir=out-hitchikers"
    print(f"next: python train.py config/{small}, or on a GPU config/train_hitchikers.py")


if __name__ == "__main__":
    run(main)
