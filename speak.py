"""
Read a text aloud, into a .wav file.

    python speak.py --text="Don't panic." --out=panic.wav
    python speak.py --text=FILE:story.txt --out=story.wav
    python sample.py --out_dir=out-hitchikers | python speak.py --text=FILE:- --out=story.wav

Each sample of sample.py is a passage, with a longer pause after it. Blank lines separate paragraphs.

The voice is a VITS model (Kim et al. 2021, arXiv 2106.06103), in Piper's format or in transformers'. Piper's voices are
many times faster, and there are hundreds, in forty languages: https://rhasspy.github.io/piper-samples. A voice is
fetched from huggingface.co when it is first used. It needs espeak-ng (GPL) for the pronunciation.

The default, en_US-ljspeech-medium, is one woman's American English, 63 MB. By its MODEL_CARD it was trained from
scratch, on recordings in the public domain (LJ Speech). Most other English voices of Piper were fine-tuned from
en_US-lessac-medium, whose recordings are licensed for research only. So was en_US-joe-medium, with recordings under
CC0: it is the voice that the tests listen to, and of the default's size and speed.
"""

from configurator import UserError, configure, note, replacing, run, text_or_file

import os
import sys
import time
import wave

from tqdm import tqdm

from voices import load_voice, pause_of, script_of, sound_of

# -----------------------------------------------------------------------------
text = "Don't panic."  # what to say; FILE:story.txt reads it from a file, FILE:- from standard input
out = "speech.wav"  # the .wav file to write, 16 bits, mono
model = "en_US-ljspeech-medium"  # the voice: a Piper voice's name or .onnx file, or a VITS model's name or folder
speaker: str | None = None  # of a voice with several: a name or a number from 0; None is the first
speed = 1.0  # above 1 speaks faster
seed = 1337  # of the intonation, which is random
device = "auto"  # auto, cpu, cuda, cuda:1, mps; Piper voices speak on the CPU
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
    written = text_or_file(text, "text")
    if not written.strip():
        raise UserError(f"there is nothing to say: --text={text:.40} is empty")
    with replacing(out) as f:
        voice = load_voice(model, speaker, speed, seed, device)
        script, unreadable = script_of(written, voice)
        if unreadable:
            note(f"note: this voice cannot say {' '.join(unreadable)}")
        if not script:
            raise UserError(f"there is nothing that this voice can say in --text={text:.40}")
        seconds = speak(script, voice, f)
    print(f"{out}: {tqdm.format_interval(seconds)} of speech")


def speak(script, voice, f):
    """Say the pieces of a script into a binary file, one at a time. Returns the length in seconds."""
    rate = voice.rate
    length = sum(len(words) for words, _ in script)
    if length > (most := int(2**31 / rate * 12 * speed)):  # at 12 characters a second, slow speech
        raise UserError(
            f"a .wav file holds 4 GB, with this voice about {most:,} characters, and not {length:,}: split the text"
        )
    bar = tqdm(total=length, unit="char", leave=False, disable=not sys.stderr.isatty())
    began = shown = time.time()
    done = 0
    spoken = 0  # samples, without pauses
    with wave.open(f, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        for words, pause in script:
            samples = sound_of(words, voice)
            sound.writeframesraw(samples.tobytes() + pause_of(pause, voice, speed).tobytes())
            spoken += len(samples)
            bar.update(len(words))
            done += len(words)
            if bar.disable and time.time() > shown + 10:
                shown = time.time()
                left = (shown - began) * (length - done) / done
                note(f"{done / length:.0%} said, {tqdm.format_interval(left)} left")
        bar.close()
        if not spoken:
            raise UserError(f"the voice --model={model} has no symbols for {script[0][0]!r:.60}")
        return sound.tell() / rate


if __name__ == "__main__":
    run(main)
