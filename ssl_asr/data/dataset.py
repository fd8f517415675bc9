"""From utterances to examples, and from examples to padded batches."""

from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ssl_asr.data.audio import read_waveform
from ssl_asr.data.concatenation import joined
from ssl_asr.data.epochs import NO_CHANGES, Changes, InEpoch
from ssl_asr.data.sampler import Unit
from ssl_asr.data.signal import Signal, notices
from ssl_asr.data.speed import stretched
from ssl_asr.data.state_store import StateStore
from ssl_asr.errors import AudioError
from ssl_asr.types import SAMPLE_RATE, Batch, Downmix, Example, Skip, Tokenizer, Utterance

Item = Example | Skip | list[Example | Skip]
"""What a dataset has for one index."""


class SpeechDataset(Dataset[Item]):
    """Examples of utterances, read on access.

    Args:
        utterances: A `Manifest` (its memory is shared by workers) or any other sequence.
        tokenizer: Encodes the targets. None for transcription, which has no targets.
        downmix: How several channels become one.
        any_rate: Whether files of other sample rates are resampled, or refused.
        skip_bad_audio: Return a `Skip` for audio that cannot be read, instead of raising AudioError.
        state_store: Cached encoder states. The audio of utterances in the store is not read, and their waveform is
            empty. Default: None (read all audio).
        changes: What each epoch changes, for examples that are asked for by `InEpoch`. Default: None (nothing).
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        *,
        tokenizer: Tokenizer | None,
        downmix: Downmix = "mean",
        any_rate: bool = True,
        skip_bad_audio: bool = False,
        state_store: StateStore | None = None,
        changes: Callable[[int], Changes] | None = None,
    ) -> None:
        self.utterances = utterances
        self.tokenizer = tokenizer
        self.downmix: Downmix = downmix
        self.any_rate = any_rate
        self.skip_bad_audio = skip_bad_audio
        self.state_store = state_store
        self._changes = changes
        # Those of the last epoch that was asked for.
        self._drawn: tuple[int, Changes] | None = None

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int | Unit | InEpoch) -> Item:
        """The example of an utterance; or of several, joined, and the skips of those that cannot be read."""
        changes = NO_CHANGES
        if isinstance(index, InEpoch):
            changes, index = self._changes_of(index.epoch), index.unit
        if isinstance(index, int):
            return self._single(index, changes)
        items = [self._single(one, changes) for one in index]
        examples = [item for item in items if isinstance(item, Example)]
        skips = [item for item in items if isinstance(item, Skip)]
        return [*([self._joined(examples)] if examples else []), *skips]

    def _changes_of(self, epoch: int) -> Changes:
        if self._changes is None:
            return NO_CHANGES
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, self._changes(epoch)
        return self._drawn[1]

    def _joined(self, examples: Sequence[Example]) -> Example:
        if len(examples) == 1:
            return examples[0]
        utterance = joined([example.utterance for example in examples])
        tokens = [] if self.tokenizer is None else self.tokenizer.encode(utterance)
        found = tuple(notice for example in examples for notice in example.notices)
        return Example(utterance, torch.cat([example.waveform_T for example in examples]), tokens, found)

    def _single(self, index: int, changes: Changes) -> Example | Skip:
        utterance = self.utterances[index]
        utterance = utterance if changes.draw is None else changes.draw(utterance)
        signals: list[Signal] = []
        try:
            waveform_T = self._waveform(utterance, index, signals, changes)
        except AudioError as error:
            if not self.skip_bad_audio:
                raise
            return Skip(utterance.id, utterance.where, error.reason, str(error), utterance.duration)
        tokens = [] if self.tokenizer is None else self.tokenizer.encode(utterance)
        return Example(utterance, waveform_T, tokens, notices(utterance.id, signals))

    def _waveform(self, utterance: Utterance, index: int, signals: list[Signal], changes: Changes) -> Tensor:
        if self.state_store is not None and utterance.id in self.state_store:
            return torch.zeros(0)
        speed, tempo = (1.0, 1.0) if changes.factors_N2 is None else changes.factors_N2[index].tolist()
        waveform_T = read_waveform(
            utterance, downmix=self.downmix, any_rate=self.any_rate, speed=speed, signals=signals
        )
        waveform_T = stretched(waveform_T, tempo)
        return waveform_T if changes.augment is None else changes.augment(waveform_T, utterance)


def collate(found: Sequence[Item]) -> Batch:
    """Pad examples with zeros to a batch. This is the only place where padding is made.

    Skips and notices are passed on in the batch, so that the main process can count and name them.

    Args:
        found: What a `SpeechDataset` returned for each index of the batch.
    """
    items = list(chain.from_iterable(one if isinstance(one, list) else [one] for one in found))
    examples = [item for item in items if isinstance(item, Example)]
    lengths_B = torch.tensor([len(example.waveform_T) for example in examples], dtype=torch.int64)
    token_lengths_B = torch.tensor([len(example.tokens) for example in examples], dtype=torch.int64)
    width = int(lengths_B.max()) if examples else 0
    waveform_BT = torch.zeros(len(examples), width)
    tokens_BU = torch.zeros(len(examples), int(token_lengths_B.max()) if examples else 0, dtype=torch.int64)
    for row, example in enumerate(examples):
        waveform_BT[row, : len(example.waveform_T)] = example.waveform_T
        tokens_BU[row, : len(example.tokens)] = torch.tensor(example.tokens, dtype=torch.int64)
    return Batch(
        waveform_BT=waveform_BT,
        lengths_B=lengths_B,
        tokens_BU=tokens_BU,
        token_lengths_B=token_lengths_B,
        utterances=[example.utterance for example in examples],
        skipped=[item for item in items if isinstance(item, Skip)],
        notices=[notice for example in examples for notice in example.notices],
    )


def silence(utterance: Utterance, tokenizer: Tokenizer) -> Batch:
    """A batch of one utterance with silence as its audio, for a rank that could read none of its own."""
    waveform_T = torch.zeros(int(utterance.duration * SAMPLE_RATE))
    return collate([Example(utterance, waveform_T, tokenizer.encode(utterance))])
