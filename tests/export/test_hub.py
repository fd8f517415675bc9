"""Uploads, against a Hub that is a list."""

from dataclasses import replace

import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from ssl_asr.config.exporting import ExportConfig
from ssl_asr.errors import ConfigError
from ssl_asr.export import job
from ssl_asr.export.hub import HubTarget


class FakeApi:
    """The part of ``HfApi`` that is used. ``calls`` has what was asked."""

    existing = frozenset()
    fault = None

    def __init__(self):
        self.calls = []

    def whoami(self):
        if self.fault is not None:
            raise self.fault
        return {"name": "me"}

    def repo_exists(self, name):
        return name in self.existing

    def create_repo(self, name, *, private, **_):
        self.calls.append(("create", name, private))

    def upload_folder(self, *, repo_id, folder_path, **_):
        self.calls.append(("upload", repo_id, sorted(path.name for path in folder_path.iterdir())))


@pytest.fixture
def api(monkeypatch):
    made = FakeApi()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_token")
    return made


def test_a_folder_is_uploaded_and_private_by_default(api, tmp_path):
    (tmp_path / "config.json").touch()
    config = ExportConfig(model="m", to="transformers", output_dir="o", push="me/model")
    target = HubTarget("me/model", private=config.private, overwrite=False)
    assert api.calls == []
    assert target.upload(tmp_path) == "https://huggingface.co/me/model"
    assert api.calls == [("create", "me/model", True), ("upload", "me/model", ["config.json"])]


def test_an_existing_repository_is_changed_on_request_only(api):
    api.existing = frozenset({"me/model"})
    with pytest.raises(ConfigError, match=r"https://huggingface\.co/me/model exists.*overwrite=true"):
        HubTarget("me/model", private=True, overwrite=False)
    HubTarget("me/model", private=True, overwrite=True)


def test_a_hub_that_cannot_be_reached_is_an_error_before_any_work(api, monkeypatch, tmp_path):
    config = ExportConfig(model="none", to="transformers", output_dir=str(tmp_path / "out"), push="me/model")
    monkeypatch.setattr(job, "load_export_model", lambda *_: pytest.fail("the model was loaded"))
    for fault in (ConnectionError("no route"), OfflineModeIsEnabled("offline")):
        api.fault = fault
        with pytest.raises(ConfigError, match="push: the Hugging Face Hub cannot be reached"):
            job.export_folder(config, None)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ConfigError, match="needs a token.*hf auth login"):
        job.export_folder(config, None)


def test_a_failed_upload_says_where_the_folder_is(api, monkeypatch, tmp_path):
    def fails(**_):
        raise ConnectionError("connection reset")

    monkeypatch.setattr(api, "upload_folder", fails)
    with pytest.raises(ConfigError, match=f"connection reset.*{tmp_path} is complete.*hf upload me/model"):
        HubTarget("me/model", private=True, overwrite=False).upload(tmp_path)


def test_names_and_offline_mode_are_checked_with_the_command_line(monkeypatch):
    config = ExportConfig(model="m", to="transformers", output_dir="/nonexistent/o", push="me/model")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert not list(config.conflicts())
    [error] = replace(config, push="model").conflicts()
    assert "expected ORGANIZATION/NAME" in str(error)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    [error] = config.conflicts()
    assert "HF_HUB_OFFLINE is set" in str(error)
