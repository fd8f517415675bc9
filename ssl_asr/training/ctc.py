"""CTC on a pretrained encoder."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssl_asr.decoding.alignment import Measure, align, listed_words, spans_at, words_of
from ssl_asr.decoding.ctc import CtcBeam, CtcGreedy
from ssl_asr.decoding.ctc_beam import Found
from ssl_asr.decoding.lexicon import CtcLexicon
from ssl_asr.metrics.report import Normalizer
from ssl_asr.models.encoder import EncoderOutput, LayerGroup, SpeechEncoder
from ssl_asr.models.freezing import FreezePolicy
from ssl_asr.models.states import States
from ssl_asr.training.module import ASRModule, Loss, OptimConfig
from ssl_asr.types import (
    BLANK_ID,
    SAMPLE_RATE,
    Alternative,
    Batch,
    Hypothesis,
    LabelTokenizer,
    Seconds,
    Utterance,
    Word,
)

# Frames; an alignment's table grows with the square of the length, and is 100 MB at this.
_MOST_ALIGNED = 10_000


def ctc_losses(log_probs_BFV: Tensor, frame_lengths_B: Tensor, tokens_BU: Tensor, token_lengths_B: Tensor) -> Tensor:
    """Negative log-likelihood a label of each utterance, ``loss_B``, float32.

    Targets that cannot fit were dropped before training; should audio turn out shorter than its manifest
    says, its infinite loss is taken as zero rather than spoiling the batch.

    Args:
        log_probs_BFV: float32, the blank at `BLANK_ID`.
        frame_lengths_B, token_lengths_B: int64 on the CPU.
        tokens_BU: the labels, padded.
    """
    with torch.autocast(log_probs_BFV.device.type, enabled=False):
        nll_B = functional.ctc_loss(
            log_probs_BFV.transpose(0, 1),
            tokens_BU,
            frame_lengths_B,
            token_lengths_B,
            blank=BLANK_ID,
            reduction="none",
            zero_infinity=True,
        )
    loss_B: Tensor = nll_B / token_lengths_B.clamp(min=1).to(nll_B.device, non_blocking=True)
    return loss_B


CtcDecoder = CtcGreedy | CtcBeam | CtcLexicon


class CTCModule(ASRModule):
    """Encoder, states, head, CTC.

    Args:
        encoder: the pretrained encoder.
        states: which of its states the head reads.
        head: from ``h_BFD, frame_lengths_B`` to ``logits_BFV``, the blank at index 0.
        decoder: how texts are searched for.
        tokenizer, policy, optim, normalizers: see `ASRModule`.

    ``times`` is set where words are to have times and confidences, by that measure; ``forced`` where texts are not to
    be searched for but to be found in the audio as the manifest has them.
    """

    tokenizer: LabelTokenizer

    def __init__(
        self,
        *,
        encoder: Any,
        states: States,
        head: nn.Module,
        decoder: CtcDecoder,
        tokenizer: LabelTokenizer,
        policy: FreezePolicy,
        optim: OptimConfig | None,
        normalizers: dict[str, Normalizer],
    ) -> None:
        super().__init__(
            encoder=encoder,
            rest=nn.ModuleList([states, head]),
            rest_groups=[LayerGroup("states", (states,)), LayerGroup("head", (head,))],
            tokenizer=tokenizer,
            policy=policy,
            optim=optim,
            normalizers=normalizers,
        )
        self.encoder: SpeechEncoder = encoder
        self.states = states
        self.head = head
        self.labels = tokenizer.labels()
        self.search_with(decoder)
        self.times: Measure | None = None
        self.forced = False

    def search_with(self, decoder: CtcDecoder) -> None:
        """Search for texts in this way from here on.

        Raises:
            LanguageModelError: a file of the decoder's is missing or wrong.
        """
        self.search = decoder.build(self.labels)
        self.n_best = 1 if isinstance(decoder, CtcGreedy) else decoder.n_best
        self.rescorer = decoder.rescorer() if isinstance(decoder, CtcBeam) else None

    @property
    def frame_s(self) -> Seconds:
        """Seconds from a frame to the next."""
        ten_s, twenty_s = self.frame_lengths(torch.tensor([10, 20]) * SAMPLE_RATE).tolist()
        return 10.0 / float(twenty_s - ten_s)

    def frame_lengths(self, lengths_B: Tensor) -> Tensor:
        """Frames that CTC aligns, of so many samples."""
        return self.states.frame_lengths(self.encoder.frame_lengths(lengths_B))

    @property
    def reads_layers(self) -> bool:
        """Whether the head reads a sum of every layer's states."""
        return self.states.reads_layers

    def log_probs(self, batch: Batch, out: EncoderOutput | None = None) -> tuple[Tensor, Tensor]:
        """``log_probs_BFV`` in float32 and each utterance's frames (int64, CPU)."""
        out = self.encode(batch) if out is None else out
        h_BFD, frame_lengths_B = self.states(out)
        logits_BFV: Tensor = self.head(h_BFD, frame_lengths_B)
        return logits_BFV.float().log_softmax(-1), frame_lengths_B

    def loss(self, batch: Batch, out: EncoderOutput | None = None) -> Loss:
        """Negative log-likelihood a label of each utterance, summed; the count is of utterances, weighted."""
        log_probs_BFV, frame_lengths_B = self.log_probs(batch, out)
        loss_B = ctc_losses(log_probs_BFV, frame_lengths_B, batch.tokens_BU, batch.token_lengths_B)
        weight_B = batch.weights_B.to(loss_B.device, non_blocking=True)
        return Loss((weight_B * loss_B).sum(), weight_B.sum())

    def transcribe(self, batch: Batch, out: EncoderOutput | None = None) -> list[Hypothesis]:
        """What the search finds, or where the manifest's texts lie."""
        log_probs_BFV, frame_lengths_B = self.log_probs(batch, out)
        if self.forced:
            pairs = zip(batch.utterances, log_probs_BFV, frame_lengths_B.tolist(), strict=True)
            return [self._found(utterance, own[:frames]) for utterance, own, frames in pairs]
        found = self.search(log_probs_BFV, frame_lengths_B)
        rows = zip(batch.utterances, found, log_probs_BFV, frame_lengths_B.tolist(), strict=True)
        return [
            self._hypothesis(utterance.id, own, log_probs_FV[:frames]) for utterance, own, log_probs_FV, frames in rows
        ]

    def _found(self, utterance: Utterance, log_probs_FV: Tensor) -> Hypothesis:
        """Where an utterance's own text lies; the score is the mean log-probability of its labels' frames.

        A text that does not fit into the frames has no words and a score of minus infinity.
        """
        assert self.times is not None
        tokens = self.tokenizer.encode(utterance)
        spans = align(log_probs_FV, tokens, blank=BLANK_ID, measure=self.times)
        if spans is None:
            return Hypothesis(utterance.id, utterance.text, -math.inf, tokens)
        own = [float(log_probs_FV[span.begin : span.end, span.label].mean()) for span in spans]
        words = words_of(spans, self.labels, self.frame_s)
        return Hypothesis(utterance.id, utterance.text, sum(own) / max(1, len(own)), tokens, words=words)

    def hear(self, utterance_id: str, log_probs_FV: Tensor) -> Hypothesis:
        """What the search finds in the log-probabilities of one recording, however long."""
        found = self.search(log_probs_FV[None], torch.tensor([len(log_probs_FV)]))
        return self._hypothesis(utterance_id, found[0], log_probs_FV)

    def _hypothesis(self, utterance_id: str, found: list[Found], log_probs_FV: Tensor) -> Hypothesis:
        """The best of what was found for an utterance, and the rest."""
        frames = max(1, len(log_probs_FV))
        texts = [self._text(one) for one in found]
        scores = [one.score / frames for one in found]
        ranked = list(enumerate(scores))
        if self.rescorer is not None:
            ranked = self.rescorer.ranked(texts, scores, divisors=[frames] * len(found))
        (best, score), *others = ranked[: self.n_best]
        return Hypothesis(
            utterance_id,
            texts[best],
            score,
            found[best].tokens,
            words=self._words(found[best].tokens, log_probs_FV, found[best]),
            alternatives=[Alternative(texts[place], other) for place, other in others],
        )

    def _text(self, found: Found) -> str:
        """What was found, as the tokenizer spells it or a lexicon writes it."""
        if found.words is None:
            return self.tokenizer.decode(found.tokens)
        return " ".join(word for word, _ in found.words)

    def _words(self, tokens: list[int], log_probs_FV: Tensor, found: Found | None = None) -> list[Word]:
        """The words of a text with times, by alignment; of a very long one by the frames the search began them in."""
        if self.times is None:
            return []
        if found is not None and len(log_probs_FV) > _MOST_ALIGNED:
            spans = spans_at(log_probs_FV, tokens, found.frames, measure=self.times)
        else:
            spans = align(log_probs_FV, tokens, blank=BLANK_ID, measure=self.times) or []
        if found is not None and found.words is not None and spans:
            return listed_words(spans, found.words, self.labels, self.frame_s)
        return words_of(spans, self.labels, self.frame_s)
