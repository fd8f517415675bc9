"""The Lightning Trainer of a run. Lightning is imported in functions, so that a command line is checked quickly."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Interval
from rich.console import Console

from ssl_asr.config.run_folder import is_first
from ssl_asr.errors import ConfigError, TrainingError
from ssl_asr.types import Expected, NonNegativeInt, PositiveFloat, PositiveInt, Precision

if TYPE_CHECKING:
    from lightning import Callback, Trainer
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.profilers import Profiler

    from ssl_asr.config.schemas import TrainConfig

FSDP2 = "fsdp2"
BF16_WEIGHTS = "bf16-true"
# Planning an epoch takes milliseconds.
_MOST_EPOCHS = 10_000
_STEP_HOOKS = ("on_train_batch_start", "on_before_backward", "on_after_backward", "on_train_batch_end")
_SHARE_OR_NUMBER = Expected("a fraction from 0.0 to 1.0, or a whole number of batches")
Batches = Annotated[NonNegativeInt | Annotated[float, Interval(ge=0, le=1)], _SHARE_OR_NUMBER]
ValidationInterval = Annotated[PositiveInt | Annotated[float, Interval(gt=0, le=1)], _SHARE_OR_NUMBER]


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """The ``trainer`` group. Names that Lightning's Trainer has mean the same here.

    Attributes:
        accelerator: Lightning's accelerator: auto, cpu, gpu and others.
        devices: Number of devices, a list of their numbers, or auto.
        num_nodes: Number of machines.
        strategy: Lightning's strategy: auto, ddp and others. ``fsdp2`` shards parameters, gradients and optimizer
            states over ranks.
        precision: 32-true, bf16-mixed, 16-mixed or bf16-true. The mixed ones compute most operations in 16 bits and
            keep float32 weights. bf16-true computes with weights in bfloat16, and updates float32 masters of them; on
            one device. Lightning's 16-true and transformer-engine would round each update to the few digits of the
            weights, and 64-true has no use, since losses are float32.
        max_epochs: Number of epochs.
        max_steps: Number of updates after which training stops, or -1 for no limit.
        accumulate_grad_batches: Batches in an update. The mean is over everything in them.
        gradient_clip_val: Largest global gradient norm over all parameters, or None for no limit.
        val_check_interval: Validate after this fraction of an epoch, or after this number of batches.
        check_val_every_n_epoch: Validate in every n-th epoch. None counts the batches of ``val_check_interval`` over
            epochs.
        limit_train_batches: Fraction or number of an epoch's training batches that are used.
        limit_val_batches: Fraction or number of the dev batches that are used.
        limit_test_batches: Fraction or number of the batches of each test set that are used.
        num_sanity_val_steps: Dev batches before training starts. -1 is all of them.
        log_every_n_steps: Updates between log entries.
        checkpoint_every_n_updates: Updates between checkpoints in an epoch, besides the one after each epoch. None
            saves only after epochs.
        max_nonfinite: Consecutive non-finite updates that are skipped before training stops with an error.
        monitor: Metric that chooses ``best.ckpt``. Lower is better.
        ema_decay: Decay of an exponential moving average of the weights, which is then validated, tested and saved.
            None for no average.
        average_best: Also test the mean of this number of best checkpoints. None for no mean.
        compile: Backend of torch.compile for the transformer layers, usually ``inductor``. None does not compile.
        deterministic: Use only deterministic algorithms.
        detect_anomaly: Find the operation that made a gradient non-finite. Slow.
        profiler: ``simple``, ``advanced`` or ``pytorch``: measure where time goes, and write it to ``profile/`` in the
            run's folder. None measures nothing.
        fast_dev_run: Run this number of train, dev and test batches, without loggers and checkpoints. True for one
            batch, False for a normal run.
    """

    accelerator: str
    devices: int | str | list[int]
    num_nodes: PositiveInt
    strategy: str
    precision: Precision
    max_epochs: PositiveInt
    max_steps: Annotated[int, Ge(-1)]
    accumulate_grad_batches: PositiveInt
    gradient_clip_val: PositiveFloat | None
    val_check_interval: ValidationInterval = 1.0
    check_val_every_n_epoch: PositiveInt | None
    limit_train_batches: Batches = 1.0
    limit_val_batches: Batches = 1.0
    limit_test_batches: Batches = 1.0
    num_sanity_val_steps: Annotated[int, Ge(-1)] = 0
    log_every_n_steps: PositiveInt
    checkpoint_every_n_updates: PositiveInt | None
    max_nonfinite: PositiveInt
    monitor: str
    ema_decay: Annotated[float, Interval(gt=0, lt=1)] | None
    average_best: Annotated[int, Ge(2)] | None
    compile: str | None
    deterministic: bool
    detect_anomaly: bool = False
    profiler: Literal["simple", "advanced", "pytorch"] | None = None
    fast_dev_run: bool | PositiveInt = False

    @property
    def ranks(self) -> int:
        """Number of processes that are asked for, on all machines. ``auto`` counts as one device."""
        devices = self.devices
        own = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 1
        return own * self.num_nodes

    def train_batches(self, batches_per_epoch: Iterable[int]) -> Iterable[int]:
        """The number of training batches that each epoch uses, from the number that it has."""
        if self.fast_dev_run is not False:
            yield min(int(self.fast_dev_run), next(iter(batches_per_epoch)))
            return
        for batches in batches_per_epoch:
            limit = self.limit_train_batches
            yield min(batches, limit) if isinstance(limit, int) else int(batches * limit)

    def conflicts(self, run: "TrainConfig") -> Iterable[ConfigError]:
        """Values that do not go together, and values that the data or the metrics do not allow."""
        yield from run.check_monitor("trainer.monitor", self.monitor)
        if self.max_steps == 0:
            yield ConfigError(
                "trainer.max_steps", "is 0, which trains nothing", "use a number from 1, or -1 for no limit"
            )
        if self.max_epochs > _MOST_EPOCHS and self.max_steps < 0:
            what = f"is {self.max_epochs:,}, and each epoch is planned before training, for the learning-rate schedules"
            yield ConfigError("trainer.max_epochs", what, "give trainer.max_steps too, which ends the plan")
        if self.average_best is not None and run.data.dev is None:
            what = "needs a validation, and there is no dev split"
            yield ConfigError("trainer.average_best", what, "give data.dev=…, or use trainer.average_best=null")
        if self.average_best is not None and self.limit_val_batches == 0:
            what = "needs a validation, and limit_val_batches=0 skips it"
            yield ConfigError("trainer.average_best", what, "use trainer.average_best=null")
        if self.average_best is not None and self.fast_dev_run is not False:
            what = "needs checkpoints, and fast_dev_run writes none"
            yield ConfigError("trainer.average_best", what, "use trainer.average_best=null")
        yield from self._sharding_conflicts(run)
        yield from self._bf16_conflicts(run)
        if self.check_val_every_n_epoch is None and not isinstance(self.val_check_interval, int):
            what = f"is null, and val_check_interval={self.val_check_interval} is a fraction of an epoch"
            yield ConfigError("trainer.check_val_every_n_epoch", what, "give val_check_interval a number of batches")

    def _bf16_conflicts(self, run: "TrainConfig") -> Iterator[ConfigError]:
        """Settings that do not work with weights in bfloat16 and their masters."""
        if self.precision != BF16_WEIGHTS:
            return
        several = self.ranks > 1 or self.strategy != "auto"
        found = [
            (several, "trainer.strategy", "use trainer.devices=1 trainer.strategy=auto"),
            (self.ema_decay is not None, "trainer.ema_decay", "use trainer.average_best"),
            (run.data.max_batch_s == "auto", "data.max_batch_s", "give a number"),
        ]
        for is_set, key, remedy in found:
            if is_set:
                what = f"has a value that does not work with trainer.precision={BF16_WEIGHTS}"
                yield ConfigError(key, what, f"{remedy}, or trainer.precision=bf16-mixed")

    def _sharding_conflicts(self, run: "TrainConfig") -> Iterator[ConfigError]:
        """Settings that do not work with sharded parameters."""
        if self.strategy.startswith(("fsdp", "deepspeed")) and self.strategy != FSDP2:
            yield ConfigError("trainer.strategy", f"is {self.strategy}, which is not supported", f"use {FSDP2}")
        if self.strategy != FSDP2:
            return
        layerdrop = getattr(run.backbone, "layerdrop", None)
        named = {name for name, option in run.optimizers.items() if type(option).__name__ == "AdamW8bit"}
        found: list[tuple[bool, str, str]] = [
            (self.ema_decay is not None, "trainer.ema_decay", "use trainer.ema_decay=null, or trainer.average_best"),
            (self.compile is not None, "trainer.compile", "use trainer.compile=null"),
            (self.precision == "16-mixed", "trainer.precision", "use bf16-mixed or 32-true"),
            (run.freeze_policy.thaws, "freeze_policy", "use a policy that does not thaw layers"),
            (bool(layerdrop), "backbone.layerdrop", "use backbone.layerdrop=0"),
            *((True, f"optimizers.{name}", "use another optimizer, as adamw") for name in sorted(named)),
        ]
        for is_set, key, remedy in found:
            if is_set:
                yield ConfigError(key, f"has a value that does not work with trainer.strategy={FSDP2}", remedy)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, and the workers of data loaders."""
    from lightning import seed_everything as seed_all

    seed_all(seed, workers=True, verbose=False)


