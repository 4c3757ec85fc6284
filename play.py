"""
A web page on which a trained model writes, for you and your friends.

    pip install -r requirements-play.txt
    python play.py --out_dir=out-hitchikers

Open http://127.0.0.1:7860, and end it with Ctrl-C. Only this machine reaches the page, unless --host=0.0.0.0 lets in
your network, or --share=True all who have the link. Visitors take turns. What they write is neither logged nor kept.
"""

from configurator import UserError, at_end, check_range, configure, first_line, note, run

import contextlib
import html
import importlib.util
import logging
import os
import socket
import sys
import tempfile
import time
import traceback
from functools import cache, partial

import numpy as np
import torch

from checkpoint import check_init_from, load_pretrained, load_trained
from fast import pack
from machine import resolve_device, set_up_torch
from voices import load_voice, pause_of, script_of, sound_of

# -----------------------------------------------------------------------------
init_from = "resume"  # resume: the model in out_dir; gpt2, gpt2-medium, gpt2-large, gpt2-xl, or a folder with a GPT-2
out_dir = "out"  # the folder with ckpt.pt
voice = "en_US-ljspeech-medium"  # reads aloud: what speak.py calls --model
host = "127.0.0.1"  # the address to listen at: only this machine reaches 127.0.0.1, all in your network 0.0.0.0
port = 7860  # to listen at
share = False  # make a public link, by a server of Gradio's: whoever has it can use the page
seed = 1337  # of the draws, and of the intonation
device = "auto"  # auto, cpu, cuda, cuda:1, mps
dtype = "auto"  # of the weights: auto, float32, bfloat16, float16
# -----------------------------------------------------------------------------

LONGEST, MOST_TOKENS = 10_000, 500  # the text in characters, and what is written at once


def write(model, tokenizer, anew, text, last, length, temperature):
    """
    Go on with a text, or with `anew` once more from where the last writing began, unless the text has been changed
    since. Yields the growing text, ten times a second, and (where it began, the text).
    """
    before = last[0] if anew and last and text == last[1] else text
    ids, written, shown = tokenizer.encode(before or tokenizer.prompt, special=True), [], 0.0
    idx = torch.tensor([ids], device=model.lm_head.weight.device)
    end = tokenizer.end_of_text
    for next_ids in model.stream(idx, length, temperature, 200, None, end, tokenizer.vocab_size):  # as sample.py draws
        written += [i for i in next_ids[0].tolist() if i != end]
        if time.monotonic() > shown + 0.1:
            text = before + tokenizer.decode_bytes(written).decode("utf-8", errors="ignore")  # half a character
            yield text, (before, text)
            shown = time.monotonic()
    text = before + tokenizer.decode_bytes(written).decode("utf-8", errors="replace")
    yield text, (before, text)


@cache
def find_voice():
    """The voice, loaded when it is first wanted."""
    return load_voice(voice, None, 1.0, seed, device)


def read_aloud(text):
    """Yields the player with the share that has been spoken, after each piece of a text, and then with the sound."""
    import gradio as gr

    try:
        script, sound = script_of(text, find_voice())[0], []
        for i, (words, pause) in enumerate(script, 1):
            sound += [sound_of(words, find_voice()), pause_of(pause, find_voice(), 1.0)]
            yield gr.Audio(None, label=f"Read aloud: {i / len(script):.0%} is ready")
    except UserError as mistake:
        raise UserError(str(mistake).replace("--model=", "--voice=")) from None
    if not sound:
        raise UserError("there is nothing in the text that this voice can say")
    yield gr.Audio((find_voice().rate, np.concatenate(sound)), label="Read aloud")


def answer(function, text, *more):
    """What a generator function makes of a visitor's text. The page shows its UserError, as plain text."""
    import gradio as gr

    try:
        if len(text := text or "") > LONGEST:
            raise UserError(f"the text may have {LONGEST:,} characters: make it shorter")
        yield from function(text, *more)
    except UserError as mistake:
        raise gr.Error(html.escape(str(mistake)), None, print_exception=False) from None


