"""The two sides of a model, each with a separate optimizer: the pretrained encoder, and the rest.

The rest is the head, or Whisper's decoder. A freeze policy decides which layer groups of either side train.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from ssl_asr.models.encoder import LayerGroup
from ssl_asr.models.freezing import FreezePolicy, Progress, apply_policy, check_partition
from ssl_asr.training.optimizers import OptimizerConfig, group_scales
from ssl_asr.training.schedulers import SchedulerConfig


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How updates are made. ``optimizers`` and ``schedulers`` are keyed by side: ``encoder`` and ``rest``.

    Attributes:
        optimizers: Optimizer option of each side.
        schedulers: Scheduler option of each side.
        accumulate: Number of batches per update.
        clip_norm: Largest global gradient norm over all parameters of both sides, or None for no limit.
        max_nonfinite: Number of consecutive non-finite updates after which training stops with an error.
        bf16_weights: Compute with weights in bfloat16, and update float32 masters of them.
    """

    optimizers: dict[str, OptimizerConfig]
    schedulers: dict[str, SchedulerConfig]
    accumulate: int
    clip_norm: float | None
    max_nonfinite: int
    bf16_weights: bool = False


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One row of the table of what trains. ``lr`` is the peak learning rate, or None if the group is frozen."""

    side: str
    name: str
    trainable: int
    total: int
    lr: float | None


class Sides:
    """The layer groups of the encoder and of the rest, and which of them train.

    On construction, every group that trains at any time of the run is trainable, so that DDP registers it.
    `thaw` then switches to what trains at a given time.

    Args:
        encoder: The pretrained encoder.
        encoder_groups: Its layer groups, from the samples up.
        rest: All other parameters.
        rest_groups: Layer groups of ``rest``.
        policy: Which layer groups train.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        encoder_groups: Sequence[LayerGroup],
        rest: nn.Module,
        rest_groups: Sequence[LayerGroup],
        policy: FreezePolicy,
    ) -> None:
        self.policy = policy
        self._parts = {"encoder": (encoder, list(encoder_groups)), "rest": (rest, list(rest_groups))}
        for module, groups in self._parts.values():
            check_partition(groups, module.parameters())
        self._set_trainable(policy.trainable(self.names("encoder"), self.names("rest")))

    def replace_parameters(self, replaced: Mapping[nn.Parameter, nn.Parameter]) -> None:
        """Follow a model in which parameters were replaced: from each old parameter to the new one."""
        for _, groups in self._parts.values():
            loose = [tuple(replaced[parameter] for parameter in group.loose) for group in groups]
            groups[:] = [replace(group, loose=own) for group, own in zip(groups, loose, strict=True)]

    def names(self, side: str) -> list[str]:
        """Names of the layer groups of a side."""
        return [group.name for group in self._parts[side][1]]

    def groups(self) -> Iterator[tuple[str, list[LayerGroup]]]:
        """Each side with its layer groups, the encoder first."""
        return ((side, groups) for side, (_, groups) in self._parts.items())

    @property
    def encoder_is_frozen(self) -> bool:
        """Whether no parameter of the encoder trains at present."""
        return not any(parameter.requires_grad for parameter in self._parts["encoder"][0].parameters())

    def _set_trainable(self, trainable: frozenset[str]) -> None:
        self._trainable = trainable
        self._frozen: list[nn.Module] = []
        for side, (module, groups) in self._parts.items():
            own = trainable & set(self.names(side))
            frozen = apply_policy(groups, own, self.policy.selects)
            # Dropout between layer groups belongs to no group: a side without any trainable group is frozen whole.
            self._frozen += frozen if own else [module]

    def freeze_modes(self) -> None:
        """Put every frozen module in eval mode."""
        for module in self._frozen:
            module.eval()

    def thaw(self, progress: Progress) -> list[str] | None:
        """Switch to what trains at this point of the run.

        Gradients must be empty, which is the case at the start of an accumulation window.

        Returns:
            Names of the groups that were frozen before and train now, or None if nothing changed.
        """
        trainable = self.policy.trainable_at(self.names("encoder"), self.names("rest"), progress)
        if trainable == self._trainable:
            return None
        before = self._trainable
        self._set_trainable(trainable)
        return [name for side in self._parts for name in self.names(side) if name in trainable - before]

    def table(self, optim: OptimConfig | None) -> list[GroupRow]:
        """One row for each layer group of either side."""
        rows = []
        for side, groups in self.groups():
            optimizer = None if optim is None else optim.optimizers[side]
            scales = group_scales(groups, 1.0 if optimizer is None else optimizer.layer_decay)
            for group in groups:
                sizes = [(p.numel(), p.requires_grad) for p in group.parameters()]
                trainable = sum(size for size, trains in sizes if trains)
                lr = optimizer.lr * scales[group.name] if optimizer is not None and trainable else None
                rows.append(GroupRow(side, group.name, trainable, sum(size for size, _ in sizes), lr))
        return rows