def check_trained(trainer: "Trainer") -> None:
    """Refuse the results of a run that has made no update. A finished run that is resumed has made its updates.

    Raises:
        TrainingError: No update was made.
    """
    if trainer.global_step == 0:
        what = "ended without any update, so the model is what it was before"
        raise TrainingError(
            "training", what, "see the warnings above, and check weights, lengths and limits of batches"
        )


def is_first_process() -> bool:
    """Whether this process prints and writes. Also valid before a Trainer exists."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    rank: int | None = getattr(rank_zero_only, "rank", None)
    return rank in (None, 0) and is_first()


def check_accelerator(accelerator: str, devices: int | str | list[int], *, prefix: str = "") -> None:
    """Refuse an accelerator and devices that this machine does not have, before anything is loaded.

    Args:
        accelerator: Lightning's accelerator.
        devices: Number of devices, a list of their numbers, or auto.
        prefix: Start of the keys in messages.

    Raises:
        ConfigError: There is no such accelerator or device. Names what is available.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.accelerators import AcceleratorRegistry

    kinds = {name: AcceleratorRegistry[name]["accelerator"] for name in AcceleratorRegistry}
    found = [name for name, kind in kinds.items() if kind.is_available()]
    best = next((name for name in found if name != "cpu"), "cpu")
    name = {"auto": best, "gpu": next((each for each in ("mps", "cuda") if each in found), "gpu")}.get(
        accelerator, accelerator
    )
    if name not in found:
        known = accelerator in (*kinds, "gpu")
        fault = "which this machine does not have" if known else "which is no accelerator"
        names = " or ".join(["auto", *(["gpu"] if {"mps", "cuda"} & set(found) else []), *found])
        raise ConfigError(f"{prefix}accelerator", f"is {accelerator!r}, {fault}", f"use {names}")
    try:
        if devices in (0, "0", []):
            raise ValueError("at least one device is needed")
        if devices != "auto":
            kinds[name].parse_devices(devices)
    except (MisconfigurationException, TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        count = kinds[name].auto_device_count()
        remedy = f"use auto, or up to {count} of {name}" if name != "cpu" else "use auto, or a number of processes"
        raise ConfigError(f"{prefix}devices", f"is {devices!r}: {said}", remedy) from None


def check_strategy(config: TrainerConfig) -> None:
    """Refuse a strategy, and a precision or number of nodes, that Lightning refuses on this machine.

    Raises:
        ConfigError: There is no such strategy, it needs another accelerator, or a package that is not installed.
    """
    from lightning import Trainer
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy=_strategy(config.strategy, thaws=False),
            precision=None if config.precision in ("16-mixed", BF16_WEIGHTS) else config.precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ImportError, RuntimeError, TypeError, ValueError) as error:
        said = " ".join(str(error).split()).partition(". ")[0]
        what = f"is {config.strategy!r} with {config.num_nodes} nodes and precision {config.precision}: {said}"
        raise ConfigError("trainer.strategy", what, "use auto, or ddp or fsdp2 for several devices") from None


