"""transcribe.ipynb: the tests run the notebook itself on synthesized speech, with a Whisper that knows one sentence."""

import ast
import ctypes
import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import tempfile
import types
import wave
from pathlib import Path

import espeakng_loader
import imageio_ffmpeg
import nbformat
import numpy as np
import pytest
import torch
import whisper
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from whisper.model import ModelDimensions, Whisper
from whisper.tokenizer import get_tokenizer

from conftest import ROOT

pytestmark = pytest.mark.slow
SENTENCE = "So long, and thanks for all the fish."
LONG_TEXT = "A long sentence, which goes on and on, and on, until it is at its end. " * 3
FORMATS = [".mp3", ".m4a", ".m4b", ".wav", ".flac", ".ogg", ".opus", ".aac", ".webm", ".wma", ".mp4", ".aiff", ".mkv"]
NOTEBOOK = ROOT / "transcribe.ipynb"


# -----------------------------------------------------------------------------
# synthesized speech, and a tiny Whisper


@pytest.fixture(scope="session")
def synthesize(tmp_path_factory):
    """synthesize(path, text) writes speech into an audio file, in the format that the file's extension names."""
    espeak = ctypes.CDLL(espeakng_loader.get_library_path())
    callback_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    sound = bytearray()

    @callback_type
    def callback(samples, count, events):
        sound.extend(ctypes.string_at(samples, 2 * count) if count else b"")
        return 0

    # AUDIO_OUTPUT_SYNCHRONOUS; espeakCHARS_UTF8 below. From espeak-ng's speak_lib.h.
    rate = espeak.espeak_Initialize(2, 0, espeakng_loader.get_data_path().encode(), 0)
    assert rate > 0 and espeak.espeak_SetVoiceByName(b"en") == 0
    espeak.espeak_SetSynthCallback(callback)
    scratch = tmp_path_factory.mktemp("speech") / "speech.wav"

    def synthesize(path, text):
        sound.clear()
        data = text.encode()
        assert espeak.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, 0, 0, 1, None, None) == 0
        with wave.open(str(scratch), "wb") as f:
            f.setnchannels(1), f.setsampwidth(2), f.setframerate(rate)
            f.writeframes(sound)
        path.parent.mkdir(parents=True, exist_ok=True)
        muxer = ["-f", "ipod"] if path.suffix == ".m4b" else []
        subprocess.run(["ffmpeg", "-nostdin", "-v", "error", "-y", "-i", scratch, *muxer, path], check=True)
        return path

    yield synthesize
    espeak.espeak_Terminate()


@pytest.fixture(scope="session")
def long_speech(tmp_path_factory, synthesize):
    """long_speech(kind) is the path of a file with 14 seconds of speech, in the format of that ending."""
    folder = tmp_path_factory.mktemp("long")

    def long_speech(kind):
        path = folder / f"1{kind}"
        return path if path.exists() else synthesize(path, LONG_TEXT)

    return long_speech


