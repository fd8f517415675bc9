"""A trial of a training run: whether it can learn one batch, and what the whole run takes in time and memory."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.optim import Optimizer

from ssl_asr.build.training import TrainingRun
from ssl_asr.console import TitledTable, tracked
from ssl_asr.errors import TrainingError
from ssl_asr.training.masters import check_measurable
from ssl_asr.training.memory import peak_gb
from ssl_asr.training.probing import unlogged
from ssl_asr.training.step_memory import tensor_bytes
from ssl_asr.types import Batch, Seconds

# Updates on one batch, in which its loss must fall, and the number of its utterances.
_UPDATES, _UTTERANCES = 20, 4
# Updates on the longest batch that are timed, after one that is not.
_TIMED = 2
_GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a trial measured. Sizes are in bytes, on one device.

    Attributes:
        first_loss, last_loss: Loss of one small batch before the first and the last of 20 updates on it.
        utterances: Number of utterances of that batch.
        batch_s: Seconds that the encoder computes for the longest batch, padding included.
        update_s: Seconds of an update on the longest batch.
        updates: Number of updates of the run.
        run_s: Seconds of all training batches of the run, without validation and tests.
        parameters, gradients, optimizer: Sizes of the weights, of their gradients, and of the state of the optimizers.
        activations: Size of what the longest batch keeps for the backward pass.
        checkpoint: Size of a checkpoint.
        peak: Largest memory of the device in the trial. On the CPU, that of the process. None if unknown.
    """

    first_loss: float
    last_loss: float
    utterances: int
    batch_s: Seconds
    update_s: Seconds
    updates: int
    run_s: Seconds
    parameters: int
    gradients: int
    optimizer: int
    activations: int
    checkpoint: int
    peak: float | None


def measure(run: TrainingRun, console: Console | None) -> Trial:
    """Train on one small batch, and on the longest batch, without writing anything. Changes the weights of the run.

    Args:
        run: The run, as `build_training` returns it.
        console: Where the progress is shown. None shows nothing.

    Raises:
        TrainingError: The loss of one batch does not fall, or is not finite.
    """
    device = run.trainer.strategy.root_device
    module = run.module.to(device)
    module.train()
    sampler = run.data.train_sampler(0)
    by_length = sorted(sampler.batches, key=sampler.cost_s)
    small = run.data.train_batch(by_length[0][:_UTTERANCES])
    longest = run.data.train_batch(by_length[-1])
    optimizers = _optimizers(run)
    steps = tracked(range(_UPDATES), "overfit one batch", console=console, shown=console is not None)
    losses = [_update(run, small.to(device), optimizers) for _ in steps]
    if not losses[-1] < losses[0]:
        what = f"the loss of one batch of {len(small)} utterances went from {losses[0]:.3f} to {losses[-1]:.3f} "
        what += f"in {_UPDATES} updates, so nothing is learned"
        raise TrainingError("doctor", what, "check the texts, what is frozen, and optimizers.*.lr")
    batch = longest.to(device)
    with saved_bytes(module) as saved:
        _update(run, batch, optimizers)
    batch_step_s = _timed(run, batch, optimizers)
    batch_s = sampler.cost_s(by_length[-1])
    epoch_s = sum(map(sampler.cost_s, sampler.batches))
    accumulate = run.config.trainer.accumulate_grad_batches
    batches = run.module.total_updates * accumulate
    parameters = list(module.parameters())
    weights = sum(tensor_bytes(p) for p in parameters)
    states = [state for one in optimizers for state in one.state.values()]
    optimizer_bytes = sum(
        tensor_bytes(value) for state in states for value in state.values() if isinstance(value, Tensor)
    )
    return Trial(
        first_loss=losses[0],
        last_loss=losses[-1],
        utterances=len(small),
        batch_s=batch_s,
        update_s=batch_step_s * accumulate,
        updates=run.module.total_updates,
        run_s=batch_step_s * batches * (epoch_s / len(sampler.batches)) / batch_s,
        parameters=weights,
        gradients=sum(tensor_bytes(p) for p in parameters if p.requires_grad),
        optimizer=optimizer_bytes,
        activations=sum(saved.values()),
        checkpoint=weights + optimizer_bytes,
        peak=peak_gb(device),
    )