def make_trainer(
    config: TrainerConfig,
    *,
    folder: Path,
    loggers: "Sequence[Logger]",
    callbacks: "Sequence[Callback]",
    console: Console | None,
    thaws: bool = False,
) -> "Trainer":
    """The Trainer of a run.

    Clipping and accumulation are done by the module, since Lightning refuses both for two optimizers.

    Args:
        config: The ``trainer`` option.
        folder: Folder of the run.
        loggers: Lightning loggers.
        callbacks: Lightning callbacks.
        console: Shows progress bars. None shows none.
        thaws: Whether the freeze policy thaws layers later. DDP then has to look for unused parameters.
    """
    from lightning import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from ssl_asr.training.progress import ProgressBar

    precision, plugins = _precision(config)
    trainer = Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=_strategy(config.strategy, thaws=thaws),
        precision=precision,
        max_epochs=config.max_epochs,
        max_steps=config.max_steps,
        val_check_interval=config.val_check_interval,
        check_val_every_n_epoch=config.check_val_every_n_epoch,
        limit_train_batches=config.limit_train_batches,
        limit_val_batches=config.limit_val_batches,
        limit_test_batches=config.limit_test_batches,
        num_sanity_val_steps=config.num_sanity_val_steps,
        log_every_n_steps=config.log_every_n_steps,
        deterministic=config.deterministic,
        detect_anomaly=config.detect_anomaly,
        profiler=_profiler(config.profiler, folder / "profile"),
        fast_dev_run=config.fast_dev_run,
        default_root_dir=folder,
        logger=list(loggers),
        callbacks=[*callbacks, *([] if console is None else [ProgressBar(console, verb="Scoring")])],
        plugins=plugins,
        reload_dataloaders_every_n_epochs=1,  # Batches are planned for each epoch, so their number differs.
        use_distributed_sampler=False,
        enable_progress_bar=console is not None,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        # Parameters that are gathered in inference mode could not be trained afterwards.
        inference_mode=config.strategy != FSDP2,
    )
    _check_ranks(config, trainer.world_size)
    return _ready(trainer)


