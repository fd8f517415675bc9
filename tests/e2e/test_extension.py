"""A package of somebody else brings one option of each kind: it trains, is saved, and transcribes again."""

import csv
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from tests.command_runner import REPO

SOURCE = Path(__file__).parent / "toy_extension"
KINDS = ("backbone", "head", "tokenizer", "decoder", "freeze_policy", "callbacks", "data")
CHOICES = [
    *(f"{kind}=toy" for kind in KINDS),
    *(f"{kind}@{kind}s.{side}=toy" for kind in ("optimizer", "scheduler") for side in ("encoder", "rest")),
]


def _wheel(folder):
    """The toy package as a wheel, as its author would publish it."""
    path = folder / "toy_speech-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file in sorted((SOURCE / "toy_speech").glob("*.py")):
            wheel.write(file, f"toy_speech/{file.name}")
        wheel.writestr("toy_speech-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy_speech\nVersion: 1.0\n")
        wheel.writestr(
            "toy_speech-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("toy_speech-1.0.dist-info/RECORD", "")
    return path


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder outside the repository where the toy package is installed, and its pretrained checkpoint."""
    folder = tmp_path_factory.mktemp("extension")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([*install, str(folder / "site"), str(_wheel(folder))], check=True)
    sys.path.insert(0, str(folder / "site"))
    try:
        from toy_speech.model import ToyEncoder

        torch.manual_seed(0)
        checkpoint = folder / "checkpoint"
        checkpoint.mkdir()
        (checkpoint / "config.json").write_text(json.dumps({"model_type": "toy_speech", "dim": 16, "layers": 2}))
        torch.save(ToyEncoder(dim=16, layers=2).state_dict(), checkpoint / "weights.pt")
    finally:
        sys.path.remove(str(folder / "site"))
    return folder


def _command(installed, *arguments):
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **settings, "PYTHONPATH": f"{REPO}{os.pathsep}{installed / 'site'}"}
    command = [sys.executable, "-m", "ssl_asr", *map(str, arguments)]
    return subprocess.run(command, cwd=installed, env=environment, capture_output=True, text=True)


def _train(installed, *more):
    options = [f"backbone.source={installed / 'checkpoint'}", "trainer.max_epochs=15", "trainer.accelerator=cpu"]
    return _command(installed, "train", "--config-dir", SOURCE / "conf", *CHOICES, *options, *more)


@pytest.fixture(scope="module")
def run(installed):
    done = _train(installed, "extensions=[toy_speech]", "run_dir=run")
    assert done.returncode == 0, done.stderr[-3000:]
    return installed / "run"


def test_every_kind_of_option_runs(run):
    config = (run / "config.yaml").read_text()
    for part in ("ToyBackbone", "ToyHead", "Words", "ToyGreedy", "FreezeFront", "RAdam", "Halving", "CountBatches"):
        assert f".{part}" in config
    with (run / "metrics" / "metrics.csv").open() as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert losses[-1] < losses[0]
    assert int((run / "batches.txt").read_text()) == 15


def test_the_saved_model_transcribes_with_its_extension(installed, run):
    rows = [json.loads(line) for line in (run / "predictions" / "test.jsonl").read_text().splitlines()]
    [expected] = [row for row in rows if row["id"] == "test1"]
    audio = expected["audio_filepath"]
    done = _command(installed, "transcribe", f"model={run}", f"input=[{audio}]", "extensions=[toy_speech]", "vad=false")
    assert done.returncode == 0, done.stderr[-3000:]
    assert expected["hyp"]
    assert done.stdout == f"{audio}\t{expected['hyp']}\n"


def test_a_checkpoint_cannot_decide_which_package_runs(installed, run):
    """A checkpoint names its extensions. They are loaded only if the user names them too."""
    done = _command(installed, "transcribe", f"model={run}", f"input=[{run / 'tones' / 'test1.wav'}]")
    assert done.returncode == 2
    assert "toy_speech" in done.stderr
    assert "extensions=[toy_speech]" in done.stderr
    assert "Traceback" not in done.stderr


def test_classes_of_packages_that_are_not_named_are_refused(installed):
    done = _train(installed, "run_dir=refused")
    assert done.returncode == 2
    assert "extensions=[toy_speech]" in done.stderr
    assert not (installed / "refused").exists()


def test_search_path_works_as_config_dir_does_and_is_checked(installed):
    path = f"hydra.searchpath=[file://{SOURCE / 'conf'}]"
    done = _command(installed, "train", path, *CHOICES, "extensions=[toy_speech]", "head.scael=1", "run_dir=x")
    assert done.returncode == 2
    assert "head.scael" in done.stderr
    assert "Did you mean 'scale'" in done.stderr
