"""The corpus of the notebooks: found, downloaded or synthesized, and thinned."""

import shutil
import tarfile

import pytest

from ssl_asr.data.corpora import tutorial
from ssl_asr.data.corpora.spoken import CorpusSizes
from ssl_asr.data.corpora.tutorial import SPLITS, tutorial_corpus
from ssl_asr.data.manifest import read_manifest
from tests.data.sources import clip, text

NOWHERE = "http://127.0.0.1:9/an4_sphere.tar.gz"


@pytest.fixture
def an4_archive(tmp_path):
    """An archive in the layout of AN4: eight speakers for training, and one for the test."""
    root = tmp_path / "source" / "an4"
    training, test = [f"s{number}" for number in range(8)], ["t0"]
    for part, home, speakers in (("train", "an4_clstk", training), ("test", "an4test_clstk", test)):
        names = [f"{kind}-{speaker}-b" for speaker in speakers for kind in ("an1", "an2")]
        for name in names:
            clip(root / "wav" / home / name.split("-")[1] / f"{name}.wav", 1.0)
        text(root / "etc" / f"an4_{part}.transcription", "".join(f"<s> YES NO </s> ({name})\n" for name in names))
    with tarfile.open(tmp_path / "an4_sphere.tar.gz", "w:gz") as archive:
        archive.add(root, "an4")
    shutil.rmtree(root)
    return tmp_path / "an4_sphere.tar.gz"


@pytest.fixture(autouse=True)
def _nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_ASR_DATA", str(tmp_path / "nothing"))
    monkeypatch.setattr(tutorial, "AN4", NOWHERE)


def test_the_corpus_of_the_shared_folder_is_found_and_thinned(toy_corpus, tmp_path, monkeypatch, capsys):
    shutil.copytree(toy_corpus["train"].parent, tmp_path / "shared" / "en_an4")
    monkeypatch.setenv("SSL_ASR_DATA", str(tmp_path / "shared"))
    found = tutorial_corpus(tmp_path / "out", most={"train": 4, "test": 100})
    assert capsys.readouterr().out == "CMU AN4: train 4, dev 4, test 5 utterances\n"
    assert found["dev"] == tmp_path / "shared" / "en_an4" / "dev.jsonl"
    thinned, whole = read_manifest(found["train"]), read_manifest(toy_corpus["train"])
    assert [one.id for one in thinned] == [whole[place].id for place in (0, 2, 5, 7)]
    assert [one.duration for one in thinned] == [whole[place].duration for place in (0, 2, 5, 7)]


def test_the_downloaded_corpus_is_split_by_speaker(an4_archive, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tutorial, "AN4", str(an4_archive))
    found = {split: read_manifest(path) for split, path in tutorial_corpus(tmp_path / "out").items()}
    assert {split: len(found[split]) for split in SPLITS} == {"train": 14, "dev": 2, "test": 2}
    speakers = {split: {one.tags["speaker"] for one in rows} for split, rows in found.items()}
    assert not speakers["train"] & speakers["dev"]
    assert speakers["test"] == {"t0"}
    assert {one.text for rows in found.values() for one in rows} == {"yes no"}
    monkeypatch.setattr(tutorial, "AN4", NOWHERE)
    capsys.readouterr()
    tutorial_corpus(tmp_path / "out")
    assert capsys.readouterr().out == "CMU AN4: train 14, dev 2, test 2 utterances\n"


def test_without_a_network_speech_is_synthesized(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tutorial, "_SPOKEN", CorpusSizes(train=2, dev=1, test=1))
    found = tutorial_corpus(tmp_path / "out")
    said, counts = capsys.readouterr().out.splitlines()
    assert said.startswith(f"AN4 cannot be downloaded (input: {NOWHERE}")
    assert said.endswith("Synthesized speech is used, so figures differ from the text.")
    assert counts == "Synthesized speech: train 2, dev 1, test 1 utterances"
    assert len(read_manifest(found["train"])) == 2
