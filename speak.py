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

from configurator import UserError, check_installed, configure, first_line, hub_folder, note, read_json, replacing
from configurator import run, suggestion, text_or_file

import difflib
import importlib.metadata
import importlib.util
import logging
import os
import re
import sys
import time
import unicodedata
import wave
from pathlib import PurePath

import numpy as np
from tqdm import tqdm

from words import BETWEEN_PASSAGES, in_words, pieces

# -----------------------------------------------------------------------------
text = "Don't panic."  # what to say; FILE:story.txt reads it from a file, FILE:- from standard input
out = "speech.wav"  # the .wav file to write, 16 bits, mono
model = "en_US-ljspeech-medium"  # the voice: a Piper voice's name or .onnx file, or a VITS model's name or folder
speaker: str | None = None  # of a voice with several: a name or a number from 0; None is the first
speed = 1.0  # above 1 speaks faster
seed = 1337  # of the intonation, which is random
device = "auto"  # auto, cpu, cuda, cuda:1, mps; Piper voices speak on the CPU
# -----------------------------------------------------------------------------

PAUSES = {"clause": 0.1, "sentence": 0.35, "paragraph": 0.8, "passage": 1.6}  # seconds, after each

# -----------------------------------------------------------------------------
# pronunciation


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


def make_phonemizer(voice):
    """
    A function from words to phonemes, in one of espeak-ng's voices: "en-us", or as its file is called, "fr" for fr-fr.

    Raises UserError if espeak-ng has no such voice.
    """
    find_espeak()
    from phonemizer.backend import EspeakBackend
    from phonemizer.backend.espeak.wrapper import EspeakWrapper

    name = {"no": "nb", "zh": "cmn"}.get(voice.lower(), voice.lower())  # Bokmål, Mandarin
    known = {PurePath(each.identifier).name.lower(): each.language for each in EspeakWrapper().available_voices()}
    known |= {language.lower(): language for language in known.values()}
    if name not in known:
        raise UserError(f"--model={model} is for espeak-ng's voice {voice!r}, which this espeak-ng does not have")
    logger = logging.getLogger("phonemizer")
    logger.setLevel(logging.ERROR)  # it warns of each word in another language
    options = {"preserve_punctuation": True, "with_stress": True, "language_switch": "remove-flags"}
    espeak = EspeakBackend(known[name], logger=logger, **options)
    return lambda words: "".join(espeak.phonemize([words], strip=True))


def choose_speaker(names, count):
    """The number of --speaker, of a voice with `count` speakers. `names` is a dict that numbers those with names."""
    if speaker is None:
        return 0
    if speaker in names:
        return names[speaker]
    if speaker.isdecimal() and int(speaker) < count:
        return int(speaker)
    has = "one speaker" if count == 1 else f"the speakers 0 to {count - 1:,}"
    hint = f"; {suggestion(speaker, names)}" if 0 < len(names) < 30 else ""  # some voices have hundreds
    raise UserError(f"--speaker={speaker} is unknown: the voice --model={model} has {has}{hint}")


# -----------------------------------------------------------------------------
# voices. Each has a sampling `rate`; a `language`, as espeak-ng calls it; the `letters` that it knows, or None if it
# goes by phonemes; and say(words): the sound, float32 of shape (samples,), from -1 to 1.


class PiperVoice:
    """
    A voice of Piper: a VITS model in ONNX format, which onnxruntime computes on the CPU, with a .json file beside it.

    The format is that of github.com/rhasspy/piper, src/python_run. Raises UserError where a file is missing or is not
    of this format, and where the voice has no such --speaker.
    """

    def __init__(self, path):
        check_installed("onnxruntime")
        import onnxruntime

        if device not in ("auto", "cpu"):
            torch_device()  # raises UserError for a mistake
            note(f"note: --device={device} means nothing for a Piper voice, which speaks on the CPU")
        kind, self.language, self.rate, self.ids, scales, names, count = read_piper_config(path)
        self.scales = np.array(scales, np.float32)
        number = choose_speaker(names, count)
        self.inputs = {"sid": np.array([number])} if count > 1 else {}
        if kind == "espeak":
            self.letters, self.phonemes = None, make_phonemizer(self.language)
        else:
            self.letters, self.phonemes = letters_in(self.ids), str.lower
        onnxruntime.set_default_logger_severity(4)  # an exception says what is wrong, too
        onnxruntime.set_seed(seed)  # each random operation of a model takes it as it is loaded
        try:
            self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as failure:  # of many kinds
            why = first_line(failure).rpartition("failed:")[2]
            raise UserError(f"--model={model} is damaged, or no voice of Piper: {why}") from None
        expected = {"input", "input_lengths", "scales", *self.inputs}
        if (found := {each.name for each in self.session.get_inputs()}) != expected:
            found, expected = (", ".join(sorted(names)) for names in (found, expected))
            raise UserError(f"--model={model} has the inputs {found}: as a Piper voice it should have {expected}")

    def say(self, words):
        symbols = [symbol for symbol in unicodedata.normalize("NFD", self.phonemes(words)) if symbol in self.ids]
        if not symbols:
            return np.zeros(0, np.float32)
        ids = [i for symbol in ["^", *symbols] for i in self.ids[symbol] + self.ids["_"]] + self.ids["$"]
        inputs = {"input": np.array([ids]), "input_lengths": np.array([len(ids)]), "scales": self.scales, **self.inputs}
        try:
            return self.session.run(None, inputs)[0].reshape(-1)
        except Exception as failure:  # of many kinds: an id that the model lacks, too little memory
            raise UserError(f"--model={model} cannot say {words!r:.60}: {first_line(failure)}") from None


