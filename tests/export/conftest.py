"""Fixtures: a toy Whisper as it is exported."""

import json
import shutil

import pytest

from ssl_asr.export.base import ExportModel
from tests.export.models import pretrained_whisper, read, save_english_whisper
from tests.toys import END
from tests.training.toy_runs import build, toy_overrides


@pytest.fixture(scope="package")
def toy_whisper_folder(toy_checkpoints, tmp_path_factory):
    """The toy Whisper, which writes printable ASCII characters only, so that texts can be compared."""
    folder = tmp_path_factory.mktemp("exported") / "whisper"
    shutil.copytree(toy_checkpoints["whisper"], folder)
    path = folder / "generation_config.json"
    generation = read(path)
    path.write_text(json.dumps({**generation, "suppress_tokens": [*generation["suppress_tokens"], *range(94, END)]}))
    return folder


@pytest.fixture(scope="package")
def toy_whisper(toy_whisper_folder):
    """The toy Whisper as it is exported."""
    return pretrained_whisper(toy_whisper_folder)


@pytest.fixture(scope="package")
def english_whisper(tmp_path_factory):
    """A tiny random Whisper with the vocabulary of English-only checkpoints."""
    return pretrained_whisper(save_english_whisper(tmp_path_factory.mktemp("english")))


@pytest.fixture(scope="package")
def toy_ctc(toy_checkpoints, toy_corpus, tmp_path_factory):
    """A wav2vec 2.0 with a CTC head, with random weights."""
    folder = tmp_path_factory.mktemp("ctc")
    module = build(folder, *toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus)).module.eval()
    return ExportModel(module=module.requires_grad_(False), net=None, window=None, tail_s=None)
