"""
Voices that read aloud: VITS models (Kim et al. 2021, arXiv 2106.06103) in Piper's format or in transformers', found or
fetched by name, and what they make of a text.

Errors name the options as speak.py has them: --model is the voice, --speaker, --device.
"""

import difflib
import importlib.metadata
import importlib.util
import logging
import os
import re
import unicodedata
from pathlib import PurePath

import numpy as np

from configurator import UserError, check_installed, first_line, hub_folder, note, read_json, suggestion
from words import BETWEEN_PASSAGES, in_words, pieces

PAUSES = {"clause": 0.1, "sentence": 0.35, "paragraph": 0.8, "passage": 1.6}  # seconds, after each

# -----------------------------------------------------------------------------
# pronunciation


def find_espeak(name):
    """
    Have phonemizer use the espeak-ng that pip installed, or else the system's, for the voice `name`. Raises UserError
    without either.
    """
    check_installed("phonemizer")
    if importlib.util.find_spec("espeakng_loader"):
        import espeakng_loader

        os.environ.setdefault("PHONEMIZER_ESPEAK_LIBRARY", espeakng_loader.get_library_path())
        os.environ.setdefault("ESPEAK_DATA_PATH", espeakng_loader.get_data_path())
    from phonemizer.backend import EspeakBackend

    if not EspeakBackend.is_available():
        raise UserError(
            f"--model={name} needs espeak-ng: 'pip install espeakng-loader', your system's package espeak-ng, or a "
            "voice that does without, --model=facebook/mms-tts-eng"
        )


def make_phonemizer(voice, name):
    """
    A function from words to phonemes, in one of espeak-ng's voices: "en-us", or as its file is called, "fr" for fr-fr.

    Raises UserError, which names our voice `name`, if espeak-ng has no such voice.
    """
    find_espeak(name)
    from phonemizer.backend import EspeakBackend
    from phonemizer.backend.espeak.wrapper import EspeakWrapper

    code = {"no": "nb", "zh": "cmn"}.get(voice.lower(), voice.lower())  # Bokmål, Mandarin
    known = {PurePath(each.identifier).name.lower(): each.language for each in EspeakWrapper().available_voices()}
    known |= {language.lower(): language for language in known.values()}
    if code not in known:
        raise UserError(f"--model={name} is for espeak-ng's voice {voice!r}, which this espeak-ng does not have")
    logger = logging.getLogger("phonemizer")
    logger.setLevel(logging.ERROR)  # it warns of each word in another language
    options = {"preserve_punctuation": True, "with_stress": True, "language_switch": "remove-flags"}
    espeak = EspeakBackend(known[code], logger=logger, **options)
    return lambda words: "".join(espeak.phonemize([words], strip=True))


def choose_speaker(speaker, names, count, name):
    """
    The number of a speaker, of the voice `name` with `count` speakers. `names` is a dict that numbers those with names.
    """
    if speaker is None:
        return 0
    if speaker in names:
        return names[speaker]
    if speaker.isdecimal() and int(speaker) < count:
        return int(speaker)
    has = "one speaker" if count == 1 else f"the speakers 0 to {count - 1:,}"
    hint = f"; {suggestion(speaker, names)}" if 0 < len(names) < 30 else ""  # some voices have hundreds
    raise UserError(f"--speaker={speaker} is unknown: the voice --model={name} has {has}{hint}")


# -----------------------------------------------------------------------------
# voices. Each has a sampling `rate`; a `language`, as espeak-ng calls it; the `letters` that it knows, or None if it
# goes by phonemes; and say(words): the sound, float32 of shape (samples,), from -1 to 1. `name` is what errors call it.


