"""
Read a text aloud, into a .wav file.

    python speak.py --text="Don't panic." --out=panic.wav
    python speak.py --text=FILE:story.txt --out=story.wav
    python sample.py --out_dir=out-hitchikers | python speak.py --text=FILE:- --out=story.wav

Each sample of sample.py is a passage, with a longer pause after it. Blank lines separate paragraphs.

The voice is a VITS model (Kim et al. 2021, arXiv 2106.06103) in transformers' format, fetched from huggingface.co when
it is first used. The default, kakao-enterprise/vits-ljs, is one woman's American English, 145 MB, under the MIT
licence, trained on recordings in the public domain; it needs espeak-ng (GPL) for the pronunciation.
--model=facebook/mms-tts-eng does without espeak-ng, sounds plainer, and is for non-commercial use only (CC BY-NC 4.0).
"""

from configurator import UserError, check_installed, configure, first_line, note, replacing, run, text_or_file

import importlib.util
import os
import sys
import time
import wave

import torch
from tqdm import tqdm

from machine import resolve_device
from pretrained import hub_folder
from words import BETWEEN_PASSAGES, in_words, pieces

check_installed("transformers", "num2words")

# -----------------------------------------------------------------------------
text = "Don't panic."  # what to say; FILE:story.txt reads it from a file, FILE:- from standard input
out = "speech.wav"  # the .wav file to write, 16 bits, mono
model = "kakao-enterprise/vits-ljs"  # the voice: a name at huggingface.co, or a folder with a VITS model
speed = 1.0  # above 1 speaks faster
seed = 1337  # of the intonation, which is random
device = "auto"  # auto, cpu, cuda, cuda:1, mps
# -----------------------------------------------------------------------------

PAUSES = {"clause": 0.1, "sentence": 0.35, "paragraph": 0.8, "passage": 1.6}  # seconds, after each
FILES = ["config.json", "model.safetensors", "tokenizer_config.json", "vocab.json"]  # of a voice

# -----------------------------------------------------------------------------
# the voice


def voice_folder(name):
    """The folder of the voice `name`: itself, or the one that the hub has under that name, fetched once."""
    if os.path.isdir(name):
        return name
    try:
        return hub_folder([name], FILES, "voice")
    except OSError as failure:
        raise UserError(f"--model={name} is no folder, and as a voice {failure}; then use --model=voice") from None


def load_voice(name):
    """The tokenizer and the model of a voice. Raises UserError where it is not a VITS voice."""
    folder = voice_folder(name)
    if missing := [file for file in FILES if not os.path.exists(os.path.join(folder, file))]:
        raise UserError(
            f"--model={name} has no {', '.join(missing)}: it should be a VITS voice, with {', '.join(FILES)}"
        )
    from transformers import VitsConfig, VitsModel, VitsTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        kind = VitsConfig.get_config_dict(folder)[0].get("model_type")
        if kind != "vits":
            raise UserError(f"--model={name} is of the type {kind!r}: it should be a VITS voice, type 'vits'")
        tokenizer = VitsTokenizer.from_pretrained(folder, local_files_only=True)
        network, report = VitsModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except UserError:
        raise
    except Exception as failure:  # a damaged file can raise almost anything
        raise UserError(f"cannot load the voice --model={name}: {first_line(failure)}") from None
    if lacking := sorted(report["missing_keys"]):
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise UserError(f"--model={name} lacks weights of a VITS voice: {lacking[0]}{more}")
    if max(tokenizer.encoder.values()) >= network.config.vocab_size:
        raise UserError(f"--model={name}: vocab.json has ids beyond the model's {network.config.vocab_size}")
    return tokenizer, network.eval()


