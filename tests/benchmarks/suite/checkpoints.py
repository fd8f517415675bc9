"""How long training stops for a checkpoint, against ``Trainer``."""

import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ssl_asr.training.checkpoint_files import read_checkpoint
from ssl_asr.training.checkpoint_io import checkpoint_io
from tests.benchmarks.suite.loops import ctc_checkpoint, our_run, their_run
from tests.benchmarks.suite.rows import Options, Row

APART = 2


@dataclass(frozen=True)
class _Saved:
    """What the saves of a run took, and the last checkpoint.

    Attributes:
        stalls: list of float, seconds between two updates with a save in between, less those without a save.
        weights: dict, the weights of the encoder as the checkpoint has them, by the names of transformers.
        moments: int, how many numbers the optimizer states have.
        mb: float, size of the checkpoint in megabytes.
    """

    stalls: list[float]
    weights: dict[str, Tensor]
    moments: int
    mb: float


class _Gaps:
    """Seconds on the training thread from the end of each update to the start of the next forward pass.

    Args:
        forward: Module whose call starts a forward pass.
        before_update: Called with the number of the update after its forward pass has started. Its time is not counted.
    """

    def __init__(self, forward: nn.Module, before_update: Callable[[int], None] = lambda number: None) -> None:
        self.seconds: list[float] = []
        self._before_update = before_update
        self._ended = 0.0
        forward.register_forward_pre_hook(self._start)

    def __enter__(self) -> "_Gaps":
        self._handle = register_optimizer_step_post_hook(self._end)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _end(self, *_: object) -> None:
        # An update of two optimizers ends with the second one.
        self._ended = time.perf_counter()

    def _start(self, *_: object) -> None:
        if self._ended:
            self.seconds.append(time.perf_counter() - self._ended)
        self._before_update(len(self.seconds) + 1)

    def stalls(self, every: int) -> list[float]:
        """The gaps after every n-th update, less the median of the other gaps, which is small beside them."""
        others = [seconds for number, seconds in enumerate(self.seconds, 1) if number % every]
        usual = statistics.median(others) if others else 0.0
        return [seconds - usual for seconds in self.seconds[every - 1 :: every]]


def _numbers(states: list[dict]) -> int:
    """How many numbers the states of optimizers have, without those of a single number."""
    tensors = [x for state in states for own in state["state"].values() for x in own.values() if isinstance(x, Tensor)]
    return sum(tensor.numel() for tensor in tensors if tensor.numel() > 1)


def _ours(folder: Path, source: Path, every: int, saves: int) -> _Saved:
    rates = [f"optimizers.{side}.{key}=0" for side in ("encoder", "rest") for key in ("lr", "weight_decay")]
    saving = f"trainer.checkpoint_every_n_updates={every}"
    run = our_run(folder, source, every * saves + 1, saving, *rates)

    def finish(update: int) -> None:
        # The file before is complete, as it would be after many updates.
        if every > 1 and update % every == 0:
            checkpoint_io(run.trainer).wait()

    with _Gaps(run.module.encoder, finish) as gaps:
        run.trainer.fit(run.module, datamodule=run.data)
    path = folder / "run" / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(path)
    prefix = "encoder.net."
    weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    return _Saved(gaps.stalls(every), weights, _numbers(checkpoint["optimizer_states"]), path.stat().st_size / 1e6)


def _theirs(folder: Path, source: Path, every: int, saves: int) -> _Saved:
    model = transformers.Wav2Vec2ForCTC.from_pretrained(source, attn_implementation="sdpa").train()
    own = {"save_strategy": "steps", "save_steps": every, "save_total_limit": 1, "learning_rate": 0.0}
    trainer = their_run(folder, model, every * saves + 1, [], **own)
    with _Gaps(model) as gaps:
        trainer.train()
    [last] = (folder / "trainer").glob("checkpoint-*")
    prefix = "wav2vec2."
    saved = load_file(last / "model.safetensors")
    weights = {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}
    states = torch.load(last / "optimizer.pt", weights_only=True)
    size = sum(path.stat().st_size for path in last.iterdir()) / 1e6
    return _Saved(gaps.stalls(every), weights, _numbers([states]), size)


def _check(ours: _Saved, theirs: _Saved) -> str:
    """Compares the checkpoints.

    Raises:
        AssertionError: Weights differ, or the optimizer states of one side are not of about the same size.
    """
    assert ours.weights.keys() == theirs.weights.keys()
    assert all(torch.equal(ours.weights[key], theirs.weights[key]) for key in theirs.weights)
    # Our output layer has the characters of the texts.
    assert abs(ours.moments / theirs.moments - 1) < 0.05
    sizes, firsts = f"{ours.mb:,.0f} and {theirs.mb:,.0f} MB", f"{ours.stalls[0]:.1f} and {theirs.stalls[0]:.1f} s"
    return f"encoders in both checkpoints equal, {sizes}; first of a run {firsts}"


def b25(options: Options) -> list[Row]:
    """Seconds for which saving stops training: all that it adds between the end of an update and the start of the next.

    Ours are written in the background, with a digest and flushed to the disk. ``Trainer`` writes its files in between,
    and does not flush them. First, the file before is always complete. Then there is a checkpoint after each update,
    where ours wait for the disk. The first checkpoint of each run, for which ours allocate memory, does not count.
    Learning rates of zero keep the weights of both sides equal.
    """
    source = ctc_checkpoint(Path(tempfile.mkdtemp()), tiny=options.quick)
    saves = 2 if options.quick else 3
    rows = []
    for every, rounds, name in ((APART, 2, "the file before is complete"), (1, 1, "after each update")):
        ours, theirs, check = [], [], ""
        for number in range(1 if options.quick else rounds):
            with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
                sides = [(_ours, Path(one)), (_theirs, Path(other))]
                found = {}
                for side, folder in sides[:: 1 - 2 * (number % 2)]:
                    found[side] = side(folder, source, every, saves)
                    # Trainers refer to themselves, and each side has gigabytes of weights and states.
                    gc.collect()
            ours += found[_ours].stalls[1:]
            theirs += found[_theirs].stalls[1:]
            check = _check(found[_ours], found[_theirs])
        ratios = [their_s / our_s for our_s, their_s in zip(ours, theirs, strict=True)]
        figures = {"ours": statistics.median(ours), "theirs": statistics.median(theirs), "unit": "s"}
        spread = (min(ratios), max(ratios))
        what = f"training stops for a checkpoint, wav2vec2 of 12 layers and AdamW, {name}"
        own = {"ratio": statistics.median(ratios), "spread": spread, "check": check}
        rows.append(Row(id="B25", what=what, peer="Trainer", **own, **figures))
    return rows
