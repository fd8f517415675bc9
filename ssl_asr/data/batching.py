"""Figures of batches: how full they are, how much of what is computed is padding, and how long ranks wait."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from ssl_asr.console import TitledTable, notify
from ssl_asr.data.filters import Selection
from ssl_asr.data.options import DataConfig
from ssl_asr.data.sampler import BatchCost, PlannedBatches
from ssl_asr.types import Seconds


@dataclass(frozen=True, slots=True)
class Batching:
    """How well batches use what is computed.

    Attributes:
        batches: Number of batches.
        speech_s: Seconds of speech.
        computed_s: Seconds that the encoder computes, padding included.
        budget_s: Sum of the budgets of all batches, in computed seconds.
        waited_s: Seconds that all ranks together would compute if each took as long as the slowest rank of its step.
    """

    batches: int
    speech_s: Seconds
    computed_s: Seconds
    budget_s: Seconds
    waited_s: Seconds

    @classmethod
    def of(
        cls, speech_s: Iterable[Seconds], computed_s: Sequence[Seconds], budget_s: Seconds, world_size: int = 1
    ) -> "Batching":
        """The figures of batches. Each group of ``world_size`` consecutive batches is one step of all ranks.

        Args:
            speech_s: Seconds of speech in each batch.
            computed_s: Computed seconds of each batch. 0 for a batch without an utterance.
            budget_s: Budget of a batch.
            world_size: Number of ranks. If the last group is smaller, the other ranks have no batch in it.
        """
        groups = [computed_s[i : i + world_size] for i in range(0, len(computed_s), world_size)]
        waited_s = float(sum(max(group) * world_size for group in groups))
        return cls(len(computed_s), sum(speech_s), sum(computed_s), budget_s * len(computed_s), waited_s)

    @classmethod
    def planned(cls, sampler: PlannedBatches, world_size: int = 1) -> "Batching":
        """The figures of a sampler that has the batches of all ranks. No audio is read."""
        speech_s = [float(sampler.durations_N[batch].sum()) for batch in sampler.batches]
        computed_s = [sampler.cost_s(batch) for batch in sampler.batches]
        return cls.of(speech_s, computed_s, sampler.max_batch_s, world_size)

    @property
    def fill(self) -> float:
        """Computed seconds as a fraction of the budget. Above 1 if single utterances are over the budget."""
        return self.computed_s / self.budget_s if self.budget_s else 0.0

    @property
    def padding(self) -> float:
        """Fraction of the computed seconds that is no speech."""
        return 1.0 - self.speech_s / self.computed_s if self.computed_s else 0.0

    @property
    def rank_balance(self) -> float:
        """Mean over maximum of the computed seconds of the ranks in a step: 1 if no rank waits for another one.

        This is the mean over all steps, in which the weight of a step is its maximum.
        """
        return self.computed_s / self.waited_s if self.waited_s else 1.0

    def record(self) -> dict[str, float]:
        """Plain data for ``results.json``."""
        seconds = {"speech_s": round(self.speech_s, 3), "computed_s": round(self.computed_s, 3)}
        shares = {"fill": self.fill, "padding": self.padding, "rank_balance": self.rank_balance}
        return {"batches": self.batches, **seconds, **{name: round(value, 6) for name, value in shares.items()}}


def say_over_budgets(selections: Mapping[str, Selection], cost: BatchCost, config: DataConfig, prefix: str) -> None:
    """Warn of the utterances that compute more than the budget of a batch. Each of them makes a batch of its own.

    Args:
        selections: The splits after filtering.
        cost: What utterances cost.
        config: The budgets.
        prefix: Start of their keys in the command's config.
    """
    for name, selection in selections.items():
        trains = name == "train" and bool(config.train)
        if trains and config.max_batch_s == "auto":
            # A batch of the longest utterance is the least that auto chooses.
            continue
        budget_s = config.batch_s if trains else cost.budget_s(config.eval_batch_s)
        costs_N = cost.encoded_s(selection.kept.durations_N)
        if over := int((costs_N > budget_s).sum()):
            key = f"{prefix}{'max_batch_s' if trains or not prefix else 'eval_batch_s'}"
            seen = f"{over:,} of {len(costs_N):,} utterances of {name} compute more than its {budget_s:g} s"
            notify(f"{key}: {seen}, up to {costs_N.max():.1f} s. Each makes a batch of its own.")


def print_batching(rows: Mapping[str, Batching], console: Console) -> None:
    """Print a table with a row for each split. Hours are those of one pass over the split."""
    table = TitledTable("Batches")
    table.add_column("split")
    for column in ("batches", "hours computed", "budget filled %", "padding %", "rank balance %"):
        table.add_column(column, justify="right")
    for split, one in rows.items():
        shares = (f"{100 * share:.1f}" for share in (one.fill, one.padding, one.rank_balance))
        table.add_row(split, f"{one.batches:,}", f"{one.computed_s / 3600:.2f}", *shares)
    console.print(table)
