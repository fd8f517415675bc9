"""The W&B workspace and the sweep of W&B's agents name what runs log, and keys that exist."""

import json
import re

import pytest
import yaml

from ssl_asr.commands.dashboard import dashboard
from ssl_asr.config.check import preflight
from ssl_asr.config.folders import config_folder
from ssl_asr.config.tools import DashboardConfig
from ssl_asr.errors import ConfigError
from ssl_asr.training.wandb import run_id
from tests.training.test_wandb import PICTURES, PROMISED, TABLES

# Numbers that only some runs log.
SOME = {"train/mfu", "train/masked_share", "train/grad_norm/encoder", "lr/encoder"}
PICTURES_OF_ATTENTION = {"val/attention/1", "val/attention/2"}


def test_panels_show_what_runs_log(tmp_path):
    path = tmp_path / "workspace.json"
    assert dashboard(DashboardConfig(project="p", entity="e", output=str(path)), tmp_path) is None
    text = path.read_text()
    record = json.loads(text)
    assert (record["entity"], record["project"]) == ("e", "p")
    sections = record["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == ["Scores", "Utterances", "Training", "Speed", "Sweep"]
    named = set(re.findall(r'"(?:summary:|run:)?((?:train|val|dev|test|lr|model|data|trainer)/[a-z_/0-9]+)"', text))
    assert named <= PROMISED | TABLES | PICTURES | PICTURES_OF_ATTENTION | SOME
    assert {"val/wer", "val/wer_best", "test/wer", "val/predictions", "test/worst", "train/mfu"} <= named


def test_without_a_key_or_a_file_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("ssl_asr.training.wandb.has_key", lambda: False)
    with pytest.raises(ConfigError, match=r"no API key for W&B.*output=workspace\.json"):
        dashboard(DashboardConfig(), tmp_path)


def test_jobs_of_the_sweep_are_command_lines_of_train(tmp_path, monkeypatch):
    sweep = yaml.safe_load((config_folder() / "wandb_sweep.yaml").read_text())
    assert sweep["metric"]["name"] in PROMISED
    # As the agent writes them, which is Python's way.
    arguments = [f"{key}={spec.get('values', [spec.get('min')])[0]}" for key, spec in sweep["parameters"].items()]
    start = sweep["command"].index("ssl_asr.train")
    words = sweep["command"][start + 1 :]
    assert words.pop() == "${args_no_hyphens}"
    monkeypatch.chdir(tmp_path)
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text('{"audio_filepath": "a.wav", "duration": 1.0, "text": "a"}\n')
    preflight("train", [*words, *arguments])


def test_run_of_an_agent_has_the_id_that_the_agent_gave(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    assert run_id(tmp_path / "own") != "abc"
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    assert run_id(tmp_path / "agent") == "abc"
    monkeypatch.setenv("WANDB_RUN_ID", "def")
    assert run_id(tmp_path / "agent") == "abc", "a resumed run continues"
