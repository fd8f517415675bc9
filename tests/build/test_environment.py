"""What `doctor` says of a machine, and the checks at the start of training: causes and cures are named."""

import io
import shutil
import tomllib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from ssl_asr.build import environment
from ssl_asr.build.environment import (
    EXTRAS,
    Finding,
    _extras,
    check_room,
    check_start,
    check_torchaudio,
    findings,
    print_findings,
)
from ssl_asr.build.training import build_training
from ssl_asr.console import Notice
from ssl_asr.errors import ConfigError, UserError, UserErrors
from ssl_asr.training.loggers import WandbLog
from tests.command_runner import REPO
from tests.training.toy_runs import resolved, toy_overrides

TORCH = torch.__version__.partition("+")[0]
WANDB = WandbLog(project="p", entity=None, group=None, tags=[], offline=False, audio_samples=0)


@pytest.fixture
def config(toy_checkpoints, toy_corpus):
    return resolved(*toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus))


def torchaudio_is(monkeypatch, result):
    def load(name):
        assert name == "torchaudio"
        if isinstance(result, Exception):
            raise result
        return SimpleNamespace(__version__=result)

    monkeypatch.setattr(environment, "import_module", load)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (OSError("libcudart.so.13: cannot open shared object file\nmore"), "cannot be imported with torch"),
        (ImportError("No module named 'torchaudio._C'"), "cannot be imported with torch"),
        (RuntimeError("undefined symbol: _ZN3c10"), "cannot be imported with torch"),
        ("1.0.0+cpu", "is release 1.0.0, and torch is release"),
    ],
)
def test_a_torchaudio_that_does_not_work_is_blamed_itself(monkeypatch, config, tmp_path, result, message):
    """And neither the checkpoint nor its folder, before either is opened."""
    torchaudio_is(monkeypatch, result)
    with pytest.raises(UserError) as caught:
        check_torchaudio()
    said = str(caught.value)
    assert said.startswith(f"torchaudio: {message}")
    assert said.endswith(f"Install the release of torch: pip install torchaudio=={TORCH}.")
    assert "\n" not in said
    elsewhere = replace(config, backbone=replace(config.backbone, source="nobody/nothing"))
    with pytest.raises(UserError, match="^torchaudio: "):
        build_training(elsewhere, tmp_path, None)
    [finding] = [one for one in findings(config) if one.name == "torch and torchaudio"]
    assert finding.state == "error"
    assert finding.remedy == f"install the release of torch: pip install torchaudio=={TORCH}"


def test_inference_checks_torchaudio_before_it_looks_for_a_model(monkeypatch):
    from ssl_asr.inference.model import InferenceOptions, load_encoder, load_model

    torchaudio_is(monkeypatch, OSError("broken"))
    for load in (load_model, load_encoder):
        with pytest.raises(UserError, match="^torchaudio: "):
            load("nobody/nothing", InferenceOptions())


def test_other_builds_of_one_release_go_together(monkeypatch):
    torchaudio_is(monkeypatch, f"{TORCH}+cu130")
    check_torchaudio()


def test_the_room_on_a_disk_is_checked(monkeypatch, tmp_path):
    def free(count):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=count, total=count))

    free(50_000_000)
    with pytest.raises(UserError, match="only 50.0 MB are free on its disk. Make room"):
        check_room(tmp_path / "new" / "folder")
    free(2_000_000_000)
    with pytest.warns(Notice, match="only 2.0 GB are free"):
        check_room(tmp_path)
    free(10**11)
    check_room(tmp_path)


