"""CTC on a pretrained encoder."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ssl_asr.data.filters import Limits
from ssl_asr.data.languages import is_spaced
from ssl_asr.decoding.alignment import (
    Measure,
    align,
    evenly_spread,
    listed_text,
    listed_words,
    spans_at,
    words_of,
)
from ssl_asr.decoding.ctc import CtcDecoder
from ssl_asr.decoding.ctc_beam import CtcHypothesis
from ssl_asr.decoding.option import DecoderOption
from ssl_asr.decoding.segments import in_order, transcript
from ssl_asr.decoding.text_alignment import Encode, Written, align_text, spell, written_words
from ssl_asr.errors import CheckpointError, ConfigError
from ssl_asr.models.encoder import EncoderOutput, LayerGroup, SpeechEncoder, one_frame_length
from ssl_asr.models.freezing import FreezePolicy
from ssl_asr.models.heads import only_linear
from ssl_asr.models.states import States
from ssl_asr.training.ctc_loss import ctc_losses
from ssl_asr.training.module import TEXT_ONLY, ASRModule, LongFormMethod, TranscribeOptions
from ssl_asr.training.pictures import Picture, posteriors
from ssl_asr.training.sides import OptimConfig
from ssl_asr.training.updates import Loss
from ssl_asr.types import (
    BLANK_ID,
    SAMPLE_RATE,
    Alternative,
    Batch,
    Hypothesis,
    LabelTokenizer,
    Normalizer,
    Seconds,
    Skip,
    Tokenizer,
    Utterance,
    Word,
    on_device,
    text_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The table of a forced alignment grows with the square of the number of frames; it takes 100 MB at this number.
_MAX_ALIGNED_FRAMES = 10_000


@dataclass(frozen=True, slots=True)
class WordTimer:
    """Times and confidences of the words of a hypothesis, by forced alignment.

    Attributes:
        labels: Spelling of each label, see `LabelTokenizer.labels`.
        frame_s: Seconds from a frame to the next.
        measure: Measure of confidence.
    """

    labels: list[str | None]
    frame_s: Seconds
    measure: Measure

    def words(self, tokens: list[int], log_probs_FV: Tensor, found: CtcHypothesis | None = None) -> list[Word]:
        """Words of a token sequence. If the tokens do not fit into the frames, they are spread evenly.

        Args:
            tokens: Labels of the text.
            log_probs_FV: Log-probabilities of the utterance's frames.
            found: The search's result for these tokens if there is one. Its frames time the words of recordings that
                are too long for an alignment, and its lexicon words are kept as they are written.
        """
        if found is not None and len(log_probs_FV) > _MAX_ALIGNED_FRAMES:
            spans = spans_at(log_probs_FV, tokens, found.frames, measure=self.measure)
        else:
            aligned = align(log_probs_FV, tokens, blank=BLANK_ID, measure=self.measure)
            spans = evenly_spread(tokens, len(log_probs_FV)) if aligned is None else aligned
        if found is not None and found.words is not None:
            return listed_words(spans, found.words, self.labels, self.frame_s)
        return words_of(spans, self.labels, self.frame_s)

    def align(self, utterance: Utterance, tokenizer: LabelTokenizer, log_probs_FV: Tensor) -> Hypothesis:
        """The utterance's own words with times. The score is the mean log-probability of their labels' frames.

        A text that cannot be spelled or does not fit into the frames has no words and a score of minus infinity.
        """
        words = utterance_words(utterance)
        found = None
        if words and unspelled_text(utterance, tokenizer) is None:
            found = align_text(
                log_probs_FV,
                words,
                encoder_of(utterance, tokenizer),
                labels=self.labels,
                frame_s=self.frame_s,
                measure=self.measure,
            )
        if found is None:
            return Hypothesis(utterance.id, utterance.text, -math.inf if words else 0.0)
        timed, score = in_order(found[0], end=utterance.duration), found[1]
        return Hypothesis(utterance.id, text_of(timed), score, tokenizer.encode(utterance), words=timed)


def encoder_of(utterance: Utterance, tokenizer: Tokenizer) -> Encode:
    """The tokenizer's labels of parts of an utterance's text."""
    return lambda text: tokenizer.encode(replace(utterance, text=text))


def utterance_words(utterance: Utterance) -> list[Written]:
    """The words of an utterance's text, by the rules of its language."""
    return written_words(utterance.text, spaced=None if utterance.lang is None else is_spaced(utterance.lang))


