"""A model that the tests of the server share."""

import pytest

from tests.training.toy_runs import build, toy_overrides


@pytest.fixture(scope="package")
def toy_ctc(toy_checkpoints, toy_corpus, tmp_path_factory):
    """A CTC module. Random weights write labels at every frame, so that texts depend on the audio."""
    folder = tmp_path_factory.mktemp("serve")
    return build(folder, *toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus)).module.eval()


@pytest.fixture(scope="package")
def files(toy_corpus):
    return sorted(toy_corpus["train"].parent.glob("*.wav"))
