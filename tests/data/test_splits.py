"""Splits share no speaker, have the hours asked for, and depend on the seed only."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_asr.data.formats.rows import Row
from ssl_asr.data.splits import assign_splits
from ssl_asr.errors import ConfigError

THREE = {"train": 0.8, "dev": 0.1, "test": 0.1}


def rows(count, *, speakers, duration=1.0):
    return [
        Row(id=f"u{i}", audio=f"/a/{i // 2}.wav", text="x", duration=duration, tags={"speaker": f"s{i % speakers}"})
        for i in range(count)
    ]


def speakers_of(split_rows):
    found = {}
    for row in split_rows:
        found.setdefault(row.split, set()).add(row.speaker)
    return found


def test_hours_are_those_asked_for():
    made = assign_splits(rows(1000, speakers=100), THREE, by="speaker", seed=0)
    assert {split: len(names) for split, names in speakers_of(made).items()} == {"train": 80, "dev": 10, "test": 10}
    assert list(dict.fromkeys(row.split for row in made)) == ["train", "dev", "test"]
    assert sorted(int(row.id[1:]) for row in made) == list(range(1000))
    train = [int(row.id[1:]) for row in made if row.split == "train"]
    assert train == sorted(train)


@given(
    sizes=st.lists(st.integers(1, 50), min_size=3, max_size=12),
    first=st.floats(0.05, 0.9),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_no_speaker_is_in_two_splits_and_each_split_has_one(sizes, first, seed):
    own = [
        Row(id=f"{s}-{i}", audio=f"{s}.wav", text="x", duration=2.0, tags={"speaker": str(s)})
        for s, size in enumerate(sizes)
        for i in range(size)
    ]
    fractions = {"a": first, "b": (1 - first) / 2, "c": (1 - first) / 2}
    made = assign_splits(own, fractions, by="speaker", seed=seed)
    found = speakers_of(made)
    assert set(found) == {"a", "b", "c"}
    assert sum(map(len, found.values())) == len(sizes)
    assert made == assign_splits(own, fractions, by="speaker", seed=seed)


def test_another_seed_gives_other_splits():
    own = rows(60, speakers=30)
    splits = [{r.id: r.split for r in assign_splits(own, THREE, by="speaker", seed=seed)} for seed in range(3)]
    assert splits[0] != splits[1] != splits[2]


def test_recordings_and_utterances_stay_together_too():
    own = rows(40, speakers=1)
    by_recording = assign_splits(own, THREE, by="recording", seed=1)
    assert len({(row.audio, row.split) for row in by_recording}) == 20
    by_utterance = assign_splits(own, THREE, by="utterance", seed=1)
    assert len({(row.audio, row.split) for row in by_utterance}) > 20


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ConfigError, match="there are 2 speakers for 3 splits, .*split_by=recording"):
        assign_splits(rows(10, speakers=2), THREE, by="speaker", seed=0)
    with pytest.raises(ConfigError, match="there are 2 utterances for 3 splits"):
        assign_splits(rows(2, speakers=2), THREE, by="utterance", seed=0)
    nameless = [Row(id="u", audio="a.wav", text="x", duration=1.0)]
    with pytest.raises(ConfigError, match=r"u \(a\.wav\) has no speaker.*columns\.speaker"):
        assign_splits(nameless, THREE, by="speaker", seed=0)
    own = [*rows(2, speakers=2), Row(id="t", audio="b.wav", text="x", split="test", duration=1.0)]
    with pytest.raises(ConfigError, match="the source has splits of its own: test"):
        assign_splits(own, THREE, by="speaker", seed=0)
