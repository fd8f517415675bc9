"""Audio of manifests outside the folder that the user names is refused before it is opened."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ssl_asr.config import schemas
from ssl_asr.data.confinement import check_confined
from ssl_asr.data.inputs import gather
from ssl_asr.data.manifest import read_manifest
from ssl_asr.data.module import read_manifests
from ssl_asr.errors import ConfigError, ManifestError, UserErrors
from ssl_asr.types import Utterance
from tests.data.test_module import config as config  # a fixture


@pytest.fixture
def place(tmp_path):
    """``root/data/m.jsonl`` and audio at several places: below root, beside it, and behind links."""
    root = tmp_path / "root"
    for folder in (root / "data" / "sub", root / "other", tmp_path / "rooted", tmp_path / "outside"):
        folder.mkdir(parents=True)
        soundfile.write(folder / "a.wav", np.full(1600, 0.1, dtype=np.float32), 16000)
    (root / "data" / "leads_out.wav").symlink_to(tmp_path / "outside" / "a.wav")
    (root / "data" / "folder_out").symlink_to(tmp_path / "outside")
    (root / "data" / "stays_in").symlink_to(root / "other")
    return root


def manifest(place, *names):
    path = place / "data" / "m.jsonl"
    rows = [{"audio_filepath": str(name), "text": "a", "id": str(i)} for i, name in enumerate(names)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["sub/a.wav", "../other/a.wav", "stays_in/a.wav", "sub/../../other/a.wav"])
def test_audio_in_the_folder_is_read(place, name):
    assert len(read_manifest(manifest(place, name), root=place)) == 1
    assert len(read_manifest(manifest(place, (place / "data" / name).resolve()), root=place)) == 1


@pytest.mark.parametrize(
    "name", ["../../outside/a.wav", "leads_out.wav", "folder_out/a.wav", "../../rooted/a.wav", "/etc/passwd", ".."]
)
def test_audio_outside_the_folder_is_refused_and_not_opened(place, name, monkeypatch):
    path = manifest(place, "sub/a.wav", name) if name != ".." else None
    monkeypatch.setattr("ssl_asr.data.manifest.audio_duration_s", lambda *_, **__: pytest.fail("opened"))
    if path is None:
        # A manifest cannot name a folder, but an object can.
        with pytest.raises(ManifestError, match="outside"):
            check_confined([Utterance(id="a", audio_filepath=str(place / ".."), duration=1.0, where="m:1")], place)
        return
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, root=place)
    assert str(caught.value).startswith(f"{path}:2: audio ")
    assert f"outside root={place}" in str(caught.value)


def test_every_road_to_a_manifest_is_confined(place, config):
    path = str(manifest(place, "../../outside/a.wav", "leads_out.wav"))
    with pytest.raises(UserErrors, match="outside root="):
        gather([Path(path)], root=place)
    with pytest.raises(UserErrors, match=r"outside data\.root="):
        read_manifests(replace(config, train={"train": path}, root=str(place)))
    assert len(read_manifests(replace(config, train={"train": path}))["train"]) == 2
    # All commands that read audio of manifests take the folder.
    for name, schema in schemas.SCHEMAS.items():
        takes_audio = name in ("evaluate", "transcribe", "align", "extract", "export", "tune_decoding")
        assert ("root" in schema.__dataclass_fields__) == takes_audio


def test_a_folder_that_does_not_exist_is_named(place):
    with pytest.raises(ConfigError, match=r"data\.root: no such folder: no"):
        read_manifest(manifest(place, "sub/a.wav"), root="no", root_key="data.root")
