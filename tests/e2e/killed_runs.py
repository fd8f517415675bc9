"""Ends real training processes at random moments, resumes them, and compares the end with that of a whole run.

python -m tests.e2e.killed_runs [MOMENTS [SEED]]

    kill          SIGKILL to every process
    kill one      SIGKILL to one of the ranks, or to a run without its loader workers
    terminate     SIGTERM to one process
    power cut     a copy of the folder while the run goes on, as a file system is after a power cut
    disk full     no file can grow, from a random moment on

Processes are forked from this one, which has imported the libraries. Ranks are started as by torchrun.
"""

import contextlib
import csv
import json
import multiprocessing.util
import os
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ssl_asr.data.workers import end_workers

WAYS = ("kill", "kill one", "terminate", "power cut", "disk full")
_LONGEST_S = 300.0


@dataclass
class Run:
    """The processes of a training run.

    Attributes:
        words: Overrides of the command line.
        folder: Folder of the run.
        ranks: Number of processes.
    """

    words: Sequence[str]
    folder: Path
    ranks: int
    pids: list[int] = field(default_factory=list)
    codes: dict[int, int] = field(default_factory=dict)

    def start(self, *more: str, full_after_s: float | None = None) -> "Run":
        """Start all processes. After a while, files can no longer grow in the first one if that is asked for."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.pids, self.codes = [], {}
        for rank in range(self.ranks):
            pid = os.fork()
            if pid == 0:
                self._train(rank, port, more, full_after_s if rank == 0 else None)
            self.pids.append(pid)
        return self

    def _train(self, rank: int, port: int, more: Sequence[str], full_after_s: float | None) -> None:
        """The forked process. Never returns."""
        code = 1
        try:
            os.setsid()
            # A device is never full.
            name = f"{self.folder}.log" if full_after_s is None else os.devnull
            log = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for stream in (1, 2):
                os.dup2(log, stream)
            # pytest has files of its own in their place.
            sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
            if self.ranks > 1:
                ranks = {"WORLD_SIZE": self.ranks, "LOCAL_WORLD_SIZE": self.ranks, "RANK": rank, "LOCAL_RANK": rank}
                where = {
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                    "GROUP_RANK": 0,
                    "TORCHELASTIC_RUN_ID": "test",
                }
                os.environ.update({key: str(value) for key, value in (ranks | where).items()})
            if full_after_s is not None:
                # An alarm, since the libraries of a forked process may not have threads yet.
                signal.signal(signal.SIGALRM, _fill_disk)
                signal.setitimer(signal.ITIMER_REAL, full_after_s)
            sys.argv = ["ssl_asr", "train", *self.words, f"run_dir={self.folder}", *more]
            from ssl_asr.__main__ import main

            main()
            code = 0
        except SystemExit as way:
            code = way.code if isinstance(way.code, int) else int(way.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                # Other functions of this kind are those of the process that was forked.
                end_workers()
                multiprocessing.util._exit_function()
            os._exit(code)

    def send(self, number: int, pids: Sequence[int], *, group: bool = False) -> None:
        """Send a signal to processes that have not ended."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(pid, number)

    def wait(self, longest_s: float = _LONGEST_S) -> list[int]:
        """The exit codes of all processes. Those that do not end are killed, and have the code -9."""
        end = time.monotonic() + longest_s
        while len(self.codes) < len(self.pids):
            for pid in self.pids:
                if pid not in self.codes and (found := os.waitpid(pid, os.WNOHANG))[0]:
                    self.codes[pid] = os.waitstatus_to_exitcode(found[1])
            if time.monotonic() > end:
                self.send(signal.SIGKILL, [pid for pid in self.pids if pid not in self.codes], group=True)
            time.sleep(0.02)
        return [self.codes[pid] for pid in self.pids]


def _fill_disk(*_: object) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def end_at(run: Run, way: str, moment_s: float, rng: random.Random) -> Path:
    """End a run in one of the `WAYS` after some seconds. Returns the folder to resume it in."""
    run.start(full_after_s=moment_s if way == "disk full" else None)
    if way == "disk full":
        run.wait()
        return run.folder
    time.sleep(moment_s)
    if way == "power cut":
        copy = run.folder.with_name(f"{run.folder.name}-copy")
        _copy(run.folder, copy)
        run.send(signal.SIGKILL, run.pids, group=True)
        run.wait()
        return copy
    if way == "kill":
        run.send(signal.SIGKILL, run.pids, group=True)
    else:
        run.send(signal.SIGKILL if way == "kill one" else signal.SIGTERM, [rng.choice(run.pids)])
    run.wait(60)
    return run.folder


