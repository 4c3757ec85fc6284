"""
Whatever kills a training run, and whenever: what it had saved is whole, and the resumed run is the undisturbed one.

Each run is a process that executes train.py as the command line does. It is forked from a process that has already
imported torch, which saves most of the time.
"""

import errno
import io
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from tqdm import tqdm

pytestmark = pytest.mark.slow
TINY = ["--dataset=mats", "--device=cpu", "--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=8"]
TINY += ["--batch_size=3", "--gradient_accumulation_steps=2", "--dropout=0.2", "--learning_rate=1e-2"]
TINY += ["--min_lr=1e-3", "--warmup_iters=2", "--eval_iters=1", "--sample_tokens=2"]

forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["torch", "torch._dynamo", "torch.distributed.optim", "pytest"])


def execute(script, arguments, folder, out, before):
    """What a process does: `before()`, then the script. Its output goes to the pipe `out` and the file `errors`."""
    os.chdir(folder)
    os.dup2(out.fileno(), 1)
    os.dup2(os.open("errors", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.stdout, sys.stderr = (open(fd, "w", encoding="utf-8", buffering=1) for fd in (1, 2))
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    tqdm.set_lock(threading.RLock())  # tqdm's default lock spans processes: Python warns that a killed one leaked it
    before()
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"peak {peak / (2**20 if sys.platform == 'darwin' else 2**10)} MB")


def nothing():
    pass


@pytest.fixture(scope="session")
def mats(dataset):
    return dataset("mats")


@pytest.fixture
def start(mats, repo, tmp_path):
    """start("--key=value", ..., before=function) starts training; returns the process and a stream of its lines."""
    running = []

    def run(*arguments, before=nothing):
        ours, theirs = forks.Pipe(duplex=False)
        process = forks.Process(target=execute, args=(repo / "train.py", [*TINY, *arguments], tmp_path, theirs, before))
        process.start()
        theirs.close()
        running.append((process, lines := open(os.dup(ours.fileno()), encoding="utf-8")))
        return process, lines

    yield run
    for process, lines in running:
        process.kill()
        process.join()
        lines.close()


@pytest.fixture
def train(start, tmp_path):
    """train("--key=value", ...) trains to the end; returns the status, the lines, and what went to standard error."""

    def run(*arguments, **more):
        process, lines = start(*arguments, **more)
        out = lines.read()
        process.join(60)
        return process.exitcode, out, (tmp_path / "errors").read_text(encoding="utf-8")

    return run


def load(path):
    return torch.load(path, weights_only=True)


def flat(value, path=""):
    """Nested dicts and lists as one dict: {path: tensor, number or text}."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        return {path: value}
    return {name: leaf for key, inner in items for name, leaf in flat(inner, f"{path}/{key}").items()}


def assert_same_run(folder, other):
    """Two runs have the same checkpoints and logs, bit for bit, except for times and names."""
    for name in ("last.pt", "ckpt.pt"):
        one, two = (flat(load(f / name)) for f in (folder, other))
        assert one.keys() == two.keys()
        differ = [k for k in one if not np.array_equal(one[k], two[k])]
        assert set(differ) <= {"/seconds", "/config/out_dir", "/config/init_from"}
        assert len([k for k in one if "exp_avg" in k or "momentum" in k]) > 4
    one, two = (log(f) for f in (folder, other))
    assert one == two


def log(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        for name in ("out_dir", "init_from"):
            line.get("config", {}).pop(name, None)
    return [{k: v for k, v in line.items() if k not in ("seconds", "ms", "tokens_per_s")} for line in lines]


# -----------------------------------------------------------------------------
# killed


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


class KillAtFile:
    """Kills the process just before the nth time it opens, links, moves or removes a file in `out_dir`."""

    def __init__(self, nth, links):
        self.left, self.links = nth, links

    def __call__(self):
        def watch(event, given):
            if event in ("open", "os.link", "os.rename", "os.remove") and "killed/" in str(given[0]):
                self.left -= 1
                self.left or die()

        without_links(self.links)
        sys.addaudithook(watch)


class KillInSave:
    """Kills the process while it writes the nth checkpoint, when a `part` of it is on the disk."""

    def __init__(self, nth, part, links):
        self.left, self.part, self.links = nth, part, links

    def __call__(self):
        save = torch.save

        def watched(state, f):
            self.left -= 1
            if self.left:
                return save(state, f)
            save(state, whole := io.BytesIO())
            f.write(whole.getvalue()[: int(self.part * len(whole.getvalue()))])
            f.flush()
            die()

        without_links(self.links)
        torch.save = watched


class WithoutLinks:
    def __init__(self, links):
        self.links = links

    def __call__(self):
        without_links(self.links)


def without_links(links):
    """Unless `links`, have the file system refuse hard links."""

    def refuse(*given):
        raise PermissionError(1, "Operation not permitted")

    os.link = os.link if links else refuse


@pytest.mark.full
@pytest.mark.parametrize(
    "more, links",
    [(["--optimizer=adamw"], True), (["--optimizer=muon", "--dtype=float16"], False)],
    ids=["adamw", "muon in float16, with a gradient scaler, without hard links"],
)
def test_a_run_killed_25_times_and_resumed_is_the_undisturbed_one_bit_for_bit(start, train, tmp_path, more, links):
    options = [*more, "--init_from=auto", "--max_iters=200", "--lr_decay_iters=200", "--eval_interval=5"]
    draw = random.Random(str(more))
    kinds = ["any moment"] * 10 + ["in a save"] * 5 + ["at a file"] * 10
    draw.shuffle(kinds)
    moments = []
    for kind in kinds:
        if kind == "any moment":
            after, delay, before = draw.randrange(1, 15), draw.uniform(0, 0.005), WithoutLinks(links)
        elif kind == "in a save":
            before = KillInSave(draw.randrange(1, 4), draw.random(), links)
        else:
            before = KillAtFile(draw.randrange(1, 20), links)
        moments.append((kind, vars(before).copy()))
        process, lines = start(*options, "--out_dir=killed", before=before)
        if kind == "any moment":
            for line in lines:
                after -= line.startswith("iter")
                if not after:
                    break
            time.sleep(delay)
            process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, (moments, (tmp_path / "errors").read_text())
    for folder in ("killed", "whole"):
        status, _, errors = train(*options, f"--out_dir={folder}", before=WithoutLinks(links))
        assert (status, errors) == (0, "")
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert [figures["iter"] for figures in log(tmp_path / "killed") if "loss" in figures] == list(range(200))
    assert not list((tmp_path / "killed").glob("*.tmp"))


def test_a_float16_run_resumes_with_its_scale_and_leaves_out_steps_that_overflow(train, tmp_path):
    half = ("--dtype=float16", "--init_from=auto", "--eval_interval=3")
    assert train(*half, "--max_iters=6")[0] == 0
    before = load(tmp_path / "out" / "last.pt")
    before["scaler"]["scale"] = 2.0**60
    torch.save(before, tmp_path / "out" / "last.pt")
    assert train(*half, "--max_iters=9")[0] == 0
    after = load(tmp_path / "out" / "last.pt")
    assert (after["iter_num"], after["scaler"]["scale"]) == (9, 2.0**57)
    assert all(torch.equal(after["model"][name], before["model"][name]) for name in before["model"])
    assert train(*half, "--max_iters=90")[0] == 0
    after = load(tmp_path / "out" / "last.pt")
    assert after["scaler"]["scale"] < 2.0**50
    assert not torch.equal(after["model"]["lm_head.weight"], before["model"]["lm_head.weight"])
    assert all(weight.isfinite().all() for weight in after["model"].values())


# -----------------------------------------------------------------------------
# two runs in one folder


class NoLocks:
    """Has the file system know no locks."""

    def __call__(self):
        import fcntl

        def refuse(*given):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        fcntl.flock = refuse


def test_a_second_run_in_a_folder_is_refused_until_the_first_ends_however_it_ends(start, train, tmp_path):
    first, lines = start("--max_iters=100000", "--out_dir=out", "--eval_interval=100000")
    assert any(line.startswith("iter 3:") for line in lines)
    for init_from in ("scratch", "resume", "auto"):
        status, out, errors = train("--out_dir=out", f"--init_from={init_from}", "--max_iters=9")
        assert (status, errors.count("\n")) == (2, 1) and out.splitlines()[:-1] == []
        assert re.match(f"error: --out_dir=out is in use by process {first.pid} on ", errors)
    assert train("--out_dir=out", "--init_from=resume", "--eval_only=True")[0] == 0
    assert not list((tmp_path / "out").glob("earlier-*"))
    first.kill()
    first.join()
    assert train("--out_dir=out", "--init_from=auto", "--max_iters=9")[0] == 0
    assert load(tmp_path / "out" / "last.pt")["iter_num"] == 9 and not (tmp_path / "out" / "lock").exists()


def test_of_twenty_pairs_of_runs_started_at_once_one_is_refused_each_time_and_nothing_is_moved(start, tmp_path):
    for pair in range(20):
        runs = [start("--max_iters=100000", f"--out_dir=out-{pair}") for _ in range(2)]
        refused = multiprocessing.connection.wait([process.sentinel for process, _ in runs], timeout=60)
        assert len(refused) == 1
        for process, lines in runs:
            if process.sentinel in refused:
                process.join()
                assert process.exitcode == 2
            else:
                assert any(line.startswith("iter 3:") for line in lines)
                process.kill()
        assert not list((tmp_path / f"out-{pair}").glob("earlier-*"))


def test_where_the_file_system_has_no_locks_a_note_says_so(train):
    status, out, errors = train("--out_dir=out", "--max_iters=3", before=NoLocks())
    assert (status, errors) == (0, "") and "note: out cannot be locked" in out


# -----------------------------------------------------------------------------
# no room, no right


class Limit:
    """Limits the process to `size` bytes of a resource. RLIMIT_FSIZE acts like a full disk."""

    def __init__(self, what, size):
        self.what, self.size = what, size

    def __call__(self):
        resource.setrlimit(self.what, (self.size, self.size))


@pytest.fixture
def good(train, tmp_path):
    """The files in `out` after a short run: {path: bytes}."""
    assert train("--max_iters=6", "--lr_decay_iters=6", "--eval_interval=3")[0] == 0
    return {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def assert_refused(done, about):
    status, _, errors = done
    assert (status, errors.count("\n")) == (2, 1), errors
    assert re.match(f"error: .*{about}", errors)


def assert_kept(good):
    for path, content in good.items():
        if path.suffix == ".pt":
            assert path.read_bytes() == content
    assert set(good) == set(next(iter(good)).parent.iterdir())  # no half-written file is left


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 0.999])
def test_a_disk_that_is_full_in_the_middle_of_a_save_leaves_the_last_checkpoint(train, good, tmp_path, part):
    limit = int(part * len(good[tmp_path / "out" / "last.pt"]))
    done = train("--init_from=resume", "--max_iters=9", "--eval_interval=9", before=Limit(resource.RLIMIT_FSIZE, limit))
    assert "iter 8:" in done[1]
    assert_refused(done, "out")
    assert_kept(good)
    assert train("--init_from=resume", "--max_iters=9", "--eval_interval=9")[0] == 0
    assert load(tmp_path / "out" / "last.pt")["iter_num"] == 9


def test_a_disk_that_is_full_at_a_line_of_the_log_leaves_the_last_checkpoint(train, good, tmp_path):
    limit = len(good[tmp_path / "out" / "log.jsonl"]) + 300
    full = Limit(resource.RLIMIT_FSIZE, limit)
    done = train("--init_from=resume", "--max_iters=90", "--eval_interval=100", before=full)
    assert "iter 7:" in done[1] and "iter 80:" not in done[1]
    assert_refused(done, "log.jsonl")
    assert_kept(good)


class OutDirGoes:
    """Moves `out` away during the second evaluation, and puts a file or nothing in its place."""

    def __init__(self, instead):
        self.instead = instead

    def __call__(self):
        def watch(event, given):
            if event == "open" and str(given[0]).endswith("last.pt.tmp") and os.path.exists("out/last.pt"):
                os.rename("out", "gone")
                if self.instead == "file":
                    os.close(os.open("out", os.O_CREAT))

        sys.addaudithook(watch)


@pytest.mark.parametrize("instead", ["file", "nothing"])
def test_where_out_dir_goes_during_the_run_the_error_names_it(train, tmp_path, instead):
    done = train("--max_iters=6", "--eval_interval=3", before=OutDirGoes(instead))
    assert "iter 2:" in done[1] and "iter 3:" not in done[1]
    assert_refused(done, "out/last.pt")
    assert load(tmp_path / "gone" / "last.pt")["iter_num"] == 0


class Fails:
    """Has a function of `os` fail the first `times` it is called for a checkpoint."""

    def __init__(self, function, number, times=1000):
        self.function, self.number, self.left = function, number, times

    def __call__(self):
        original = getattr(os, self.function)

        def fail(*given):
            if self.left and (self.function == "fsync" or ".pt" in given[0]):
                self.left -= 1
                raise OSError(self.number, os.strerror(self.number))
            return original(*given)

        setattr(os, self.function, fail)


@pytest.mark.parametrize("function, number", [("fsync", errno.EIO), ("replace", errno.EROFS)])
def test_a_disk_that_fails_or_becomes_read_only_leaves_the_last_checkpoint(train, good, function, number):
    done = train("--init_from=resume", "--max_iters=9", "--eval_interval=9", before=Fails(function, number))
    assert_refused(done, os.strerror(number))
    assert_kept(good)


def test_a_file_that_cannot_be_replaced_for_a_moment_loses_no_checkpoint(train, good, tmp_path):
    # as on Windows, while another program reads it
    train("--init_from=resume", "--max_iters=9", "--eval_interval=9", before=Fails("replace", errno.EACCES, times=1))
    for name in ("ckpt.pt", "last.pt"):
        assert load(tmp_path / "out" / name)["iter_num"] in (6, 9)


# -----------------------------------------------------------------------------
# memory


def peak(out):
    """A process's peak memory in MB, from its output."""
    return float(re.search(r"^peak ([\d.]+) MB$", out, re.M)[1])


def resident(process):
    """The memory a process uses now, in MB."""
    return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(process.pid)])) / 1024


