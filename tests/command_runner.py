"""Runs ``python -m ssl_asr COMMAND`` in processes that are forked from one that has imported the libraries.

Importing torch, lightning and transformers takes longer than most commands in tests. The parent process has not
imported `ssl_asr`, so each command imports it as from a shell.

    test process  --stdin: one request per line-->  parent  --fork-->  command, with files as its streams
                  <--stdout: one exit code per line--
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).parent.parent
_SETTINGS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "PYTHONPATH": str(REPO)}
# No libraries that open files or start threads on import, such as wandb: the first command to end would close them.
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
    """Runs commands. Call `stop` at the end."""

    def __init__(self):
        self._parent = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_SETTINGS},
        )

    def __call__(self, command, *arguments, module="ssl_asr", cwd=None, stdin=None):
        """Run ``python -m MODULE COMMAND ARGUMENTS`` and return its exit code and output, as `subprocess.run` does."""
        with tempfile.TemporaryDirectory() as folder:
            streams = [Path(folder) / name for name in ("stdin", "stdout", "stderr")]
            streams[0].write_text(stdin or "")
            words = [module, command, *map(str, arguments)]
            request = {"words": words, "cwd": str(cwd or REPO), "streams": list(map(str, streams))}
            print(json.dumps(request), file=self._parent.stdin, flush=True)
            code = json.loads(self._parent.stdout.readline())
            return subprocess.CompletedProcess(words, code, streams[1].read_text(), streams[2].read_text())

    def stop(self):
        """End the parent process."""
        self._parent.stdin.close()
        self._parent.wait()


def _next_request():
    """Fork for each request. Returns the request in the forked process, and None in the parent at the end."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return json.loads(line)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps(code), flush=True)
    return None


def _set_up(request):
    """Set streams, working directory and arguments of this process as a shell would."""
    import signal

    for number, path in enumerate(request["streams"]):
        file = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    # The parent's standard input has buffered requests, which the command must not read.
    sys.stdin = open(0)
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]
    sys.argv = request["words"]
    sys.orig_argv = [sys.executable, "-m", *request["words"]]
    signal.alarm(_TIMEOUT_S)


if __name__ == "__main__":
    import importlib
    import runpy

    for library in _LIBRARIES:
        importlib.import_module(library)
    if (request := _next_request()) is not None:
        _set_up(request)
        runpy.run_module(request["words"][0], run_name="__main__", alter_sys=True)
