"""Commands give the same for audio in shards as for audio in files, and name what is wrong with a shard."""

import json

import pytest

from ssl_asr.commands.check import check
from ssl_asr.commands.evaluate import evaluate
from ssl_asr.config.schemas import EvaluateConfig
from ssl_asr.config.tools import CheckConfig
from ssl_asr.data.files import Location
from ssl_asr.errors import ManifestError
from tests.commands.test_identity import SHARED, lines, run
from tests.commands.test_identity import here as here  # a fixture
from tests.commands.test_identity import module as module  # a fixture
from tests.data.shards import sharded


@pytest.fixture
def both(toy_corpus, tmp_path):
    """The test split in files and in shards of two utterances."""
    return toy_corpus["test"], sharded(toy_corpus["test"], tmp_path / "shards")


def cut_off(manifest):
    """Remove the last byte of the audio of the second utterance. Returns its path as the manifest has it."""
    name = lines(manifest)[1]["audio_filepath"]
    location = Location.of(name)
    tar = manifest.parent / location.container
    tar.write_bytes(tar.read_bytes()[: location.start + location.size - 1])
    return name


def test_transcripts_and_scores_are_those_of_files(here, both):
    made, scores = [], []
    for name, path in zip(("files", "shards"), both, strict=True):
        run([str(path)], f"{name}.jsonl")
        made.append([(row["id"], row["text"], row["score"]) for row in lines(here / f"{name}.jsonl")])
        evaluate(EvaluateConfig(manifest={"test": str(path)}, output_dir=name, **SHARED), None)
        scores.append(json.loads((here / name / "results.json").read_text())["test"]["scores"])
    assert made[0] == made[1]
    assert len(made[0]) == 5
    assert scores[0] == scores[1]
    run([str(both[1])], "out", format=["srt", "json"], times="max_prob")
    assert sorted(path.name for path in (here / "out").glob("*.srt")) == [f"test{i}.srt" for i in range(5)]


def test_a_truncated_shard_is_named(here, both, capsys):
    name = cut_off(both[1])
    run([str(both[1])], "o.jsonl")
    [skip] = json.loads((here / "o.jsonl.summary.json").read_text())["skips"]
    assert (skip["id"], skip["where"], skip["reason"]) == ("test1", f"{both[1]}:2", "truncated_shard")
    assert f"{name}: the shard ends at byte" in skip["detail"]
    assert len(lines(here / "o.jsonl")) == 4
    with pytest.raises(ManifestError, match=r"1 of 5 .*truncated_shard"):
        evaluate(EvaluateConfig(manifest={"test": str(both[1])}, output_dir="e", max_skip_fraction=0.1, **SHARED), None)


def test_check_reads_shards(here, both):
    check(CheckConfig(manifest={"test": str(both[1])}, output_dir="report", verbose=False), None)
    run([str(here / "report" / "clean" / "test.jsonl")], "o.jsonl")
    assert len(lines(here / "o.jsonl")) == 5
    cut_off(both[1])
    with pytest.raises(SystemExit):
        check(CheckConfig(manifest={"test": str(both[1])}, output_dir="again", verbose=False), None)
    assert "truncated_shard" in (here / "again" / "check.json").read_text()