class PiperVoice:
    """
    A voice of Piper: a VITS model in ONNX format, which onnxruntime computes on the CPU, with a .json file beside it.

    The format is that of github.com/rhasspy/piper, src/python_run. Raises UserError where a file is missing or is not
    of this format, and where the voice has no such speaker.
    """

    def __init__(self, path, name, speaker, speed, seed, device):
        check_installed("onnxruntime")
        import onnxruntime

        if device not in ("auto", "cpu"):
            torch_device(device)  # raises UserError for a mistake
            note(f"note: --device={device} means nothing for a Piper voice, which speaks on the CPU")
        self.name = name
        kind, self.language, self.rate, self.ids, scales, names, count = read_piper_config(path, name)
        scales[1] /= speed
        self.scales = np.array(scales, np.float32)
        number = choose_speaker(speaker, names, count, name)
        self.inputs = {"sid": np.array([number])} if count > 1 else {}
        if kind == "espeak":
            self.letters, self.phonemes = None, make_phonemizer(self.language, name)
        else:
            self.letters, self.phonemes = letters_in(self.ids), str.lower
        onnxruntime.set_default_logger_severity(4)  # an exception says what is wrong, too
        onnxruntime.set_seed(seed)  # each random operation of a model takes it as it is loaded
        try:
            self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as failure:  # of many kinds
            why = first_line(failure).rpartition("failed:")[2]
            raise UserError(f"--model={name} is damaged, or no voice of Piper: {why}") from None
        expected = {"input", "input_lengths", "scales", *self.inputs}
        if (found := {each.name for each in self.session.get_inputs()}) != expected:
            found, expected = (", ".join(sorted(names)) for names in (found, expected))
            raise UserError(f"--model={name} has the inputs {found}: as a Piper voice it should have {expected}")

    def say(self, words):
        symbols = [symbol for symbol in unicodedata.normalize("NFD", self.phonemes(words)) if symbol in self.ids]
        if not symbols:
            return np.zeros(0, np.float32)
        ids = [i for symbol in ["^", *symbols] for i in self.ids[symbol] + self.ids["_"]] + self.ids["$"]
        inputs = {"input": np.array([ids]), "input_lengths": np.array([len(ids)]), "scales": self.scales, **self.inputs}
        try:
            return self.session.run(None, inputs)[0].reshape(-1)
        except Exception as failure:  # of many kinds: an id that the model lacks, too little memory
            raise UserError(f"--model={self.name} cannot say {words!r:.60}: {first_line(failure)}") from None


def read_piper_config(path, name):
    """
    What the .json file of a Piper voice says, checked. `name` is what errors call the voice.

    Returns ("espeak" or "text", espeak-ng's voice, sampling rate, symbols with their ids, the three scales, speakers
    with their numbers, number of speakers).
    """
    try:
        config = read_json(f"{path}.json")
        scales = {"noise_scale": 0.667, "length_scale": 1, "noise_w": 0.8} | config.get("inference", {})
        scales = [float(scales[scale]) for scale in ("noise_scale", "length_scale", "noise_w")]
        ids = {symbol: [int(i) for i in symbol_ids] for symbol, symbol_ids in config["phoneme_id_map"].items()}
        names = {speaker: int(number) for speaker, number in config.get("speaker_id_map", {}).items()}
        kind, rate = config.get("phoneme_type", "espeak"), int(config["audio"]["sample_rate"])
        kind = str(kind).lower().removeprefix("phonemetype.")  # es_MX-ald-medium has PhonemeType.ESPEAK
        if kind not in ("espeak", "text"):
            raise ValueError(f"phoneme_type is {kind!r}, and may be 'espeak' or 'text'")
        if not 1 <= rate < 2**20 or not all(0 <= scale < 100 for scale in scales) or not scales[1]:
            raise ValueError(f"sample_rate is {rate}, and the scales are {scales}")
        if missing := {"_", "^", "$"} - ids.keys():
            raise ValueError(f"phoneme_id_map lacks {' '.join(sorted(missing))}")
        return kind, str(config["espeak"]["voice"]), rate, ids, scales, names, int(config.get("num_speakers", 1))
    except FileNotFoundError:
        raise UserError(f"--model={name} lacks {path}.json: a Piper voice is two files, side by side") from None
    except KeyError as failure:
        raise UserError(f"{path}.json is not that of a Piper voice: it has no {failure}") from None
    except (OSError, ValueError, TypeError, AttributeError, OverflowError) as failure:
        raise UserError(f"{path}.json is not that of a Piper voice: {failure}") from None


