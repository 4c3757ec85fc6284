"""transcribe.ipynb: the notebook itself is run, on synthesized speech, with a Whisper that always says one sentence."""

import ast
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
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
NOTEBOOK = ROOT / "transcribe.ipynb"


# -----------------------------------------------------------------------------
# speech, and a Whisper that hears


@pytest.fixture(scope="session")
def speak(tmp_path_factory):
    """speak(path, text) has espeak-ng read a text into an audio file of the kind that the path's ending says."""
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

    def speak(path, text):
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

    yield speak
    espeak.espeak_Terminate()


@pytest.fixture(scope="session", autouse=True)
def ffmpeg(tmp_path_factory):
    """The ffmpeg of imageio-ffmpeg, under the name that Whisper looks for."""
    folder = tmp_path_factory.mktemp("bin")
    shutil.copy(imageio_ffmpeg.get_ffmpeg_exe(), folder / ("ffmpeg.exe" if os.name == "nt" else "ffmpeg"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        yield folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """
    A Whisper of one layer, in the format of whisper.load_model, whose decoder looks at nothing but the position: it
    answers "English", and then SENTENCE from 0 to 2 s, whatever it hears.
    """
    width = 64
    dims = ModelDimensions(80, 1500, width, 1, 1, 51865, width, width, 1, 1)
    torch.manual_seed(0)
    net, tokens = Whisper(dims), get_tokenizer(True, language="en", task="transcribe")
    answer = [tokens.timestamp_begin, *tokens.encode(" " + SENTENCE), tokens.timestamp_begin + 100, tokens.eot]
    targets = [tokens.sot_sequence[1], None, *answer]  # what follows <|startoftranscript|>, <|en|>, <|transcribe|>, ...
    state = {name: torch.zeros_like(p) if name.startswith("decoder") else p for name, p in net.state_dict().items()}
    state["decoder.ln.weight"] += 1
    state["decoder.positional_embedding"] = 100 * torch.eye(width)
    for position, target in enumerate(targets):
        if target is not None:
            state["decoder.token_embedding.weight"][target, position] = 5  # a logit of 40
    path = tmp_path_factory.mktemp("whisper") / "one-sentence.pt"
    torch.save({"dims": vars(dims), "model_state_dict": state}, path)
    return path


# -----------------------------------------------------------------------------
# the notebook


def with_settings(**settings):
    """The notebook, with other values in its assignments of these names."""
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
def parts():
    """What the notebook's cells import and define, functions and constants, without what they do."""
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
def notebook(tmp_path, checkpoint, monkeypatch, capsys):
    """notebook(name=value, ...) runs all cells in this process, as Run all does; returns their names, and `out`."""
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
def heard(monkeypatch):
    """The lengths, in seconds, of what Whisper was given to transcribe, as it comes."""
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
    for before, cell in zip(notebook.cells, notebook.cells[1:]):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown" and cell.outputs == [] and cell.execution_count is None
    assert kinds[0] == "markdown" and kinds.count("code") > 5


def test_the_notebook_needs_no_other_file_of_the_repository():
    own = {path.stem for path in ROOT.glob("*.py")}
    for source in code_cells(nbformat.read(NOTEBOOK, as_version=4)):
        assert not own & set(re.findall(r"^\s*(?:from|import) (\w+)", source, re.MULTILINE))


def test_run_all_in_jupyter_writes_one_line_a_file_and_a_second_run_transcribes_nothing(
    tmp_path, checkpoint, speak, monkeypatch
):
    for name in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    for name in ("10.mp3", "2.m4a", "1.wav"):
        speak(tmp_path / "audio" / name, f"This is chapter {name}.")
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
        assert "0 of 4 files" in out and "100% |" in out and "broken after 0.0 min: 3.mp3: Failed to find" in out
        assert lines(tmp_path / "transcriptions.txt") == [SENTENCE] * 3
        assert f"{3 * len(SENTENCE.split())} words (en)" in out and "prepare.py" in out
        (store,) = (tmp_path / "audio-transcribed").iterdir()
        assert sorted(path.name for path in store.iterdir()) == ["1.wav.json", "10.mp3.json", "2.m4a.json"]

        (tmp_path / "audio" / "3.mp3").unlink()
        dates = {path: path.stat().st_mtime_ns for path in store.iterdir()}
        out = run_all()
        assert "3 of 3 files are transcribed already" in out and "broken" not in out
        assert {path: path.stat().st_mtime_ns for path in store.iterdir()} == dates

        shutil.rmtree(tmp_path / "audio")
        with pytest.raises(CellExecutionError):
            run_all()
        (error,) = [o for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "error"]
        assert len(error.traceback) == 1 and error.traceback[0].startswith("error: there is no folder 'audio' ")


# -----------------------------------------------------------------------------
# going on


def test_what_is_new_or_changed_is_taken_up_and_nothing_else(tmp_path, notebook, speak, heard):
    one, two = speak(tmp_path / "audio" / "1.wav", "One."), speak(tmp_path / "audio" / "2.wav", "Two, or more.")
    notebook()
    assert len(heard) == 2
    os.utime(one, (0, 0))  # as a copy has it: the same sound with another date
    speak(two, "Something else entirely.")
    speak(tmp_path / "audio" / "3.wav", "Three.")
    heard.clear()
    assert "1 of 3 files" in notebook().out
    assert len(heard) == 2
    heard.clear()
    assert "3 of 3 files" in notebook().out and heard == []


def test_another_setting_transcribes_anew_and_keeps_what_the_first_gave(tmp_path, notebook, speak, heard, checkpoint):
    speak(tmp_path / "audio" / "1.wav", "One.")
    notebook()
    assert "0 of 1 files" in notebook(language="German").out
    (own := tmp_path / "own").mkdir()
    own = shutil.copy(checkpoint, own / checkpoint.name)
    assert "1 of 1 files" in notebook(model=own).out  # the same model
    state = torch.load(own, weights_only=True)
    state["model_state_dict"]["encoder.ln_post.bias"] += 1
    torch.save(state, own)
    assert "0 of 1 files" in notebook(model=own).out  # another one under the same name
    heard.clear()
    assert "1 of 1 files" in notebook(language="de").out
    assert "1 of 1 files" in notebook().out and heard == []


def test_an_interrupted_file_goes_on_where_it_was_and_ends_as_an_undisturbed_one(
    tmp_path, notebook, speak, heard, monkeypatch
):
    speak(tmp_path / "audio" / "1.mp3", "A long sentence, which goes on and on, and on, until it is at its end. " * 2)
    whole = notebook(PIECE=2)
    assert len(heard) > 3 and max(heard) <= 2
    expected, lengths = whole.records[whole.audio[0]], list(heard)
    heard.clear()

    transcribe = Whisper.transcribe

    def interrupted(net, audio, **options):
        if len(heard) == 2:
            raise KeyboardInterrupt
        return transcribe(net, audio, **options)

    with monkeypatch.context() as patch, pytest.raises(Exception, match="^interrupted; what was heard so far is kept"):
        patch.setattr(Whisper, "transcribe", interrupted)
        notebook(PIECE=2, results_folder="results")
    assert heard == lengths[:2]
    again = notebook(PIECE=2, results_folder="results")
    assert heard == lengths
    assert again.records[again.audio[0]] == expected
    (stored,) = (tmp_path / "results").rglob("*.json")
    assert json.loads(stored.read_text(encoding="utf-8")) == expected


def test_each_window_is_heard_for_itself_and_in_float32_on_a_cpu(notebook, tmp_path, speak, monkeypatch):
    speak(tmp_path / "audio" / "1.wav", "One.")
    given, transcribe = [], Whisper.transcribe
    monkeypatch.setattr(Whisper, "transcribe", lambda *a, **options: given.append(options) or transcribe(*a, **options))
    notebook(language="German")
    assert given[0]["condition_on_previous_text"] is False and given[0]["fp16"] is False
    assert given[0]["language"] == "de"


def test_a_damaged_partial_result_is_made_anew(tmp_path, notebook, speak, heard):
    speak(tmp_path / "audio" / "1.wav", "One.")
    notebook()
    (stored,) = (tmp_path / "audio-transcribed").rglob("*.json")
    stored.write_text(stored.read_text(encoding="utf-8")[:50], encoding="utf-8")
    assert "0 of 1 files" in notebook().out and len(heard) == 2
    json.loads(stored.read_text(encoding="utf-8"))


def test_a_file_on_which_whisper_fails_stops_nothing_and_is_tried_again(tmp_path, notebook, speak, monkeypatch):
    for i in (1, 2):
        speak(tmp_path / "audio" / f"{i}.wav", f"Number {i}.")
    transcribe, calls = Whisper.transcribe, []

    def fails_once(net, audio, **options):
        calls.append(len(audio))
        if len(calls) == 1:
            raise ValueError("of a sort nobody thought of\nand a traceback")
        return transcribe(net, audio, **options)

    monkeypatch.setattr(Whisper, "transcribe", fails_once)
    out = notebook().out
    assert "broken after 0.0 min: 1.wav: of a sort nobody thought of\n" in out
    assert lines(tmp_path / "transcriptions.txt") == [SENTENCE]
    assert "1 of 2 files" in notebook().out
    assert lines(tmp_path / "transcriptions.txt") == [SENTENCE] * 2


def test_a_file_that_ends_early_is_named(tmp_path, notebook, speak):
    path = speak(tmp_path / "audio" / "1.wav", "A sentence of several words, so that it can be cut in two.")
    flac = path.with_suffix(".flac")
    subprocess.run(["ffmpeg", "-v", "error", "-i", path, flac], check=True)
    path.unlink()
    flac.write_bytes(flac.read_bytes()[: flac.stat().st_size // 2])
    assert re.search("(cut short\\?|broken after 0.0 min:) 1.flac", notebook().out)


# -----------------------------------------------------------------------------
# the parts


def test_all_kinds_of_audio_are_found_in_natural_order_and_nothing_else(tmp_path, parts):
    order = ["a2.MP3", "a10.m4a", "B1/1.m4b", "b1/2.wav", "b1/10.flac", "b2.ogg", "b10/01.opus"]
    for name in [*order, "notes.txt", ".hidden.mp3", "__MACOSX/1.mp3", "b1/._2.wav", "cover.jpg"]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert [path.as_posix() for path in parts.find_audio(tmp_path)] == order


@pytest.mark.parametrize("kind", [".mp3", ".m4a", ".m4b", ".wav", ".flac", ".ogg", ".opus"])
def test_each_kind_of_audio_is_read_and_its_length_known(tmp_path, parts, speak, kind):
    path = speak(tmp_path / f"it's a:50% file{kind}", "How much wood would a woodchuck chuck?")
    sound = np.concatenate(list(parts.pieces(path, 0)))
    np.testing.assert_array_equal(sound, whisper.load_audio(str(path)))
    assert sound.dtype == np.float32 and np.abs(sound).max() > 0.05
    assert parts.announced_minutes(path) * 60 == pytest.approx(len(sound) / 16000, abs=0.1)


def test_pieces_make_up_the_whole_from_wherever_they_begin_and_are_cut_in_silence(tmp_path, parts, monkeypatch):
    rng, path = np.random.default_rng(0), tmp_path / "noise.wav"
    sound = rng.integers(-9999, 9999, 16000 * 7).astype("<i2")
    silence = slice(16000 * 19 // 10, 16000 * 19 // 10 + 1600)
    sound[silence] = 0
    with wave.open(str(path), "wb") as f:
        f.setnchannels(1), f.setsampwidth(2), f.setframerate(16000)
        f.writeframes(sound.tobytes())
    monkeypatch.setitem(parts.names, "PIECE", 2)
    found = list(parts.pieces(path, 0))
    assert len(found) > 3 and max(map(len, found)) <= 2 * 16000
    np.testing.assert_array_equal(np.concatenate(found), sound / np.float32(32768))
    assert silence.start <= len(found[0]) <= silence.stop
    for start in (1, 16000, 40001, len(sound)):
        later = [np.empty(0), *parts.pieces(path, start)]
        np.testing.assert_array_equal(np.concatenate(later), sound[start:] / np.float32(32768))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_the_old_file(tmp_path, parts, monkeypatch, call):
    path = tmp_path / "transcriptions.txt"
    parts.write(path, "old\n")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(parts.UserError, match="^cannot write .*: No space left on device$"):
        parts.write(path, "new\n")
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_bytes() == b"old\n"


def test_text_is_utf8_with_one_line_a_file_whatever_whisper_puts_into_it(tmp_path, notebook, speak, monkeypatch):
    for i in (1, 2):
        speak(tmp_path / "audio" / f"{i}.wav", f"Number {i}.")
    said = " Grüße,\u2028 “naïve”\r\n\x85 東京 "
    result = {"language": "de", "segments": [segment(said)]}
    monkeypatch.setattr(Whisper, "transcribe", lambda *_, **__: result)
    notebook()
    assert (tmp_path / "transcriptions.txt").read_bytes() == "Grüße, “naïve” 東京\n".encode() * 2


# -----------------------------------------------------------------------------
# cleaning


def segment(text, start=0.0, no_speech_prob=0.02, avg_logprob=-0.2, compression_ratio=1.4, temperature=0.0):
    """A segment with the figures of good speech, but for those given."""
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


def test_prose_is_left_alone(parts):
    kept, faulty = parts.sift([segment(text) for text in PROSE])
    assert faulty == [] and [s["text"] for s in kept] == PROSE


@pytest.mark.parametrize(
    "what, text, figures",
    [
        ("silence", " I'll be right back.", {"no_speech_prob": 0.88, "avg_logprob": -0.38}),
        ("silence", " You", {"no_speech_prob": 0.7, "avg_logprob": -0.9}),
        ("guess", " Bermuda bananas vex Ptolemy.", {"avg_logprob": -1.3}),
        ("loop", " I went home and", {"compression_ratio": 5.0}),
        ("loop", " and so he said" * 12, {}),
        ("loop", "ありがとう" * 20, {}),
        ("phantom", " Thanks for watching!", {}),
        ("phantom", " Subtitles by the Amara.org community", {}),
        ("phantom", " Untertitelung des ZDF, 2020", {}),
        ("phantom", " [Music]", {}),
        ("phantom", " ♪♪", {}),
        ("phantom", " ...", {}),
    ],
)
def test_known_faults_are_left_out_with_their_reason_and_their_neighbours_stay(parts, what, text, figures):
    kept, faulty = parts.sift([segment(PROSE[0]), segment(text, **figures), segment(PROSE[-1])])
    assert [(why, s["text"]) for why, s in faulty] == [(what, text)]
    assert [s["text"] for s in kept] == [PROSE[0], PROSE[-1]]


@pytest.mark.parametrize(
    "texts, once",
    [
        ([" I'm going to the shop now."] * 6, [" I'm going to the shop now."]),
        ([" Where is my towel, Ford?", " It is in the other bag."] * 4, None),
        ([" Right."] * 9, [" Right."] * 2),
    ],
    ids=["sentence", "in turns", "word"],
)
def test_repeated_segments_stay_once(parts, texts, once):
    kept, faulty = parts.sift([segment(text) for text in texts])
    assert [s["text"] for s in kept] == (once or texts[:2])
    assert {what for what, _ in faulty} == {"repeated"}


def test_what_was_left_out_is_shown_and_can_be_kept_without_transcribing_anew(tmp_path, notebook, speak, heard):
    speak(tmp_path / "audio" / "1.wav", "One.")
    speak(tmp_path / "audio" / "2.wav", "Two.")
    notebook()
    (path,) = (tmp_path / "audio-transcribed").rglob("2.wav.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    record["segments"] += [segment(" Thanks for watching!", 75.5), segment(" Um.", 80, avg_logprob=-2)]
    path.write_text(json.dumps(record), encoding="utf-8")
    heard.clear()

    out = notebook().out
    assert "2.wav 1:15 phantom: Thanks for watching!\n2.wav 1:20 guess: Um.\nleft out 2 of 4 segments\n" in out
    assert lines(tmp_path / "transcriptions.txt") == [SENTENCE] * 2
    assert "left out 1 of 4" in notebook(keep="nothing such | THANKS FOR").out
    assert lines(tmp_path / "transcriptions.txt")[1] == SENTENCE + " Thanks for watching!"
    assert "left out 0 of 4" in notebook(clean=False).out
    assert lines(tmp_path / "transcriptions.txt")[1] == SENTENCE + " Thanks for watching! Um."
    assert heard == []


# -----------------------------------------------------------------------------
# mistakes, and devices


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"audio_folder": "audoi"}, r"there is no folder 'audoi' .*: did you mean 'audio'\?"),
        ({"audio_folder": "~/none/such"}, r"there is no folder '~/none/such' \(no 'none' in "),
        ({"audio_folder": " "}, "audio_folder is empty"),
        ({"audio_folder": "texts"}, r"no audio among the 1 files in .*: it may be \.mp3, "),
        ({"model": "tubro"}, r"model 'tubro' is unknown: did you mean 'turbo'\?"),
        ({"model": "audio/1.wav"}, "cannot load the model 'audio/1.wav': "),
        ({"language": "englsh"}, r"language 'englsh' is unknown: did you mean 'english'\?"),
        ({"model": "base.en", "language": "de"}, "model 'base.en' knows English only, not 'de': choose 'base'"),
        ({"output": "texts"}, "output 'texts' is a folder"),
        ({"output": "texts/1.txt/out.txt"}, "output: cannot make the folder "),
        ({"results_folder": "texts/1.txt"}, "results_folder: cannot make the folder "),
    ],
)
def test_a_mistaken_setting_ends_in_one_line_before_anything_is_transcribed(
    tmp_path, notebook, heard, monkeypatch, settings, message
):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("audio/1.wav", "texts/1.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"?")
    with pytest.raises(Exception, match=f"^{message}") as mistake:
        notebook(**settings)
    assert mistake.value._render_traceback_() == [f"error: {mistake.value}"] and "\n" not in str(mistake.value)
    assert heard == []


def test_without_ffmpeg_the_fix_is_named(notebook, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Exception, match="^there is no ffmpeg on the PATH.*apt install ffmpeg.*brew.*winget"):
        notebook()


def test_a_missing_package_is_installed_and_a_failure_is_one_line(parts, monkeypatch):
    calls = []

    def pip(command, **_):
        calls.append(command)
        return types.SimpleNamespace(returncode=len(calls) - 1, stderr="WARNING: slow\nERROR: no network\n")

    monkeypatch.setattr(subprocess, "run", pip)
    parts.install("tqdm==0.0.1")  # is there
    assert calls == []
    parts.install("no-such-package==1.2")
    assert calls == [[sys.executable, "-m", "pip", "install", "-q", "no-such-package==1.2"]]
    with pytest.raises(parts.UserError, match="^pip cannot install no-such-package==1.2: ERROR: no network$"):
        parts.install("no-such-package==1.2")


def test_no_text_at_all_is_an_error_and_keeps_the_earlier_text(tmp_path, notebook):
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "1.mp3").write_bytes(b"?")
    (tmp_path / "transcriptions.txt").write_text("earlier\n", encoding="utf-8")
    with pytest.raises(Exception, match="^no text in any of the 1 files"):
        notebook()
    assert lines(tmp_path / "transcriptions.txt") == ["earlier"]


def test_an_apple_gpu_is_left_alone_where_whisper_does_not_work_on_it(parts, checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    net = whisper.load_model(str(checkpoint), "cpu")
    assert parts.choose_device(net) is False and net.device.type == "cpu"  # there is none here, so that it fails
    assert "not on Apple's GPU" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [0.0, 1.0, float("nan")])
def test_an_apple_gpu_is_taken_if_it_gives_what_the_cpu_gives(parts, checkpoint, monkeypatch, wrong):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    devices, trial = [], parts.trial

    def mps_is_the_cpu(net, device, fp16):
        devices.append((device, fp16))
        return trial(net, "cpu", fp16) + (wrong if device == "mps" else 0.0)

    monkeypatch.setitem(parts.names, "trial", mps_is_the_cpu)
    net = whisper.load_model(str(checkpoint), "cpu")
    moved = []
    monkeypatch.setattr(net, "to", lambda *to: moved.append(to) or net)
    assert parts.choose_device(net) is False and devices == [("cpu", False), ("mps", False)]
    assert (("cpu",) == moved[-1]) and len(moved) == (2 if wrong == 0.0 else 3)


@pytest.mark.parametrize("logit, fp16", [(1.0, True), (float("nan"), False)])
def test_a_cuda_gpu_computes_in_float16_unless_it_makes_nan_of_it(parts, monkeypatch, logit, fp16):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(parts.names, "trial", lambda net, device, fp16: torch.tensor([logit]))
    assert parts.choose_device(None) is fp16


def test_on_colab_results_go_to_the_drive_and_the_files_pane_s_paths_are_understood(tmp_path, parts, monkeypatch):
    (tmp_path / "drive" / "MyDrive" / "audiobooks").mkdir(parents=True)
    monkeypatch.setitem(parts.names, "COLAB", True)
    monkeypatch.setitem(parts.names, "DRIVE", tmp_path / "drive")
    monkeypatch.chdir(tmp_path)
    assert parts.find_folder("audiobooks") == tmp_path / "drive" / "MyDrive" / "audiobooks"
    assert parts.find_folder(str(tmp_path)[1:]) == tmp_path  # as content/audiobooks is /content/audiobooks
