"""The LightningDataModule: manifests in, batches out."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch.utils.data import DataLoader

from ssl_asr.data.audio import Downmix
from ssl_asr.data.dataset import SpeechDataset, collate
from ssl_asr.data.filters import Limits, Selection, check_skips, print_selections, select
from ssl_asr.data.manifest import Manifest, read_manifest
from ssl_asr.data.sampler import EvalBatchSampler, TrainBatchSampler, batching_report
from ssl_asr.data.speed import SpeedPerturbation
from ssl_asr.data.state_store import StateStore
from ssl_asr.data.tokenizer import check_coverage
from ssl_asr.errors import ConfigError, ManifestError, UserError, UserErrors, raise_all
from ssl_asr.types import Batch, Skip, Tokenizer

# Reasons that are about limits; the others are about the audio itself.
_BY_LIMIT = {"too_short", "too_long", "empty_text", "too_many_tokens", "ctc_target_too_long"}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The ``data`` group: which manifests, what is kept of them, how it is batched.

    Attributes:
        train, dev, test: manifest paths; several test manifests may be given, each by its own name.
        max_batch_s: the most seconds of audio in a training batch, padding included.
        max_batch_size: the most utterances in a training batch; null for no limit.
        eval_batch_s: the most seconds in a batch of evaluation.
        min_s, max_s: utterances outside are dropped; null leaves the limit to the model.
        speed_factors: training audio is made faster by one of these, drawn anew each epoch; ``[0.9, 1.0, 1.1]``
            is usual, ``[]`` leaves it as it is.
        num_workers: reading processes; 0 reads in the main one.
        downmix: what to do with several channels: mean, first, refuse.
        check_audio: open every file at the start and compare its header with the manifest.
        on_bad_audio: ``skip`` counts and names what cannot be read, ``error`` stops at the first.
        max_skip_fraction: a split that loses more than this share is an error.
        allow_duplicate_ids: whether train, dev and test may share utterance ids.
    """

    train: str | None
    dev: str | None
    test: dict[str, str]
    max_batch_s: float
    max_batch_size: int | None
    eval_batch_s: float
    min_s: float
    max_s: float | None
    speed_factors: list[float]
    num_workers: int
    downmix: Downmix
    check_audio: bool
    on_bad_audio: str
    max_skip_fraction: float
    allow_duplicate_ids: bool