def find_espeak():
    """Have phonemizer use the espeak-ng that pip installed, or else the system's. Raises UserError without either."""
    check_installed("phonemizer")
    if importlib.util.find_spec("espeakng_loader"):
        import espeakng_loader

        os.environ.setdefault("PHONEMIZER_ESPEAK_LIBRARY", espeakng_loader.get_library_path())
        os.environ.setdefault("ESPEAK_DATA_PATH", espeakng_loader.get_data_path())
    from phonemizer.backend import EspeakBackend

    if not EspeakBackend.is_available():
        raise UserError(
            f"--model={model} needs espeak-ng: 'pip install espeakng-loader', your system's package espeak-ng, or a "
            "voice that does without, --model=facebook/mms-tts-eng"
        )


def encode(tokenizer, sentence):
    """The token ids of a sentence, (1, T), without symbols that the model does not know: it would fail at those."""
    symbols, _ = tokenizer.prepare_for_tokenization(sentence)  # phonemes, or lower-case letters
    phonemize, tokenizer.phonemize = tokenizer.phonemize, False
    ids = tokenizer(symbols, normalize=True, return_tensors="pt").input_ids  # drops what is not in the vocabulary
    tokenizer.phonemize = phonemize
    return ids


# -----------------------------------------------------------------------------


def check_options():
    """Raise UserError for values out of range."""
    if not out.lower().endswith(".wav"):
        raise UserError(f"--out={out} should end in .wav")
    if os.path.isdir(out):
        raise UserError(f"--out={out} is a folder: it should be a file")
    if not 0.1 <= speed <= 10:
        raise UserError(f"--speed={speed} should be between 0.1 and 10")
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed={seed} should be at least 0")


def main():
    configure(globals())
    check_options()
    torch_device, _, _ = resolve_device(device, "float32", False)
    written = text_or_file(text, "text")
    if not written.strip():
        raise UserError(f"there is nothing to say: --text={text:.40} is empty")
    with replacing(out) as f:
        tokenizer, network = load_voice(model)
        if tokenizer.phonemize:
            find_espeak()
        known = None if tokenizer.phonemize else {char for char in "".join(tokenizer.encoder) if char.isalpha()}
        passages = [in_words(passage, known) for passage in BETWEEN_PASSAGES.split(written)]
        if unreadable := sorted({char for _, chars in passages for char in chars}):
            note(f"note: this voice cannot say {' '.join(unreadable)}")
        script = [piece for words, _ in passages for piece in pieces(words)]
        if not script:
            raise UserError(f"there is nothing that this voice can say in --text={text:.40}")
        seconds = speak(script, tokenizer, network.to(torch_device), f)
    print(f"{out}: {tqdm.format_interval(seconds)} of speech")


@torch.no_grad()
def speak(script, tokenizer, network, f):
    """Say the pieces of a script into a binary file, one at a time. Returns the length in seconds."""
    torch.manual_seed(seed)
    rate = network.config.sampling_rate
    network.speaking_rate = network.config.speaking_rate * speed
    length = sum(len(words) for words, _ in script)
    if length > (most := int(2**31 / rate * 12 * speed)):  # at 12 characters a second, slow speech
        raise UserError(
            f"a .wav file holds 4 GB, with this voice about {most:,} characters, and not {length:,}: split the text"
        )
    bar = tqdm(total=length, unit="char", leave=False, disable=not sys.stderr.isatty())
    began = shown = time.time()
    done = 0
    with wave.open(f, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        for words, pause in script:
            waveform = network(encode(tokenizer, words).to(network.device), speaker_id=0).waveform[0].cpu()
            samples = (waveform.clamp(-1, 1) * 32767).round().numpy().astype("<i2")
            sound.writeframesraw(samples.tobytes() + bytes(2 * int(PAUSES[pause] / speed * rate)))
            bar.update(len(words))
            done += len(words)
            if bar.disable and time.time() > shown + 10:
                shown = time.time()
                left = (shown - began) * (length - done) / done
                note(f"{done / length:.0%} said, {tqdm.format_interval(left)} left")
        bar.close()
        return sound.tell() / rate


if __name__ == "__main__":
    run(main)
