"""Whisper as an encoder-decoder.

prompt    <|startoftranscript|> <|en|> <|transcribe|> <|notimestamps|>
inputs    prompt + text                                   teacher forcing
targets   text + <|endoftext|>                            the loss counts these positions only
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ssl_asr.data.characters import CharTokenizer
from ssl_asr.data.filters import Limits
from ssl_asr.data.whisper_tokenizer import WhisperTokenizer
from ssl_asr.decoding.alignment import Measure
from ssl_asr.decoding.hypotheses import to_hypotheses
from ssl_asr.decoding.option import DecoderOption
from ssl_asr.decoding.pauses import sounds, without_pauses
from ssl_asr.decoding.segments import transcript
from ssl_asr.decoding.seq2seq import WhisperDecoder
from ssl_asr.decoding.timestamps import Phrase, phrases_of, segments_of, text_tokens
from ssl_asr.decoding.word_times import words_of_tokens
from ssl_asr.errors import ConfigError
from ssl_asr.models.encoder import EncoderOutput, LayerGroup
from ssl_asr.models.freezing import FreezePolicy
from ssl_asr.models.whisper import SAMPLES_PER_FRAME, WhisperSeq2Seq
from ssl_asr.training.ctc import check_decoder
from ssl_asr.training.ctc_loss import ctc_losses
from ssl_asr.training.module import TEXT_ONLY, ASRModule, TranscribeOptions
from ssl_asr.training.pictures import Picture, attention
from ssl_asr.training.sides import OptimConfig
from ssl_asr.training.tasks import DetectLanguage
from ssl_asr.training.token_loss import token_losses
from ssl_asr.training.updates import Loss
from ssl_asr.training.whisper_search import WhisperSearch, language_probabilities
from ssl_asr.types import (
    SAMPLE_RATE,
    Batch,
    Hypothesis,
    Normalizer,
    Seconds,
    Segment,
    Utterance,
    Word,
    on_device,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class AuxiliaryCtc:
    """CTC over characters on the encoder's states, a second loss that helps to train the encoder.

    Args:
        layer: From states to logits, the blank at 0.
        tokenizer: Spells the labels.
        weight: CTC's share of the loss.
        lr_scale: Learning rate of the layer as a multiple of the decoder's.
    """

    def __init__(self, *, layer: nn.Linear, tokenizer: CharTokenizer, weight: float, lr_scale: float) -> None:
        self.layer, self.tokenizer, self.weight, self.lr_scale = layer, tokenizer, weight, lr_scale

    def layer_groups(self) -> list[LayerGroup]:
        """One group, ``ctc``, with a separate learning rate."""
        return [LayerGroup("ctc", (self.layer,), lr_scale=self.lr_scale)]

    def losses(self, out: EncoderOutput, utterances: Sequence[Utterance]) -> Tensor:
        """CTC loss per label of each utterance, ``loss_B``; 0 where the labels do not fit into the frames."""
        labels = [torch.tensor(self.tokenizer.encode(utterance)) for utterance in utterances]
        labels_BU = nn.utils.rnn.pad_sequence(labels, batch_first=True)
        logits_BFV = self.layer(out.h_BFD[:, : int(out.frame_lengths_B.max())])
        return ctc_losses(
            logits_BFV,
            out.frame_lengths_B,
            on_device(labels_BU, logits_BFV.device),
            torch.tensor([len(label) for label in labels]),
        )


class Seq2SeqModule(ASRModule):
    """Whisper, trained to write the transcript after its prompt.

    Args:
        model: Encoder and decoder.
        decoder: The search.
        label_smoothing: Share of a target's probability mass spread over the vocabulary, in training.
        auxiliary: CTC on the encoder's states as a second loss, or None.
        tokenizer, policy, optim, normalizers: See `ASRModule`.
        detect_language: For which utterances the language is detected, or None for no utterance.
    """

    task_name = "seq2seq"
    long_form = "timestamps"
    training_only = ("ctc.",)
    tokenizer: WhisperTokenizer
    decoder: WhisperDecoder

    def __init__(
        self,
        *,
        model: WhisperSeq2Seq,
        decoder: DecoderOption,
        label_smoothing: float,
        auxiliary: AuxiliaryCtc | None = None,
        tokenizer: WhisperTokenizer,
        policy: FreezePolicy,
        optim: OptimConfig | None,
        normalizers: dict[str, Normalizer],
        detect_language: DetectLanguage | None = None,
    ) -> None:
        super().__init__(
            encoder=model.encoder,
            rest=model.net if auxiliary is None else nn.ModuleList([model.net, auxiliary.layer]),
            rest_groups=[*model.decoder_groups(), *(() if auxiliary is None else auxiliary.layer_groups())],
            tokenizer=tokenizer,
            policy=policy,
            optim=optim,
            normalizers=normalizers,
        )
        self.model = model
        self.label_smoothing = label_smoothing
        self.auxiliary = auxiliary
        # Registers the layer, so that its weights are in checkpoints.
        self.ctc = None if auxiliary is None else auxiliary.layer
        self._detect_language = _checked_detection(detect_language, tokenizer)
        self.set_decoder(decoder)

    def transformers_model(self) -> "PreTrainedModel":
        """The whole Whisper, with the generation settings of the checkpoint and the tokenizer's language and task."""
        return self.model.whole({**self.tokenizer.generation_settings(), **self.model.generation, **self._spoken()})

    def _spoken(self) -> dict[str, str]:
        """Generation settings that say what is spoken and written. Without a language, transformers detects it."""
        if not self.tokenizer.is_multilingual:
            return {}
        named = {} if self.tokenizer.language is None else {"language": self.tokenizer.language}
        return {**named, "task": self.tokenizer.task}

    # Loss ------------------------------------------------------------------------------------------------------

    def _prompted(self, batch: Batch) -> Tensor:
        """Prompt and transcript of each utterance, ``(B, P + U)``."""
        prompts = [self.tokenizer.prompt(utterance) for utterance in batch.utterances]
        prompt_BP = on_device(torch.tensor(prompts), batch.tokens_BU.device)
        return torch.cat([prompt_BP, batch.tokens_BU], dim=1)

    def loss(self, batch: Batch, out: EncoderOutput | None = None) -> Loss:
        """Cross-entropy summed over the tokens of every transcript, end tokens included, and their number."""
        out = self.encode(batch) if out is None else out
        tokens_BU = self._prompted(batch)
        inputs_BU, targets_BU = tokens_BU[:, :-1], tokens_BU[:, 1:]
        states_BUD = self.model(inputs_BU, out.h_BFD, out.context_lengths_B)
        # Targets are picked by position, never by value: the end token is also Whisper's padding and must be learned.
        # The positions are known on the CPU, so picking rows does not wait for the device.
        first = tokens_BU.shape[1] - batch.tokens_BU.shape[1] - 1
        rows_N = _target_rows(batch.token_lengths_B, first, inputs_BU.shape[1])
        rows_N = on_device(rows_N, states_BUD.device)
        loss_N = token_losses(
            states_BUD.flatten(0, 1)[rows_N],
            self.model.output_VD,
            targets_BU.flatten()[rows_N],
            smoothing=self.label_smoothing if self.training else 0.0,
        )
        if self.auxiliary is not None:
            loss_N = self._with_ctc(self.auxiliary, loss_N, batch, out)
        weight_N = on_device(batch.weights_B.repeat_interleave(batch.token_lengths_B), loss_N.device)
        return Loss((loss_N * weight_N).sum(), weight_N.sum())

    def pictures(self, batch: Batch) -> list[Picture]:
        """The cross-attention of the reference's tokens to the frames of each utterance, a mean over heads.

        Over the heads that align, or over those of the last layer if the checkpoint names none.
        """
        out = self._fresh(batch)
        heads = [(int(layer), int(head)) for layer, head in self.model.generation.get("alignment_heads") or []]
        config = self.model.net.config
        heads = heads or [(config.decoder_layers - 1, head) for head in range(config.decoder_attention_heads)]
        tokens_BU = self._prompted(batch)
        weights_BHUF, _ = self.model.cross_weights(tokens_BU, out.h_BFD, out.context_lengths_B, heads)
        first = tokens_BU.shape[1] - batch.tokens_BU.shape[1]
        found = []
        for row, utterance in enumerate(batch.utterances):
            tokens = batch.tokens_BU[row, : int(batch.token_lengths_B[row])].tolist()
            # Position i predicts token i + 1.
            weights_UF = weights_BHUF[row].mean(0)[first - 1 : first - 1 + len(tokens)]
            frames = int(out.frame_lengths_B[row])
            names = [self.tokenizer.spell([token]) if token != self.tokenizer.end_id else "end" for token in tokens]
            found.append(attention(utterance.id, weights_UF[:, :frames].cpu(), names, SAMPLES_PER_FRAME / SAMPLE_RATE))
        return found

    def _with_ctc(self, auxiliary: AuxiliaryCtc, loss_N: Tensor, batch: Batch, out: EncoderOutput) -> Tensor:
        """The loss of each token, with its share of the CTC loss of the utterance."""
        ctc_B = auxiliary.losses(out, batch.utterances)
        if self.training:
            self.log_train("train/loss_ctc", ctc_B.detach().mean(), len(batch))
        ctc_N = ctc_B.repeat_interleave(batch.token_lengths_B.to(ctc_B.device), output_size=len(loss_N))
        return (1 - auxiliary.weight) * loss_N + auxiliary.weight * ctc_N

    def limits(self) -> Limits:
        """Which utterances the model can take: one window, and prompt and transcript within the decoder's context."""
        prompt_tokens = 4 if self.tokenizer.is_multilingual else 2
        return replace(super().limits(), max_tokens=self.model.max_tokens, prompt_tokens=prompt_tokens)

    def longest_pass_s(self, chunk_s: Seconds) -> Seconds:
        """Whisper's window. The chunk length is not used."""
        limit = self.speech_encoder.max_s
        return chunk_s if limit is None else limit

    # Decoder ---------------------------------------------------------------------------------------------------

    def set_decoder(self, decoder: DecoderOption) -> None:
        """Decode by this ``decoder`` option from now on.

        Raises:
            ConfigError: The option is for models of another task.
            LanguageModelError: A file of the decoder is missing or wrong.
        """
        check_decoder(decoder, self.task_name)
        self.decoder = option = cast(WhisperDecoder, decoder)
        self._rescorer = option.rescorer()
        parts = option.parts(self.tokenizer.vocab_size, self.tokenizer.spell)
        self._search = WhisperSearch(self.model, self.tokenizer, parts)

    def cap_tokens(self, max_tokens_per_s: float) -> None:
        """Limit the tokens of each hypothesis by the length of its utterance."""
        self.set_decoder(self.decoder.with_token_cap(max_tokens_per_s))

    def confidence_measure(self, measure: Measure, *, required: bool) -> Measure | None:
        """``max_prob``, the token probability, if the checkpoint lists its alignment heads."""
        if measure != "max_prob":
            raise ConfigError("times", f"is {measure}, but Whisper has token probabilities only", "use times=max_prob")
        if self.model.generation.get("alignment_heads"):
            return measure
        if required:
            what = "this checkpoint's generation config has no alignment_heads, which word times are computed from"
            raise ConfigError("format", what, "use another checkpoint, or format=srt")
        return None

    # Text ------------------------------------------------------------------------------------------------------

    def transcribe(
        self, batch: Batch, out: EncoderOutput | None = None, options: TranscribeOptions = TEXT_ONLY
    ) -> list[Hypothesis]:
        """The best text of each utterance, with segments if it was decoded with timestamps."""
        assert not self.model.net.training, "decoding in train mode keeps dropout on"
        out = self.encode(batch) if out is None else out
        decoder = replace(self.decoder, timestamps=True) if options.timestamps else self.decoder
        detected = self._detect(batch, out)
        utterances = [
            utterance if utterance.lang else replace(utterance, lang=lang)
            for utterance, (lang, _) in zip(batch.utterances, detected, strict=True)
        ]
        found = self._search(decoder, out, utterances)
        hypotheses = to_hypotheses(
            batch,
            found,
            self.tokenizer,
            n_best=decoder.n_best,
            rescorer=self._rescorer,
            length_penalty=decoder.length_penalty,
        )
        rows = enumerate(zip(hypotheses, detected, utterances, strict=True))
        return [
            replace(
                self._timed(hypothesis, utterance, batch, out, row, decoder=decoder, options=options),
                detected=lang,
                detected_probability=probability,
            )
            for row, (hypothesis, (lang, probability), utterance) in rows
        ]

    def segments_of(self, hypothesis: Hypothesis, duration: Seconds) -> tuple[list[Segment], Seconds]:
        """Complete segments of a hypothesis with timestamps, and the second at which the next window starts.

        See `ssl_asr.decoding.timestamps.segments_of`.
        """
        complete, next_start = segments_of(
            hypothesis.tokens,
            begin=self.tokenizer.timestamp_begin_id,
            duration=duration,
            decode=self.tokenizer.decode,
            score=math.exp(hypothesis.score),
        )
        return hypothesis.segments[: len(complete)], next_start

    # Languages and word times ----------------------------------------------------------------------------------

    def detects_language(self, utterance: Utterance) -> bool:
        """Whether the language is detected: of all utterances, or of those without a language."""
        return self._detect_language == "all" or (self._detect_language == "missing" and utterance.lang is None)

    def language_probabilities(self, out: EncoderOutput) -> list[dict[str, float]]:
        """Probability of each language for each utterance. Only for multilingual models."""
        return language_probabilities(self.model, out, self.tokenizer)

    def _detect(self, batch: Batch, out: EncoderOutput) -> list[tuple[str | None, float | None]]:
        """The detected language of each utterance and its probability, or None twice where it is not detected."""
        wanted = [self.detects_language(utterance) for utterance in batch.utterances]
        if not any(wanted):
            return [(None, None)] * len(batch)
        best = [max(row.items(), key=lambda pair: pair[1]) for row in self.language_probabilities(out)]
        return [pair if detect else (None, None) for pair, detect in zip(best, wanted, strict=True)]

    def _timed(
        self,
        hypothesis: Hypothesis,
        utterance: Utterance,
        batch: Batch,
        out: EncoderOutput,
        row: int,
        *,
        decoder: WhisperDecoder,
        options: TranscribeOptions,
    ) -> Hypothesis:
        """The hypothesis with segments if it has timestamps, and with words if their times are requested."""
        if not decoder.timestamps and options.confidence is None:
            return hypothesis
        tokens, tokenizer, duration = hypothesis.tokens, self.tokenizer, utterance.duration
        phrases = [Phrase(0, len(tokens), 0.0, duration)]
        if decoder.timestamps:
            phrases, _ = phrases_of(tokens, begin=tokenizer.timestamp_begin_id, duration=duration)
        groups = text_tokens(tokens, phrases, end=tokenizer.end_id, spell=tokenizer.spell)
        words: list[list[Word]] = [[] for _ in groups]
        if options.confidence is not None:
            samples_T = batch.waveform_BT[row, : int(batch.lengths_B[row])]
            words = self._words(groups, utterance, out, row, samples_T)
        if not decoder.timestamps:
            return transcript(replace(hypothesis, words=words[0]), duration=duration)
        segments = [
            Segment(text, phrase.start_s, phrase.end_s, math.exp(hypothesis.score), tuple(own))
            for phrase, group, own in zip(phrases, groups, words, strict=True)
            if (text := tokenizer.decode(group))
        ]
        return transcript(replace(hypothesis, segments=segments), duration=duration)

    def _words(
        self, groups: list[list[int]], utterance: Utterance, out: EncoderOutput, row: int, samples_T: Tensor
    ) -> list[list[Word]]:
        """The words of each group of text tokens, from the cross-attention of the decoder's alignment heads."""
        tokenizer = self.tokenizer
        tokens = list(itertools.chain(*groups))
        prompt = tokenizer.prompt(utterance)
        inputs_BU = torch.tensor([[*prompt, *tokens]], device=out.h_BFD.device)
        length = out.context_lengths_B[row : row + 1]
        heads = [(int(layer), int(head)) for layer, head in self.model.generation["alignment_heads"]]
        weights_BHUF, states_BUD = self.model.cross_weights(
            inputs_BU, out.h_BFD[row : row + 1, : int(length)], length, heads
        )
        # Position i predicts token i + 1. The predictions of the text start at the prompt's last position.
        first, frames = len(prompt) - 1, max(1, int(out.frame_lengths_B[row]))
        log_probs_UV = self.model.logits(states_BUD[0, first:-1]).float().log_softmax(-1)
        chosen = torch.tensor(tokens, dtype=torch.int64, device=log_probs_UV.device)
        parts = words_of_tokens(
            tokens,
            weights_BHUF[0, :, first:, :frames],
            log_probs_UV.gather(1, chosen[:, None])[:, 0].exp().tolist(),
            spell=tokenizer.spell,
            frame_s=SAMPLES_PER_FRAME / SAMPLE_RATE,
            breaks=list(itertools.accumulate(len(group) for group in groups))[:-1],
        )
        moved = iter(without_pauses(list(itertools.chain(*parts)), sounds(samples_T)))
        return [[next(moved) for _ in part] for part in parts]

    def description(self) -> dict[str, Any]:
        """Plain data from which an untrained twin of the encoder-decoder is built."""
        return {"task": "seq2seq", **self.model.description()}


def _checked_detection(detect: DetectLanguage | None, tokenizer: WhisperTokenizer) -> DetectLanguage | None:
    """For which utterances the language is detected: none if the model is English-only or its language is given.

    Raises:
        ConfigError: Detection was requested for all utterances, but the model is English-only.
    """
    if detect == "all" and not tokenizer.is_multilingual:
        raise ConfigError("detect_language", "this model knows English only", "use a multilingual Whisper")
    if detect == "missing" and (not tokenizer.is_multilingual or tokenizer.language is not None):
        return None
    return detect


def _target_rows(token_lengths_B: Tensor, first: int, width: int) -> Tensor:
    """Flat indices of the target positions: ``token_lengths_B[b]`` positions from ``first`` on in row ``b``."""
    starts_B = torch.arange(len(token_lengths_B)) * width + first
    ends_B = token_lengths_B.cumsum(0)
    within_N = torch.arange(int(ends_B[-1])) - (ends_B - token_lengths_B).repeat_interleave(token_lengths_B)
    return starts_B.repeat_interleave(token_lengths_B) + within_N