def follow(lines, beginning):
    assert any(line.startswith(beginning) for line in lines), f"it ended without {beginning!r}"


def test_memory_stays_the_same_over_2000_iterations(start):
    few = ("--gradient_accumulation_steps=1", "--batch_size=1", "--eval_interval=500", "--log_interval=100")
    process, lines = start(*few, "--max_iters=2300")
    follow(lines, "iter 200:")
    early = resident(process)
    follow(lines, "iter 2200:")
    assert resident(process) < early + 5


def test_a_data_file_larger_than_memory_is_not_loaded(train, mats, dataset):
    folder, _ = dataset("vast")
    os.truncate(folder / "train.bin", 20 * 10**9)  # a sparse file: it takes no disk space
    # this limit leaves out the file's pages in the system's cache
    own = Limit(resource.RLIMIT_DATA, 2 * 10**9)
    status, out, errors = train("--dataset=vast", "--max_iters=10", "--eval_interval=10", before=own)
    shutil.rmtree(folder)  # other tests read all data folders
    assert (status, errors) == (0, "")
    assert "10,000,000,000 to train on" in out


def test_resuming_takes_no_more_memory_than_the_training_before(train):
    sizes = ("--n_layer=8", "--n_head=8", "--n_embd=512", "--gradient_accumulation_steps=1", "--eval_interval=1000")
    status, fresh, errors = train(*sizes, "--max_iters=2")
    assert (status, errors) == (0, ""), errors
    status, resumed, errors = train(*sizes, "--init_from=resume", "--max_iters=4")
    assert (status, errors) == (0, ""), errors
    assert peak(resumed) < peak(fresh) + 30
