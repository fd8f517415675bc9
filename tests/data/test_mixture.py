"""Mixtures: shares worked out by hand, equal draws over epochs, ranks and resuming, corpora in one manifest."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from ssl_asr.data.manifest import Manifest, read_manifest
from ssl_asr.data.mixture import Mixture
from ssl_asr.data.module import read_manifests
from ssl_asr.data.sampler import TrainBatchSampler
from ssl_asr.data.segments import by_segments
from ssl_asr.errors import ConfigError, ManifestError, UserErrors
from tests.data.test_module import config as config  # a fixture
from tests.data.test_module import data_of
from tests.tables import cells, wide_console


def mixture(*, weights=None, temperature=1.0, seed=0):
    """Group a has 16 utterances of 1 s, group b four of 1 s."""
    return Mixture(
        names=["a", "b"],
        group_N=np.array([0] * 16 + [1] * 4),
        durations_N=np.ones(20),
        weights=weights or {},
        temperature=temperature,
        seed=seed,
    )


@pytest.mark.parametrize(
    ("weights", "temperature", "draws"),
    [
        ({}, 1.0, [16, 4]),
        # Weighted hours 16 and 16.
        ({"b": 4.0}, 1.0, [10, 10]),
        # Square roots 4 and 2.
        ({}, 2.0, [13, 7]),
        ({"a": 0.0}, 1.0, [0, 20]),
        ({"b": 1e-9}, 1.0, [20, 1]),
        ({}, 1e9, [10, 10]),
    ],
)
def test_draws_follow_weights_and_temperature(weights, temperature, draws):
    made = mixture(weights=weights, temperature=temperature)
    drawn = made.draw(0)
    assert [int((drawn < 16).sum()), int((drawn >= 16).sum())] == draws == made.draws_G.tolist()


def test_groups_of_long_utterances_have_their_share_of_the_hours():
    durations = np.array([10.0] * 4 + [1.0] * 40)
    made = Mixture(
        names=["long", "short"],
        group_N=np.array([0] * 4 + [1] * 40),
        durations_N=durations,
        weights={"short": 3.0},
        temperature=1.0,
        seed=0,
    )
    # 40 s and 120 s of 160 s, in an epoch of 80 s: 20 s in two long utterances, 60 s in sixty short ones.
    assert made.draws_G.tolist() == [2, 60]
    assert durations[made.draw(3)].sum() == 80


@pytest.mark.parametrize("weights", [{"b": 4.0}, {"b": 0.3}, {"a": 0.1}])
def test_over_epochs_utterances_of_a_group_are_drawn_equally_often(weights):
    made = mixture(weights=weights)
    counts, orders = Counter(), set()
    for epoch in range(9):
        drawn = made.draw(epoch).tolist()
        counts.update(drawn)
        orders.add(tuple(drawn))
        for group in (range(16), range(16, 20)):
            seen = [counts[index] for index in group]
            assert max(seen) - min(seen) <= 1
    assert len(orders) > 1


def test_draws_are_a_function_of_seed_and_epoch():
    one, other = mixture(weights={"b": 4.0}), mixture(weights={"b": 4.0})
    assert one.draw(5).tolist() == other.draw(5).tolist()
    assert one.draw(5).tolist() != one.draw(6).tolist()
    assert one.draw(5).tolist() != mixture(weights={"b": 4.0}, seed=1).draw(5).tolist()


def test_ranks_share_what_is_drawn_and_resuming_goes_on_after_it():
    made, durations = mixture(weights={"b": 4.0}), np.linspace(1, 2, 20)
    options = {"max_batch_s": 6.0, "seed": 3, "epoch": 2, "drawn_N": made.draw(2)}
    ranks = [list(TrainBatchSampler(durations, rank=rank, world_size=2, **options)) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1])
    assert Counter(index for rank in ranks for batch in rank for index in batch) == Counter(made.draw(2).tolist())
    whole = list(TrainBatchSampler(durations, **options))
    assert list(TrainBatchSampler(durations, start=2, **options)) == whole[2:]


def test_weights_of_unknown_groups_and_of_nothing_are_refused():
    with pytest.raises(ConfigError, match=r"mix_weights: has a weight for 'c', .* The groups are a, b"):
        mixture(weights={"c": 1.0})
    with pytest.raises(ConfigError, match="every group has the weight 0"):
        mixture(weights={"a": 0.0, "b": 0.0})


def write(path, *rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def line(name, **more):
    return {"id": name, "audio_filepath": "a.wav", "duration": 1.0, "text": "ab", **more}


def test_joined_manifests_keep_files_lines_and_folders(tmp_path):
    one = read_manifest(write(tmp_path / "x" / "m.jsonl", line("a"), line("b")))
    other = read_manifest(write(tmp_path / "y" / "m.jsonl", line("c", duration=2.0)))
    both = Manifest.joined({"one": one, "other": other}, "data.train")
    assert [(u.id, u.where, u.audio_filepath) for u in both] == [
        ("a", f"{tmp_path}/x/m.jsonl:1", f"{tmp_path}/x/a.wav"),
        ("b", f"{tmp_path}/x/m.jsonl:2", f"{tmp_path}/x/a.wav"),
        ("c", f"{tmp_path}/y/m.jsonl:1", f"{tmp_path}/y/a.wav"),
    ]
    assert both.corpora == ["one", "one", "other"]
    assert both.select([2, 1]).corpora == ["other", "one"]
    assert both.select([2])[0] == other[0]
    assert (both.total_s, one.total_s, one.corpora) == (4.0, 2.0, ["", ""])
    third = Manifest.joined({"both": both, "again": one}, "data.train")
    assert [u.where for u in third] == [u.where for u in [*both, *one]]


def test_a_run_draws_from_several_corpora(config, tmp_path):
    more = write(tmp_path / "more.jsonl", *(line(f"more{i}", lang="deu") for i in range(2)))
    both = replace(config, train={**config.train, "more": more})

    def drawn(made):
        kept = made.selections["train"].kept
        return Counter(kept[index].id[:4] for batch in made.train_sampler(0) for index in batch)

    console = wide_console()
    assert drawn(data_of(both, console=console)) == {"trai": 6, "more": 2}
    assert "Mixture" not in console.export_text()
    assert drawn(data_of(replace(both, mix_weights={"more": 3.0}), console=console)) == {"trai": 4, "more": 4}
    assert cells(console)[-2:] == [["more", "2", "0.00", "50.0", "2.00"], ["train", "6", "0.00", "50.0", "0.67"]]
    with pytest.raises(ManifestError, match=r"train.jsonl:1: has no 'lang', which data.mix_by names"):
        data_of(replace(both, mix_by="lang", mix_temperature=2.0))
    with pytest.raises(ConfigError, match="has a weight for 'more', .* The groups are train"):
        data_of(replace(config, mix_weights={"more": 3.0}))
    assert set(read_manifests(replace(config, train={}))) == {"dev", "one", "two"}
    again = write(tmp_path / "again.jsonl", line("train0"))
    with pytest.raises(ManifestError, match="1 utterance ids occur in two manifests: 'train0'"):
        read_manifests(replace(config, train={**config.train, "again": again}))


def test_languages_are_grouped_whatever_their_code(config, tmp_path):
    langs = ["de", "deu", "German", "en"]
    path = write(tmp_path / "l.jsonl", *(line(f"l{i}", lang=lang) for i, lang in enumerate(langs)))
    made = data_of(replace(config, train={"train": path}, mix_by="lang", mix_temperature=2.0))
    assert made.mixture.names == ["de", "en"]
    assert made.mixture.shares_G.tolist() == pytest.approx([3**0.5 / (1 + 3**0.5), 1 / (1 + 3**0.5)])


SEGMENTS = [{"start": 0.5, "end": 2, "text": "a"}, {"start": 3.0, "end": 4.004, "text": "b b", "speaker": "two"}]


def test_segments_become_utterances(tmp_path):
    long = line("long", duration=4.0, offset=10.0, lang="en", speaker="one", segments=SEGMENTS, channel=1)
    path = write(tmp_path / "m.jsonl", line("plain"), long)
    plain, first, second = by_segments(read_manifest(path))
    assert plain == read_manifest(path)[0]
    assert (first.id, first.offset, first.duration, first.text) == ("long-0", 10.5, 1.5, "a")
    assert (first.lang, first.channel, first.tags, first.where) == ("en", 1, {"speaker": "one"}, f"{path}:2")
    assert (second.id, second.offset, second.duration, second.text) == ("long-1", 13.0, 1.0, "b b")
    assert second.tags == {"speaker": "two"}
    assert second.audio_filepath == str(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ("a", "m.jsonl:1: 'segments' is 'a', expected a list"),
        ([{"start": 0, "end": 0.5}], r"segment 0 is \{.*expected \{start, end, text\}"),
        ([{"start": 0.5, "end": 0.5, "text": ""}], "segment 0 is .*expected"),
        ([{"start": -1, "end": 0.5, "text": ""}], "segment 0 is .*expected"),
        ([{"start": "0", "end": 0.5, "text": ""}], "segment 0 is .*expected"),
        ([{"start": False, "end": 0.5, "text": ""}], "segment 0 is .*expected"),
        ([7], "segment 0 is 7, expected"),
        ([SEGMENTS[0]], "segment 0 ends at 2 s, and the utterance at 1 s"),
        ([], "has no segment"),
    ],
)
def test_wrong_segments_are_named(tmp_path, segments, message):
    path = write(tmp_path / "m.jsonl", line("long", segments=segments))
    with pytest.raises((ManifestError, UserErrors), match=message):
        by_segments(read_manifest(path))


def test_a_run_trains_on_segments(config, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(64_000), 16_000)
    path = write(tmp_path / "s.jsonl", line("long", duration=4.0, segments=SEGMENTS))
    chosen = replace(config, train={"train": path}, split_segments=True)
    assert [u.id for u in read_manifests(chosen)["train"]] == ["long-0", "long-1"]
    assert [u.id for u in read_manifests(replace(chosen, split_segments=False))["train"]] == ["long"]
