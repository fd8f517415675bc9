"""``hydra/launcher=slurm``, with programs that stand for those of Slurm."""

import os
import subprocess
import sys
import time

import pytest
import torch

from tests.command_runner import REPO
from tests.e2e.test_sweeps import small
from tests.fake_slurm import install
from tests.training.toy_runs import read_checkpoint

# A time limit of the first job, after its second update.
CALLBACK = """
import os, signal
from lightning import Callback
class Limit(Callback):
    def on_train_batch_end(self, trainer, *_) -> None:
        is_first = os.environ["SLURM_ARRAY_TASK_ID"] == "0" and "SLURM_RESTART_COUNT" not in os.environ
        if is_first and trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.slow
def test_a_job_at_its_time_limit_is_queued_again_and_continues(toy_checkpoints, toy_corpus, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    slurm = install(tmp_path / "slurm")
    (tmp_path / "limit.py").write_text(CALLBACK)
    given = [*small(toy_checkpoints, toy_corpus), "trainer.max_epochs=2", "data.max_batch_s=1.6"]
    given += ["+callbacks.limit={_target_: limit.Limit}", "extensions=[limit]", "run_name=a,b", "hydra.sweep.dir=sweep"]
    launcher = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=null"]
    settings = {
        "PATH": f"{slurm}:{os.environ['PATH']}",
        "PYTHONPATH": f"{REPO}:{tmp_path}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "ssl_asr.train", "-m", *launcher, *given],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **settings},
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # The command reads results, which a job writes before it ends.
    limit = time.monotonic() + 60
    while not all((slurm / f"ended_{job}").exists() for job in "01") and time.monotonic() < limit:
        time.sleep(0.1)
    script = (slurm / "scripts" / "last.sh").read_text()
    for line in (
        "--requeue",
        "--signal=USR1@120",
        "--partition=gpu",
        "--ntasks-per-node=1",
        "--nodes=1",
        "--array=0-1%2",
    ):
        assert f"#SBATCH {line}\n" in script
    assert (slurm / "scontrol.txt").read_text() == "requeue 100_0\n"
    assert sorted((slurm / "codes.txt").read_text().splitlines()) == ["0 0", "0 143", "1 0"]
    first, second = (read_checkpoint(tmp_path / "sweep" / job / "checkpoints" / "last.ckpt") for job in "01")
    assert first["global_step"] == second["global_step"] > 2
    assert all(torch.equal(first["state_dict"][name], value) for name, value in second["state_dict"].items())
    rows = (tmp_path / "sweep" / "sweep.csv").read_text().splitlines()
    assert rows[0] == "job,status,best val/wer,overrides,folder,error"
    assert [row.split(",")[:2] for row in rows[1:]] == [["0", "done"], ["1", "done"]]