class ResumableLoader(DataLoader["Batch"]):
    """A DataLoader over one epoch that knows how many batches it has handed out.

    Lightning stores its ``state_dict`` in the checkpoint; loaded again, it goes on after the last batch that
    was trained on. Its length stays that of the whole epoch.
    """

    def __init__(self, *, dataset: SpeechDataset, sampler: TrainBatchSampler, epoch: int, **options: Any) -> None:
        super().__init__(dataset, batch_sampler=sampler, **options)  # type: ignore[arg-type]
        self._sampler, self._epoch, self._handed_out = sampler, epoch, 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self._handed_out = self._sampler.start
        for batch in super().__iter__():
            self._handed_out += 1
            yield batch
        # What is asked for after the end starts the epoch anew.
        self._sampler.start = 0

    def state_dict(self) -> dict[str, int]:
        """Which epoch this is and how many of its batches are done."""
        return {"epoch": self._epoch, "batches": self._handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on within the epoch; a state of another epoch, finished, is left aside."""
        if state["epoch"] == self._epoch and state["batches"] < len(self._sampler):
            self._sampler.start = state["batches"]


def read_manifests(config: DataConfig) -> dict[str, Manifest]:
    """The manifests of a run by split, every fault of every one raised at once.

    Raises:
        ManifestError, UserErrors: manifests are wrong, or two share utterance ids.
    """
    paths = {"train": config.train, "dev": config.dev, **config.test}
    manifests: dict[str, Manifest] = {}
    errors: list[UserError] = []
    for name, path in paths.items():
        try:
            if path is not None:
                manifests[name] = read_manifest(path)
        except UserErrors as several:
            errors += several.errors
        except UserError as error:
            errors.append(error)
    raise_all(errors)
    if not config.allow_duplicate_ids:
        _check_shared_ids(manifests)
    return manifests


class ASRDataModule(L.LightningDataModule):
    """Filters and batches the manifests of a run.

    Args:
        config: the ``data`` group.
        manifests: by split: ``train``, ``dev``, and any name for a test set.
        tokenizer: spells targets; None where there is nothing to train.
        limits: what the model can take.
        seed: of the order of training batches.
        console: where the table of kept and dropped goes; None prints nothing.
    """

    def __init__(
        self,
        *,
        config: DataConfig,
        manifests: dict[str, Manifest],
        tokenizer: Tokenizer | None,
        limits: Limits,
        seed: int,
        console: Console | None = None,
    ) -> None:
        super().__init__()
        self.config, self.manifests, self.tokenizer = config, manifests, tokenizer
        self.limits, self.seed, self.console = limits, seed, console
        self.selections: dict[str, Selection] = {}
        self.state_store: StateStore | None = None
        self.speeds: SpeedPerturbation | None = None
        # A rank without a share of a tiny test set waits for the others; nothing is given twice to fill it.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def select(self) -> None:
        """Filter every split, print the table, and refuse a split that is left with too little.

        Raises:
            ManifestError: a split has nothing usable or loses too much, or text no alphabet spells.
        """
        for name, manifest in self.manifests.items():
            # Evaluation keeps every reference, whatever its tokens: only training targets have to fit.
            tokenizer = self.tokenizer if name == "train" else None
            if tokenizer is not None:
                check_coverage(tokenizer, manifest, where=str(manifest.path))
            self.selections[name] = select(
                name,
                manifest,
                self.limits,
                tokenizer=tokenizer,
                check_audio=self.config.check_audio,
                progress=self.console is not None,
            )
        if self.console is not None:
            print_selections(list(self.selections.values()), self.console)
        for selection in self.selections.values():
            check_skips(selection, self.config.max_skip_fraction)
            bad_audio = [skip for skip in selection.skips if skip.reason not in _BY_LIMIT]
            if bad_audio and self.config.on_bad_audio == "error":
                raise ManifestError(str(selection.manifest.path), bad_audio[0].detail, "or data.on_bad_audio=skip")
        if self.config.speed_factors:
            self.speeds = SpeedPerturbation(
                self.config.speed_factors,
                self.selections["train"].kept,
                self.limits,
                tokenizer=self.tokenizer,
                seed=self.seed,
            )

    def read_states(self, store: StateStore) -> None:
        """Read no audio of training and dev utterances whose states are in the store.

        Raises:
            CheckpointError: an utterance has other audio than when its states were made.
        """
        for name in self._with_states(store):
            store.check(self.selections[name].kept)
        self.state_store = store

    def _with_states(self, store: StateStore | None) -> list[str]:
        return [] if store is None else [name for name in ("train", "dev") if name in self.selections]

    @property
    def skips(self) -> dict[str, list[Skip]]:
        """What each split lost before the run."""
        return {name: selection.skips for name, selection in self.selections.items()}

    @property
    def test_names(self) -> list[str]:
        """Names of the test splits, in order."""
        return [name for name in self.manifests if name not in ("train", "dev")]

    def _speeds(self, epoch: int) -> NDArray[np.float64] | None:
        return None if self.speeds is None else self.speeds.draw(epoch)

    def _dataset(self, name: str, speeds_N: NDArray[np.float64] | None = None) -> SpeechDataset:
        state_store = self.state_store if name in self._with_states(self.state_store) else None
        if state_store is not None:
            # What the other ranks made in the last epoch.
            state_store.refresh()
        return SpeechDataset(
            self.selections[name].kept,
            tokenizer=self.tokenizer,
            downmix=self.config.downmix,
            skip_bad_audio=self.config.on_bad_audio == "skip",
            state_store=state_store,
            speeds_N=speeds_N,
        )

    def _options(self) -> dict[str, Any]:
        return {
            "collate_fn": collate,
            "num_workers": self.config.num_workers,
            "pin_memory": torch.cuda.is_available(),
            # A generator of its own keeps the loader from drawing on the training's random state.
            "generator": torch.Generator().manual_seed(self.seed),
        }

    def train_sampler(self, epoch: int, rank: int = 0, world_size: int = 1) -> TrainBatchSampler:
        """This rank's batches of an epoch."""
        durations_N, speeds_N = self.selections["train"].kept.durations_N, self._speeds(epoch)
        return TrainBatchSampler(
            durations_N if speeds_N is None else durations_N / speeds_N,
            max_batch_s=self.config.max_batch_s,
            max_batch_size=self.config.max_batch_size,
            seed=self.seed,
            epoch=epoch,
            rank=rank,
            world_size=world_size,
        )

    def batches_per_epoch(self, epochs: int, world_size: int) -> Iterator[int]:
        """How many batches each rank gets in each of the first ``epochs`` epochs, planned as they are asked for."""
        return (len(self.train_sampler(epoch, 0, world_size)) for epoch in range(epochs))

    def batching(self) -> tuple[float, float]:
        """Fill of the budget and share of padding in the first epoch."""
        sampler = self.train_sampler(0)
        return batching_report(sampler.batches, sampler.durations_N, self.config.max_batch_s)

    def train_dataloader(self) -> ResumableLoader:
        """The batches of the trainer's current epoch (Lightning asks anew each epoch)."""
        trainer = self.trainer
        assert trainer is not None
        epoch = trainer.current_epoch
        sampler = self.train_sampler(epoch, trainer.global_rank, trainer.world_size)
        return ResumableLoader(
            dataset=self._dataset("train", self._speeds(epoch)), sampler=sampler, epoch=epoch, **self._options()
        )

    def _eval_loader(self, name: str) -> DataLoader[Batch]:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = EvalBatchSampler(
            self.selections[name].kept.durations_N,
            max_batch_s=self.config.eval_batch_s,
            rank=rank,
            world_size=world_size,
        )
        return DataLoader(self._dataset(name), batch_sampler=sampler, **self._options())  # type: ignore[arg-type]

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """The dev split, once; no loader where there is none."""
        return [self._eval_loader("dev")] if "dev" in self.selections else []

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """Every test split, in the order of `test_names`.

        Raises:
            ConfigError: the config names no test manifest.
        """
        if not self.test_names:
            raise ConfigError("data.test", "no test manifest", "give data.test.NAME=PATH")
        return [self._eval_loader(name) for name in self.test_names]


def _check_shared_ids(manifests: dict[str, Manifest]) -> None:
    seen: dict[str, str] = {}
    shared: list[str] = []
    for manifest in manifests.values():
        for utterance in manifest:
            if utterance.id in seen and seen[utterance.id] != utterance.where:
                shared.append(f"'{utterance.id}' at {seen[utterance.id]} and {utterance.where}")
            seen[utterance.id] = utterance.where
    if shared:
        what = f"{len(shared)} utterance ids are in two splits: {'; '.join(shared[:5])}"
        raise ManifestError("data", what, "split them apart, or set data.allow_duplicate_ids=true")