def _check_ranks(config: TrainerConfig, ranks: int) -> None:
    """Refuse a precision that trains on one device only, now that the number of devices is known."""
    if config.precision == BF16_WEIGHTS and ranks > 1:
        what = f"is {BF16_WEIGHTS}, which trains on one device, and this run has {ranks}"
        raise ConfigError("trainer.precision", what, "use trainer.devices=1, or trainer.precision=bf16-mixed")


def _strategy(name: str, *, thaws: bool) -> Any:
    """Lightning's ``strategy``."""
    if name == FSDP2:
        from ssl_asr.training.sharding import ShardedStrategy

        return ShardedStrategy()
    return "ddp_find_unused_parameters_true" if thaws and name == "ddp" else name


def _precision(config: TrainerConfig) -> tuple[Any, list[Any]]:
    """Lightning's ``precision`` and ``plugins``."""
    from lightning.pytorch.plugins.precision import MixedPrecision
    from torch.amp.grad_scaler import GradScaler

    from ssl_asr.training.checkpoint_io import BackgroundCheckpointIO

    if config.precision == "16-mixed" and config.accelerator == "cpu":
        # On a CPU, Lightning would use bf16 and no scaler.
        return None, [BackgroundCheckpointIO(), MixedPrecision("16-mixed", device="cpu", scaler=GradScaler("cpu"))]
    # With weights in bfloat16, Lightning would round waveforms, filters and masters too.
    return None if config.precision == BF16_WEIGHTS else config.precision, [BackgroundCheckpointIO()]


def _profiler(name: str | None, folder: Path) -> "Profiler | None":
    """A Lightning profiler that writes to a folder."""
    from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler

    kinds: dict[str, type[Profiler]] = {
        "simple": SimpleProfiler,
        "advanced": AdvancedProfiler,
        "pytorch": PyTorchProfiler,
    }
    if name is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return kinds[name](dirpath=folder, filename=name)


def make_inference_trainer(
    *,
    accelerator: str,
    console: Console | None,
    verb: str = "Transcribing",
    callbacks: "Sequence[Callback]" = (),
) -> "Trainer":
    """A Trainer that only runs test loops, on one device. It leaves the dtypes of the model as they are.

    Args:
        accelerator: Lightning's accelerator.
        console: Shows the progress. None shows nothing.
        verb: What the loop does, for the progress bar.
        callbacks: Lightning callbacks.
    """
    from lightning import Trainer

    from ssl_asr.training.progress import ProgressBar

    bar: list[Callback] = [] if console is None else [ProgressBar(console, verb=verb)]
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        logger=False,
        callbacks=[*callbacks, *bar],
        enable_progress_bar=console is not None,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        inference_mode=True,
    )
    return _ready(trainer)


def _ready(trainer: "Trainer") -> "Trainer":
    from lightning.pytorch.accelerators import CPUAccelerator

    from ssl_asr.training.memory import keep_freed_memory

    # `ssl_asr.config.interruption` handles signals. Lightning's handlers would send them to other processes, and then
    # wait for ranks which they have not reached.
    trainer._signal_connector.register_signal_handlers = _no_handlers  # type: ignore[method-assign]
    _skip_empty_hooks(trainer.callbacks)  # type: ignore[attr-defined]
    if isinstance(trainer.accelerator, CPUAccelerator):
        keep_freed_memory()
    return trainer


def _no_handlers() -> None:
    """Leave signals as they are."""


def _skip_empty_hooks(callbacks: "Iterable[Callback]") -> None:
    """Let Lightning skip the hooks of a training step that a callback inherits from Lightning, where they do nothing.

    Lightning calls each hook of all callbacks in every step, which takes some tenths of a millisecond. It skips hooks
    that are not callable.
    """
    from lightning import Callback

    for callback in callbacks:
        for name in _STEP_HOOKS:
            if name not in vars(callback) and getattr(type(callback), name) is getattr(Callback, name):
                setattr(callback, name, None)
