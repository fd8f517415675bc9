"""Ranks that torchrun starts, on one node and on two."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from tests.command_runner import REPO
from tests.e2e.test_sweeps import small
from tests.ranks import on_ranks
from tests.training.test_sharding import train
from tests.training.toy_runs import read_checkpoint, toy_overrides

RANKS = ["data.max_batch_s=1.6", "trainer.strategy=ddp"]


def torchrun(nodes, *arguments, cwd):
    """Start torchrun once for each node, with one process each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = [f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-backend=c10d", "--rdzv-id=a"]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc-per-node={2 // nodes}"]
    env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return [
        subprocess.Popen(
            [*command, *place, "-m", "ssl_asr.train", *arguments],
            cwd=cwd,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(nodes)
    ]


def ended(agents):
    found = [(*agent.communicate(timeout=300), agent.returncode) for agent in agents]
    return [code for *_, code in found], "".join(out for out, _, _ in found), "".join(err for _, err, _ in found)


@pytest.mark.slow
def test_two_nodes_train_as_one_node_and_write_one_run(toy_checkpoints, toy_corpus, tmp_path):
    given = [*toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus), *RANKS, "trainer.max_epochs=1"]
    nodes = ["trainer.devices=1", "trainer.num_nodes=2", f"run_dir={tmp_path / 'two'}"]
    codes, out, err = ended(torchrun(2, *given, *nodes, "verbose=true", cwd=tmp_path))
    assert codes == [0, 0], err[-3000:]
    # The first rank prints and writes.
    assert out.count("parameters train") == 1
    rows = [json.loads(line)["id"] for line in (tmp_path / "two" / "predictions" / "test.jsonl").open()]
    assert len(rows) == len(set(rows)) == 5
    on_ranks(train, 2, tmp_path / "one", [*given, "trainer.devices=2"])
    two, one = (read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("two", "one"))
    assert two["global_step"] == one["global_step"] > 1
    assert all(torch.equal(two["state_dict"][name], value) for name, value in one["state_dict"].items())


@pytest.mark.slow
def test_a_signal_to_torchrun_leaves_a_checkpoint_that_the_same_command_continues(
    toy_checkpoints, toy_corpus, tmp_path
):
    run = tmp_path / "run"
    given = [*small(toy_checkpoints, toy_corpus), *RANKS, "trainer.devices=2", f"run_dir={run}", "resume=auto"]
    last = run / "checkpoints" / "last.ckpt"
    agents = torchrun(1, *given, "trainer.max_epochs=300", cwd=tmp_path)
    limit = time.monotonic() + 200
    while not last.exists() and time.monotonic() < limit:
        time.sleep(0.2)
    agents[0].send_signal(signal.SIGTERM)
    [code], _, err = ended(agents)
    assert code != 0
    assert "interrupted: to continue from the last checkpoint" in err
    stopped = read_checkpoint(last)["global_step"]
    assert stopped > 0
    codes, _, err = ended(
        torchrun(1, *given, f"trainer.max_steps={stopped + 2}", "trainer.max_epochs=300", cwd=tmp_path)
    )
    assert codes == [0], err[-3000:]
    assert read_checkpoint(last)["global_step"] == stopped + 2


@pytest.mark.slow
def test_torchrun_exits_with_one_if_the_configuration_is_wrong(tmp_path):
    codes, _, err = ended(torchrun(1, "data.train=none.jsonl", "trainer.devices=2", *RANKS, cwd=tmp_path))
    assert codes == [1]
    assert "none.jsonl" in err
