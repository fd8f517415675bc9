"""``python -m ssl_asr COMMAND``, each in a process of its own, forked from one that has imported the libraries.

Importing torch, lightning and transformers takes longer than most commands that tests run. What is forked has none of
`ssl_asr` in it and has run nothing: the command imports and does what it does from a shell.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).parent.parent
_SETTINGS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "PYTHONPATH": str(REPO)}
# None that takes files or threads as it is imported, as wandb does: whoever ends first would take them away.
_LIBRARIES = (
    "hydra",
    "lightning",
    "torchaudio",
    "torchmetrics",
    "transformers.generation",
    "transformers.modeling_utils",
)
_TIMEOUT_S = 600


class Commands:
    """Runs commands; to be stopped at the end."""

    def __init__(self):
        self._parent = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_SETTINGS},
        )

    def __call__(self, command, *arguments, cwd=None, stdin=None):
        """What became of ``python -m ssl_asr COMMAND ARGUMENTS``, as `subprocess.run` has it."""
        with tempfile.TemporaryDirectory() as folder:
            streams = [Path(folder) / name for name in ("stdin", "stdout", "stderr")]
            streams[0].write_text(stdin or "")
            words = ["ssl_asr", command, *map(str, arguments)]
            asked = {"words": words, "cwd": str(cwd or REPO), "streams": list(map(str, streams))}
            print(json.dumps(asked), file=self._parent.stdin, flush=True)
            code = json.loads(self._parent.stdout.readline())
            return subprocess.CompletedProcess(words, code, streams[1].read_text(), streams[2].read_text())

    def stop(self):
        self._parent.stdin.close()
        self._parent.wait()


def _asked():
    """What the next command is to be; returns in the process that is to run it."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return json.loads(line)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps(code), flush=True)
    return None


def _become(asked):
    """Take the place of a process that a shell would have begun."""
    import signal

    for number, path in enumerate(asked["streams"]):
        file = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    # What was read ahead of the parent's input is not the command's.
    sys.stdin = open(0)
    os.chdir(asked["cwd"])
    sys.path[0] = asked["cwd"]
    sys.argv = asked["words"]
    signal.alarm(_TIMEOUT_S)


if __name__ == "__main__":
    import importlib
    import runpy

    for library in _LIBRARIES:
        importlib.import_module(library)
    if (asked := _asked()) is not None:
        _become(asked)
        runpy.run_module("ssl_asr", run_name="__main__", alter_sys=True)
