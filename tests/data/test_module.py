"""The data of a run: shared ids, batches, loaders, and where an epoch resumes."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from ssl_asr.console import Notice
from ssl_asr.data.augment import Augmentation
from ssl_asr.data.characters import CharTokenizer
from ssl_asr.data.filters import Limits
from ssl_asr.data.module import ASRDataModule, read_manifests
from ssl_asr.data.options import DataConfig
from ssl_asr.errors import AudioError, ConfigError, ManifestError, UserErrors

TOKENIZER = CharTokenizer(characters=" ab", normalizer="none")


@pytest.fixture
def config(tmp_path):
    """Six utterances of 1 s for training, two of 0.5 s for dev, three and one of 1 s in two test splits."""
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000)

    def manifest(name, count, seconds=1.0):
        rows = [
            {"id": f"{name}{i}", "audio_filepath": "a.wav", "duration": seconds, "text": "ab"} for i in range(count)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / f"{name}.jsonl")

    return DataConfig(
        train={"train": manifest("train", 6)},
        dev=manifest("dev", 2, 0.5),
        test={"one": manifest("one", 3), "two": manifest("two", 1)},
        max_batch_s=4.0,
        max_batch_size=None,
        eval_batch_s=2.0,
        min_s=0.1,
        max_s=None,
        split_segments=False,
        mix_by="corpus",
        mix_weights=None,
        mix_temperature=1.0,
        concatenate_s=None,
        speed_factors=[],
        tempo_factors=[],
        num_workers=0,
        downmix="mean",
        check_audio=False,
        on_bad_audio="skip",
        max_skip_fraction=0.5,
        allow_duplicate_ids=False,
        max_leakage=0.0,
    )


def data_of(config, *, tokenizer=TOKENIZER, console=None, audio_augment=None, epoch=0, **limits):
    """The data of a run, filtered, in an epoch of a single process."""
    data = ASRDataModule(
        config=config,
        manifests=read_manifests(config),
        tokenizer=tokenizer,
        limits=Limits(**limits),
        seed=0,
        augmentation=Augmentation(audio_augment, seed=0) if audio_augment else None,
        console=console,
    )
    data.select()
    data.trainer = SimpleNamespace(current_epoch=epoch, global_rank=0, world_size=1)
    return data


def test_numbers_of_batches_are_those_of_the_budgets(config):
    data = data_of(config)
    assert list(data.batches_per_epoch(3, 1)) == [2, 2, 2]
    assert list(data.batches_per_epoch(2, 2)) == [1, 1]
    train, dev, one, two = data.batching().values()
    assert (train.batches, train.fill, train.padding) == (2, pytest.approx(0.75), 0.0)  # 4 and 2 of 4 s
    assert (dev.batches, dev.fill, one.batches, one.fill, two.fill) == (1, 0.5, 2, 0.75, 0.5)
    assert data.fewest_eval_batches("dev") == 1
    assert data.fewest_eval_batches("test") == 1
    assert len(data.test_dataloader()[0]) == 2
    assert data.fewest_eval_batches("dev", 4) == 1
    assert data_of(replace(config, dev=None, test={})).fewest_eval_batches("test") is None


def test_utterances_above_the_budget_of_a_batch_are_counted_once(config, recwarn):
    longest = max(utterance.duration for utterance in data_of(config).train_kept)
    assert not [each for each in recwarn if each.category is Notice]
    data = data_of(replace(config, max_batch_s=0.9 * longest))
    [said] = [str(each.message) for each in recwarn if each.category is Notice]
    number = sum(utterance.duration > 0.9 * longest for utterance in data.train_kept)
    seen = f"data.max_batch_s: {number} of {len(data.train_kept)} utterances of train compute more than its"
    assert said == f"{seen} {0.9 * longest:g} s, up to {longest:.1f} s. Each makes a batch of its own."
    assert sum(len(batch) == 1 for batch in data.train_sampler(0).batches) >= number


def test_the_dev_split_is_tested_if_asked(config):
    data = data_of(config)
    assert data.test_names == ["one", "two"]
    data.test_dev = True
    assert data.test_names == ["dev", "one", "two"]
    assert [len(loader) for loader in data.test_dataloader()] == [1, 2, 1]
    ids = [[i for batch in loader for i in batch.ids] for loader in data.test_dataloader()]
    assert list(map(sorted, ids)) == [["dev0", "dev1"], ["one0", "one1", "one2"], ["two0"]]
    alone = data_of(replace(config, dev=None, test={}))
    assert alone.val_dataloader() == []
    with pytest.raises(ConfigError, match="no test manifest"):
        alone.test_dataloader()


def test_names_of_splits_mean_nothing_where_nothing_is_trained(config):
    """``ssl-asr evaluate train.jsonl dev.jsonl`` names the manifests so."""
    manifests = read_manifests(config)
    made = ASRDataModule(
        config=replace(config, train={}), manifests=manifests, tokenizer=TOKENIZER, limits=Limits(), seed=0
    )
    made.select()
    assert made.test_names == ["train", "dev", "one", "two"]
    assert [len(loader.dataset) for loader in made.test_dataloader()] == [6, 2, 3, 1]


def test_ids_in_two_splits_are_refused_unless_allowed(config):
    train = config.train["train"]
    shared = replace(config, dev=train.replace("train", "copy"))
    text = open(train).read()
    open(shared.dev, "w").write(text)
    with pytest.raises(ManifestError, match=r"6 utterance ids occur in two manifests: 'train0' at .*train.jsonl:1"):
        read_manifests(shared)
    assert list(read_manifests(replace(shared, allow_duplicate_ids=True))) == ["train", "dev", "one", "two"]
    # The same line of the same file is one utterance.
    assert list(read_manifests(replace(config, test={"again": config.dev}))) == ["train", "dev", "again"]


def test_errors_of_all_manifests_come_together(config, tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text("no json\n")
    with pytest.raises(UserErrors) as found:
        read_manifests(config)
    assert len(found.value.errors) == 2


@pytest.mark.parametrize("check_audio", [True, False])
def test_a_run_refuses_files_of_other_rates_and_names_them(config, check_audio):
    """At the start, and else in the first batch."""
    soundfile.write(Path(config.dev).with_name("b.wav"), np.zeros(4000), 8_000)
    rows = [json.loads(line) for line in Path(config.dev).read_text().splitlines()]
    rows[1]["audio_filepath"] = "b.wav"
    Path(config.dev).write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = r"dev1 \(.*dev\.jsonl:2\): .*b\.wav has 8,000 Hz, expected 16,000 Hz. .*set data\.resample=true"
    refusing = replace(config, resample=False, on_bad_audio="error", check_audio=check_audio)
    with pytest.raises((ManifestError, AudioError), match=told):
        list(data_of(refusing).val_dataloader()[0])
    kept = data_of(replace(refusing, on_bad_audio="skip"))
    skipped = [skip for batch in kept.val_dataloader()[0] for skip in batch.skipped] + kept.selections["dev"].skips
    assert [(skip.id, skip.reason) for skip in skipped] == [("dev1", "other_rate")]
    both = data_of(replace(refusing, resample=True))
    assert sum(len(batch) for batch in both.val_dataloader()[0]) == 2


def test_files_that_are_not_there_are_named_with_their_keys(config, tmp_path):
    none, two = str(tmp_path / "none.jsonl"), {"a": "a.jsonl", "b": "b.jsonl"}
    single = replace(config, train={"none": none}, dev="dev.jsonl", test={"none": none})
    for given, keys in (
        (single, ["data.train", "data.dev", "data.test"]),
        (
            replace(single, train=two, test=two),
            ["data.train.a", "data.train.b", "data.dev", "data.test.a", "data.test.b"],
        ),
    ):
        with pytest.raises(UserErrors) as found:
            read_manifests(given)
        assert [str(error).split(": ")[0] for error in found.value.errors] == keys
        assert all("jsonl: no such manifest. Give the path" in str(error) for error in found.value.errors)


@pytest.mark.parametrize(("device", "expected"), [("cpu", "cpu"), ("cuda:1", "cuda:1"), ("mps", "cpu")])
def test_loaders_move_batches_to_the_gpu_of_the_trainer(config, device, expected):
    data = data_of(config)
    data.trainer.strategy = SimpleNamespace(root_device=torch.device(device))
    data.setup("fit")
    for loader in (data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader()):
        assert loader._device == torch.device(expected)
        assert loader.pin_memory == (expected != "cpu")


def test_too_many_skips_are_refused(config):
    with pytest.raises(ManifestError, match="0 of 6 utterances are usable"):
        data_of(config, max_s=0.9)
    with pytest.raises(ManifestError, match="0 of 2 utterances are usable"):
        data_of(config, min_s=0.6)
    kept = data_of(replace(config, max_skip_fraction=1.0, train={}), max_s=0.9)
    assert {name: len(skips) for name, skips in kept.skips.items()} == {"dev": 0, "one": 3, "two": 1}


def test_an_epoch_resumes_after_the_batches_that_it_gave(config):
    class Trainer:
        current_epoch, global_rank, world_size = 1, 0, 1

    data = data_of(config)
    data.trainer = Trainer()
    loader = data.train_dataloader()
    batches = iter(loader)
    first = next(batches).ids
    state = loader.state_dict()
    assert state == {"epoch": 1, "batches": 1}
    rest = [batch.ids for batch in batches]
    assert loader.state_dict() == {"epoch": 1, "batches": 2}
    resumed = data.train_dataloader()
    resumed.load_state_dict(state)
    assert [batch.ids for batch in resumed] == rest
    assert [batch.ids for batch in resumed] == [first, *rest], "the next iteration is whole"
    for other in ({"epoch": 0, "batches": 1}, {"epoch": 1, "batches": 2}):
        again = data.train_dataloader()
        again.load_state_dict(other)
        assert [batch.ids for batch in again] == [first, *rest]
