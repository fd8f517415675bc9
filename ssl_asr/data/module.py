"""The LightningDataModule: from manifests to batches."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import lightning as L
import numpy as np
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from ssl_asr.data.augment import Augmentation
from ssl_asr.data.batching import Batching, say_over_budgets
from ssl_asr.data.concatenation import Concatenation
from ssl_asr.data.dataset import SpeechDataset, collate
from ssl_asr.data.epochs import Changes, EpochChanges
from ssl_asr.data.filters import BY_LIMIT, Limits, Selection, check_skips, print_selections, select
from ssl_asr.data.loaders import LoaderOptions, NoticingLoader, ResumableLoader
from ssl_asr.data.manifest import Manifest, read_manifest
from ssl_asr.data.mixture import Mixture, mixture_of
from ssl_asr.data.options import DataConfig
from ssl_asr.data.sampler import BatchCost, EvalBatchSampler, SpeechCost, TrainBatchSampler
from ssl_asr.data.segments import by_segments
from ssl_asr.data.signal import print_notices
from ssl_asr.data.speed import SpeedPerturbation, changed_durations
from ssl_asr.data.state_store import StateStore
from ssl_asr.data.tokenizer import check_coverage, warn_of_unseen
from ssl_asr.data.workers import prepare_worker
from ssl_asr.errors import ConfigError, ManifestError, UserError, collecting, naming, raise_all
from ssl_asr.types import Batch, Notice, Skip, Tokenizer


def read_manifests(config: DataConfig) -> dict[str, Manifest]:
    """Read the manifests of all splits.

    Raises:
        ManifestError, UserErrors: Manifests are invalid (lists all errors of all manifests), or share utterance ids.
    """
    splits = [("train", name, path) for name, path in config.train.items()]
    splits += [] if config.dev is None else [("dev", "dev", config.dev)]
    splits += [(name, name, path) for name, path in config.test.items()]
    read: dict[tuple[str, str], Manifest] = {}
    errors: list[UserError] = []
    for split, corpus, path in splits:
        with collecting(errors), naming(_key_of(config, split, corpus), path):
            manifest = read_manifest(path, root=config.root, root_key="data.root")
            read[split, corpus] = by_segments(manifest) if split == "train" and config.split_segments else manifest
    raise_all(errors)
    if not config.allow_duplicate_ids:
        _check_shared_ids(list(read.values()))
    manifests = {split: manifest for (split, _), manifest in read.items()}
    corpora = {corpus: manifest for (split, corpus), manifest in read.items() if split == "train"}
    if corpora:
        single = str(manifests["train"].path) if len(corpora) == 1 else None
        manifests["train"] = Manifest.joined(corpora, single or "data.train")
    return manifests


def _key_of(config: DataConfig, split: str, corpus: str) -> str:
    """The config key of a manifest. A single train or test manifest is usually given without a name."""
    group = {"train": config.train, "dev": {}}.get(split, config.test)
    return f"data.{split if split in ('train', 'dev') else 'test'}" + (f".{corpus}" if len(group) > 1 else "")


class ASRDataModule(L.LightningDataModule):
    """Filters the manifests of a run and batches their utterances.

    Args:
        config: The ``data`` group.
        manifests: Manifests by split: ``train``, ``dev``, and any other name for a test split.
        tokenizer: Encodes the targets. None if nothing is trained.
        limits: Limits of the model on utterances.
        seed: Seed of the order of training batches, of references, and of speeds and tempos.
        cost: What batches cost, usually the encoder. Default: None (their speech).
        augmentation: Changes of the training audio. Default: None (no change).
        console: Where the table of kept and dropped utterances is printed. Default: None (nowhere).
        prefix: Start of the keys of ``config`` in messages. Default: ``data.``.

    Attributes:
        test_dev: Whether the test loop also covers the dev split. Set it after training.
        notices: Findings in the audio that was read so far, as keys.
    """

    def __init__(
        self,
        *,
        config: DataConfig,
        manifests: dict[str, Manifest],
        tokenizer: Tokenizer | None,
        limits: Limits,
        seed: int,
        cost: BatchCost | None = None,
        augmentation: Augmentation | None = None,
        console: Console | None = None,
        prefix: str = "data.",
    ) -> None:
        super().__init__()
        self._augmentation = augmentation
        self._prefix = prefix
        self.config, self.manifests, self.tokenizer = config, manifests, tokenizer
        self.limits, self.seed, self.console = limits, seed, console
        self._cost: BatchCost = cost or SpeechCost()
        self.selections: dict[str, Selection] = {}
        self.test_dev = False
        self.state_store: StateStore | None = None
        self.speeds: SpeedPerturbation | None = None
        self.mixture: Mixture | None = None
        self.concatenation: Concatenation | None = None
        self.notices: dict[Notice, None] = {}
        self._device = torch.device("cpu")
        # The loaders of the last epoch, and what their workers know.
        self._train_loader: tuple[tuple[int | None, int], ResumableLoader] | None = None
        self._dev_loader: tuple[tuple[int | None, int], NoticingLoader] | None = None
        # A test split with fewer batches than ranks leaves some ranks without a batch. No utterance is repeated.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def setup(self, stage: str) -> None:
        """Choose the device of the loaders' batches: the GPU of this rank, or the CPU. The trainer calls this method.

        Without a trainer, batches are on the CPU.
        """
        root = None if self.trainer is None else self.trainer.strategy.root_device
        # Lightning moves batches to other devices. Copies to MPS without waiting have a race (pytorch/pytorch#83015).
        self._device = root if root is not None and root.type == "cuda" else torch.device("cpu")
        # Loaders of another trainer may have another rank or device.
        self._train_loader = self._dev_loader = None

    def select(self) -> None:
        """Filter all splits and print the table of kept and dropped utterances.

        Raises:
            ManifestError: A split has no usable utterance or loses too many, has audio that cannot be read with
                ``on_bad_audio=error``, or training text that the tokenizer cannot spell.
        """
        for name, manifest in self.manifests.items():
            self.selections[name] = self._selected(name, manifest)
        if self.console is not None:
            print_selections(list(self.selections.values()), self.console)
        for selection in self.selections.values():
            self._check(selection)
        say_over_budgets(self.selections, self._cost, self.config, self._prefix)
        train = self.selections.get("train")
        if train is None:
            return
        self.mixture = mixture_of(train.kept, self.config, seed=self.seed)
        if self.mixture is not None and self.console is not None:
            self.mixture.print(self.console)
        if self.config.concatenate_s is not None and train.targets is not None:
            self.concatenation = Concatenation(
                train.kept,
                limits=self.limits,
                targets=train.targets,
                longest_s=self.config.concatenate_s,
                seed=self.seed,
            )
        if self.config.speed_factors or self.config.tempo_factors:
            self.speeds = SpeedPerturbation(
                self.config.speed_factors,
                self.config.tempo_factors,
                train.kept.durations_N,
                self.limits,
                targets=train.targets,
                seed=self.seed,
            )

    def _selected(self, name: str, manifest: Manifest) -> Selection:
        # Only training targets have to fit the model. Evaluation keeps every reference.
        tokenizer = self.tokenizer if name == "train" and self.config.train else None
        targets = None
        if tokenizer is not None:
            targets = check_coverage(tokenizer, manifest, where=str(manifest.path), progress=self.console is not None)
        elif self.tokenizer is not None:
            warn_of_unseen(self.tokenizer, manifest, where=str(manifest.path))
        return select(
            name,
            manifest,
            self.limits,
            tokenizer=tokenizer,
            check_audio=self.config.check_audio,
            downmix=self.config.downmix,
            any_rate=self.config.resample,
            progress=self.console is not None,
            # A test manifest that may lose every utterance gives no scores, but the other manifests do.
            may_be_empty=name in self.test_names and self.config.max_skip_fraction >= 1,
            targets=targets,
        )

    def _check(self, selection: Selection) -> None:
        check_skips(selection, self.config.max_skip_fraction, prefix=self._prefix)
        trains = selection.name == "train" and self.config.train
        if trains and not any(utterance.weight for utterance in selection.kept):
            what = "every utterance has weight 0, so nothing would be learned"
            raise ConfigError("data.train", f"{selection.manifest.path}: {what}", "give some lines a larger weight")
        bad_audio = [skip for skip in selection.skips if skip.reason not in BY_LIMIT]
        if bad_audio and self.config.on_bad_audio == "error":
            remedy = f"correct the manifest, or set {self._prefix}on_bad_audio=skip"
            raise ManifestError(str(selection.manifest.path), bad_audio[0].detail, remedy)

    def read_states(self, store: StateStore) -> None:
        """Use cached encoder states: audio of train and dev utterances in the store is not read.

        Raises:
            CheckpointError: The states of an utterance are those of other audio.
        """
        store.check(chain.from_iterable(self.selections[name].kept for name in self._with_states(store)))
        self.state_store = store

    def _with_states(self, store: StateStore | None) -> list[str]:
        # The test loop encodes all audio itself.
        splits = [] if store is None or self.test_dev else ["train", "dev"]
        return [name for name in splits if name in self.selections]

    @property
    def skips(self) -> dict[str, list[Skip]]:
        """Dropped utterances of each split."""
        return {name: selection.skips for name, selection in self.selections.items()}

    @property
    def train_kept(self) -> Manifest:
        """The training utterances that are used, after `select`."""
        return self.selections["train"].kept

    def print_notices(self) -> None:
        """Print findings in the audio that was read, on standard error."""
        print_notices(self.notices)

    @property
    def test_names(self) -> list[str]:
        """Names of the test splits, in the order of `test_dataloader`. The dev split comes first if it is tested.

        Without a training split, all splits are test splits, whatever their names.
        """
        if not self.config.train:
            return list(self.manifests)
        left_out = ("train",) if self.test_dev else ("train", "dev")
        return [name for name in self.manifests if name not in left_out]

    def _dataset(self, name: str, changes: Callable[[int], Changes] | None = None) -> SpeechDataset:
        return SpeechDataset(
            self.selections[name].kept,
            tokenizer=self.tokenizer,
            downmix=self.config.downmix,
            any_rate=self.config.resample,
            skip_bad_audio=self.config.on_bad_audio == "skip",
            state_store=self.state_store if name in self._with_states(self.state_store) else None,
            changes=changes,
        )

    def _known(self, name: str) -> tuple[int | None, int]:
        """What workers know of a split: the number of states in its store, and which utterances it has."""
        kept = id(self.selections[name].kept)
        if self.state_store is None or name not in self._with_states(self.state_store):
            return None, kept
        # Other ranks may have added states in the last epoch.
        self.state_store.refresh()
        return len(self.state_store), kept

    def _options(self) -> LoaderOptions:
        return {
            "num_workers": self.config.num_workers,
            "worker_init_fn": prepare_worker,
            # Without its own generator, the loader would draw from the global random state of the training.
            "generator": torch.Generator().manual_seed(self.seed),
        }

    def train_sampler(self, epoch: int, rank: int | None = 0, world_size: int = 1) -> TrainBatchSampler:
        """Batches of one rank in one epoch, or those of all ranks with ``rank`` None."""
        durations_N = self.train_kept.durations_N
        if self.speeds is not None:
            durations_N = changed_durations(durations_N, self.speeds.draw(epoch))
        drawn_N, units = None if self.mixture is None else self.mixture.draw(epoch), None
        if self.concatenation is not None:
            drawn_N = np.arange(len(durations_N)) if drawn_N is None else drawn_N
            units, drawn_N = self.concatenation.units(durations_N, drawn_N, epoch), None
            durations_N = np.array([durations_N[list(unit)].sum() for unit in units])
        return TrainBatchSampler(
            durations_N,
            max_batch_s=self.config.batch_s,
            max_batch_size=self.config.max_batch_size,
            seed=self.seed,
            epoch=epoch,
            rank=rank,
            world_size=world_size,
            drawn_N=drawn_N,
            units=units,
            costs_N=self._cost.encoded_s(durations_N),
        )

    def train_batch(self, indices: Sequence[int]) -> Batch:
        """The batch of some utterances of the train split, by their positions among the kept ones."""
        dataset = self._dataset("train")
        return collate([dataset[index] for index in indices])

    def batches_per_epoch(self, epochs: int, world_size: int) -> Iterator[int]:
        """Number of batches of each rank in each of the first ``epochs`` epochs. Epochs are planned lazily."""
        return (len(self.train_sampler(epoch, 0, world_size)) for epoch in range(epochs))

    def batching(self, world_size: int = 1) -> dict[str, Batching]:
        """Planned figures of the batches of each split: of the first epoch, dev and test. No audio is read."""
        found = {}
        for name in self.selections:
            is_train = name == "train"
            plan = self.train_sampler(0, None, world_size) if is_train else self._eval_sampler(name, None, world_size)
            found[name] = Batching.planned(plan, world_size)
        return found

    def train_dataloader(self) -> ResumableLoader:
        """Loader of the current epoch. The trainer calls this method in each epoch.

        The workers of the last epoch go on, unless there are states that they do not know.
        """
        trainer = self.trainer
        assert trainer is not None
        epoch, known = trainer.current_epoch, self._known("train")
        sampler = self.train_sampler(epoch, trainer.global_rank, trainer.world_size)
        if self._train_loader is None or self._train_loader[0] != known:
            loader = ResumableLoader(
                dataset=self._dataset("train", EpochChanges(self.speeds, self._augmentation, self.seed)),
                epoch=epoch,
                sampler=sampler,
                notices=self.notices,
                device=self._device,
                **self._options(),
            )
            self._train_loader = known, loader
        loader = self._train_loader[1]
        loader.begin(epoch, sampler)
        return loader

    def fewest_eval_batches(self, split: str, world_size: int = 1) -> int | None:
        """Number of batches of the dev split, or of the smallest test split. None if there is no such split.

        Args:
            split: ``dev`` or ``test``.
            world_size: Number of ranks. The number is that of the first rank.
        """
        names = self.test_names if split == "test" else [name for name in self.selections if name == split]
        return min((len(self._eval_sampler(name, 0, world_size)) for name in names), default=None)

    def _eval_sampler(self, name: str, rank: int | None, world_size: int) -> EvalBatchSampler:
        durations_N = self.selections[name].kept.durations_N
        budget_s, costs_N = self._cost.budget_s(self.config.eval_batch_s), self._cost.encoded_s(durations_N)
        return EvalBatchSampler(durations_N, max_batch_s=budget_s, rank=rank, world_size=world_size, costs_N=costs_N)

    def _eval_loader(self, name: str, *, persistent: bool = False) -> NoticingLoader:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = self._eval_sampler(name, rank, world_size)
        return NoticingLoader(
            dataset=self._dataset(name),
            sampler=sampler,
            notices=self.notices,
            device=self._device,
            persistent=persistent,
            **self._options(),
        )

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """Loader of the dev split. Empty list if there is no dev split. See `train_dataloader` for its workers."""
        if "dev" not in self.selections:
            return []
        known = self._known("dev")
        if self._dev_loader is None or self._dev_loader[0] != known:
            self._dev_loader = known, self._eval_loader("dev", persistent=True)
        return [self._dev_loader[1]]

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """Loaders of all test splits, in the order of `test_names`.

        Raises:
            ConfigError: There is no test manifest.
        """
        if not self.test_names:
            raise ConfigError("data.test", "no test manifest", "give data.test.NAME=PATH")
        return [self._eval_loader(name) for name in self.test_names]


def _check_shared_ids(manifests: Sequence[Manifest]) -> None:
    hashes = [np.unique(manifest.lines.ids_N) for manifest in manifests]
    hashes_N, counts_N = np.unique(np.concatenate([np.empty(0, np.uint64), *hashes]), return_counts=True)
    seen: dict[str, str] = {}
    shared: list[str] = []
    for manifest in manifests:
        suspects = np.flatnonzero(np.isin(manifest.lines.ids_N, hashes_N[counts_N > 1])).tolist()
        for utterance in (manifest[i] for i in suspects):
            if utterance.id in seen and seen[utterance.id] != utterance.where:
                shared.append(f"'{utterance.id}' at {seen[utterance.id]} and {utterance.where}")
            seen[utterance.id] = utterance.where
    if shared:
        what = f"{len(shared)} utterance ids occur in two manifests: {'; '.join(shared[:5])}"
        raise ManifestError("data", what, "rename them, or set data.allow_duplicate_ids=true")