def time_epoch(run: TrainingRun) -> Seconds:
    """Seconds of the training batches of an epoch, from timed updates on the largest one. Changes the weights."""
    run.module.to(run.trainer.strategy.root_device).train()
    sampler = run.data.train_sampler(0)
    largest = max(sampler.batches, key=sampler.cost_s)
    batch, optimizers = run.data.train_batch(largest).to(run.module.device), _optimizers(run)
    _update(run, batch, optimizers)
    return _timed(run, batch, optimizers) * sum(map(sampler.cost_s, sampler.batches)) / sampler.cost_s(largest)


def _timed(run: TrainingRun, batch: Batch, optimizers: list[Optimizer]) -> Seconds:
    """Mean seconds of an update on a batch."""
    start = _now(run.module.device)
    for _ in range(_TIMED):
        _update(run, batch, optimizers)
    return (_now(run.module.device) - start) / _TIMED


def _optimizers(run: TrainingRun) -> list[Optimizer]:
    """The optimizers of the run, at their peak learning rates.

    Raises:
        ConfigError: See `check_measurable`.
    """
    assert run.module.optim is not None
    check_measurable(bf16_weights=run.module.optim.bf16_weights)
    optimizers, _ = run.module.configure_optimizers()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.get("initial_lr", group["lr"])
    return optimizers


def _update(run: TrainingRun, batch: Batch, optimizers: list[Optimizer]) -> float:
    """One update on one batch. Returns the loss before it."""
    with unlogged(run.module), run.trainer.precision_plugin.forward_context():
        loss = run.module.loss(batch)
        mean = loss.total / loss.count
    value = float(mean.detach())
    if not math.isfinite(value):
        raise TrainingError("doctor", f"the loss of a batch is {value}; its utterances: {', '.join(batch.ids)}")
    torch.autograd.backward(mean)
    clip = run.config.trainer.gradient_clip_val
    if clip is not None:
        torch.nn.utils.clip_grad_norm_([p for p in run.module.parameters() if p.grad is not None], clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return value


@contextmanager
def saved_bytes(module: nn.Module) -> Iterator[dict[int, int]]:
    """Sizes of the tensors that are kept for the backward pass, by their place in memory.

    Weights of the module and views of them are not counted.
    """
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


def _now(device: torch.device) -> Seconds:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def print_trial(trial: Trial, console: Console) -> None:
    """Print what a trial measured, as tables."""
    loss = TitledTable(f"One batch of {trial.utterances} utterances, {_UPDATES} updates")
    loss.add_column("loss")
    loss.add_column("", justify="right")
    loss.add_row("before", f"{trial.first_loss:.3f}")
    loss.add_row("after", f"{trial.last_loss:.3f}")
    console.print(loss)
    memory = TitledTable(f"Memory of a device, longest batch of {trial.batch_s:.0f} s")
    memory.add_column("part")
    memory.add_column("GB", justify="right")
    sizes = {"parameters": trial.parameters, "gradients": trial.gradients, "optimizer states": trial.optimizer}
    sizes |= {"activations": trial.activations}
    for name, size in (sizes | {"sum": sum(sizes.values())}).items():
        memory.add_row(name, f"{size / _GB:.3f}")
    if trial.peak is not None:
        memory.add_row("largest use of memory seen", f"{trial.peak:.3f}")
    memory.add_row("a checkpoint, on the disk", f"{trial.checkpoint / _GB:.3f}")
    console.print(memory)
    times = TitledTable("Time of training, without validation and tests")
    times.add_column("")
    times.add_column("", justify="right")
    times.add_row("an update, longest batch", f"{trial.update_s:.2f} s")
    times.add_row("updates", f"{trial.updates:,}")
    times.add_row("all updates", duration(trial.run_s))
    console.print(times)


def duration(seconds: Seconds) -> str:
    """Hours, minutes or seconds as text."""
    hours, minutes = int(seconds // 3600), seconds % 3600 / 60
    return f"{hours} h {minutes:.0f} min" if hours else f"{minutes:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"
