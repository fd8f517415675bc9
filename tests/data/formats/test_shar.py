"""Shards give the batches of files, lhotse reads what is written, and its own folders are read."""

import gzip
import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from ssl_asr.data.audio import read_waveform
from ssl_asr.data.manifest import read_manifest
from ssl_asr.errors import ConfigError, ManifestError
from tests.data.shards import corpus, sharded
from tests.data.sources import clip, lines, reasons, run, text
from tests.data.test_module import config as config  # a fixture
from tests.data.test_module import data_of
from tests.training.toy_runs import build, toy_overrides


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Manifests of the same corpus in files and in shards."""
    folder = tmp_path_factory.mktemp("shar")
    manifest = corpus(folder / "files")
    run(manifest, folder / "made")
    return folder / "made" / "train.jsonl", sharded(folder / "made" / "train.jsonl", folder / "shards")


def test_every_utterance_has_the_same_samples(both):
    files, shards = (read_manifest(path) for path in both)
    assert [one.id for one in shards] == [one.id for one in files]
    for one, other in zip(files, shards, strict=True):
        assert torch.equal(read_waveform(other), read_waveform(one)), one.id
        assert (other.text, other.tags, other.lang) == (one.text, one.tags, one.lang)
        assert other.duration == one.duration
        assert (other.offset, other.channel) == (0.0, None)
    assert [one.audio_filepath.rpartition("@")[0].partition("shards/")[2] for one in shards][4:7] == [
        "train/recording.000002.tar::whole/e.m4a.m4a",
        "train/recording.000002.tar::0000005.flac",
        "train/recording.000003.tar::0000006.flac",
    ]


def epoch(config, path, workers, *, state=None):
    config = replace(config, train={"train": str(path)}, dev=None, test={}, num_workers=workers, check_audio=True)
    loader = data_of(replace(config, max_batch_s=2.0), epoch=1).train_dataloader()
    if state is not None:
        loader.load_state_dict(state)
    return loader


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_and_resuming_are_those_of_files(config, both, workers):
    expected = list(epoch(config, both[0], 0))
    loader = epoch(config, both[1], workers)
    batches = iter(loader)
    found = list(islice(batches, 2))
    state = loader.state_dict()
    found += list(epoch(config, both[1], workers, state=state))
    assert len(expected) == len(found) > 3
    for one, other in zip(expected, found, strict=True):
        assert one.ids == other.ids
        assert torch.equal(one.waveform_BT, other.waveform_BT)
        assert torch.equal(one.tokens_BU, other.tokens_BU)
        assert one.skipped == other.skipped == []


def test_training_on_shards_ends_with_the_same_weights(toy_checkpoints, toy_corpus, tmp_path):
    weights = []
    for train in (toy_corpus["train"], sharded(toy_corpus["train"], tmp_path / "shards")):
        overrides = toy_overrides(toy_checkpoints["wav2vec2_group"], {**toy_corpus, "train": train})
        made = build(tmp_path / train.parent.name, *overrides, f"data.root={tmp_path.parent.parent}")
        made.trainer.fit(made.module, datamodule=made.data)
        weights.append(made.module.state_dict())
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_lhotse_reads_what_is_written(both):
    lhotse = pytest.importorskip("lhotse")
    files = {one.id: one for one in read_manifest(both[0])}
    cuts = list(lhotse.CutSet.from_shar(in_dir=both[1].parent / "train"))
    assert [cut.supervisions[0].id for cut in cuts] == list(files)
    for cut in cuts:
        [supervision] = cut.supervisions
        utterance = files[supervision.id]
        assert (supervision.text, supervision.speaker) == (utterance.text, utterance.tags["speaker"])
        if supervision.id == "whole/e.m4a":
            continue  # whether lhotse reads AAC depends on the libraries it finds
        samples = cut.load_audio()
        assert samples.shape[1] / cut.sampling_rate == pytest.approx(utterance.duration, abs=0.05)
        if cut.sampling_rate == 16_000 and samples.shape[0] == 1:
            assert np.array_equal(samples[0], read_waveform(utterance).numpy())
    lhotse.validate(lhotse.CutSet.from_cuts(cuts))


def test_parts_are_written_without_a_change():
    import io

    import soundfile

    from ssl_asr.data.formats.shar import _encoded

    rng = np.random.default_rng(0)
    whole = rng.integers(-(2**15), 2**15, (500, 2)) / 2**15
    deep = rng.integers(-(2**23), 2**23, (500, 1)) / 2**23
    for samples, suffix in (
        (whole, ".flac"),
        (np.tile(whole, 5), ".wav"),  # FLAC has 8 channels
        (deep, ".flac"),
        (np.clip(whole * 2, -1, 1), ".wav"),  # 1.0 is no integer of 16 bits
        (rng.standard_normal((500, 1)), ".wav"),
    ):
        data, found = _encoded(samples.astype(np.float32), 16_000)
        assert found == suffix
        again, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
        assert np.array_equal(again, samples.astype(np.float32))


def test_shards_become_files_again(both, tmp_path):
    found = run(both[1], tmp_path / "folder", format="audiofolder")
    assert found["skipped"] == []
    back = run(tmp_path / "folder", tmp_path / "back")
    for one, other in zip(read_manifest(both[0]), read_manifest(tmp_path / "back" / "train.jsonl"), strict=True):
        assert other.id == one.id
        if one.offset == 0:
            assert torch.equal(read_waveform(other), read_waveform(one))
    assert len(back["train"]) == 9


def test_formats_that_name_files_refuse_shards(both, tmp_path):
    for kind in ("kaldi", "nemo", "lhotse", "speechbrain_csv", "speechbrain_json"):
        with pytest.raises(ManifestError, match=rf"is no file of its own, and format={kind} names files"):
            run(both[1], tmp_path / kind, format=kind)
        assert [path.name for path in (tmp_path / kind).iterdir()] == ["skipped.jsonl"]


def test_the_manifest_names_shards_where_they_will_be(both, tmp_path):
    path = sharded(both[0], tmp_path / "out", shard_address="s3://bucket/name/")
    assert lines(path)[0]["audio_filepath"].startswith("s3://bucket/name/train/recording.000000.tar::whole/a.wav.wav@")


def test_options_of_shards_are_refused_without_shards(tmp_path):
    from ssl_asr.config.tools import PrepareConfig

    def errors(**settings):
        return [str(one) for one in PrepareConfig(input=["a"], output_dir=str(tmp_path), **settings).conflicts()]

    assert errors(shard_size=2, shard_address="s3://b") == [
        "shard_size: changes nothing for format=manifest. Leave it out, or set format=shar.",
        "shard_address: changes nothing for format=manifest. Leave it out, or set format=shar.",
    ]
    [error] = errors(shard_address="bucket", format="shar")
    assert error.startswith("shard_address: is 'bucket', expected an address")


# Folders that lhotse wrote -------------------------------------------------------------------------------------------


@pytest.fixture
def made_by_lhotse(tmp_path):
    """Five cuts in three shards: one with two supervisions, one without, and one whose supervision starts earlier."""
    lhotse = pytest.importorskip("lhotse")
    recording = lhotse.Recording.from_file(clip(tmp_path / "long.wav", 6.0, rate=16_000))

    def cut(name, start, *spans, length=1.0):
        own = [
            lhotse.SupervisionSegment(f"{name}-{i}", recording.id, at, long, text=f"text {name} {i}", speaker="ann")
            for i, (at, long) in enumerate(spans)
        ]
        return lhotse.MonoCut(name, start, length, 0, supervisions=own, recording=recording)

    (tmp_path / "shar").mkdir()
    cuts = [cut("one", 0.5, (0.0, 1.0)), cut("two", 1.5, (0.0, 0.5), (0.5, 0.5)), cut("none", 2.5)]
    cuts += [cut("out", 3.5, (-0.5, 1.0)), cut("dotted.name", 4.5, (0.25, 0.5))]
    lhotse.CutSet.from_cuts(cuts).to_shar(tmp_path / "shar", fields={"recording": "flac"}, shard_size=2)
    return tmp_path / "shar"


def test_folders_of_lhotse_are_read_in_place(made_by_lhotse, tmp_path, capsys):
    found = run(made_by_lhotse, tmp_path / "out")
    assert "kind=lhotse_shar (Shar folder of lhotse)" in capsys.readouterr().err
    assert reasons(found) == {"none": "no_text", "out-0": "outside"}
    rows = {row["id"]: row for row in found["all"]}
    assert rows.keys() == {"one-0", "two-0", "two-1", "dotted.name-0"}
    assert rows["two-1"]["audio_filepath"].startswith("../shar/recording.000000.tar::two.flac@")
    assert (rows["two-1"]["offset"], rows["two-1"]["duration"], rows["two-1"]["text"]) == (0.5, 0.5, "text two 1")
    whole = read_waveform(next(iter(read_manifest(run_as_file(tmp_path)))))
    for utterance, start in zip(read_manifest(tmp_path / "out" / "all.jsonl"), (0.5, 1.5, 2.0, 4.75), strict=True):
        first = round(start * 16_000)
        expected = whole[first : first + round(utterance.duration * 16_000)]
        # lhotse writes its floats with one bit of rounding.
        assert torch.allclose(read_waveform(utterance), expected, atol=2e-4)


def run_as_file(tmp_path):
    path = text(tmp_path / "long.jsonl", json.dumps({"audio_filepath": "long.wav", "text": "x"}))
    return str(path)


def test_folders_of_splits_are_read(made_by_lhotse, tmp_path):
    (tmp_path / "all").mkdir()
    made_by_lhotse.rename(tmp_path / "all" / "train")
    assert run(tmp_path / "all", tmp_path / "out").keys() == {"train", "skipped"}


def test_cuts_without_audio_in_their_shard_are_named(made_by_lhotse, tmp_path):
    cuts = made_by_lhotse / "cuts.000000.jsonl.gz"
    rows = gzip.open(cuts, "rt").read().replace('"id": "one"', '"id": "other"')
    with gzip.open(cuts, "wt") as file:
        file.write(rows)
    found = {row["id"]: row for row in run(made_by_lhotse, tmp_path / "out")["skipped"]}
    assert found["other"]["reason"] == "no_audio"
    assert "recording.000000.tar has no audio of this cut" in found["other"]["detail"]


def test_a_shard_that_is_no_tar_is_one_error(made_by_lhotse, tmp_path):
    (made_by_lhotse / "recording.000001.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(ManifestError, match=r"recording\.000001\.tar: the shard is not a tar"):
        run(made_by_lhotse, tmp_path / "out")


def test_the_package_is_named_if_it_is_missing(both, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lhotse", None)
    with pytest.raises(ConfigError, match=r"pip install 'ssl_asr\[lhotse\]'"):
        run(both[0], tmp_path / "out", format="shar")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["skipped.jsonl"]
