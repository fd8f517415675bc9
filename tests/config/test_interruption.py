"""A command that a signal stops says how to go on, and returns the code of the signal."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ssl_asr.config.interruption import how_to_go_on
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


def stop(number, folder, before="pass", after="raise", **more):
    code = BLOCK.format(before=before, after=after)
    words = [sys.executable, "-c", code, str(int(number)), str(folder / "out.txt")]
    environment = {**os.environ, "PYTHONPATH": str(REPO), **more}
    return subprocess.run(words, capture_output=True, text=True, env=environment, check=False)


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
    with subprocess.Popen(words, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (run / "checkpoints" / "last.ckpt").exists() and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(number)
        _, said = process.communicate()
    assert process.returncode == code, said
    assert said.splitlines()[-1] == f"interrupted: {how_to_go_on('train', str(run), None)}."
    assert "Traceback" not in said
    assert not list(run.rglob("*partial"))
