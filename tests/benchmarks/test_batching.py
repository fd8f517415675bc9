"""Batches and loaders against those of Hugging Face, SpeechBrain and lhotse, on one manifest.

BENCH_LOADED=100 measures loaders on fewer utterances than 300.
"""

import os
import time
from collections import Counter

import numpy as np
import pytest
import soundfile
import torch

from ssl_asr.data.dataset import SpeechDataset, collate
from ssl_asr.data.manifest import read_manifest
from ssl_asr.data.sampler import TrainBatchSampler

BUDGET_S = 200.0
LOADED = int(os.environ.get("BENCH_LOADED", "300"))
# Buckets of SpeechBrain's LibriSpeech recipes, and of lhotse's guides.
SPEECHBRAIN_BUCKETS, LHOTSE_BUCKETS = 200, 30


# Batches of all ranks: ranks -> batches -> indices ------------------------------------------------------------------


def ours(durations, ranks):
    return [
        list(TrainBatchSampler(durations, max_batch_s=BUDGET_S, rank=rank, world_size=ranks)) for rank in range(ranks)
    ]


def transformers_groups(durations, ranks):
    """``group_by_length`` as the Trainer uses it. The size is the largest at which no batch exceeds the budget."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler
    from transformers.trainer_pt_utils import LengthGroupedSampler

    def batches(rank):
        size = max(1, int(BUDGET_S / durations.max()))
        generator = torch.Generator().manual_seed(0)
        grouped = LengthGroupedSampler(size, lengths=durations.tolist(), generator=generator)
        whole = BatchSampler(grouped, size, drop_last=False)
        return list(BatchSamplerShard(whole, ranks, rank) if ranks > 1 else whole)

    return [batches(rank) for rank in range(ranks)]


def speechbrain(durations, ranks):
    sampler = pytest.importorskip("speechbrain.dataio.sampler")

    whole = list(
        sampler.DynamicBatchSampler(
            range(len(durations)),
            BUDGET_S,
            num_buckets=SPEECHBRAIN_BUCKETS,
            lengths_list=durations.tolist(),
            seed=0,
        )
    )
    if ranks == 1:
        return [whole]
    return [list(sampler.DistributedSamplerWrapper(whole, num_replicas=ranks, rank=rank)) for rank in range(ranks)]


def lhotse_buckets(durations, ranks):
    from lhotse import CutSet
    from lhotse.dataset import DynamicBucketingSampler
    from lhotse.testing.dummies import dummy_cut

    cuts = CutSet.from_cuts(dummy_cut(i, duration=float(seconds)) for i, seconds in enumerate(durations))
    places = {cut.id: i for i, cut in enumerate(cuts)}

    def batches(rank):
        sampler = DynamicBucketingSampler(
            cuts, max_duration=BUDGET_S, num_buckets=LHOTSE_BUCKETS, shuffle=True, world_size=ranks, rank=rank, seed=0
        )
        return [[places[cut.id] for cut in batch] for batch in sampler]

    return [batches(rank) for rank in range(ranks)]


SAMPLERS = {
    "ours": ours,
    "transformers, group_by_length": transformers_groups,
    "SpeechBrain, DynamicBatchSampler": speechbrain,
    "lhotse, DynamicBucketingSampler": lhotse_buckets,
}


def figures(name, durations, plans, seconds):
    """One row of the table: what the batches of all ranks cost."""
    ranks = [[len(batch) * float(durations[batch].max()) for batch in plan] for plan in plans]
    costs = np.array([cost for rank in ranks for cost in rank])
    speech_s = sum(float(durations[batch].sum()) for plan in plans for batch in plan)
    # Ranks wait for the slowest one of each step. A rank that has no batch left computes nothing.
    steps = np.array([rank + [0.0] * (max(map(len, ranks)) - len(rank)) for rank in ranks])
    counts = Counter(index for plan in plans for batch in plan for index in batch)
    return {
        "sampler": name,
        "ranks": len(plans),
        "batches of a rank": f"{min(map(len, ranks))} to {max(map(len, ranks))}",
        "fill, %": round(100 * float((costs / BUDGET_S).mean()), 1),
        "padding, %": round(100 * (1 - speech_s / costs.sum()), 2),
        "max / mean of a step": round(float(steps.max(0).sum() / steps.mean(0).sum()), 3),
        "over budget": int((costs > BUDGET_S + 1e-6).sum()),
        "repeated": sum(count - 1 for count in counts.values()),
        "left out": len(durations) - len(counts),
        "CPU s": round(seconds, 2),
    }


def librispeech_lengths(count):
    """The first utterances of a corpus with the lengths of LibriSpeech: most of 10 to 16 s, the rest below."""
    rng = np.random.default_rng(0)
    long = rng.normal(14.2, 1.3, int(0.65 * count))
    lengths = np.concatenate([long, rng.uniform(1.5, 13.0, count - len(long))])
    return np.round(rng.permutation(np.clip(lengths, 1.3, 24.5)), 2)


def show(rows):
    print("\n| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |", flush=True)


@pytest.mark.benchmark
@pytest.mark.parametrize("corpus", ["en_librispeech_mini", "100,000 utterances"])
def test_fill_padding_and_rank_balance(corpus, request):
    """Prints a table. Asserts that our ranks see each utterance exactly once, within the budget, in equal steps."""
    if corpus == "en_librispeech_mini":
        durations = read_manifest(request.getfixturevalue("data_root") / corpus / "train.jsonl").durations_N
    else:
        durations = librispeech_lengths(100_000)
    rows = []
    for ranks in (1, 2, 8):
        for name, sample in SAMPLERS.items():
            began = time.process_time()
            plans = sample(durations, ranks)
            rows.append(figures(name, durations, plans, (time.process_time() - began) / ranks))
    print(f"\n{corpus}: {len(durations):,} utterances, budget {BUDGET_S:g} s")
    show(rows)
    for row in rows:
        if row["sampler"] == "ours":
            assert row["repeated"] == row["left out"] == row["over budget"] == 0
            assert len(set(row["batches of a rank"].split(" to "))) == 1
        elif row["ranks"] == 1:
            assert row["repeated"] == row["left out"] == 0, "the same utterances for everyone"


# Loaders: batches of indices -> padded audio -------------------------------------------------------------------------


def load_ours(manifest, batches):
    dataset = SpeechDataset(manifest, tokenizer=None)
    for batch in batches:
        made = collate([dataset[i] for i in batch])
        yield made.waveform_BT, made.lengths_B.tolist()


def load_datasets(manifest, batches):
    """`datasets` decodes with torchcodec, which is not installed with it. Audio is read with soundfile in its place."""
    from datasets import Audio, Dataset

    rows = Dataset.from_dict({"audio": [one.audio_filepath for one in manifest]})
    rows = rows.cast_column("audio", Audio(decode=False))
    for batch in batches:
        waves = [
            torch.from_numpy(soundfile.read(one["audio"]["path"], dtype="float32")[0]) for one in rows.select(batch)
        ]
        yield torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), list(map(len, waves))


def load_speechbrain(manifest, batches):
    pytest.importorskip("speechbrain")
    from speechbrain.dataio.batch import PaddedBatch
    from speechbrain.dataio.dataio import read_audio
    from speechbrain.dataio.dataset import DynamicItemDataset

    rows = DynamicItemDataset({str(i): {"wav": one.audio_filepath} for i, one in enumerate(manifest)})
    rows.add_dynamic_item(read_audio, takes="wav", provides="sig")
    rows.set_output_keys(["sig"])
    for batch in batches:
        made = PaddedBatch([rows[i] for i in batch]).sig
        yield made.data, [round(float(share) * made.data.shape[1]) for share in made.lengths]


def load_lhotse(manifest, batches):
    from lhotse import CutSet, Recording
    from lhotse.dataset.input_strategies import AudioSamples

    cuts = [Recording.from_file(one.audio_filepath, recording_id=one.id).to_cut() for one in manifest]
    strategy = AudioSamples()
    for batch in batches:
        audio_BT, lengths_B = strategy(CutSet.from_cuts(cuts[i] for i in batch))
        yield audio_BT, lengths_B.tolist()


LOADERS = {"ours": load_ours, "datasets": load_datasets, "SpeechBrain": load_speechbrain, "lhotse": load_lhotse}


@pytest.mark.benchmark
def test_seconds_of_audio_a_second(data_root):
    """All loaders read the same batches, in turns of one batch. Asserts that they read the same samples."""
    whole = read_manifest(data_root / "en_librispeech_mini" / "train.jsonl")
    manifest = whole.select(np.random.default_rng(0).permutation(len(whole))[:LOADED])
    batches = list(TrainBatchSampler(manifest.durations_N, max_batch_s=BUDGET_S))
    torch.set_num_threads(1)
    running = {name: load(manifest, batches) for name, load in LOADERS.items()}
    spent = dict.fromkeys(running, 0.0)
    for number, batch in enumerate(batches):
        found = {}
        for name, loader in running.items():
            began = time.process_time()
            audio_BT, lengths = next(loader)
            # The first batch pays for imports and for the list of utterances.
            spent[name] += (time.process_time() - began) * (number > 0)
            found[name] = audio_BT
            assert lengths == pytest.approx([manifest.durations_N[i] * 16000 for i in batch], abs=160)
        for name, audio_BT in found.items():
            width = min(audio_BT.shape[1], found["ours"].shape[1])
            # Single utterances differ by up to 0.002.
            assert (audio_BT[:, :width] - found["ours"][:, :width]).square().mean().sqrt() < 1e-4, name
    speech_s = float(sum(manifest.durations_N[batch].sum() for batch in batches[1:]))
    show(
        [
            {
                "loader": name,
                "seconds of audio a second of one core": round(speech_s / s),
                "x ours": round(spent["ours"] / s, 2),
            }
            for name, s in spent.items()
        ]
    )