def test_logging_online_needs_a_key_at_once(monkeypatch, config, tmp_path):
    monkeypatch.setattr("ssl_asr.training.wandb.has_key", lambda: False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(ConfigError, match="logger.offline: is false, and there is no API key for W&B. Run wandb login"):
        check_start(replace(config, logger=WANDB), tmp_path)
    for offline in (True, None):
        check_start(replace(config, logger=replace(WANDB, offline=offline)), tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_start(replace(config, logger=WANDB), tmp_path)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr("ssl_asr.training.wandb.has_key", lambda: True)
    check_start(replace(config, logger=WANDB), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "bogus"}, "trainer.strategy: is 'bogus' with 1 nodes and precision 32-true: You selected an"),
        ({"strategy": ""}, "trainer.strategy: is ''"),
        ({"strategy": "fsdp"}, "trainer.strategy: is 'fsdp'.*requires a GPU accelerator"),
        ({"strategy": "xla"}, "trainer.strategy: is 'xla'"),
        ({"accelerator": "tpu"}, "trainer.accelerator: is 'tpu', which this machine does not have"),
        ({"devices": "abc"}, "trainer.devices: is 'abc'"),
        ({"devices": -5}, "trainer.devices: is -5"),
        ({"devices": [0, 0]}, "trainer.devices: is "),
    ],
)
def test_what_lightning_refuses_is_an_error_of_the_key(config, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        check_start(replace(config, trainer=replace(config.trainer, **changes)), tmp_path)
    assert "\n" not in str(caught.value)


def test_all_causes_are_named_at_once(monkeypatch, config, tmp_path):
    torchaudio_is(monkeypatch, OSError("broken"))
    with pytest.raises(UserErrors) as caught:
        check_start(replace(config, trainer=replace(config.trainer, accelerator="gpu", strategy="ddp")), tmp_path)
    assert [error.where for error in caught.value.errors] == ["trainer.accelerator", "torchaudio"]


def test_every_extra_for_users_is_listed_with_its_package():
    extras = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras.keys() - {"bench", "dev", "mutation"} == EXTRAS.keys()
    for option, (package, _, _) in EXTRAS.items():
        assert any(needed.startswith(package) for needed in extras[option]), option


def test_an_absent_extra_and_a_broken_one_are_told_apart(monkeypatch):
    def broken(name):
        raise {"peft": ModuleNotFoundError("No module named 'peft'", name="peft")}.get(name, OSError("libx.so: gone"))

    monkeypatch.setattr("ssl_asr.build.environment.EXTRAS", {name: EXTRAS[name] for name in ("lora", "kenlm")})
    monkeypatch.setattr("ssl_asr.build.environment.import_module", broken)
    absent, failed = _extras()
    assert (absent.state, absent.seen) == ("ok", "absent: freeze_policy=lora")
    assert absent.remedy == "pip install 'ssl_asr[lora]', if you need it"
    assert (failed.state, failed.seen) == ("warning", "kenlm cannot be imported: libx.so: gone")


def test_the_table_shows_libraries_devices_places_and_extras(config, tmp_path):
    rows = {row.name: row for row in findings(replace(config, run_dir=str(tmp_path / "run")))}
    assert rows["torch"].seen == torch.__version__.partition("+")[0] or rows["torch"].seen == torch.__version__
    assert {"python", "CPU", "run_dir", "Hugging Face cache", "checkpoints", "shared memory", "W&B key"} <= rows.keys()
    assert not (tmp_path / "run").exists()
    assert rows["extra optuna"].seen == "installed: sweep=optuna"
    console = Console(width=200, file=io.StringIO())
    print_findings([Finding(name="extra onnx", seen="absent: [a]", remedy="pip install 'ssl_asr[onnx]'")], console)
    shown = console.file.getvalue()
    assert "absent: [a]" in shown
    assert "pip install 'ssl_asr[onnx]'" in shown, "rich reads square brackets as markup"
    print_findings(list(rows.values()), console)
    (tmp_path / "file").touch()
    rows = {row.name: row for row in findings(replace(config, run_dir=str(tmp_path / "file")))}
    assert rows["run_dir"].state == "error"
    assert "is a file, and a folder is needed" in rows["run_dir"].seen


@pytest.mark.parametrize(("threads", "shown"), [(1, ", 1 thread"), (2, ", 2 threads")])
def test_the_number_of_threads_is_spelled_out(monkeypatch, threads, shown):
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    assert next(environment._devices()).seen.endswith(shown)