def read_piper_config(path):
    """
    What the .json file of a Piper voice says, checked.

    Returns ("espeak" or "text", espeak-ng's voice, sampling rate, symbols with their ids, the three scales, speakers
    with their numbers, number of speakers).
    """
    try:
        config = read_json(f"{path}.json")
        scales = {"noise_scale": 0.667, "length_scale": 1, "noise_w": 0.8} | config.get("inference", {})
        scales = [float(scales[name]) for name in ("noise_scale", "length_scale", "noise_w")]
        ids = {symbol: [int(i) for i in symbol_ids] for symbol, symbol_ids in config["phoneme_id_map"].items()}
        names = {name: int(number) for name, number in config.get("speaker_id_map", {}).items()}
        kind, rate = config.get("phoneme_type", "espeak"), int(config["audio"]["sample_rate"])
        kind = str(kind).lower().removeprefix("phonemetype.")  # es_MX-ald-medium has PhonemeType.ESPEAK
        if kind not in ("espeak", "text"):
            raise ValueError(f"phoneme_type is {kind!r}, and may be 'espeak' or 'text'")
        if not 1 <= rate < 2**20 or not all(0 <= scale < 100 for scale in scales) or not scales[1]:
            raise ValueError(f"sample_rate is {rate}, and the scales are {scales}")
        if missing := {"_", "^", "$"} - ids.keys():
            raise ValueError(f"phoneme_id_map lacks {' '.join(sorted(missing))}")
        scales[1] /= speed
        return kind, str(config["espeak"]["voice"]), rate, ids, scales, names, int(config.get("num_speakers", 1))
    except FileNotFoundError:
        raise UserError(f"--model={model} lacks {path}.json: a Piper voice is two files, side by side") from None
    except KeyError as failure:
        raise UserError(f"{path}.json is not that of a Piper voice: it has no {failure}") from None
    except (OSError, ValueError, TypeError, AttributeError, OverflowError) as failure:
        raise UserError(f"{path}.json is not that of a Piper voice: {failure}") from None


class VitsVoice:
    """
    A VITS voice in transformers' format: a folder with the files FILES, computed by torch on --device.

    Raises UserError where it is something else, and where it has no such --speaker.
    """

    FILES = ["config.json", "model.safetensors", "tokenizer_config.json", "vocab.json"]
    LANGUAGES = {"deu": "de", "fra": "fr", "ita": "it", "nld": "nl", "pol": "pl", "por": "pt", "rus": "ru", "spa": "es"}

    def __init__(self, folder):
        if missing := [file for file in self.FILES if not os.path.exists(os.path.join(folder, file))]:
            raise UserError(
                f"--model={model} has no {', '.join(missing)}: it should be a VITS voice, with {', '.join(self.FILES)}"
            )
        check_installed("transformers")
        import torch
        from transformers import VitsConfig, VitsModel, VitsTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            kind = VitsConfig.get_config_dict(folder)[0].get("model_type")
            if kind != "vits":
                raise UserError(f"--model={model} is of the type {kind!r}: it should be a VITS voice, type 'vits'")
            self.tokenizer = VitsTokenizer.from_pretrained(folder, local_files_only=True)
            self.network, report = VitsModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except UserError:
            raise
        except Exception as failure:  # a damaged file can raise almost anything
            raise UserError(f"cannot load the voice --model={model}: {first_line(failure)}") from None
        config, symbols = self.network.config, self.tokenizer.encoder
        if lacking := sorted(report["missing_keys"]):
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise UserError(f"--model={model} lacks weights of a VITS voice: {lacking[0]}{more}")
        if max(symbols.values()) >= config.vocab_size:
            raise UserError(f"--model={model}: vocab.json has ids beyond the model's {config.vocab_size}")
        if self.tokenizer.phonemize:
            find_espeak()
        self.speaker = choose_speaker({}, config.num_speakers)
        self.letters = None if self.tokenizer.phonemize else letters_in(symbols)
        self.language = "en" if self.letters is None else self.LANGUAGES.get(self.tokenizer.language, "en")
        self.rate = config.sampling_rate
        self.network.eval().to(torch_device())
        self.network.speaking_rate = config.speaking_rate * speed
        torch.manual_seed(seed)

    def say(self, words):
        import torch

        with torch.no_grad():
            ids = self.encode(words).to(self.network.device)
            return self.network(ids, speaker_id=self.speaker).waveform[0].cpu().numpy()

    def encode(self, words):
        """The ids of the words, (1, T), without symbols that the model does not know: it would fail at those."""
        symbols, _ = self.tokenizer.prepare_for_tokenization(words)  # phonemes, or lower-case letters
        phonemize, self.tokenizer.phonemize = self.tokenizer.phonemize, False
        ids = self.tokenizer(symbols, normalize=True, return_tensors="pt").input_ids  # drops what is not in vocab.json
        self.tokenizer.phonemize = phonemize
        return ids


