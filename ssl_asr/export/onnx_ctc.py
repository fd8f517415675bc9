"""CTC models as one ONNX graph, from waveforms of any length in a padded batch to log-probabilities."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ssl_asr.export.base import ExportModel
from ssl_asr.models.encoder import EncoderOutput, SpeechEncoder
from ssl_asr.training.ctc import CTCModule
from ssl_asr.types import BLANK_ID, SAMPLE_RATE, Tokenizer

CTC_INPUTS = ("waveforms", "waveform_lengths")
CTC_OUTPUTS = ("log_probs", "log_prob_lengths")
# Dimensions of any size.
CTC_AXES = {
    "waveforms": {0: "N", 1: "T"},
    "waveform_lengths": {0: "N"},
    "log_probs": {0: "N", 1: "F"},
    "log_prob_lengths": {0: "N"},
}


class CtcGraph(nn.Module):
    """Encoder with its waveform normalization or filter bank, states, head and log-softmax."""

    def __init__(self, model: ExportModel) -> None:
        super().__init__()
        module = cast(CTCModule, model.module)
        self.encoder, self.states, self.head = module.speech_encoder, module.states, module.head
        self.labels, self._reads_layers = module.labels, module.reads_layers

    def forward(self, waveform_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Computes ``log_probs_BFV`` and the number of frames of each utterance."""
        out: EncoderOutput = self.encoder(waveform_BT, lengths_B, layers=self._reads_layers)
        h_BFD, frame_lengths_B = self.states(out)
        return self.head(h_BFD, frame_lengths_B).log_softmax(-1), frame_lengths_B

    def example_inputs(self) -> tuple[Tensor, Tensor]:
        """A batch with padding, so that tracing keeps the masks."""
        lengths_B = torch.tensor([2 * SAMPLE_RATE, SAMPLE_RATE])
        return torch.randn(2, 2 * SAMPLE_RATE), lengths_B


@contextmanager
def traced(encoder: SpeechEncoder) -> Iterator[None]:
    """A block in which an encoder has only operators of ONNX."""
    parts = [(owner, name, getattr(owner, name), graph) for owner, name, graph in encoder.traceable()]
    for owner, name, _, graph in parts:
        setattr(owner, name, graph)
    try:
        yield
    finally:
        for owner, name, own, _ in parts:
            setattr(owner, name, own)


def label_lines(labels: Sequence[str | None]) -> Iterator[str]:
    """Lines of vocab.txt: the spelling of each label and its id. A space is written as U+2581."""
    for i, label in enumerate(labels):
        text = ("<blk>" if i == BLANK_ID else "<unk>") if label is None else label.replace(" ", "\u2581")
        yield f"{text} {i}\n"


def ctc_texts(session: Any, waveforms: Sequence[Tensor], tokenizer: Tokenizer) -> list[str]:
    """Greedy texts of a padded batch."""
    lengths = np.array([len(waveform) for waveform in waveforms])
    padded = nn.utils.rnn.pad_sequence(list(waveforms), batch_first=True).numpy()
    log_probs, frames = session.run(None, dict(zip(CTC_INPUTS, (padded, lengths), strict=True)))
    texts = []
    for own_FV, count in zip(log_probs, frames.tolist(), strict=True):
        best = own_FV[:count].argmax(-1).tolist()
        before = [BLANK_ID, *best[:-1]]
        kept = [label for label, last in zip(best, before, strict=True) if label not in (last, BLANK_ID)]
        texts.append(tokenizer.decode(kept))
    return texts
