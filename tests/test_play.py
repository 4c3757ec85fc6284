"""play.py's promises, tried on the running page, by the interface that a browser uses too."""

import json
import re
import signal
import socket
import subprocess
import time
import urllib.request
import wave
from itertools import pairwise
from urllib.error import HTTPError

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from test_sample import char_meta, save, writer
from test_speak import make_piper_voice

import play
from conftest import ROOT

pytestmark = pytest.mark.full  # Gradio is heavy
CHARS = "\n abcdefghijklmnopqrstuvwxyzö€<>/.,'"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model in out/, which takes its time and draws anything, and with a voice of Piper's."""
    folder = tmp_path_factory.mktemp("play")
    save(folder / "out" / "ckpt.pt", writer([0], 256, len(CHARS)), meta=char_meta(CHARS))
    make_piper_voice(folder / "voice.onnx")
    return folder


@pytest.fixture(scope="module")
def start(command, folder):
    """start("--key=value", ...) starts play.py: its page's address, and the process."""
    started = []

    def page(*args):
        port = free_port()
        args = ("--out_dir=out", "--device=cpu", "--dtype=float32", "--voice=voice.onnx", f"--port={port}", *args)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(**command("play.py", *args), cwd=folder, **pipes))
        assert started[-1].stdout.readline() == f"http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"
        return f"http://127.0.0.1:{port}/", started[-1]

    yield page
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def address(start):
    return start()[0]


@pytest.fixture
def visitor(address, tmp_path):
    """visitor() opens the page once more."""
    return lambda: Client(address, verbose=False, analytics_enabled=False, download_files=tmp_path)


def fetched(url, data=None, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as answer:
        return answer.read().decode("utf-8")


# -----------------------------------------------------------------------------
# writing and reading aloud


def test_the_first_text_is_sample_pys_and_grows_before_the_readers_eyes(start, inside, folder):
    job = Client(start("--seed=7")[0], verbose=False).submit("the ", 500, 0.9, api_name="/write")
    text, pieces = job.result(), job.outputs()
    args = (f"--out_dir={folder / 'out'}", "--device=cpu", "--dtype=float32", "--seed=7", "--temperature=0.9")
    done = inside("sample.py", *args, "--start=the ", "--num_samples=1", "--max_new_tokens=500")
    assert done.stdout == text + "\n---------------\n"
    assert len(text) == 504 and len(pieces) > 3
    assert all(later.startswith(earlier) for earlier, later in pairwise(pieces))


def test_again_draws_anew_from_where_the_writing_began(visitor):
    client = visitor()
    first = client.predict("the cat ", 40, 1.0, api_name="/write")
    second = client.predict(first, 30, 1.0, api_name="/again")
    assert second.startswith("the cat ") and len(second) == 8 + 30 and second[8:] != first[8:38]
    longer = client.predict(second, 20, 1.0, api_name="/write")
    assert longer.startswith(second) and client.predict(longer, 5, 1.0, api_name="/again").startswith(second)
    changed = client.predict("a hat ", 5, 1.0, api_name="/again")
    assert changed.startswith("a hat ") and len(changed) == 6 + 5  # what somebody has typed is not thrown away
    other = visitor().predict("a hat ", 5, 1.0, api_name="/again")
    assert other.startswith("a hat ")  # nor is another visitor's beginning taken


def test_an_empty_text_is_a_beginning_too(visitor):
    assert len(visitor().predict("", 20, 1.0, api_name="/write")) == 20


def test_visitors_take_turns(visitor):
    jobs = [visitor().submit("", 500, 1.0, api_name="/write") for _ in range(3)]
    pieces = [[] for _ in jobs]
    while not all(job.done() for job in jobs):
        for job, seen in zip(jobs, pieces):
            seen += [time.monotonic()] * (len(job.outputs()) - len(seen))
        time.sleep(0.01)
    assert [len(job.result()) for job in jobs] == [500] * 3 and min(map(len, pieces)) > 3
    for first, second in pairwise(sorted(pieces)):
        assert sum(when < first[-1] for when in second) <= 1


def test_stop_frees_the_model_for_the_next(visitor):
    job = visitor().submit("", 500, 1.0, api_name="/write")
    while not job.outputs():
        time.sleep(0.01)
    assert job.cancel()
    began = time.monotonic()
    assert len(visitor().predict("the", 1, 1.0, api_name="/write")) == 4 and time.monotonic() < began + 1
    assert len(job.outputs()[-1]) < 500


def test_the_voice_is_that_of_speak_py(visitor, inside, folder, tmp_path):
    text = "Don't panic.\n\nPanic."
    found = visitor().predict(text, api_name="/read_aloud")
    assert inside("speak.py", f"--model={folder / 'voice.onnx'}", f"--text={text}", "--out=out.wav").returncode == 0
    with wave.open(str(found["value"])) as sound, wave.open(str(tmp_path / "out.wav")) as expected:
        assert sound.getparams() == expected.getparams()
        assert sound.readframes(10**7) == expected.readframes(10**7)


def test_without_a_voice_the_button_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr(play, "voice", "joe")
    play.find_voice.cache_clear()
    with pytest.raises(Exception) as error:
        list(play.answer(play.read_aloud, "hello"))
    assert error.value.message.startswith("--voice=joe is no folder, no .onnx file, and no name of a voice: names are")


# -----------------------------------------------------------------------------
# strangers


def test_lengths_are_limited(visitor):
    client = visitor()
    for sent, said in [
        (("a" * 10_001, 5, 1.0), "10,000 characters"),
        (("a", 501, 1.0), "maximum value 500"),
        (("a", 0, 1.0), "minimum value 1"),
        (("a", 5, 2.1), "maximum value 2"),
    ]:
        with pytest.raises(AppError, match=said):
            client.predict(*sent, api_name="/write")
    with pytest.raises(AppError, match="10,000 characters"):
        client.predict("a" * 10_001, api_name="/read_aloud")
    assert len(client.predict("a" * 10_000, 5, 1.0, api_name="/write")) == 10_005


def test_nothing_is_shown_as_html(visitor, address):
    text = "<b>bold</b><script>"
    assert visitor().predict(text, 1, 1.0, api_name="/write").startswith(text)
    kinds = {component["type"] for component in json.loads(fetched(f"{address}config"))["components"]}
    assert kinds == {"textbox", "state", "row", "form", "button", "slider", "audio"}  # none of which shows HTML
    with pytest.raises(AppError) as error:
        visitor().predict("bed & breakfast", 1, 1.0, api_name="/write")  # messages are shown as HTML
    assert "'&amp;'" in str(error.value).replace("&#x27;", "'") and "& " not in str(error.value)


def test_nobody_gets_a_file_or_leaves_one_or_passes_the_queue(address, folder):
    for path in (ROOT / "play.py", folder / "out" / "ckpt.pt", "/etc/passwd", "play.py"):
        for route in ("file=", "file/"):
            with pytest.raises(HTTPError, match="40[34]"):
                fetched(f"{address}gradio_api/{route}{path}")
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nmuch\r\n--x--\r\n'
    with pytest.raises(HTTPError, match="413"):
        fetched(f"{address}gradio_api/upload", part, **{"Content-Type": "multipart/form-data; boundary=x"})
    with pytest.raises(HTTPError, match="404"):
        fetched(
            f"{address}gradio_api/run/write", b'{"data": ["a", null, 5, 1]}', **{"Content-Type": "application/json"}
        )


def test_only_this_machine_reaches_it(address):
    port = int(address.rstrip("/").rpartition(":")[2])
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port), timeout=5)  # as any other address of this machine


