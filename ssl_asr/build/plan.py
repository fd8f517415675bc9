"""The memory and the time of a training run, estimated before it starts."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from ssl_asr.build.budget import Budgets, Planned, Room, standing_bytes
from ssl_asr.build.training import TrainingRun, build_training
from ssl_asr.build.trial import duration, time_epoch
from ssl_asr.config.schemas import PlanConfig
from ssl_asr.console import TitledTable
from ssl_asr.training.flops import TrainingFlops, planned_card
from ssl_asr.training.loggers import NoLog
from ssl_asr.training.state_cache import NoStateCache
from ssl_asr.training.step_memory import Shape, StepMemory, gradients_bytes, optimizer_bytes, weights_bytes
from ssl_asr.types import Seconds

_GB, _TERA = 1e9, 1e12
# Until the memory is known, in place of data.max_batch_s=auto.
_ANY_BUDGET_S = 120.0


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Memory of one device, in bytes.

    Attributes:
        parameters: Weights and buffers.
        gradients: Gradients of all that trains.
        optimizer: States of the optimizers.
        activations: The largest batch, and what its backward pass keeps.
        peak: Largest sum at any time of an update. Gradients grow while activations are freed, so that it is not the
            sum of the above; it also has temporary results, and copies of weights and gradients.
        largest: The batch that needs most.
        batches: Number of batches of the first epoch, of all ranks.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    peak: int
    largest: Shape
    batches: int

    @classmethod
    def of(cls, run: TrainingRun, memory: StepMemory, ranks: int) -> "MemoryEstimate":
        """The estimate for a run with its present budget."""
        shapes, module = Planned.of(run.data, ranks).shapes, run.module
        kept_N, peaks_N = memory.of(shapes)
        largest = int(peaks_N.argmax())
        parameters, gradients = weights_bytes(module), gradients_bytes(module)
        # After the last batch of a window, all gradients are there, and the optimizers make their states.
        in_pass = max(int(peaks_N[largest]), gradients)
        return cls(
            parameters=parameters,
            gradients=gradients,
            optimizer=optimizer_bytes(module),
            activations=int(kept_N[largest]),
            peak=parameters + standing_bytes(module, run.config, ranks) + in_pass,
            largest=shapes[largest],
            batches=len(shapes),
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run needs.

    Attributes:
        device: The device that is planned for.
        room: Its memory in bytes: of a named GPU all of it, on this machine what is available to the run. None if it is
            unknown.
        allowed: Bytes of it that the run may take, as for ``data.max_batch_s=auto``, see `Room`. None if it is unknown.
        memory: What the run takes of it.
        budget_s: ``data.max_batch_s``.
        largest_budget_s: The largest budget that fits the bytes that are allowed. None if the memory is unknown. 0 if
            the budget of the longest utterance does not fit.
        epoch_flops: Floating-point operations of an epoch, without those of padding.
        epoch_s: Seconds of an epoch. None if they are unknown.
        because: Where ``epoch_s`` comes from.
    """

    device: str
    room: int | None
    allowed: int | None
    memory: MemoryEstimate
    budget_s: Seconds
    largest_budget_s: Seconds | None
    epoch_flops: float
    epoch_s: Seconds | None
    because: str


def planned_run(config: PlanConfig, console: Console | None) -> TrainingRun:
    """The run of a plan: on the CPU if it is planned for a GPU, and without anything that writes files.

    Raises:
        ConfigError: The GPU has a name that is unknown.
    """
    trainer = replace(config.trainer, profiler=None, compile=None)
    if config.gpu is not None:
        planned_card(config.gpu)
        trainer = replace(trainer, accelerator="cpu", devices=1, num_nodes=1, strategy="auto")
    data = config.data
    if data.max_batch_s == "auto":
        data = replace(data, max_batch_s=_ANY_BUDGET_S)
    quiet = replace(config, trainer=trainer, data=data, logger=NoLog(), state_cache=NoStateCache())
    return build_training(quiet, Path(config.run_dir), console)