def make_page(model, tokenizer):
    """The page, not yet served."""
    import gradio as gr

    name = os.path.basename(os.path.abspath(out_dir if init_from == "resume" else init_from))
    with gr.Blocks(title=name, delete_cache=(600, 3600)) as page:
        hint = "Write a beginning, or nothing. The model goes on from the end."
        text = gr.Textbox(label=name, placeholder=hint, lines=14, max_lines=14, max_length=LONGEST, autofocus=True)
        last = gr.State()
        with gr.Row():
            go_on = gr.Button("Write", variant="primary", min_width=140)
            again, aloud, stop = (gr.Button(label, min_width=140) for label in ("Again", "Read aloud", "Stop"))
        with gr.Row():
            length = gr.Slider(1, MOST_TOKENS, 200, step=1, label="Length, in tokens", min_width=300)
            temperature = gr.Slider(0, 2, 0.8, step=0.05, label="Temperature (wildness)", min_width=300)
        sound = gr.Audio(label="Read aloud", interactive=False, autoplay=True, buttons=["download"])
        more = {"api_visibility": "undocumented", "show_progress": "minimal"}
        running = [aloud.click(partial(answer, read_aloud), text, sound, api_name="read_aloud", **more)]
        for button, anew, api_name in ((go_on, False, "write"), (again, True, "again")):
            function = partial(answer, partial(write, model, tokenizer, anew))
            inputs, outputs = [text, last, length, temperature], [text, last]
            running += [button.click(function, inputs, outputs, api_name, concurrency_id="model", **more)]
        stop.click(None, cancels=running)
    return page.queue(api_open=False, max_size=50)


def keep_quiet():
    """Have nothing be printed, sent or kept of what visitors do. To be called before Gradio is imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = at_end.enter_context(tempfile.TemporaryDirectory())  # for the sound
    logging.captureWarnings(True)
    logging.disable()
    traceback.print_exc = lambda: note(f"a request failed: {sys.exc_info()[0].__name__}")  # it would show the text


def main():
    configure(globals())
    check_range(globals(), {"port": (1, 2**16 - 1), "seed": (0, 2**63 - 1)})
    check_init_from(init_from, "resume")
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page is made by Gradio, which is not installed: 'pip install -r requirements-play.txt'")
    try:
        socket.create_server((host, port)).close()
    except OSError as failure:
        why = str(failure.strerror).partition(" (")[0]
        raise UserError(f"cannot listen at --host={host} --port={port}: {why}; try --port={port % 60000 + 1}") from None
    torch_device, torch_dtype, _ = resolve_device(device, dtype, False)
    set_up_torch(seed)
    model, tokenizer = load_trained(out_dir) if init_from == "resume" else load_pretrained(init_from)
    model.eval().to(torch_device, torch_dtype)
    pack(model)

    keep_quiet()
    page = make_page(model, tokenizer)
    off = {"quiet": True, "inline": False, "footer_links": [], "run_history": False, "enable_monitoring": False}
    off |= {"max_file_size": 1, "ssr_mode": False, "prevent_thread_lock": True}  # nobody sends us files
    try:
        css = ":root {--font: system-ui, sans-serif}"
        _, url, public = page.launch(server_name=host, server_port=port, share=share, css=css, **off)
    except Exception as failure:  # of many kinds
        hint = f"where HTTP_PROXY is set, NO_PROXY={host} should be, too"
        raise UserError(f"cannot serve the page ({first_line(failure)}); {hint}") from None
    if share and not public:
        raise UserError("--share=True: Gradio cannot make a public link from here")
    print(f"{public or url} (Ctrl-C ends it)", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)
    page.server.force_exit = True  # without waiting for the browsers
    page.close(verbose=False)


if __name__ == "__main__":
    run(main)