def unspelled_text(utterance: Utterance, tokenizer: Tokenizer) -> Skip | None:
    """Why an utterance cannot be aligned if none of its text has a label, or else None."""
    words, encode = utterance_words(utterance), encoder_of(utterance, tokenizer)
    if not words or any(not spell(word.text, encode).is_wild for word in words):
        return None
    unknown = "".join(sorted(set(utterance.text) - {" "}))
    detail = f"the model has no label for any of its characters: {unknown}"
    return Skip(utterance.id, utterance.where, "no_labels", detail, utterance.duration)


class CTCModule(ASRModule):
    """Encoder, states, head, CTC.

    Args:
        encoder: The pretrained encoder.
        states: Which of the encoder's states the head reads.
        head: From ``h_BFD, frame_lengths_B`` to ``logits_BFV``, the blank at index 0.
        decoder: The search.
        tokenizer, policy, optim, normalizers: See `ASRModule`.
    """

    task_name = "ctc"
    aligns = True
    long_form: LongFormMethod | None = "windows"
    tokenizer: LabelTokenizer

    def __init__(
        self,
        *,
        encoder: SpeechEncoder,
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
        self.encoder = encoder
        self.states = states
        self.head = head
        self.labels = tokenizer.labels()
        self.set_decoder(decoder)

    def set_decoder(self, decoder: DecoderOption) -> None:
        """Decode by this ``decoder`` option from now on.

        Raises:
            ConfigError: The option is for models of another task.
            LanguageModelError: A file of the decoder is missing or wrong.
        """
        check_decoder(decoder, self.task_name)
        self.decoder = decoder
        self._search = cast(CtcDecoder, decoder).build(self.labels)
        self._n_best = decoder.n_best
        self._rescorer = decoder.rescorer()

    # Frames ----------------------------------------------------------------------------------------------------

    @property
    def frame_s(self) -> Seconds:
        """Seconds from a frame to the next."""
        ten_s, twenty_s = self.frame_lengths(torch.tensor([10, 20]) * SAMPLE_RATE).tolist()
        return 10.0 / float(twenty_s - ten_s)

    def frame_lengths(self, lengths_B: Tensor) -> Tensor:
        """Number of frames that CTC aligns, for a number of samples."""
        return self.states.frame_lengths(self.encoder.frame_lengths(lengths_B))

    @property
    def reads_layers(self) -> bool:
        """Whether the head reads a sum over the states of every layer."""
        return self.states.reads_layers

    def limits(self) -> Limits:
        """Which utterances the model can take: targets must fit into the frames."""
        shared = super().limits()
        return Limits(
            shared.min_s, shared.max_s, shared.max_s_why, ctc_frames=lambda samples: one_frame_length(self, samples)
        )

    # Loss and text ---------------------------------------------------------------------------------------------

    def log_probs(self, batch: Batch, out: EncoderOutput | None = None) -> tuple[Tensor, Tensor]:
        """``log_probs_BFV`` in float32, and the number of frames of each utterance (int64, CPU)."""
        logits_BFV, frame_lengths_B = self._logits(batch, out)
        return logits_BFV.float().log_softmax(-1), frame_lengths_B

    def _logits(self, batch: Batch, out: EncoderOutput | None) -> tuple[Tensor, Tensor]:
        h_BFD, frame_lengths_B = self.states(self.encode(batch) if out is None else out)
        return self.head(h_BFD, frame_lengths_B), frame_lengths_B

    def pictures(self, batch: Batch) -> list[Picture]:
        """The posteriors of the labels of each utterance over time."""
        log_probs_BFV, frame_lengths_B = self.log_probs(batch, self._fresh(batch))
        rows = zip(batch.utterances, log_probs_BFV.exp().cpu(), frame_lengths_B.tolist(), strict=True)
        return [posteriors(one.id, probs_FV[:frames], self.labels, self.frame_s) for one, probs_FV, frames in rows]

    def loss(self, batch: Batch, out: EncoderOutput | None = None) -> Loss:
        """CTC loss per label of each utterance, weighted and summed; the count is the sum of the weights."""
        logits_BFV, frame_lengths_B = self._logits(batch, out)
        loss_B = ctc_losses(logits_BFV, frame_lengths_B, batch.tokens_BU, batch.token_lengths_B)
        weight_B = on_device(batch.weights_B, loss_B.device)
        return Loss((weight_B * loss_B).sum(), weight_B.sum())

    def transcribe(
        self, batch: Batch, out: EncoderOutput | None = None, options: TranscribeOptions = TEXT_ONLY
    ) -> list[Hypothesis]:
        """The search's best text of each utterance, or with ``options.align`` the manifest's text with times."""
        log_probs_BFV, frame_lengths_B = self.log_probs(batch, out)
        rows_FV = [own[:frames] for own, frames in zip(log_probs_BFV, frame_lengths_B.tolist(), strict=True)]
        if options.align:
            return self._aligned(batch, rows_FV, options)
        found = self._search(log_probs_BFV, frame_lengths_B)
        return [
            transcript(self._hypothesis(utterance.id, own, row_FV, options), duration=utterance.duration)
            for utterance, own, row_FV in zip(batch.utterances, found, rows_FV, strict=True)
        ]

    def transcribe_log_probs(self, utterance_id: str, log_probs_FV: Tensor, options: TranscribeOptions) -> Hypothesis:
        """The search's best text given the log-probabilities of one recording of any length."""
        [found] = self._search(log_probs_FV[None], torch.tensor([len(log_probs_FV)]))
        return self._hypothesis(utterance_id, found, log_probs_FV, options)

    def confidence_measure(self, measure: Measure, *, required: bool) -> Measure | None:
        """Every measure is available, by alignment."""
        return measure

    def _timer(self, options: TranscribeOptions) -> WordTimer | None:
        return None if options.confidence is None else WordTimer(self.labels, self.frame_s, options.confidence)

    def _aligned(self, batch: Batch, rows_FV: list[Tensor], options: TranscribeOptions) -> list[Hypothesis]:
        timer = self._timer(options)
        assert timer is not None, "an alignment needs a measure of confidence"
        pairs = zip(batch.utterances, rows_FV, strict=True)
        return [timer.align(utterance, self.tokenizer, row_FV) for utterance, row_FV in pairs]

    def _hypothesis(
        self, utterance_id: str, found: list[CtcHypothesis], log_probs_FV: Tensor, options: TranscribeOptions
    ) -> Hypothesis:
        """The best of the search's results after rescoring, with the next best as alternatives."""
        frames = max(1, len(log_probs_FV))
        texts = [self._text(one) for one in found]
        scores = [one.score / frames for one in found]
        ranked = list(enumerate(scores))
        if self._rescorer is not None:
            ranked = self._rescorer.ranked(texts, scores, divisors=[frames] * len(found))
        (best, score), *others = ranked[: self._n_best]
        timer = self._timer(options)
        return Hypothesis(
            utterance_id,
            texts[best],
            score,
            found[best].tokens,
            words=[] if timer is None else timer.words(found[best].tokens, log_probs_FV, found[best]),
            alternatives=[Alternative(texts[place], other) for place, other in others],
        )

    def _text(self, found: CtcHypothesis) -> str:
        """The text of a result, as the tokenizer spells it or as its lexicon writes the words."""
        if found.words is None:
            return self.tokenizer.decode(found.tokens)
        return listed_text(found.words, self.labels)

    def transformers_model(self) -> "PreTrainedModel":
        """The encoder with its linear head.

        Raises:
            CheckpointError: The head has several layers or does not read the encoder's last states, or transformers has
                no class for CTC on this encoder.
        """
        linear, remedy = only_linear(self.head), "train with head=linear states=last states.stride=1"
        if linear is None:
            what = (
                f"has a head of several layers ({type(self.head).__name__}), and transformers has a linear layer only"
            )
            raise CheckpointError("model", what, remedy)
        if self.reads_layers or self.states.stride > 1 or self.encoder.cut_to is not None:
            what = "has a head that does not read the last states of the encoder, as those of transformers do"
            raise CheckpointError("model", what, remedy)
        return self.encoder.with_ctc_head(linear)

    def description(self) -> dict[str, Any]:
        """Plain data from which an untrained twin of the encoder is built."""
        return {"task": "ctc", **self.encoder.description()}


def check_decoder(decoder: DecoderOption, task_name: str) -> None:
    """Refuse a decoder option that is for other tasks.

    Raises:
        ConfigError: The task is not among the option's ``tasks``.
    """
    if task_name not in decoder.tasks:
        what = f"{type(decoder).__name__} does not decode models of task {task_name}"
        raise ConfigError("decoder", what, f"this decoder is for {', '.join(sorted(decoder.tasks))}")
