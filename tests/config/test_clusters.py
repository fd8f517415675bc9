"""The examples of conf/README.md: their commands compose, and their manifests say what the commands need."""

import re
import shlex

import pytest
import yaml

from ssl_asr.config.arguments import read_words
from ssl_asr.config.check import preflight, several_processes
from ssl_asr.config.composing import hydra_ready, jobs_of, parse_arguments, try_compose
from ssl_asr.errors import UserErrors
from tests.command_runner import REPO
from tests.config.options import resolved
from tests.test_docs import blocks, lines

TEXT = (REPO / "conf" / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for line in lines(TEXT) if "-m ssl_asr.train" in line]
SLURM = ["-m", "hydra/launcher=slurm", "data.train=t.jsonl"]


def words_of(command):
    """The words for our command, and the words for its launcher."""
    words = shlex.split(command, comments=True)
    place = words.index("ssl_asr.train")
    return words[place + 1 :], words[: place - 1]


def compose(given):
    words = read_words("train", given)
    preflight("train", [*words.flags, *words.overrides])
    parsed = parse_arguments("train", [*words.flags, *words.overrides])
    with hydra_ready(parsed):
        cfg = try_compose("train", jobs_of(parsed)[0])
    assert not isinstance(cfg, Exception), cfg
    return cfg


def flag(launcher, name):
    """The value of ``--name VALUE`` or ``--name=VALUE``; 1 if it is not given."""
    text = " ".join(launcher)
    found = re.search(rf"--{name}[= ](\S+)", text)
    return found.group(1) if found else "1"


def agrees(given, launcher):
    """A launcher starts the processes that the trainer expects."""
    trainer = compose(given).trainer
    assert str(trainer.devices) == flag(launcher, "nproc-per-node")
    assert str(trainer.num_nodes) == flag(launcher, "nnodes")


def test_there_is_a_command_for_every_kind_of_cluster():
    assert len(COMMANDS) == 6
    assert re.findall(r"^## (.+)$", TEXT, flags=re.M) == ["torchrun", "Slurm", "W&B agents", "Ray", "Kubernetes"]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_examples_compose(command):
    given, launcher = words_of(command)
    if "hydra/launcher=slurm" in given:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    compose(given)
    if launcher[0] == "torchrun":
        agrees(given, launcher)


def test_the_script_of_slurm_starts_a_task_for_each_device():
    [script] = [block for block in blocks(TEXT, "bash") if "#SBATCH" in block]
    trainer = compose(words_of(script.splitlines()[-1])[0]).trainer
    options = " ".join(line.removeprefix("#SBATCH") for line in script.splitlines() if line.startswith("#SBATCH"))
    assert re.search(r"--ntasks-per-node=(\d+)", options)[1] == str(trainer.devices)
    assert re.search(r"--nodes=(\d+)", options)[1] == str(trainer.num_nodes)
    assert {"--requeue", "--signal=USR1@120"} <= set(options.split())


def test_the_manifest_of_kubernetes_runs_a_resumable_command_on_every_node():
    [text] = blocks(TEXT, "yaml")
    service, job = yaml.safe_load_all(text)
    assert (service["apiVersion"], service["kind"], job["apiVersion"], job["kind"]) == (
        "v1",
        "Service",
        "batch/v1",
        "Job",
    )
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["completions"] == spec["parallelism"]
    # A policy for failures of pods needs pods that are not restarted in place.
    assert (spec["completionMode"], pod["restartPolicy"]) == ("Indexed", "Never")
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    # A run that is told to stop has 30 s for each step, and then writes a checkpoint.
    assert pod["terminationGracePeriodSeconds"] > 30
    [container] = pod["containers"]
    given, launcher = words_of(shlex.join([*container["command"], *container["args"]]))
    agrees(given, launcher)
    assert flag(launcher, "nnodes") == str(spec["completions"])
    assert flag(launcher, "nproc-per-node") == str(container["resources"]["limits"]["nvidia.com/gpu"])
    host = f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert flag(launcher, "rdzv-endpoint").startswith(f"{host}:")
    assert "resume=auto" in given
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    [rule] = spec["podFailurePolicy"]["rules"]
    assert rule == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}


def test_a_job_of_slurm_may_have_several_processes_if_slurm_starts_them():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    cfg = compose([*SLURM, "trainer=ddp", "trainer.devices=4", "trainer.num_nodes=2"])
    launcher = cfg.hydra.launcher
    assert (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node) == (2, 4, 4)
    with pytest.raises(UserErrors, match="tasks_per_node=1 nodes=1, and the job has devices=4 num_nodes=1"):
        compose([*SLURM, "trainer.devices=4", "hydra.launcher.tasks_per_node=1"])


@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_other_launchers_start_jobs_of_one_process(launcher):
    if launcher != "basic":
        pytest.importorskip(f"hydra_plugins.hydra_{launcher.split('_')[0]}_launcher")
    for strategy in ("ddp", "fsdp2"):
        with pytest.raises(UserErrors, match="in a sweep"):
            compose(["-m", f"hydra/launcher={launcher}", "data.train=t.jsonl", f"trainer.strategy={strategy}"])
    assert several_processes(resolved("trainer.devices=1")) == []
