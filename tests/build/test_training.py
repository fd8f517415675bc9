"""Order of the steps that build a training run."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ssl_asr.build.training import build_training
from ssl_asr.data.options import DataConfig
from ssl_asr.errors import ManifestError, UserErrors
from tests.training.toy_runs import resolved, toy_overrides


@dataclass(frozen=True, kw_only=True)
class CopiedCorpus(DataConfig):
    """A corpus that does not exist before `prepare`."""

    original: Path
    folder: Path

    def prepare(self) -> None:
        shutil.copytree(self.original, self.folder)


@dataclass(frozen=True, kw_only=True)
class FailedDownload(DataConfig):
    """A corpus that cannot be fetched."""

    def prepare(self) -> None:
        raise ManifestError("data", "cannot be downloaded")


def overrides_for(checkpoint, corpus, folder):
    return toy_overrides(checkpoint, {split: folder / path.name for split, path in corpus.items()})


def test_corpus_is_prepared_before_manifests_are_read(toy_checkpoints, toy_corpus, tmp_path):
    folder = tmp_path / "corpus"
    config = resolved(*overrides_for(toy_checkpoints["wav2vec2_layer"], toy_corpus, folder))
    with pytest.raises(UserErrors, match="no such manifest"):
        build_training(config, tmp_path / "run", None)
    data = CopiedCorpus(**vars(config.data), original=toy_corpus["train"].parent, folder=folder)
    run = build_training(replace(config, data=data), tmp_path / "run", None)
    assert {name: len(manifest) for name, manifest in run.data.manifests.items()} == {"train": 10, "dev": 4, "test": 5}


def test_error_of_prepare_comes_before_errors_of_manifests(toy_checkpoints, toy_corpus, tmp_path):
    config = resolved(*overrides_for(toy_checkpoints["wav2vec2_layer"], toy_corpus, tmp_path / "nowhere"))
    data = FailedDownload(**vars(config.data))
    with pytest.raises(ManifestError, match="data: cannot be downloaded"):
        build_training(replace(config, data=data), tmp_path / "run", None)


def test_errors_of_manifests_come_before_pretrained_weights_are_loaded(toy_checkpoints, toy_corpus, tmp_path):
    overrides = overrides_for(toy_checkpoints["wav2vec2_layer"], toy_corpus, tmp_path / "nowhere")
    overrides += [f"backbone.source={tmp_path}/nowhere", "audio_augment=[noise]"]
    overrides += [f"audio_augment.noise.manifest={tmp_path}/noise.jsonl"]
    with pytest.raises(UserErrors) as found:
        build_training(resolved(*overrides), tmp_path / "run", None)
    assert [str(error).split(": ")[0] for error in found.value.errors] == [
        "audio_augment.noise.manifest",
        "data.train",
        "data.dev",
        "data.test",
    ]
