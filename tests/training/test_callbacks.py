"""What a run prints and logs besides losses: the table of what trains, and its speed."""

from types import SimpleNamespace

import pytest
import torch

from ssl_asr.data.sampler import SpeechCost
from ssl_asr.training import callbacks
from ssl_asr.training.callbacks import BatchFigures, Throughput, print_groups
from ssl_asr.training.sides import GroupRow
from tests.tables import cells, heads, wide_console


def test_table_of_what_trains_joins_layers_and_counts_parameters():
    rows = [
        GroupRow("encoder", "features", 0, 1200, None),
        GroupRow("encoder", "layers.0", 0, 1000, None),
        GroupRow("encoder", "layers.1", 0, 1000, None),
        GroupRow("encoder", "layers.2", 1000, 1000, 1e-4),
        GroupRow("encoder", "layers.3", 1000, 1000, 1e-4),
        GroupRow("encoder", "layers.4", 1000, 1000, 2e-4),
        GroupRow("rest", "layers.5", 1000, 1000, 2e-4),
        GroupRow("rest", "head", 34, 800, 0.00125),
    ]
    console = wide_console()
    print_groups(rows, "TopLayers", console)
    assert "TopLayers: 4,034 of 8,000 parameters train (50.4 %)" in console.export_text(clear=False)
    assert heads(console) == [["optimizer", "layer group", "parameters", "peak rate"]]
    assert cells(console) == [
        ["encoder", "features", "1,200", "frozen"],
        ["encoder", "layers.0-1", "2,000", "frozen"],
        ["encoder", "layers.2-3", "2,000", "0.0001"],
        ["encoder", "layers.4", "1,000", "0.0002"],
        ["rest", "layers.5", "1,000", "0.0002"],
        ["rest", "head", "800", "0.00125"],
    ]


def test_speed_counts_training_without_validation(monkeypatch):
    """An epoch of 10 s, of which 4 s are a validation, with 30 s of audio."""
    seconds = iter([100.0, 103.0, 107.0, 110.0])
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(callbacks, "peak_gb", lambda device: 1.5)
    logged, waited = {}, iter([0.5, 2.0])
    module = SimpleNamespace(log=logged.__setitem__, device=torch.device("cpu"))
    # The loader has waited 1.5 s in this epoch.
    monkeypatch.setattr(callbacks, "_waited_s", lambda _: next(waited))
    callback = Throughput()
    callback._audio_s = callback._busy_s = 99.0  # of the last epoch
    callback.on_train_epoch_start(None, module)
    for durations in ([10.0, 5.0], [15.0]):
        batch = SimpleNamespace(utterances=[SimpleNamespace(duration=duration) for duration in durations])
        callback.on_train_batch_end(None, module, None, batch, 0)
    callback.on_validation_start(None, module)
    callback.on_validation_end(None, module)
    callback.on_train_epoch_end(None, module)
    assert logged == {
        "train/epoch_s": pytest.approx(6.0),
        "train/audio_s_per_s": pytest.approx(5.0),
        "train/loader_wait": pytest.approx(0.25),
        "train/peak_gb": 1.5,
    }


def test_figures_of_batches_are_those_of_all_ranks_and_of_the_epoch(monkeypatch):
    """Two ranks with two batches each and a budget of 8 s. The slower ranks of the two steps compute 8 and 7 s."""

    def batch(*seconds):
        utterances = [SimpleNamespace(duration=duration) for duration in seconds]
        # The states of the first utterance are cached, so that its audio is not read.
        lengths = torch.tensor([0, *(int(duration * 16_000) for duration in seconds[1:])])
        return SimpleNamespace(utterances=utterances, lengths_B=lengths)

    # The other rank had a batch that could not be read.
    monkeypatch.setattr(callbacks, "over_ranks", lambda own: [*own, [(7.0, 7.0), (0.0, 0.0)]])
    logged = {}
    module = SimpleNamespace(log=logged.__setitem__)
    callback = BatchFigures(SpeechCost(), 8.0)
    callback.on_train_batch_end(None, module, None, batch(99.0), 0)
    callback.on_train_epoch_start(None, module)
    for seconds in ([4.0, 1.5], [3.5, 3.5]):
        callback.on_train_batch_end(None, module, None, batch(*seconds), 0)
    callback.on_train_epoch_end(SimpleNamespace(world_size=2), module)
    speech_s, computed_s, slower_s = 5.5 + 7.0 + 7.0, 8.0 + 7.0 + 7.0, 8.0 + 7.0
    assert logged == {
        "train/fill": pytest.approx(computed_s / (4 * 8.0)),
        "train/padding": pytest.approx(1 - speech_s / computed_s),
        "train/rank_balance": pytest.approx(computed_s / (2 * slower_s)),
    }