@pytest.fixture(scope="session", autouse=True)
def ffmpeg(tmp_path_factory):
    """Put imageio-ffmpeg's program on the PATH, under the name that Whisper looks for."""
    folder = tmp_path_factory.mktemp("bin")
    shutil.copy(imageio_ffmpeg.get_ffmpeg_exe(), folder / ("ffmpeg.exe" if os.name == "nt" else "ffmpeg"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        yield folder


def save_checkpoint(path, multilingual):
    """
    A Whisper of one layer, in the format of whisper.load_model. Its decoder depends only on the position: for any audio
    it gives "English" if it is multilingual, and then SENTENCE from 0 to 2 s.
    """
    width = 64
    dims = ModelDimensions(80, 1500, width, 1, 1, 51864 + multilingual, width, width, 1, 1)
    torch.manual_seed(0)
    net, tokens = Whisper(dims), get_tokenizer(multilingual, language="en", task="transcribe")
    answer = [tokens.timestamp_begin, *tokens.encode(" " + SENTENCE), tokens.timestamp_begin + 100, tokens.eot]
    # what follows <|startoftranscript|>, and if the model is multilingual <|en|>, <|transcribe|>
    targets = [tokens.sot_sequence[1], None, *answer] if multilingual else answer
    state = {name: torch.zeros_like(p) if name.startswith("decoder") else p for name, p in net.state_dict().items()}
    state["decoder.ln.weight"] += 1
    state["decoder.positional_embedding"] = 100 * torch.eye(width)
    for position, target in enumerate(targets):
        if target is not None:
            state["decoder.token_embedding.weight"][target, position] = 5  # a logit of 40
    torch.save({"dims": vars(dims), "model_state_dict": state}, path)
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("whisper") / "one-sentence.pt", multilingual=True)


# -----------------------------------------------------------------------------
# the notebook


def with_settings(**settings):
    """The notebook, with other values assigned to these names."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for name, value in settings.items():
        value = str(value) if isinstance(value, Path) else value
        counts = []
        for cell in notebook.cells:
            cell.source, count = re.subn(rf"(?m)^{name} = [^#\n]*", lambda _: f"{name} = {value!r}  ", cell.source)  # noqa: B023
            counts.append(count)
        assert sum(counts) == 1, f"{name} should be set once"
    return notebook


def code_cells(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="session")
def definitions():
    """The imports, functions, classes and constants of the notebook, without its other statements."""
    names = {"clean": True, "keep": "", "COLAB": False}
    for source in code_cells(nbformat.read(NOTEBOOK, as_version=4)):
        tree = ast.parse(source)
        tree.body = [node for node in tree.body if isinstance(node, DEFINITIONS) or is_constant(node)]
        exec(compile(tree, "<notebook>", "exec"), names)
    return types.SimpleNamespace(names=names, **{k: v for k, v in names.items() if not k.startswith("__")})


DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)


def is_constant(node):
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper()


@pytest.fixture
def run_notebook(tmp_path, checkpoint, monkeypatch, capsys):
    """run_notebook(name=value, ...) runs all cells in this process. Returns their globals, and their output, `out`."""
    monkeypatch.chdir(tmp_path)

    def run(**settings):
        names = {"__name__": "__main__"}
        capsys.readouterr()
        sources = code_cells(with_settings(**{"audio_folder": "audio", "model": checkpoint, **settings}))
        for i, source in enumerate(sources):
            exec(compile(source, f"<cell {i}>", "exec"), names)
        return types.SimpleNamespace(**names, out=capsys.readouterr().out)

    return run


@pytest.fixture
def chunk_seconds(monkeypatch):
    """The lengths in seconds of the chunks that Whisper was given, in order. Empty until the first."""
    lengths, transcribe = [], Whisper.transcribe

    def spy(net, audio, **options):
        lengths.append(len(audio) / 16000)
        return transcribe(net, audio, **options)

    monkeypatch.setattr(Whisper, "transcribe", spy)
    return lengths


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def test_the_notebook_is_valid_and_holds_no_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    kinds = [cell.cell_type for cell in notebook.cells]
    for previous, cell in zip(notebook.cells, notebook.cells[1:]):
        if cell.cell_type == "code":
            assert previous.cell_type == "markdown" and cell.outputs == [] and cell.execution_count is None
    assert kinds[0] == "markdown" and kinds.count("code") > 5


def test_the_notebook_needs_no_other_file_of_the_repository():
    own = {path.stem for path in ROOT.glob("*.py")}
    for source in code_cells(nbformat.read(NOTEBOOK, as_version=4)):
        assert not own & set(re.findall(r"^\s*(?:from|import) (\w+)", source, re.MULTILINE))


@pytest.mark.slow
def test_run_all_in_jupyter_writes_one_line_per_file_and_a_second_run_transcribes_nothing(
    tmp_path, checkpoint, synthesize, monkeypatch
):
    for name in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    for name in ("10.mp3", "2.m4a", "1.wav"):
        synthesize(tmp_path / "audio" / name, f"This is chapter {name}.")
    (tmp_path / "audio" / "3.mp3").write_bytes(b"no audio at all" * 1000)
    notebook = with_settings(audio_folder="audio", model=checkpoint)
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}})

    def run_all():
        for i, cell in enumerate(notebook.cells):
            client.execute_cell(cell, i)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert {output.name for output in outputs} == {"stdout"}  # no warnings
        return "".join(output.text for output in outputs)

    with client.setup_kernel():
        out = run_all()
        assert re.findall(r"min  (\S+)\n", out) == ["1.wav", "2.m4a", "3.mp3", "10.mp3"]
        assert "0 of 4 files already transcribed" in out and "100% |" in out
        assert "broken after 0.0 min: 3.mp3: it is damaged, or no audio: ffmpeg cannot read it" in out
        assert lines(tmp_path / "transcriptions.txt") == [SENTENCE] * 3
        assert f"{3 * len(SENTENCE.split())} words (en)" in out and "prepare.py" in out
        (store,) = (tmp_path / "audio-transcribed").iterdir()
        assert sorted(path.name for path in store.iterdir()) == ["1.wav.json", "10.mp3.json", "2.m4a.json"]

        (tmp_path / "audio" / "3.mp3").unlink()
        dates = {path: path.stat().st_mtime_ns for path in store.iterdir()}
        out = run_all()
        assert "3 of 3 files already transcribed" in out and "broken" not in out
        assert {path: path.stat().st_mtime_ns for path in store.iterdir()} == dates

        shutil.rmtree(tmp_path / "audio")
        with pytest.raises(CellExecutionError):
            run_all()
        (error,) = [o for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "error"]
        assert len(error.traceback) == 1 and error.traceback[0].startswith("error: there is no folder 'audio' ")


# -----------------------------------------------------------------------------
# running it again


@pytest.mark.slow
def test_a_second_run_transcribes_only_new_and_changed_files(tmp_path, run_notebook, synthesize, chunk_seconds):
    one = synthesize(tmp_path / "audio" / "1.wav", "One.")
    two = synthesize(tmp_path / "audio" / "2.wav", "Two, or more.")
    run_notebook()
    assert len(chunk_seconds) == 2
    os.utime(one, (0, 0))  # a copy: the same sound with another date
    synthesize(two, "Something else entirely.")
    synthesize(tmp_path / "audio" / "3.wav", "Three.")
    chunk_seconds.clear()
    assert "1 of 3 files already transcribed" in run_notebook().out
    assert len(chunk_seconds) == 2
    chunk_seconds.clear()
    assert "3 of 3 files already transcribed" in run_notebook().out and chunk_seconds == []


@pytest.mark.slow
def test_another_model_or_language_transcribes_again_and_keeps_the_earlier_results(
    tmp_path, run_notebook, synthesize, chunk_seconds, checkpoint, monkeypatch
):
    synthesize(tmp_path / "audio" / "1.wav", "One.")
    run_notebook()
    assert "0 of 1 file already transcribed" in run_notebook(language="German").out
    (own := tmp_path / "own").mkdir()
    own = shutil.copy(checkpoint, own / checkpoint.name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for same in (own, f"~/own/{checkpoint.name}"):
        assert "1 of 1 file already transcribed" in run_notebook(model=same).out
    state = torch.load(own, weights_only=True)
    state["model_state_dict"]["encoder.ln_post.bias"] += 1
    torch.save(state, own)
    assert "0 of 1 file already transcribed" in run_notebook(model=own).out  # other weights under the same name
    chunk_seconds.clear()
    assert "1 of 1 file already transcribed" in run_notebook(language="de").out
    assert "1 of 1 file already transcribed" in run_notebook().out and chunk_seconds == []


@pytest.mark.slow
def test_an_interrupted_run_continues_where_it_stopped_and_gives_the_same_record(
    tmp_path, run_notebook, synthesize, chunk_seconds, monkeypatch
):
    text = "A long sentence, which goes on and on, and on, until it is at its end. " * 4
    synthesize(tmp_path / "audio" / "1.mp3", text)
    whole = run_notebook(CHUNK_SECONDS=5)
    assert len(chunk_seconds) > 3 and max(chunk_seconds) <= 5
    expected, lengths = whole.records[whole.audio_files[0]], list(chunk_seconds)
    chunk_seconds.clear()

    transcribe = Whisper.transcribe

    def interrupted(net, audio, **options):
        if len(chunk_seconds) == 2:
            raise KeyboardInterrupt
        return transcribe(net, audio, **options)

    with monkeypatch.context() as patch, pytest.raises(Exception, match="^interrupted; the text so far is saved"):
        patch.setattr(Whisper, "transcribe", interrupted)
        run_notebook(CHUNK_SECONDS=5, results_folder="results")
    assert chunk_seconds == lengths[:2]
    again = run_notebook(CHUNK_SECONDS=5, results_folder="results")
    assert chunk_seconds == lengths
    assert again.records[again.audio_files[0]] == expected
    (stored,) = (tmp_path / "results").rglob("*.json")
    assert json.loads(stored.read_text(encoding="utf-8")) == expected


@pytest.mark.slow
def test_windows_are_transcribed_independently_and_in_float32_on_a_cpu(run_notebook, tmp_path, synthesize, monkeypatch):
    synthesize(tmp_path / "audio" / "1.wav", "One.")
    given, transcribe = [], Whisper.transcribe
    monkeypatch.setattr(Whisper, "transcribe", lambda *a, **options: given.append(options) or transcribe(*a, **options))
    run_notebook(language="German")
    assert given[0]["condition_on_previous_text"] is False and given[0]["fp16"] is False
    assert given[0]["language"] == "de"


@pytest.mark.slow
def test_a_damaged_partial_result_is_replaced(tmp_path, run_notebook, synthesize, chunk_seconds):
    synthesize(tmp_path / "audio" / "1.wav", "One.")
    run_notebook()
    (stored,) = (tmp_path / "audio-transcribed").rglob("*.json")
    stored.write_text(stored.read_text(encoding="utf-8")[:50], encoding="utf-8")
    assert "0 of 1 file already transcribed" in run_notebook().out and len(chunk_seconds) == 2
    json.loads(stored.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_file_on_which_whisper_fails_does_not_stop_the_others_and_is_tried_again(
    tmp_path, run_notebook, synthesize, monkeypatch
):
    for i in (1, 2):
        synthesize(tmp_path / "audio" / f"{i}.wav", f"Number {i}.")
    transcribe, calls = Whisper.transcribe, []

    def fail_once(net, audio, **options):
        calls.append(len(audio))
        if len(calls) == 1:
            raise ValueError("an unexpected failure\nand a traceback")
        return transcribe(net, audio, **options)

    monkeypatch.setattr(Whisper, "transcribe", fail_once)
    out = run_notebook().out
    assert "broken after 0.0 min: 1.wav: an unexpected failure\n" in out
    assert lines(tmp_path / "transcriptions.txt") == [SENTENCE]
    assert "1 of 2 files already transcribed" in run_notebook().out
    assert lines(tmp_path / "transcriptions.txt") == [SENTENCE] * 2


# -----------------------------------------------------------------------------
# single functions


def test_only_audio_files_are_found_in_natural_order(tmp_path, definitions):
    order = ["a2.MP3", "a10.m4a", "B1/1.m4b", "b1/2.wav", "b1/10.flac", "b2.ogg", "b10/01.opus", "c.webm", "d.WMA"]
    for name in [*order, "notes.txt", ".hidden.mp3", "__MACOSX/1.mp3", "b1/._2.wav", "cover.jpg", "b1/B.JPG", "README"]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    audio_files, left_out = definitions.find_audio(tmp_path)
    assert [path.as_posix() for path in audio_files] == order
    assert left_out == {".txt": 1, ".jpg": 2, "without ending": 1}


def read(definitions, path):
    """All that read_chunks gives: the sound, and the signs of damage."""
    damage = []
    return np.concatenate([np.empty(0), *definitions.read_chunks(path, 0, damage)]), damage


@pytest.mark.parametrize("kind", FORMATS)
def test_each_audio_format_is_read_and_its_duration_known(tmp_path, definitions, synthesize, kind):
    path = synthesize(tmp_path / f"it's a:50% file{kind}", "How much wood would a woodchuck chuck?")
    sound, damage = read(definitions, path)
    np.testing.assert_array_equal(sound, whisper.load_audio(str(path)))
    assert np.abs(sound).max() > 0.05 and damage == []
    if kind != ".aac":  # it has no header
        assert definitions.header_minutes(path) * 60 == pytest.approx(len(sound) / 16000, abs=0.1)


HEALTHY = {
    "damaged-cover.mp3": "-i cover.jpg -map 0 -map 1 -c:v copy -disposition:v attached_pic -write_id3v1 1",
    "no-header.mp3": "-af adelay=2000 -q:a 5 -write_xing 0",  # its estimated duration is too long
    "chapters.m4b": "-i chapters.txt -map_metadata 1 -map_chapters 1 -f ipod",
    "two-tracks.m4a": "-map 0 -map 0",
    "8-bit.wav": "-ar 8000 -c:a pcm_u8",
    "24-bit-stereo.wav": "-ac 2 -c:a pcm_s24le",
    "float.wav": "-c:a pcm_f32le",
    "short.mp3": "-t 0.1",
    "chained.ogg": "",
}


@pytest.mark.parametrize("name", HEALTHY)
def test_no_damage_is_seen_in_a_healthy_file(tmp_path, definitions, long_speech, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    chapters = "[CHAPTER]\nTIMEBASE=1/1\nSTART=0\nEND=5\n[CHAPTER]\nTIMEBASE=1/1\nSTART=5\nEND=9\n"
    Path("chapters.txt").write_text(";FFMETADATA1\n" + chapters, encoding="utf-8")
    ffmpeg = ["ffmpeg", "-nostdin", "-v", "error"]
    if "cover.jpg" in HEALTHY[name]:
        subprocess.run([*ffmpeg, *"-f lavfi -i color=s=99x99 -frames:v 1 cover.jpg".split()], check=True)
    subprocess.run([*ffmpeg, "-i", long_speech(".wav"), *HEALTHY[name].split(), name], check=True)
    data = Path(name).read_bytes()
    if name == "damaged-cover.mp3":
        table = data.index(b"\xff\xdb") + 4  # a quantization table of the picture: its number
        Path(name).write_bytes(data[:table] + b"\xff" + data[table + 1 :])
    if name == "chained.ogg":
        Path(name).write_bytes(data * 2)
    sound, damage = read(definitions, tmp_path / name)
    assert damage == [] and len(sound) > 1000


@pytest.mark.parametrize("kind", [".mp3", ".m4a", ".flac", ".ogg", ".opus", ".aac", ".webm", ".wma"])
def test_noise_inside_a_compressed_file_is_seen_as_damage_and_the_rest_is_read(
    tmp_path, definitions, long_speech, kind
):
    data = long_speech(kind).read_bytes()
    middle, size = len(data) // 2, len(data) // 8
    damaged = tmp_path / f"1{kind}"
    damaged.write_bytes(data[:middle] + random.Random(0).randbytes(size) + data[middle + size :])
    sound, damage = read(definitions, damaged)
    whole = definitions.header_minutes(long_speech(".wav")) * 60 * 16000
    assert damage and 0.4 * whole < len(sound) < 1.01 * whole


@pytest.mark.parametrize("kind", [".mp3", ".wav", ".flac", ".ogg", ".opus", ".aac", ".webm", ".wma", ".aiff"])
def test_half_a_file_is_seen_as_damage_and_the_half_is_read(tmp_path, definitions, long_speech, kind):
    data, half = long_speech(kind).read_bytes(), tmp_path / f"1{kind}"
    half.write_bytes(data[: len(data) // 2 + 1])
    sound, damage = read(definitions, half)
    whole = definitions.header_minutes(long_speech(".wav")) * 60 * 16000
    assert damage and 0.4 * whole < len(sound) < 0.6 * whole


UNREADABLE = {
    "empty.mp3": "it is empty (0 bytes)",
    "cut.m4a": "it is incomplete, or no audio: its index (moov atom) is missing. Copy or download it again",
    "text.wav": "it is damaged, or no audio: ffmpeg cannot read it (",
    "silent.mp4": "it has no sound: it may be a picture, or a video without sound",
    "gone.wav": "it cannot be read: No such file or directory",
}


@pytest.mark.slow
def test_each_unreadable_file_is_reported_in_plain_words_and_does_not_stop_the_others(
    tmp_path, run_notebook, synthesize, monkeypatch
):
    audio = tmp_path / "audio"
    synthesize(audio / "1.wav", "One.")
    synthesize(audio / "gone.wav", "Two.")
    (audio / "empty.mp3").touch()
    cut = synthesize(audio / "cut.m4a", "Three.")
    cut.write_bytes(cut.read_bytes()[:1000])
    (audio / "text.wav").write_text("no audio", encoding="utf-8")
    (audio / "cover.jpg").touch()
    picture = "-v error -f lavfi -i color=s=32x32 -t 1".split()
    subprocess.run(["ffmpeg", "-nostdin", *picture, audio / "silent.mp4"], check=True)

    transcribe = Whisper.transcribe

    def remove_a_file(net, sound, **options):
        (audio / "gone.wav").unlink(missing_ok=True)
        return transcribe(net, sound, **options)

    monkeypatch.setattr(Whisper, "transcribe", remove_a_file)
    out = run_notebook().out
    for name, reason in UNREADABLE.items():
        assert f"\nbroken after 0.0 min: {name}: {reason}" in out
    assert "\nnot taken as audio: 1 .jpg\n" in out and "damaged?" not in out
    assert lines(tmp_path / "transcriptions.txt") == [SENTENCE]


@pytest.mark.slow
def test_damage_is_reported_in_every_run_and_the_text_is_kept(tmp_path, run_notebook, synthesize, chunk_seconds):
    path = synthesize(tmp_path / "audio" / "1.mp3", LONG_TEXT)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(2000) + data[len(data) // 2 :])
    synthesize(tmp_path / "audio" / "2.wav", "Two.")
    report = r"\ndamaged\? 1.mp3: ffmpeg says 'Header missing'.*\n"
    out = run_notebook().out
    assert re.search(report, out) and out.count("damaged?") == 1
    chunk_seconds.clear()
    out = run_notebook().out
    assert re.search(report, out) and out.count("damaged?") == 1 and chunk_seconds == []
    assert lines(tmp_path / "transcriptions.txt")[0].startswith(SENTENCE)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse some of these names")
def test_a_file_may_have_any_name(tmp_path, run_notebook, synthesize):
    path = synthesize(tmp_path / "audio" / "-1.wav", "One.")
    for name in ("[a] {b} 50%s 'c' \"d\"|.wav", "two\nlines.wav", "\udcff\udcfe.wav", "1. The end"):
        shutil.copy(path, path.with_name(name))
    out = run_notebook().out
    for name in ("-1.wav", "[a] {b} 50%s 'c' \"d\"|.wav", "two?lines.wav", "??.wav"):
        assert f"min  {name}\n" in out
    assert "\nnot taken as audio: 1 . the end\n" in out and "broken" not in out
    assert lines(tmp_path / "transcriptions.txt") == [SENTENCE] * 4


def test_chunks_are_cut_in_silence_and_together_give_the_audio_from_any_first_sample(
    tmp_path, definitions, monkeypatch
):
    rng, path = np.random.default_rng(0), tmp_path / "noise.wav"
    sound = rng.integers(-9999, 9999, 16000 * 35).astype("<i2")
    silence = slice(16000 * 93 // 10, 16000 * 98 // 10)
    sound[silence] = 0
    with wave.open(str(path), "wb") as f:
        f.setnchannels(1), f.setsampwidth(2), f.setframerate(16000)
        f.writeframes(sound.tobytes())
    monkeypatch.setitem(definitions.names, "CHUNK_SECONDS", 10)
    found = list(definitions.read_chunks(path, 0, []))
    assert len(found) > 3 and max(map(len, found)) <= 10 * 16000
    np.testing.assert_array_equal(np.concatenate(found), sound / np.float32(32768))
    assert silence.start <= len(found[0]) <= silence.stop
    for start in (1, 16000, 40001, len(sound)):
        later = [np.empty(0), *definitions.read_chunks(path, start, [])]
        np.testing.assert_array_equal(np.concatenate(later), sound[start:] / np.float32(32768))


@pytest.mark.parametrize("start", [0.2, 0.25])  # on the grid of windows, and between
def test_a_cut_falls_in_the_long_pause_of_a_sentence_rather_than_in_a_comma_however_quiet(definitions, start):
    sound = np.random.default_rng(0).normal(0, 0.1, 30 * 16000).astype(np.float32)
    first = int((27 + start) * 16000)
    sound[first : first + 9600] *= 0.05  # 0.6 s, with noise
    sound[-16000:-11000] = 0  # 0.3 s, without
    assert first < definitions.quietest_sample(sound) < first + 9600


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, definitions, monkeypatch, call):
    path = tmp_path / "transcriptions.txt"
    definitions.write_text(path, "old\n")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(definitions.UserError, match="^cannot write .*: No space left on device$"):
        definitions.write_text(path, "new\n")
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_bytes() == b"old\n"


@pytest.mark.slow
def test_text_is_utf8_with_one_line_per_file_whatever_characters_whisper_returns(
    tmp_path, run_notebook, synthesize, monkeypatch
):
    for i in (1, 2):
        synthesize(tmp_path / "audio" / f"{i}.wav", f"Number {i}.")
    raw_text = " Grüße,\u2028 “naïve”\r\n\x85 東京 "
    result = {"language": "de", "segments": [segment(raw_text)]}
    monkeypatch.setattr(Whisper, "transcribe", lambda *_, **__: result)
    run_notebook()
    assert (tmp_path / "transcriptions.txt").read_bytes() == "Grüße, “naïve” 東京\n".encode() * 2


@pytest.mark.slow
def test_messages_about_one_file_use_the_singular(tmp_path, run_notebook, synthesize, monkeypatch):
    synthesize(tmp_path / "audio" / "1.wav", "One.")
    result = {"language": "en", "segments": [segment(" One.")]}
    monkeypatch.setattr(Whisper, "transcribe", lambda *_, **__: result)
    out = run_notebook().out
    assert "\n1 file, 0.00 hours, in " in out and "\n0 of 1 file already transcribed\n" in out
    assert "\nleft out 0 of 1 segment\n" in out and "\n1 word (en) from 0.0 minutes of audio, one line per file" in out


@pytest.mark.parametrize("number, text", [(0, "0 files"), (1, "1 file"), (2, "2 files"), (1000, "1,000 files")])
def test_count_uses_the_singular_for_one_only(definitions, number, text):
    assert definitions.count(number, "file") == text


# -----------------------------------------------------------------------------
# cleaning


def segment(text, start=0.0, no_speech_prob=0.02, avg_logprob=-0.2, compression_ratio=1.4, temperature=0.0):
    """A segment with the scores of clear speech, except those given."""
    return {"start": start, "end": start + 2.0, "text": text, **{k: v for k, v in locals().items() if "_" in k}} | {
        "temperature": temperature
    }


PROSE = [
    " The village of Lower Wexley has one hill and two opinions, and the second opinion is that the hill isn't one.",
    ' "No."',
    ' "No."',
    " No, no, no, no, no, said the Provost, very, very, very quietly.",
    " Thank you.",
    " Thank you for watching the hens, she said.",
    " The captions by the door said EXIT (and meant it), and then (twice) ENTRANCE.",
    " Chapter Two. What do you want?",
    " 東京は日本の首都です。",
]


def test_cleaning_keeps_prose(definitions):
    kept, rejected = definitions.filter_segments([segment(text) for text in PROSE])
    assert rejected == [] and [s["text"] for s in kept] == PROSE


@pytest.mark.parametrize(
    "reason, text, scores",
    [
        ("silence", " I'll be right back.", {"no_speech_prob": 0.88, "avg_logprob": -0.38}),
        ("silence", " You", {"no_speech_prob": 0.7, "avg_logprob": -0.9}),
        ("low confidence", " Bermuda bananas vex Ptolemy.", {"avg_logprob": -1.3}),
        ("loop", " I went home and", {"compression_ratio": 5.0}),
        ("loop", " and so he said" * 12, {}),
        ("loop", "ありがとう" * 20, {}),
        ("boilerplate", " Thanks for watching!", {}),
        ("boilerplate", " Subtitles by the Amara.org community", {}),
        ("boilerplate", " Untertitelung des ZDF, 2020", {}),
        ("boilerplate", " [Music]", {}),
        ("boilerplate", " ♪♪", {}),
        ("boilerplate", " ...", {}),
    ],
)
def test_cleaning_removes_invented_segments_with_a_reason_and_keeps_their_neighbours(definitions, reason, text, scores):
    kept, rejected = definitions.filter_segments([segment(PROSE[0]), segment(text, **scores), segment(PROSE[-1])])
    assert [(r, s["text"]) for r, s in rejected] == [(reason, text)]
    assert [s["text"] for s in kept] == [PROSE[0], PROSE[-1]]


@pytest.mark.parametrize(
    "texts, clear, doubtful",
    [
        ([" I never said that the sofa was mine."], 3, 1),
        ([" Where is my towel, Ford?", " It is in the other bag."], 3, 1),
        ([" Right."], 3, 2),
    ],
    ids=["sentence", "in turns", "word"],
)
@pytest.mark.parametrize("sign", [{}, {"temperature": 0.2}, {"no_speech_prob": 0.4}, {"avg_logprob": -0.7}])
def test_cleaning_removes_the_fourth_time_of_a_segment_or_the_second_if_whisper_was_unsure(
    definitions, texts, clear, doubtful, sign
):
    kept, rejected = definitions.filter_segments([segment(text, **sign) for text in texts * 6])
    assert [s["text"] for s in kept] == texts * (doubtful if sign else clear)
    assert {reason for reason, _ in rejected} == {"repeated"}


@pytest.mark.slow
def test_removed_segments_are_shown_and_can_be_kept_without_transcribing_again(
    tmp_path, run_notebook, synthesize, chunk_seconds
):
    synthesize(tmp_path / "audio" / "1.wav", "One.")
    synthesize(tmp_path / "audio" / "2.wav", "Two.")
    run_notebook()
    (path,) = (tmp_path / "audio-transcribed").rglob("2.wav.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    record["segments"] += [segment(" Thanks for watching!", 75.5), segment(" Um.", 80, avg_logprob=-2)]
    path.write_text(json.dumps(record), encoding="utf-8")
    chunk_seconds.clear()

    out = run_notebook().out
    rejected = "2.wav 1:15 boilerplate: Thanks for watching!\n2.wav 1:20 low confidence: Um.\n"
    assert f"{rejected}left out 2 of 4 segments\n" in out
    assert lines(tmp_path / "transcriptions.txt") == [SENTENCE] * 2
    assert "left out 1 of 4" in run_notebook(keep="nothing such | THANKS FOR").out
    assert lines(tmp_path / "transcriptions.txt")[1] == SENTENCE + " Thanks for watching!"
    assert "left out 0 of 4" in run_notebook(clean=False).out
    assert lines(tmp_path / "transcriptions.txt")[1] == SENTENCE + " Thanks for watching! Um."
    assert chunk_seconds == []


# -----------------------------------------------------------------------------
# mistakes and devices


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"audio_folder": "audoi"}, r"there is no folder 'audoi' .*: did you mean 'audio'\?"),
        ({"audio_folder": "~/none/such"}, r"there is no folder '~/none/such' \(no 'none' in "),
        ({"audio_folder": " "}, "audio_folder is empty"),
        ({"audio_folder": "texts"}, r"no audio in .* \(1 other file\): it may be \.mp3, "),
        ({"model": "tubro"}, r"model 'tubro' is unknown: did you mean 'turbo'\?"),
        ({"model": "Turbo"}, r"model 'Turbo' is unknown: did you mean 'turbo'\?"),
        ({"model": ""}, "model is empty: it should name one of"),
        ({"model": "audio"}, "model 'audio' is a folder: it should name a .pt file"),
        ({"model": "~/tiny.pt"}, "model: there is no file '~/tiny.pt': "),
        ({"model": "none/tiny.bin"}, "model: there is no file 'none/tiny.bin': "),
        (
            {"model": "audio/1.wav"},
            "cannot load the model 'audio/1.wav': it is damaged, or not in the format of openai-w",
        ),
        ({"audio_folder": "audio/1.wav"}, "audio_folder 'audio/1.wav' is a file: it should name the folder"),
        ({"audio_folder": "~nobody-of-this-name/audio"}, "there is no folder '~nobody-of-this-name/audio' "),
        ({"language": "englsh"}, r"language 'englsh' is unknown: did you mean 'english'\?"),
        ({"language": "Cantonese"}, "model '.*one-sentence.pt' understands no Cantonese: choose 'turbo'"),
        ({"model": "base.en", "language": "de"}, "model 'base.en' understands only English, not 'de': choose 'base'"),
        ({"output": "texts"}, "output 'texts' is a folder"),
        ({"output": "texts/1.txt/out.txt"}, "output: cannot make the folder "),
        ({"results_folder": "texts/1.txt"}, "results_folder: cannot make the folder "),
    ],
)
def test_a_mistaken_setting_gives_a_one_line_error_before_anything_is_transcribed(
    tmp_path, run_notebook, chunk_seconds, monkeypatch, settings, message
):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("audio/1.wav", "texts/1.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"?")
    with pytest.raises(Exception, match=f"^{message}") as mistake:
        run_notebook(**settings)
    assert mistake.value._render_traceback_() == [f"error: {mistake.value}"] and "\n" not in str(mistake.value)
    assert chunk_seconds == []


class Code:
    def __reduce__(self):
        return os.mkdir, ("code-has-run",)


WRONG_CHECKPOINTS = {
    "empty": lambda whole: b"",
    "cut off": lambda whole: whole[: len(whole) // 2],
    "text": lambda whole: b"no model\n" * 100,
    "transformers": lambda whole: torch_bytes({"model.encoder.conv1.weight": torch.zeros(1)}),
    "a list": lambda whole: torch_bytes([1, 2]),
    "other sizes": lambda whole: torch_bytes({"dims": vars(ModelDimensions(*[1] * 10)), "model_state_dict": {}}),
    "safetensors": lambda whole: b"\x02\0\0\0\0\0\0\0{}",
    "whisper.cpp": lambda whole: b"lmgg" + bytes(100),
    "code": lambda whole: pickle.dumps({"dims": Code()}, protocol=2),
    "code in a zip": lambda whole: torch_bytes({"dims": Code()}),
}


def torch_bytes(value):
    with tempfile.TemporaryFile() as f:
        torch.save(value, f)
        f.seek(0)
        return f.read()


@pytest.mark.parametrize("kind", WRONG_CHECKPOINTS)
def test_a_file_that_is_no_whisper_checkpoint_gives_a_one_line_error_and_runs_no_code(
    tmp_path, definitions, checkpoint, monkeypatch, kind
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.pt").write_bytes(WRONG_CHECKPOINTS[kind](checkpoint.read_bytes()))
    with pytest.raises(definitions.UserError) as mistake:
        definitions.load_model("wrong.pt")
    expected = "cannot load the model 'wrong.pt': it is damaged, or not in the format of openai-whisper: it should be "
    assert str(mistake.value).startswith(expected) and "\n" not in str(mistake.value)
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.pt"]


@pytest.mark.parametrize(
    "failure", [MemoryError("no memory"), RuntimeError("can't allocate memory: 3 GB"), OSError(5, "x")]
)
def test_a_lack_of_memory_or_a_disk_error_is_not_called_a_wrong_checkpoint(
    definitions, checkpoint, monkeypatch, failure
):
    def fail(*_):
        raise failure

    monkeypatch.setattr(whisper, "load_model", fail)
    with pytest.raises(definitions.UserError, match=f"^cannot load the model .*: {re.escape(str(failure))}$"):
        definitions.load_model(str(checkpoint))


@pytest.mark.slow
def test_an_english_only_model_gives_english_and_refuses_other_languages_whatever_its_name(
    tmp_path, run_notebook, synthesize, chunk_seconds
):
    path = save_checkpoint(tmp_path / "mine.en.pt", multilingual=False)
    synthesize(tmp_path / "audio" / "1.wav", "One.")
    with pytest.raises(Exception, match="^model '.*mine.en.pt' understands only English, not German: choose 'turbo'"):
        run_notebook(model=path, language="de")
    assert chunk_seconds == []
    for language in ("None", "English"):
        assert " words (en) from " in run_notebook(model=path, language=language).out
        assert lines(tmp_path / "transcriptions.txt") == [SENTENCE]


@pytest.mark.slow
def test_every_path_of_the_settings_may_begin_with_the_home_folder(
    tmp_path, run_notebook, synthesize, checkpoint, monkeypatch
):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    synthesize(tmp_path / "home" / "audio" / "1.wav", "One.")
    shutil.copy(checkpoint, tmp_path / "home" / "own.pt")
    run_notebook(audio_folder="~/audio", model="~/own.pt", output="~/out/all.txt", results_folder="~/results")
    assert lines(tmp_path / "home" / "out" / "all.txt") == [SENTENCE]
    assert len(list((tmp_path / "home" / "results").rglob("1.wav.json"))) == 1


def test_a_read_only_results_folder_gives_a_one_line_error_before_a_model_is_loaded(
    tmp_path, run_notebook, monkeypatch
):
    def fail(**_):
        raise OSError(30, "Read-only file system")

    (tmp_path / "audio").mkdir()
    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    monkeypatch.setattr(whisper, "load_model", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(Exception, match="^results_folder: cannot write in the folder '.*': Read-only file system$"):
        run_notebook()


def test_missing_ffmpeg_gives_an_error_that_says_how_to_install_it(run_notebook, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    message = "^ffmpeg, which reads the audio, is not on the PATH: .*apt install ffmpeg.*brew.*winget"
    with pytest.raises(Exception, match=message):
        run_notebook()


def test_a_missing_package_is_installed_and_a_failure_gives_a_one_line_error(definitions, monkeypatch):
    calls = []

    def pip(command, **_):
        calls.append(command)
        return types.SimpleNamespace(returncode=len(calls) - 1, stderr="WARNING: slow\nERROR: no network\n")

    monkeypatch.setattr(subprocess, "run", pip)
    definitions.install("tqdm==0.0.1")  # installed, in another version
    assert calls == []
    definitions.install("no-such-package==1.2")
    assert calls == [[sys.executable, "-m", "pip", "install", "-q", "no-such-package==1.2"]]
    with pytest.raises(definitions.UserError, match="^pip cannot install no-such-package==1.2: ERROR: no network$"):
        definitions.install("no-such-package==1.2")


@pytest.mark.slow
def test_no_text_at_all_is_an_error_and_keeps_the_earlier_text(tmp_path, run_notebook):
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "1.mp3").write_bytes(b"?")
    (tmp_path / "transcriptions.txt").write_text("earlier\n", encoding="utf-8")
    with pytest.raises(Exception, match="^no text from 1 file: "):
        run_notebook()
    assert lines(tmp_path / "transcriptions.txt") == ["earlier"]


def test_the_cpu_is_used_if_whisper_fails_on_the_apple_gpu(definitions, checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    net = whisper.load_model(str(checkpoint), "cpu")
    # there is no MPS here, so moving the model to it fails
    assert definitions.choose_device(net) is False and net.device.type == "cpu"
    assert "cannot use the Apple GPU" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [0.0, 1.0, float("nan")])
def test_an_apple_gpu_is_used_only_if_it_agrees_with_the_cpu(definitions, checkpoint, monkeypatch, wrong):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    devices, compute_logits = [], definitions.logits_for_noise

    def mps_is_the_cpu(net, device, fp16):
        devices.append((device, fp16))
        return compute_logits(net, "cpu", fp16) + (wrong if device == "mps" else 0.0)

    monkeypatch.setitem(definitions.names, "logits_for_noise", mps_is_the_cpu)
    net = whisper.load_model(str(checkpoint), "cpu")
    moved = []
    monkeypatch.setattr(net, "to", lambda *to: moved.append(to) or net)
    assert definitions.choose_device(net) is False and devices == [("cpu", False), ("mps", False)]
    assert (("cpu",) == moved[-1]) and len(moved) == (2 if wrong == 0.0 else 3)


@pytest.mark.parametrize("logit, fp16", [(1.0, True), (float("nan"), False)])
def test_a_cuda_gpu_uses_float16_unless_it_gives_nan(definitions, monkeypatch, logit, fp16):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(definitions.names, "logits_for_noise", lambda net, device, fp16: torch.tensor([logit]))
    assert definitions.choose_device(None) is fp16


def test_on_colab_paths_of_the_files_pane_and_of_the_drive_are_found(tmp_path, definitions, monkeypatch):
    (tmp_path / "drive" / "MyDrive" / "audiobooks").mkdir(parents=True)
    monkeypatch.setitem(definitions.names, "COLAB", True)
    monkeypatch.setitem(definitions.names, "DRIVE", tmp_path / "drive")
    monkeypatch.chdir(tmp_path)
    assert definitions.find_folder("audiobooks") == tmp_path / "drive" / "MyDrive" / "audiobooks"
    assert definitions.find_folder(str(tmp_path)[1:]) == tmp_path  # as content/audiobooks means /content/audiobooks