def test_it_says_nothing_of_what_visitors_send_and_ctrl_c_ends_it_quietly(start):
    address, process = start()
    client = Client(address, verbose=False)
    assert "secret" in client.predict("secret", 5, 1.0, api_name="/write")
    for sent in [("secret" * 2000, 5, 1.0), ("secret &", 5, 1.0), ("secret", 501, 1.0), ("a", "secret", 1.0)]:
        with pytest.raises(AppError):
            client.predict(*sent, api_name="/write")
    headers = {"Content-Type": "application/json"}
    for path, data in [("secret", None), ("gradio_api/file=secret", None), ("gradio_api/queue/join", b'"secret"')]:
        with pytest.raises(HTTPError):
            fetched(address + path, data, **headers)
    for data in (["secret"], [{"path": "secret", "meta": {"_type": "gradio.FileData"}}, None, 5, 1]):  # too few; a file
        body = json.dumps({"data": data, "fn_index": 1, "session_hash": "secret"}).encode()
        fetched(f"{address}gradio_api/queue/join", body, **headers)
    job = client.submit("secret", 500, 1.0, api_name="/write")
    while not job.outputs():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0 and out == "" and re.fullmatch(r"(a request failed: \w+\n)*", err)


# -----------------------------------------------------------------------------
# mistakes


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--out_dir=nothing"], "there is no checkpoint"),
        (["--init_from=gtp2"], "--init_from=gtp2 is unknown"),
        (["--port=0"], "--port=0 should be at least 1"),
        (["--port=65536"], "--port=65536 should be at most 65535"),
        (["--host=192.0.2.1"], "cannot listen at --host=192.0.2.1"),
        (["--device=gpu"], "--device=gpu is unknown"),
        (["--dtype=int8"], "--dtype=int8 is unknown"),
        (["--model=joe"], "there is no option --model"),
    ],
)
def test_a_mistake_is_one_line(inside, args, said):
    done = inside("play.py", f"--port={free_port()}", *args)
    assert done.returncode == 2 and re.fullmatch("error: .+\n", done.stderr) and said in done.stderr


def test_a_port_in_use_is_an_error(inside):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = inside("play.py", f"--port={port}")
    named = f"error: cannot listen at --host=127.0.0.1 --port={port}: Address already in use; try --port="
    assert done.returncode == 2 and done.stderr.startswith(named) and done.stderr.count("\n") == 1


def test_without_gradio_it_says_how_to_install_it(inside, monkeypatch):
    find_spec = play.importlib.util.find_spec
    monkeypatch.setattr(play.importlib.util, "find_spec", lambda name: None if name == "gradio" else find_spec(name))
    done = inside("play.py")
    assert done.returncode == 2 and re.fullmatch("error: .+ 'pip install -r requirements-play.txt'\n", done.stderr)
    pinned = (ROOT / "requirements-play.txt").read_text(encoding="utf-8")
    assert re.search(r"^gradio==\d", pinned, re.MULTILINE)
