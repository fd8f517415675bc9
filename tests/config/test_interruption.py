"""A command that a signal stops says how to go on, and returns the code of the signal."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ssl_asr.config.interruption import how_to_go_on
from ssl_asr.config.run_folder import other_run, resumes
from tests.command_runner import REPO
from tests.training.toy_runs import toy_overrides

BLOCK = """
import os, signal, sys
from pathlib import Path
from ssl_asr.config.interruption import interruptible
from ssl_asr.textfiles import written_whole
with interruptible() as go_on:
    go_on("do this")
    with written_whole(Path(sys.argv[2])) as file:
        file.write("half")
        {before}
        try:
            os.kill(os.getpid(), int(sys.argv[1]))
        except KeyboardInterrupt:
            {after}
"""


def heeds_interrupts():
    """In a new process. A shell lets what it starts in the background ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stop(number, folder, before="pass", after="raise", **more):
    code = BLOCK.format(before=before, after=after)
    words = [sys.executable, "-c", code, str(int(number)), str(folder / "out.txt")]
    environment = {**os.environ, "PYTHONPATH": str(REPO), **more}
    return subprocess.run(
        words, capture_output=True, text=True, env=environment, check=False, preexec_fn=heeds_interrupts
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_nothing_half_written(tmp_path, number, code):
    done = stop(number, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "interrupted: do this.\n")
    assert not list(tmp_path.iterdir())


def test_ways_to_exit_of_other_libraries_have_the_code_of_the_signal(tmp_path):
    assert stop(signal.SIGINT, tmp_path, after="sys.exit(1)").returncode == 130
    # Further processes of a run are silent.
    assert stop(signal.SIGTERM, tmp_path, LOCAL_RANK="1").stderr == ""


def test_worker_processes_end_without_a_word(tmp_path):
    # A signal that arrives during the fork is lost.
    end = "(time.sleep(0.5), os.kill(child, 15), os.waitpid(child, 0))"
    before = f"import time; child = os.fork(); time.sleep(20) if child == 0 else {end}"
    done = stop(signal.SIGTERM, tmp_path, before=before)
    assert (done.returncode, done.stderr) == (143, "interrupted: do this.\n")


def test_an_exit_without_a_signal_is_left_as_it_is(tmp_path):
    assert stop(0, tmp_path, before="sys.exit(2)").returncode == 2


DEFERRED = """
import os, signal, sys, threading, time
from ssl_asr.config import interruption
from ssl_asr.config.interruption import current, interruptible
interruption._LONGEST_WAIT_S = float(sys.argv[1])
def send(numbers):
    for number in numbers:
        time.sleep(0.5)
        os.kill(os.getpid(), number)
numbers = [int(number) for number in sys.argv[2:]]
with interruptible() as go_on:
    go_on("do this")
    threading.Thread(target=send, args=[numbers], daemon=True).start()
    with current().deferred():
        end = time.monotonic() + {length}
        while time.monotonic() < end:
            {step}
        print("whole")
"""


def defer(*numbers, length=2.0, step="time.sleep(0.05)", longest_s=30, **more):
    code = DEFERRED.format(length=length, step=step)
    words = [sys.executable, "-c", code, str(longest_s), *(str(int(number)) for number in numbers)]
    environment = {**os.environ, "PYTHONPATH": str(REPO), **more}
    began = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False, timeout=50)
    return done, time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_deferred_signal_lets_the_block_end_by_itself(number):
    done, _ = defer(number)
    assert (done.returncode, done.stdout, done.stderr) == (143, "whole\n", "interrupted: do this.\n")


# A thread that waits for a lock of C, as in a call that waits for other ranks. Python calls no handler there.
BLOCKED = "import ctypes; mutex = ctypes.create_string_buffer(64); lock = ctypes.CDLL(None).pthread_mutex_lock; "
BLOCKED += "lock(mutex), lock(mutex)"


@pytest.mark.parametrize("step", ["time.sleep(0.05)", BLOCKED])
def test_a_second_signal_ends_the_process_at_once(step):
    done, seconds = defer(signal.SIGTERM, signal.SIGTERM, length=60, step=step)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "interrupted: do this.\n")
    assert seconds < 50


def test_a_process_in_which_nothing_moves_on_is_ended():
    done, seconds = defer(signal.SIGTERM, length=60, longest_s=1)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "interrupted: do this.\n")
    assert seconds < 50
    done, _ = defer(signal.SIGTERM, length=3, step="time.sleep(0.05); current().moved()", longest_s=1)
    assert done.stdout == "whole\n", "steps are finished"
    done, _ = defer(signal.SIGTERM, step="with current().unlimited(): time.sleep(3)", longest_s=1)
    assert done.stdout == "whole\n", "a checkpoint takes as long as it takes"