def _copy(folder: Path, copy: Path) -> None:
    """A copy of what is there, while files come and go."""
    copy.mkdir()
    for path in sorted(folder.rglob("*")):
        target = copy / path.relative_to(folder)
        with contextlib.suppress(FileNotFoundError):
            if path.is_dir():
                target.mkdir(exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


def results(folder: Path) -> dict[str, object]:
    """Everything that a run leaves behind, besides times: weights, scores, texts, and metrics of validations."""
    from ssl_asr.data.state_store import state_digest
    from ssl_asr.training.checkpoint_files import read_checkpoint

    found: dict[str, object] = {}
    for name in ("best", "last"):
        checkpoint = read_checkpoint(folder / "checkpoints" / f"{name}.ckpt")
        found[name] = (checkpoint["global_step"], state_digest(checkpoint["state_dict"].items()))
    for name in ("dev", "test"):
        found[name] = [json.loads(line) for line in (folder / "predictions" / f"{name}.jsonl").open()]
    scores = json.loads((folder / "results.json").read_text())
    found["scores"] = {name: scores[name]["scores"] for name in ("dev", "test")}
    with (folder / "metrics" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for key in ("val/wer", "val/loss", "train/loss", "train/grad_norm"):
        found[key] = [(row["step"], row[key]) for row in rows if row.get(key)]
    left = [path.name for path in folder.rglob("*") if path.name.endswith(".partial") or path.name.startswith(".lock")]
    found["left over"] = left
    return found


def differences(words: Sequence[str], folder: Path, *, moments: int, seed: int, say=print) -> list[str]:
    """End and resume runs at random moments. Returns what differs from the whole run, one line each.

    Args:
        words: Overrides of a run of a few seconds.
        folder: An empty folder.
        moments: Number of moments, over all ways, 1 and 2 ranks, and 0 and 2 loader workers.
        seed: Of the moments.
        say: Takes a line for each moment.
    """
    rng, wrong, counts = random.Random(seed), [], Counter()
    whole: dict[tuple[int, int], tuple[dict[str, object], float]] = {}
    for number in range(moments):
        way, ranks, workers = WAYS[number % len(WAYS)], 1 + number // len(WAYS) % 2, 2 * (number // 10 % 2)
        own = [*words, f"data.num_workers={workers}", f"trainer.devices={ranks}"]
        own += ["trainer.strategy=ddp"] if ranks > 1 else []
        if (ranks, workers) not in whole:
            run = Run(own, folder / f"whole-{ranks}-{workers}", ranks)
            began = time.monotonic()
            codes = run.start().wait()
            assert codes == [0] * ranks, Path(f"{run.folder}.log").read_text()[-3000:]
            whole[ranks, workers] = results(run.folder), time.monotonic() - began
        expected, length_s = whole[ranks, workers]
        run = Run(own, folder / f"run-{number}", ranks)
        moment_s = rng.uniform(0.1, 1.0) * length_s
        where = end_at(run, way, moment_s, rng)
        # Hydra writes its files before a job starts, and has errors of its own.
        begun = (where / "config.yaml").exists()
        codes, again = list(run.codes.values()), Run(own, where, ranks)
        resumed = again.start("resume=auto").wait()
        name = f"{number}: {way} after {moment_s:.1f} of {length_s:.1f} s, {ranks} ranks, {workers} workers"
        found = results(where) if resumed == [0] * ranks else {"codes": resumed}
        allowed = {"terminate": {0, 143}, "disk full": {0, 2}}.get(way) if begun else None
        faults = [f"{name}: codes {codes}"] if allowed is not None and not {*codes[:1]} <= allowed else []
        faults += [f"{name}: {key}" for key in expected if found.get(key) != expected[key]]
        wrong += faults
        counts[way, "differs" if faults else "equal"] += 1
        say(f"{name}: codes {codes}, resumed {resumed}, {'DIFFERS ' + str(faults) if faults else 'equal'}")
        if not faults:
            shutil.rmtree(where)
    say("; ".join(f"{way} {how}: {count}" for (way, how), count in sorted(counts.items())))
    return wrong


def overrides(checkpoint: Path, corpus: dict[str, Path]) -> list[str]:
    """A run of a few seconds with dropout, validations within epochs, and a checkpoint every two updates."""
    from tests.training.toy_runs import toy_overrides

    own = [word for word in toy_overrides(checkpoint, corpus) if word != "logger=none"]
    return [
        *own,
        "logger=csv",
        "data.max_batch_s=100",
        "data.max_batch_size=2",
        "data.eval_batch_s=1",
        "trainer.max_epochs=2",
        "trainer.val_check_interval=3",
        "trainer.checkpoint_every_n_updates=2",
        "head.dropout=0.3",
        "freeze=false",
        "verbose=false",
    ]


def load() -> None:
    """Import what a run needs, before processes are forked."""
    import ssl_asr.build.training
    import ssl_asr.commands.train
    import ssl_asr.inference.testing  # noqa: F401


def main() -> None:
    """End runs of a toy model on generated tones."""
    from tests import toys
    from tests.conftest import toy_corpus

    moments, seed = (int(word) for word in [*sys.argv[1:], "50", "0"][:2] if word)
    load()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)

        class Factory:
            def mktemp(self, name: str) -> Path:
                (root / name).mkdir()
                return root / name

        corpus = toy_corpus.__wrapped__(Factory())
        words = overrides(toys.save_checkpoint("wav2vec2_group", root / "model"), corpus)
        wrong = differences(words, root, moments=moments, seed=seed, say=lambda line: print(line, flush=True))
        if wrong:
            shutil.copytree(root, Path(tempfile.mkdtemp()) / "kept")
    print("\n".join(wrong) or "every resumed run equals the whole run")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
