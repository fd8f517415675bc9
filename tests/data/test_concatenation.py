"""Joined utterances: what is joined, within which limits, and that nothing is lost."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from ssl_asr.data.characters import CharTokenizer
from ssl_asr.data.concatenation import Concatenation, joined
from ssl_asr.data.dataset import SpeechDataset, collate
from ssl_asr.data.filters import Limits
from ssl_asr.data.targets import count_targets, ctc_frames_needed
from ssl_asr.types import Utterance
from tests.data.test_module import config as config  # a fixture
from tests.data.test_module import data_of

TOKENIZER = CharTokenizer(characters=" ab", normalizer="none")


def said(name, text="ab", duration=1.0, speaker="s", **more):
    tags = {"speaker": speaker, **more.pop("tags", {})}
    return Utterance(id=name, audio_filepath="a.wav", duration=duration, text=text, tags=tags, **more)


def units(utterances, *, longest_s=5.0, epoch=0, drawn=None, seed=0, **limits):
    targets = count_targets(utterances, TOKENIZER)
    made = Concatenation(utterances, limits=Limits(**limits), targets=targets, longest_s=longest_s, seed=seed)
    durations = np.array([one.duration for one in utterances])
    return made.units(durations, np.arange(len(utterances)) if drawn is None else np.array(drawn), epoch)


def test_each_utterance_is_in_one_unit_within_the_length():
    rng = np.random.default_rng(0)
    utterances = [said(str(i), duration=float(rng.uniform(0.2, 4))) for i in range(200)]
    found = units(utterances)
    assert sorted(index for unit in found for index in unit) == list(range(200))
    seconds = [sum(utterances[index].duration for index in unit) for unit in found]
    assert max(seconds) <= 5.0
    assert np.mean(seconds) > 3.5


def test_longer_utterances_stay_alone_and_draws_are_kept():
    utterances = [said("long", duration=9.0), said("a"), said("b")]
    assert sorted(len(unit) for unit in units(utterances)) == [1, 2]
    assert Counter(i for unit in units(utterances, drawn=[1, 1, 2, 1]) for i in unit) == {1: 3, 2: 1}


def test_epochs_differ_and_seeds_repeat():
    utterances = [said(str(i)) for i in range(30)]
    assert units(utterances) == units(utterances)
    assert units(utterances) != units(utterances, epoch=1)
    assert units(utterances) != units(utterances, seed=1)


@pytest.mark.parametrize(
    "other",
    [
        {"speaker": "t"},
        {"lang": "de"},
        {"task": "translate"},
        {"weight": 0.5},
        {"tags": {"prompt": "x"}},
    ],
)
def test_different_kinds_are_not_joined(other):
    utterances = [said(str(i), **(other if i % 2 else {})) for i in range(20)]
    found = units(utterances)
    assert all(len({index % 2 for index in unit}) == 1 for unit in found)
    assert max(map(len, found)) == 5


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        ({}, 5),
        ({"max_s": 3.0}, 3),
        # Two characters and a space each.
        ({"max_tokens": 9}, 3),
        ({"max_tokens": 9, "prompt_tokens": 3}, 2),
        ({"ctc_frames": lambda samples: 3 * samples // 16_000}, 5),
        ({"ctc_frames": lambda samples: 3 * samples // 16_000 - 1}, 1),
    ],
)
def test_joined_utterances_are_within_the_limits_of_the_model(limits, most):
    assert max(map(len, units([said(str(i)) for i in range(20)], **limits))) == most


def test_a_joined_utterance_that_fits_by_its_parts_fits_as_a_whole():
    rng = np.random.default_rng(1)
    texts = ["".join(rng.choice(list("aab "), size=rng.integers(1, 12))).strip() or "a" for _ in range(300)]
    utterances = [said(str(i), text=text, duration=max(0.1, len(text) / 12)) for i, text in enumerate(texts)]

    def frames(samples):
        return samples // 800

    for unit in units(utterances, ctc_frames=frames):
        whole = joined([utterances[index] for index in unit])
        if len(unit) > 1:
            assert ctc_frames_needed(TOKENIZER.encode(whole)) <= frames(int(whole.duration * 16_000))


def test_texts_are_joined_as_the_language_writes_them():
    both = [said("x", "ab", lang="en"), said("y", "b", duration=2.0, lang="en")]
    assert joined(both) == replace(both[0], id="x+y", text="ab b", duration=3.0)
    assert joined([replace(one, lang="zh") for one in both]).text == "abb"


def test_audio_is_joined_and_unreadable_parts_are_skipped(tmp_path):
    for name, level in (("a", 0.1), ("b", 0.2)):
        soundfile.write(tmp_path / f"{name}.wav", np.full(8000, level), 16_000, subtype="FLOAT")
    rows = [Utterance(id=name, audio_filepath=str(tmp_path / f"{name}.wav"), duration=0.5, text=name) for name in "abc"]
    dataset = SpeechDataset(rows, tokenizer=TOKENIZER, skip_bad_audio=True)
    batch = collate([dataset[0, 2, 1], dataset[1], dataset[2,], dataset[0,]])
    assert batch.ids == ["a+b", "b", "a"]
    assert [skip.id for skip in batch.skipped] == ["c", "c"]
    assert batch.lengths_B.tolist() == [16_000, 8000, 8000]
    assert batch.waveform_BT[0, [0, 7999, 8000, 15_999]].tolist() == pytest.approx([0.1, 0.1, 0.2, 0.2])
    assert batch.tokens_BU[0].tolist() == [*TOKENIZER.encode(rows[0]), 2, *TOKENIZER.encode(rows[1])]


def test_a_run_joins_in_training_only(config, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000) + 0.1, 16_000)

    def batches(**options):
        data = data_of(replace(config, max_batch_s=8.0, **options), tokenizer=TOKENIZER)
        return data, list(data.train_dataloader()), [one for loader in data.val_dataloader() for one in loader]

    data, train, dev = batches(concatenate_s=3.0)
    assert sorted(name for batch in train for one in batch.ids for name in one.split("+")) == [
        f"train{i}" for i in range(6)
    ]
    assert sorted(length for batch in train for length in batch.lengths_B.tolist()) == [48_000, 48_000]
    assert [len(batch) for batch in train] == [2], "6 s of 8 s"
    assert (data.batching()["train"].fill, data.batching()["train"].padding) == pytest.approx((0.75, 0.0))
    assert [name for batch in dev for name in batch.ids] == ["dev0", "dev1"]
    assert {len(batch.ids[0].split("+")) for batch in batches(concatenate_s=None)[1]} == {1}
    assert torch.equal(train[0].waveform_BT[0], batches(concatenate_s=3.0, num_workers=2)[1][0].waveform_BT[0])
    (tmp_path / "train.jsonl").write_text(
        "".join(
            json.dumps({"id": f"n{i}", "audio_filepath": "a.wav", "duration": 1.0, "text": "a"}) + "\n"
            for i in range(4)
        )
    )
    assert len(batches(concatenate_s=2.0, mix_weights={"train": 2.0})[1]) == 1
