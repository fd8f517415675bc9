"""From a resolved configuration to everything a training run needs."""

from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ssl_asr.build.budget import with_budget
from ssl_asr.build.environment import check_start
from ssl_asr.build.job import job_record
from ssl_asr.build.parts import PretrainedCheckpoint
from ssl_asr.config.interruption import current
from ssl_asr.config.options import plain
from ssl_asr.config.schemas import TrainConfig
from ssl_asr.console import say_to
from ssl_asr.data.augment import Augmentation
from ssl_asr.data.doctor.leakage import check_leakage
from ssl_asr.data.filters import Limits
from ssl_asr.data.manifest import Manifest
from ssl_asr.data.module import ASRDataModule, read_manifests
from ssl_asr.data.references import all_references, check_references
from ssl_asr.data.text import get_normalizers
from ssl_asr.errors import ConfigError, UserError, collecting, raise_all
from ssl_asr.models.compiling import compile_layers
from ssl_asr.models.loading import backbone_folder
from ssl_asr.textfiles import remove_partial, written_whole
from ssl_asr.training.averaging import EMA
from ssl_asr.training.callbacks import BatchFigures, LastValidation, Samples, Throughput, checkpointing
from ssl_asr.training.checkpoint_io import BackgroundCheckpoints
from ssl_asr.training.checkpointing import RandomStates, SelfDescription
from ssl_asr.training.interruption import StopOnSignal
from ssl_asr.training.module import ASRModule
from ssl_asr.training.monitoring import DevScores, RunFacts
from ssl_asr.training.resuming import data_description
from ssl_asr.training.schedulers import total_updates
from ssl_asr.training.sides import OptimConfig
from ssl_asr.training.skips import LateSkips
from ssl_asr.training.tasks import ModuleParts
from ssl_asr.training.trainer import BF16_WEIGHTS, is_first_process, make_trainer, seed_everything

if TYPE_CHECKING:
    from lightning import Callback, Trainer


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """Everything a training run needs.

    Attributes:
        module: The model, its pretrained weights loaded.
        data: The manifests, filtered.
        trainer: Lightning's trainer.
        config: The configuration that runs.
    """

    module: ASRModule
    data: ASRDataModule
    trainer: "Trainer"
    config: TrainConfig


def build_training(config: TrainConfig, folder: Path, console: Console | None) -> TrainingRun:
    """Build a training run. Errors in manifests are raised before pretrained weights are loaded.

    Args:
        config: The resolved configuration.
        folder: Folder of the run.
        console: Where tables are printed; None prints nothing.
    """
    check_start(config, folder)
    seed_everything(config.seed)
    config.data.prepare()
    manifests, augmentation = _read(config)
    normalizers = get_normalizers(config.normalizers)
    for name, manifest in manifests.items():
        if name != "train":
            check_references(all_references(manifest), normalizers, where=str(manifest.path))
    check_leakage(
        manifests,
        max_leakage=config.data.max_leakage,
        contents=config.data.check_audio,
        console=console,
        warns=is_first_process(),
    )
    module = _build_module(config, manifests["train"], console)
    data = ASRDataModule(
        config=config.data,
        manifests=manifests,
        tokenizer=module.tokenizer,
        limits=_limits(module, config),
        cost=module.speech_encoder,
        seed=config.seed,
        augmentation=augmentation,
        console=console,
    )
    data.select()
    config = with_budget(config, module, data, folder, console)
    module.skips = LateSkips(data.selections, max_fraction=config.data.max_skip_fraction)
    cache = config.state_cache.build(
        module.speech_encoder,
        reads_layers=module.reads_layers,
        silence=module.task_name == "seq2seq",
        downmix=config.data.downmix,
    )
    if cache is not None:
        module.use_state_cache(cache)
        data.read_states(cache.store)
        if console is not None:
            console.print(f"states are kept in {cache.store.folder}, which has {len(cache.store)} utterances")
    if config.trainer.compile is not None:
        compile_layers(module, config.trainer.compile)
    trainer = _build_trainer(config, folder, module, data, console)
    planned = data.batches_per_epoch(config.trainer.max_epochs, trainer.world_size)
    first = next(planned)
    _check_batches(config, data, trainer.world_size, first)
    batches = config.trainer.train_batches(chain([first], planned))
    accumulate, max_steps = config.trainer.accumulate_grad_batches, config.trainer.max_steps
    module.set_total_updates(total_updates(batches, accumulate, max_steps))
    return TrainingRun(module, data, trainer, config)


def _read(config: TrainConfig) -> tuple[dict[str, Manifest], Augmentation | None]:
    """The manifests of speech, and the changes of it with their recordings. The errors of all come together."""
    errors: list[UserError] = []
    with collecting(errors):
        augmentation = Augmentation(config.audio_augment, seed=config.seed) if config.audio_augment else None
    with collecting(errors):
        manifests = read_manifests(config.data)
    raise_all(errors)
    return manifests, augmentation