class VitsVoice:
    """
    A VITS voice in transformers' format: a folder with the files FILES, computed by torch.

    Raises UserError where it is something else, and where it has no such speaker.
    """

    FILES = ["config.json", "model.safetensors", "tokenizer_config.json", "vocab.json"]
    LANGUAGES = {"deu": "de", "fra": "fr", "ita": "it", "nld": "nl", "pol": "pl", "por": "pt", "rus": "ru", "spa": "es"}

    def __init__(self, folder, name, speaker, speed, seed, device):
        if missing := [file for file in self.FILES if not os.path.exists(os.path.join(folder, file))]:
            raise UserError(
                f"--model={name} has no {', '.join(missing)}: it should be a VITS voice, with {', '.join(self.FILES)}"
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
                raise UserError(f"--model={name} is of the type {kind!r}: it should be a VITS voice, type 'vits'")
            self.tokenizer = VitsTokenizer.from_pretrained(folder, local_files_only=True)
            self.network, report = VitsModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except UserError:
            raise
        except Exception as failure:  # a damaged file can raise almost anything
            raise UserError(f"cannot load the voice --model={name}: {first_line(failure)}") from None
        config, symbols = self.network.config, self.tokenizer.encoder
        if lacking := sorted(report["missing_keys"]):
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise UserError(f"--model={name} lacks weights of a VITS voice: {lacking[0]}{more}")
        if max(symbols.values()) >= config.vocab_size:
            raise UserError(f"--model={name}: vocab.json has ids beyond the model's {config.vocab_size}")
        if self.tokenizer.phonemize:
            find_espeak(name)
        self.speaker = choose_speaker(speaker, {}, config.num_speakers, name)
        self.letters = None if self.tokenizer.phonemize else letters_in(symbols)
        self.language = "en" if self.letters is None else self.LANGUAGES.get(self.tokenizer.language, "en")
        self.rate = config.sampling_rate
        self.network.eval().to(torch_device(device))
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


def torch_device(device):
    """The torch.device that an option's value stands for. Raises UserError."""
    from machine import resolve_device

    return resolve_device(device, "float32", False)[0]


# -----------------------------------------------------------------------------
# where a voice is found

PIPER_NAME = re.compile(r"(([a-z]{2,3})_[A-Z]{2})-(\w+)-(x_low|low|medium|high)")  # en_US-ljspeech-medium


def load_voice(name, speaker, speed, seed, device):
    """
    The voice that a name or a path stands for, with these values of speak.py's options. Raises UserError where there is
    none.
    """
    check_installed("num2words")
    settings = (name, speaker, speed, seed, device)
    if match := PIPER_NAME.fullmatch(name):
        return PiperVoice(installed_voices().get(name) or fetched_piper_voice(match), *settings)
    if os.path.isdir(name):
        if voices := sorted(file for file in os.listdir(name) if file.endswith(".onnx")):
            path = os.path.join(name, voices[0])
            raise UserError(f"--model={name} is a folder: name the Piper voice in it, --model={path}")
        return VitsVoice(name, *settings)
    if os.path.isfile(name) and name.lower().endswith(".onnx"):
        return PiperVoice(name, *settings)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) and not name.endswith(".onnx"):
        return VitsVoice(fetched(name, name, VitsVoice.FILES, "voice"), *settings)
    known = [*installed_voices(), "en_US-ljspeech-medium", "facebook/mms-tts-eng"]
    near = difflib.get_close_matches(os.path.basename(name).lower(), [other.lower() for other in known], 1)
    meant = next((f"did you mean {other}?" for other in known if other.lower() in near), None)
    hint = meant or f"names are such as {known[-2]}"
    raise UserError(f"--model={name} is no folder, no .onnx file, and no name of a voice: {hint}")


def installed_voices():
    """The Piper voices that packages in Python's environment bring: {name: path}."""
    packages = [p for p in importlib.metadata.distributions() if "piper" in (p.metadata["Name"] or "").lower()]
    files = [(package, file) for package in packages for file in package.files or [] if file.suffix == ".onnx"]
    return {file.stem: str(package.locate_file(file)) for package, file in files}


def fetched_piper_voice(match):
    """The path of a Piper voice from the hub, fetched once. `match` is its name as PIPER_NAME matches it."""
    code, family, dataset, quality = match.groups()
    path = f"{family}/{code}/{dataset}/{quality}/{match[0]}.onnx"
    return os.path.join(fetched(match[0], "rhasspy/piper-voices", [path, f"{path}.json"], f"voice/{path}"), path)


def fetched(name, repo, files, local_path):
    """
    The folder of the voice `name`, with its `files` from the hub, fetched once. Without a network it advises
    --model=`local_path`.
    """
    check_installed("huggingface_hub")
    try:
        return hub_folder([repo], files, "voice")
    except FileNotFoundError as failure:
        raise UserError(f"--model={name} is no voice: {failure}") from None
    except OSError as failure:
        raise UserError(f"--model={name} is not here, and {failure}; then use --model={local_path}") from None


# -----------------------------------------------------------------------------
# from text to sound


def script_of(text, voice):
    """What a voice says for a text: a list of `pieces`, and the sorted characters that it cannot say."""
    passages = [in_words(passage, voice.letters, voice.language) for passage in BETWEEN_PASSAGES.split(text)]
    unreadable = sorted({char for _, chars in passages for char in chars})
    return [piece for words, _ in passages for piece in pieces(words)], unreadable


def sound_of(words, voice):
    """The sound of a piece's words: 16-bit samples, at the voice's rate."""
    return (voice.say(words).clip(-1, 1) * 32767).round().astype("<i2")


def pause_of(pause, voice, speed):
    """The silence after a piece, likewise. `pause` is its name in the script."""
    return np.zeros(int(PAUSES[pause] / speed * voice.rate), "<i2")