@pytest.mark.parametrize(("job", "queued"), [({"SLURM_JOB_ID": "7"}, "7"), ({"SLURM_JOB_ID": "8"}, None), ({}, None)])
def test_a_job_of_slurm_is_put_in_the_queue_again(tmp_path, job, queued):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n[ "$2" = 7 ]\n')
    scontrol.chmod(0o755)
    done, _ = defer(signal.SIGUSR1, **job, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 143
    assert (tmp_path / "asked").exists() == bool(job)
    assert ("The job is in the queue again, and continues by itself." in done.stderr) == (queued is not None)
    assert ("warning: job 8 is not in the queue again" in done.stderr) == (job.get("SLURM_JOB_ID") == "8")
    if queued:
        assert (tmp_path / "asked").read_text() == f"requeue {queued}\n"


def test_a_job_that_slurm_started_again_continues_its_run(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    assert list(other_run(None, tmp_path))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert not list(other_run(None, tmp_path))
    assert (resumes(None), resumes("a.ckpt")) == ("auto", "auto")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    assert (resumes(None), resumes("a.ckpt")) == (None, "a.ckpt")


def test_every_command_says_how_to_go_on():
    assert how_to_go_on("train", "a b", None).endswith("add resume=auto 'run_dir=a b' to the command")
    assert how_to_go_on("train", None, None) == "the same command starts from the beginning", "in a sweep"
    assert how_to_go_on("transcribe", None, "out.jsonl") == "the same command again continues with what is left"
    assert "With output=FILE" in how_to_go_on("transcribe", None, None)
    assert how_to_go_on("lm", None, "a.arpa") == "the same command starts from the beginning"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_training_is_interrupted(toy_checkpoints, toy_corpus, tmp_path, number, code):
    overrides = toy_overrides(toy_checkpoints["wav2vec2_group"], toy_corpus)
    run = tmp_path / "run"
    more = ["trainer.max_epochs=5000", f"run_dir={run}", "freeze=true", "verbose=false"]
    overrides = [one for one in overrides if not one.startswith("trainer.max_epochs")]
    words = [sys.executable, "-m", "ssl_asr", "train", *overrides, *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=REPO, preexec_fn=heeds_interrupts, **pipes) as process:
        while not (run / "checkpoints" / "last.ckpt").exists() and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(number)
        try:
            _, said = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == code, said
    assert said.splitlines()[-1] == f"interrupted: {how_to_go_on('train', str(run), None)}."
    assert "Traceback" not in said
    assert not list(run.rglob("*partial"))


RANK = """
import os, sys, time
from ssl_asr.config import interruption
interruption._ALONE_S = 1.0
with interruption.interruptible():
    print("listens", flush=True)
    time.sleep({seconds})
    print("done", flush=True)
"""
FIRST = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


@pytest.mark.parametrize("killed", [True, False])
def test_a_rank_ends_without_its_first_process(killed):
    """Otherwise it would wait half an hour for a process that is gone."""
    words = [sys.executable, "-c", FIRST, RANK.format(seconds=300 if killed else 3)]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "LOCAL_RANK": "1"}
    environment.pop("SSL_ASR_FIRST_PROCESS", None)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as first:
        assert first.stdout.readline() == "listens\n"
        if killed:
            first.kill()
        # The rank holds the pipe until it ends.
        rest, _ = first.communicate(timeout=60)
    assert rest == ("" if killed else "done\n")


def test_a_process_that_lightning_starts_knows_its_first_process():
    """It may be gone before the process listens."""
    code = (
        "import os; from ssl_asr.config.interruption import interruptible\nwith interruptible():\n print(os.getpid(),"
    )
    words = [sys.executable, "-c", f"{code} os.environ['SSL_ASR_FIRST_PROCESS'])"]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "SSL_ASR_FIRST_PROCESS": "1"}
    one, other = subprocess.run(words, capture_output=True, text=True, env=environment, check=True).stdout.split()
    assert one == other
    code = RANK.format(seconds=300)
    environment |= {"LOCAL_RANK": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stdout) == (143, "listens\n")


def test_a_signal_to_a_rank_that_lightning_started_reaches_its_first_process():
    """Lightning kills the first process without a word if one that it started fails."""
    rank = RANK.format(seconds=300)
    first = f"""
import os, subprocess, sys, time
from ssl_asr.config.interruption import current, interruptible
with interruptible() as go_on:
    go_on("do this")
    rank = subprocess.Popen([sys.executable, "-c", {rank!r}], env={{**os.environ, "LOCAL_RANK": "1"}}, stdout=-1)
    rank.stdout.readline()
    with current().deferred():
        rank.terminate()
        code = rank.wait()
        time.sleep(0.5)
        print(code, current().signal, flush=True)
"""
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-c", first], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stdout) == (143, f"0 {int(signal.SIGTERM)}\n")
    assert done.stderr == "interrupted: do this.\n"