def make_plan(run: TrainingRun, config: PlanConfig) -> Plan:
    """Plan a run. Changes its weights if the time is measured.

    Args:
        run: The run, as `planned_run` returns it.
        config: Its configuration.
    """
    ranks = config.trainer.ranks if config.gpu is not None else run.trainer.world_size
    device = run.trainer.strategy.root_device
    _to_device(run)
    card = None if config.gpu is None else planned_card(config.gpu)
    room = Room.now(device, run.trainer.num_devices) if card is None else Room(available=int(card.memory_gb * _GB))
    # On this machine, the weights are on the device already.
    weights = weights_bytes(run.module)
    there = weights if card is None else 0
    memory = step_memory(run, as_cuda=config.gpu is not None)
    budgets = Budgets(run.module, run.data, memory, ranks)
    rows = None
    if room is not None:
        standing = weights + standing_bytes(run.module, run.config, ranks)
        rows = budgets.estimated(room.allowed + there - standing)
    best_s = None if rows is None else budgets.seconds(rows)
    budget_s = (best_s or budgets.longest_s) if config.data.max_batch_s == "auto" else run.config.data.batch_s
    run.data.config = replace(run.data.config, max_batch_s=budget_s)
    estimate = MemoryEstimate.of(run, memory, ranks)
    flops = _epoch_flops(run)
    if card is None:
        name, epoch_s, because = str(device), time_epoch(run), "from two timed updates on the largest batch"
    else:
        # torch does not use TF32 by default.
        name, peak = f"a GPU, gpu={config.gpu}", card.flops(config.trainer.precision, tf32=False)
        epoch_s = flops / (config.mfu * peak * ranks)
        because = f"at mfu={config.mfu:g} of {peak / _TERA:g} TFLOP/s, which is assumed"
        if math.isnan(peak):
            epoch_s, because = None, "unknown: name the card, as in gpu='RTX 4090'"
    return Plan(
        device=name,
        room=None if room is None else room.available + there,
        allowed=None if room is None else room.allowed + there,
        memory=estimate,
        budget_s=budget_s,
        largest_budget_s=best_s,
        epoch_flops=flops,
        epoch_s=epoch_s,
        because=because,
    )


def step_memory(run: TrainingRun, *, as_cuda: bool = False) -> StepMemory:
    """The memory of the batches of a run on its device, to which the model is moved. See `StepMemory`."""
    _to_device(run)
    return StepMemory(run.module, run.data.train_kept, run.trainer.precision_plugin.forward_context, as_cuda=as_cuda)


def _to_device(run: TrainingRun) -> None:
    run.trainer.precision_plugin.convert_module(run.module).to(run.trainer.strategy.root_device)


def _epoch_flops(run: TrainingRun) -> float:
    planned = Planned.of(run.data)
    used = np.concatenate([np.asarray(batch) for batch in planned.sampler.batches])
    flops = TrainingFlops(run.module, run.data.train_kept[0])
    return flops.of(planned.sampler.durations_N[used].tolist(), planned.tokens_N[used].tolist())


def print_plan(plan: Plan, precision: str, console: Console) -> None:
    """Print a plan as tables, and whether the run fits."""
    one, largest = plan.memory, plan.memory.largest
    title = f"Memory of {plan.device}, {precision}, data.max_batch_s={plan.budget_s:g}"
    table = TitledTable(title)
    table.add_column("part")
    table.add_column("GB", justify="right")
    batch = f"{largest.rows} utterances of {largest.computed_s:.1f} s and up to {largest.width} tokens"
    rows = {"parameters": one.parameters, "gradients": one.gradients, "optimizer states": one.optimizer}
    rows |= {f"activations of the largest batch: {batch}": one.activations}
    rows |= {"peak of an update, with temporary results": one.peak}
    rows |= {} if plan.room is None else {"available on the device": plan.room}
    for name, size in rows.items():
        table.add_row(name, f"{size / _GB:.3f}")
    console.print(table)
    times = TitledTable("Time of an epoch, without validation")
    times.add_column("")
    times.add_column("", justify="right")
    times.add_row("batches", f"{one.batches:,}")
    times.add_row("operations, without padding", f"{plan.epoch_flops / _TERA:,.1f} TFLOP")
    times.add_row("time", f"{'' if plan.epoch_s is None else duration(plan.epoch_s) + ', '}{plan.because}")
    console.print(times)
    console.print(verdict(plan), highlight=False, soft_wrap=True)


def verdict(plan: Plan) -> str:
    """Whether a run fits its device, and which budget would."""
    if plan.room is None or plan.allowed is None:
        return f"The memory of {plan.device} is unknown. The run takes about {plan.memory.peak / _GB:.2f} GB."
    needed = f"{plan.memory.peak / _GB:.2f} of {plan.room / _GB:.2f} GB"
    within = f"{plan.allowed / _GB:.2f} GB"
    fits, may_fit = plan.memory.peak <= plan.allowed, plan.memory.peak <= plan.room
    remedy = "use a smaller model, freeze_policy=lora, or gradient checkpointing"
    if plan.largest_budget_s:
        best = f"data.max_batch_s={plan.largest_budget_s:g} is the largest that takes at most {within}."
    elif fits:
        # Smaller than the longest utterance, which then has a batch of its own.
        best = f"data.max_batch_s of the longest utterance would take more than {within}."
    elif may_fit or plan.memory.largest.rows > 1:
        best = f"No batch with the longest utterance takes at most {within}: {remedy}."
    else:
        best = f"Not even one utterance fits: {remedy}."
    if fits:
        return f"It fits: about {needed}. {best}"
    if may_fit:
        return f"It may fit: about {needed}, and at most {within} is safe. {best}"
    return f"It does not fit: about {needed}. {best}"
