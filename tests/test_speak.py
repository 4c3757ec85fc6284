"""speak.py's promises, tried on a tiny voice with random weights, in the format of the real ones."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
import wave

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(ROOT))
import speak
from words import in_words, pieces

RATE = 16000
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# the symbols of VITS' own English voices, in the order of their ids
PHONEMES = (
    '_;:,.!?¡¿—…"«»“” ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz'
    "ɑɐɒæɓʙβɔɕçɗɖðʤəɘɚɛɜɝɞɟʄɡɠɢʛɦɧħɥʜɨɪʝɭɬɫɮʟɱɯɰŋɳɲɴøɵɸθœɶʘɹɺɾɻʀʁɽʂʃʈʧʉʊʋⱱʌɣɤʍχʎʏʑʐʒʔʡʕʢǀǁǂǃˈˌːˑʼʴʰʱʲʷˠˤ˞↓↑→↗↘'̩ᵻ"
)


def make_voice(folder, symbols, phonemize):
    """A VITS model of a few thousand random weights, saved by transformers with its tokenizer."""
    from transformers import VitsConfig, VitsModel, VitsTokenizer

    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}), encoding="utf-8")
    VitsTokenizer(folder / "vocab.json", pad_token=symbols[0], phonemize=phonemize).save_pretrained(folder)
    sizes = dict(hidden_size=16, num_hidden_layers=1, ffn_dim=16, flow_size=8, spectrogram_bins=9)
    sizes |= dict(upsample_initial_channel=16, upsample_rates=[8, 8], upsample_kernel_sizes=[16, 16])
    sizes |= dict(resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]], duration_predictor_filter_channels=8)
    sizes |= dict(prior_encoder_num_wavenet_layers=1, posterior_encoder_num_wavenet_layers=1)
    torch.manual_seed(0)
    VitsModel(VitsConfig(vocab_size=len(symbols), sampling_rate=RATE, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def voice(tmp_path_factory):
    """A voice of letters, like facebook/mms-tts-eng."""
    return make_voice(tmp_path_factory.mktemp("voices") / "letters", "k'z5y-ux4w0ahe1j3bsnglmcr2fvt iqdpo_6–", False)


@pytest.fixture(scope="session")
def phonetic(tmp_path_factory):
    """A voice of phonemes, like kakao-enterprise/vits-ljs."""
    return make_voice(tmp_path_factory.mktemp("voices") / "phonemes", PHONEMES, True)


@pytest.fixture
def say(inside, voice, tmp_path):
    """say("text", "--key=value", ...) gives the samples that were written."""

    def run(text, *args, stderr="", model=voice):
        done = inside("speak.py", f"--model={model}", "--device=cpu", f"--text={text}", "--out=out.wav", *args)
        assert (done.returncode, done.stderr) == (0, stderr)
        assert done.stdout.startswith("out.wav: ") and os.listdir(tmp_path).count("out.wav.tmp") == 0
        return read(tmp_path / "out.wav")

    return run


def read(path):
    with wave.open(str(path)) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, RATE)
        samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
        assert len(samples) == sound.getnframes()
    assert path.stat().st_size == 44 + 2 * len(samples)  # the header is right, and nothing follows
    return samples


def silences(samples):
    """The lengths in seconds of digital silence that is long enough for a pause."""
    edges = np.flatnonzero(np.diff(np.r_[0, samples == 0, 0]))
    lengths = (edges[1::2] - edges[::2]) / RATE
    return [round(float(length), 2) for length in lengths if length > 0.09]


# -----------------------------------------------------------------------------
# the sound


@pytest.mark.parametrize("kind", ["voice", "phonetic"])
def test_the_sound_is_the_models_own(say, kind, request):
    from transformers import AutoTokenizer, VitsModel

    folder = request.getfixturevalue(kind)
    samples = say("Don't panic.", "--seed=3", model=folder)
    inputs = AutoTokenizer.from_pretrained(folder)("Don't panic.", return_tensors="pt")
    network = VitsModel.from_pretrained(folder)
    torch.manual_seed(3)
    expected = network(inputs.input_ids).waveform[0].detach().numpy()
    assert 0 < np.abs(samples).max() < 32767
    assert np.abs(samples[: len(expected)] / 32767 - expected).max() < 1e-4
    assert not samples[len(expected) :].any()


def test_the_same_seed_gives_the_same_bytes_and_another_others(say):
    first = say("Don't panic.", "--seed=1").tobytes()
    assert first == say("Don't panic.", "--seed=1").tobytes() != say("Don't panic.", "--seed=2").tobytes()


def test_pauses_are_longer_between_paragraphs_and_longest_between_samples(say):
    samples = say("One. Two!\n\nThree.\n---------------\nFour\n---------------\n")
    assert silences(samples) == pytest.approx([0.35, 0.8, 1.6, 1.6], abs=0.02)


def test_a_higher_speed_is_shorter(say):
    lengths = [len(say("the answer is forty-two", f"--speed={speed}")) for speed in (0.5, 1, 2)]
    assert lengths[0] > 1.5 * lengths[1] > 2 * lengths[2]


def test_weights_named_as_in_the_files_of_2023_are_read(say, voice, tmp_path):
    old = shutil.copytree(voice, tmp_path / "old")
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    weights = load_file(voice / "model.safetensors")
    renamed = {re.sub("|".join(names), lambda m: names[m[0]], name): weight for name, weight in weights.items()}
    assert renamed.keys() != weights.keys()
    save_file(renamed, old / "model.safetensors", metadata={"format": "pt"})
    assert (say("the cat", model=old) == say("the cat")).all()


# -----------------------------------------------------------------------------
# the words


@pytest.mark.parametrize("kind", ["voice", "phonetic"])
def test_the_voice_gets_nothing_outside_its_vocabulary_and_the_rest_is_told(say, kind, request):
    folder = request.getfixturevalue(kind)
    every = "".join(map(chr, [*range(0x20, 0x2FF), *range(0x2000, 0x2800), *range(0x1F300, 0x1F650)]))
    words, lost = in_words(every, set(LETTERS))
    assert set(words.lower()) <= set(LETTERS + " .,;:!?'-")
    assert all(char.isalpha() or ord(char) > 0x7F for char in lost)  # all of ASCII can be said

    from transformers import AutoTokenizer

    speak.find_espeak()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for piece, _ in pieces(words):
        assert speak.encode(tokenizer, piece).max() < len(tokenizer.encoder)
    tokenizer.encoder.pop("t")  # as if the voice lacked it
    assert speak.encode(tokenizer, "tea").max() < len(tokenizer.encoder) + 1
    say("hello мир", stderr="note: this voice cannot say и м р\n", model=folder)


# -----------------------------------------------------------------------------
# files


@pytest.mark.slow
def test_samples_are_read_from_a_pipe_without_their_dashes(command, voice, tmp_path):
    samples = "print('the cat\\n---------------\\nsat on\\n---------------')"
    args = (f"--model={voice}", "--text=FILE:-", "--out=out.wav", "--device=cpu")
    with subprocess.Popen([sys.executable, "-c", samples], stdout=subprocess.PIPE) as writer:
        options = {"stdin": writer.stdout, "capture_output": True, "cwd": tmp_path, "timeout": 120}
        done = subprocess.run(**command("speak.py", *args), **options)
    assert (done.returncode, done.stderr) == (0, "")
    assert silences(read(tmp_path / "out.wav")) == pytest.approx([1.6, 1.6], abs=0.02)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(say, inside, voice, tmp_path):
    def peak(count):
        tracemalloc.start()
        inside("speak.py", f"--model={voice}", "--device=cpu", f"--text={'The cat sat. ' * count}", "--out=out.wav")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    say("hello")  # imports
    few, many = peak(5), peak(30)
    assert (tmp_path / "out.wav").stat().st_size > 800_000 and many < few + 200_000


@pytest.mark.slow
def test_interrupted_it_keeps_the_old_file(command, voice, tmp_path):
    (tmp_path / "out.wav").write_bytes(b"old")
    args = (f"--model={voice}", f"--text={'The cat sat. ' * 9000}", "--out=out.wav", "--device=cpu")
    process = subprocess.Popen(**command("speak.py", *args), cwd=tmp_path, stderr=subprocess.PIPE)
    while not (tmp_path / "out.wav.tmp").exists() or (tmp_path / "out.wav.tmp").stat().st_size < 100_000:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1].endswith("\ninterrupted\n") and process.returncode == 130
    assert (tmp_path / "out.wav").read_bytes() == b"old" and os.listdir(tmp_path) == ["out.wav"]


# -----------------------------------------------------------------------------
# mistakes


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--text="], "empty"),
        (["--text=\u2003\n"], "empty"),
        (["--text=..."], "nothing that this voice can say"),
        (["--text=漢字"], "nothing that this voice can say"),
        (["--text=FILE:missing.txt"], "missing.txt"),
        (["--out=missing/out.wav"], "cannot write 'missing/out.wav'"),
        (["--out=folder.wav"], "is a folder"),
        (["--out=story.txt"], "should end in .wav"),
        (["--speed=0"], "--speed=0.0 should be between"),
        (["--seed=-1"], "--seed=-1 should be at least 0"),
        (["--device=gpu"], "--device=gpu is unknown"),
        (["--model=empty"], "has no config.json, model.safetensors"),
        (["--model=gpt2"], "is of the type 'gpt2'"),
        (["--model=damaged"], "cannot load the voice --model=damaged"),
        (["--model=lacking"], "lacks weights of a VITS voice: text_encoder.embed_tokens.weight"),
        (["--model=mixed"], "vocab.json has ids beyond the model's 38"),
        (["--model=no such name"], "--model=no such name is no folder"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_file(inside, voice, phonetic, tmp_path, args, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.wav").mkdir()
    for name in ("gpt2", "damaged", "lacking", "mixed"):
        shutil.copytree(voice, tmp_path / name)
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"\x80\x04damaged")
    weights = load_file(voice / "model.safetensors")
    del weights["text_encoder.embed_tokens.weight"]
    save_file(weights, tmp_path / "lacking" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "mixed" / "vocab.json").write_bytes((phonetic / "vocab.json").read_bytes())
    before = sorted(os.listdir(tmp_path))
    done = inside("speak.py", f"--model={voice}", "--out=out.wav", "--text=hello", "--device=cpu", *args)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and done.stdout == "" and last.startswith("error: ") and said in last
    assert done.stderr.replace("note: this voice cannot say 字 漢\n", "").count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == before


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network and an empty cache; returns the cache's folder."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_without_a_network_it_says_which_voice_is_missing_and_how_to_bring_it(inside, offline, tmp_path):
    done = inside("speak.py", "--device=cpu")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    for part in ("--model=kakao-enterprise/vits-ljs", "cannot be fetched", "--local-dir voice", "--model=voice"):
        assert part in done.stderr
    assert not list(tmp_path.glob("*.wav*"))


def test_a_voice_in_the_cache_needs_no_network(say, voice, offline):
    folder = offline / "models--someone--voice"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    shutil.copytree(voice, folder / "snapshots" / ("0" * 40))
    assert (say("the cat", model="someone/voice") == say("the cat", model=voice)).all()