def _check_batches(config: TrainConfig, data: ASRDataModule, world_size: int, planned: int) -> None:
    """Refuse limits that leave no batch, and a validation interval that is longer than an epoch.

    Args:
        config: The run.
        data: Its data.
        world_size: Number of ranks.
        planned: Number of batches of each rank in the first epoch.

    Raises:
        ConfigError: Names the key, with the number of batches there are.
    """
    options = config.trainer
    train = next(iter(options.train_batches([planned])))
    if train == 0:
        what = f"is {options.limit_train_batches}, which leaves none of the {planned} training batches"
        raise ConfigError("trainer.limit_train_batches", what, "use a larger fraction, or a number of batches")
    for key, split in (("limit_val_batches", "dev"), ("limit_test_batches", "test")):
        limit, batches = getattr(options, key), data.fewest_eval_batches(split, world_size)
        if isinstance(limit, float) and limit > 0 and batches is not None and int(limit * batches) == 0:
            what = f"is {limit}, which leaves none of the {batches} batches of a {split} set"
            raise ConfigError(f"trainer.{key}", what, "use a larger fraction, 0, or a number of batches")
    interval = options.val_check_interval
    each_epoch = options.check_val_every_n_epoch is not None and options.fast_dev_run is False
    if each_epoch and isinstance(interval, int) and interval > train:
        what = f"is {interval}, but an epoch has {train} batches"
        remedy = "use a smaller number, or trainer.check_val_every_n_epoch=null to count over epochs"
        raise ConfigError("trainer.val_check_interval", what, remedy)


def _build_module(config: TrainConfig, train: Manifest, console: Console | None) -> ASRModule:
    say = say_to(console)
    backbone = config.backbone
    source = PretrainedCheckpoint.of(backbone, backbone_folder(backbone, say), say)
    tokenizer = config.tokenizer.build(train=train, checkpoint=source)
    parts = ModuleParts(
        source=source,
        tokenizer=tokenizer,
        decoder=config.decoder,
        policy=config.freeze_policy,
        states=config.states,
        head=config.head,
        augment=config.augment,
        optim=OptimConfig(
            optimizers=dict(config.optimizers.items()),
            schedulers=dict(config.schedulers.items()),
            accumulate=config.trainer.accumulate_grad_batches,
            clip_norm=config.trainer.gradient_clip_val,
            max_nonfinite=config.trainer.max_nonfinite,
            bf16_weights=config.trainer.precision == BF16_WEIGHTS,
        ),
        normalizers=get_normalizers(config.normalizers),
        train=train,
    )
    return config.task.build(parts)


def _limits(module: ASRModule, config: TrainConfig) -> Limits:
    """Limits of the model, narrowed by the limits of the config."""
    limits, data = module.limits(), config.data
    limits = replace(limits, min_s=max(limits.min_s, data.min_s))
    if data.max_s is not None and (limits.max_s is None or data.max_s < limits.max_s):
        limits = replace(limits, max_s=data.max_s, max_s_why="data.max_s")
    return limits


def _build_trainer(
    config: TrainConfig, folder: Path, module: ASRModule, data: ASRDataModule, console: Console | None
) -> "Trainer":
    job = job_record(config, folder, module.task_name)
    loggers, logger_callbacks = config.logger.build(
        folder=folder, name=job["name"], config={**plain(config), "run": job}
    )
    options = config.trainer
    # In this order: the average is no longer in the place of the weights when training stops, a last validation is
    # known before, the last checkpoint is written, and its results are written after.
    callbacks: list[Callback] = [
        *([] if options.ema_decay is None else [EMA(options.ema_decay)]),
        LastValidation(),
        BackgroundCheckpoints(current()),
        StopOnSignal(current(), None if options.fast_dev_run else folder / "checkpoints"),
        SelfDescription(config=plain(config), description=module.description(), data=data_description(data.train_kept)),
        RandomStates(),
        RunFacts(data.selections),
        # Compiled layers hide what they compute from the count of operations.
        Throughput(options.precision if options.compile is None else None),
        BatchFigures(module.speech_encoder, config.data.batch_s),
        Samples(folder=folder, console=console, count=config.samples),
        DevScores(console),
        *logger_callbacks,
        *(option.build() for option in config.callbacks.values()),
        *checkpointing(
            folder / "checkpoints",
            monitor=options.monitor if config.data.dev is not None else None,
            every_n_updates=options.checkpoint_every_n_updates,
            average_best=options.average_best,
        ),
    ]
    return make_trainer(
        options,
        folder=folder,
        loggers=loggers,
        callbacks=callbacks,
        console=console,
        thaws=config.freeze_policy.thaws,
    )


def write_beginning(run: TrainingRun, folder: Path, *, resumed: bool) -> None:
    """Write the files of a run that are known before training: the resolved ``config.yaml``, and ``skipped.jsonl``.

    Args:
        run: The run.
        folder: Its folder.
        resumed: Whether an earlier part of the run may have written ``skipped.jsonl``.
    """
    from ssl_asr.config.nodes import as_yaml

    remove_partial(folder / name for name in (".", "checkpoints", "metrics", "predictions"))
    with written_whole(folder / "config.yaml") as file:
        file.write(as_yaml(plain(run.config)))
    run.module.skips.open(folder / "skipped.jsonl", resumed=resumed)