def letters_in(symbols):
    """The letters among a voice's symbols, and the marks that belong to letters."""
    return {char for char in "".join(symbols) if unicodedata.category(char)[0] in "LM"}


def torch_device():
    """The torch.device that --device stands for."""
    from machine import resolve_device

    return resolve_device(device, "float32", False)[0]


# -----------------------------------------------------------------------------
# where a voice is found

PIPER_NAME = re.compile(r"(([a-z]{2,3})_[A-Z]{2})-(\w+)-(x_low|low|medium|high)")  # en_US-ljspeech-medium


def load_voice():
    """The voice that --model names. Raises UserError where there is none."""
    if name := PIPER_NAME.fullmatch(model):
        return PiperVoice(installed_voices().get(model) or fetched_piper_voice(name))
    if os.path.isdir(model):
        if voices := sorted(name for name in os.listdir(model) if name.endswith(".onnx")):
            path = os.path.join(model, voices[0])
            raise UserError(f"--model={model} is a folder: name the Piper voice in it, --model={path}")
        return VitsVoice(model)
    if os.path.isfile(model) and model.lower().endswith(".onnx"):
        return PiperVoice(model)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", model) and not model.endswith(".onnx"):
        return VitsVoice(fetched(model, VitsVoice.FILES, "voice"))
    known = [*installed_voices(), "en_US-ljspeech-medium", "facebook/mms-tts-eng"]
    near = difflib.get_close_matches(os.path.basename(model).lower(), [name.lower() for name in known], 1)
    hint = next((f"did you mean {name}?" for name in known if name.lower() in near), f"names are such as {known[-2]}")
    raise UserError(f"--model={model} is no folder, no .onnx file, and no name of a voice: {hint}")


def installed_voices():
    """The Piper voices that packages in Python's environment bring: {name: path}."""
    packages = [p for p in importlib.metadata.distributions() if "piper" in (p.metadata["Name"] or "").lower()]
    files = [(package, file) for package in packages for file in package.files or [] if file.suffix == ".onnx"]
    return {file.stem: str(package.locate_file(file)) for package, file in files}


def fetched_piper_voice(name):
    """The path of a Piper voice from the hub, fetched once. `name` is its name as PIPER_NAME matches it."""
    code, family, dataset, quality = name.groups()
    path = f"{family}/{code}/{dataset}/{quality}/{name[0]}.onnx"
    return os.path.join(fetched("rhasspy/piper-voices", [path, f"{path}.json"], f"voice/{path}"), path)


def fetched(repo, files, local_path):
    """The folder of a voice's `files` from the hub, fetched once. Without a network it advises --model=`local_path`."""
    check_installed("huggingface_hub")
    try:
        return hub_folder([repo], files, "voice")
    except FileNotFoundError as failure:
        raise UserError(f"--model={model} is no voice: {failure}") from None
    except OSError as failure:
        raise UserError(f"--model={model} is not here, and {failure}; then use --model={local_path}") from None


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
    check_installed("num2words")
    written = text_or_file(text, "text")
    if not written.strip():
        raise UserError(f"there is nothing to say: --text={text:.40} is empty")
    with replacing(out) as f:
        voice = load_voice()
        passages = [in_words(part, voice.letters, voice.language) for part in BETWEEN_PASSAGES.split(written)]
        if unreadable := sorted({char for _, chars in passages for char in chars}):
            note(f"note: this voice cannot say {' '.join(unreadable)}")
        script = [piece for words, _ in passages for piece in pieces(words)]
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
            samples = (voice.say(words).clip(-1, 1) * 32767).round().astype("<i2")
            sound.writeframesraw(samples.tobytes() + bytes(2 * int(PAUSES[pause] / speed * rate)))
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
