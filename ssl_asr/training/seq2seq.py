"""Whisper as a whole encoder-decoder."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssl_asr.data.tokenizer import CharTokenizer, WhisperTokenizer
from ssl_asr.decoding.beam import beam_search
from ssl_asr.decoding.fusion import CandidateScorer
from ssl_asr.decoding.language_models import Rescorer
from ssl_asr.decoding.seq2seq import (
    AtLeast,
    Decoded,
    Suppression,
    WhisperBeam,
    WhisperGreedy,
    beams_of,
    fails,
    fold,
    greedy,
    ranking_of,
    token_limits,
)
from ssl_asr.decoding.timestamps import TimestampRules, phrases
from ssl_asr.decoding.word_times import words_of_tokens
from ssl_asr.metrics.report import Normalizer
from ssl_asr.models.encoder import EncoderOutput, LayerGroup
from ssl_asr.models.freezing import FreezePolicy
from ssl_asr.models.whisper import SAMPLES_PER_FRAME, WhisperSeq2Seq
from ssl_asr.training.ctc import ctc_losses
from ssl_asr.training.module import ASRModule, Loss, OptimConfig
from ssl_asr.types import SAMPLE_RATE, Alternative, Batch, Hypothesis, Seconds, Tokenizer, Utterance, Word


class AuxiliaryCtc:
    """CTC over characters on the encoder's states, which helps the encoder to be trained.

    Args:
        layer: from states to ``logits``, the blank at 0.
        tokenizer: spells the labels.
        weight: its share of the loss.
        lr_scale: of its learning rate, over the decoder's.
    """

    def __init__(self, *, layer: nn.Linear, tokenizer: CharTokenizer, weight: float, lr_scale: float) -> None:
        self.layer, self.tokenizer, self.weight, self.lr_scale = layer, tokenizer, weight, lr_scale

    def layer_groups(self) -> list[LayerGroup]:
        """``ctc``, at a rate of its own."""
        return [LayerGroup("ctc", (self.layer,), lr_scale=self.lr_scale)]

    def losses(self, out: EncoderOutput, utterances: Sequence[Utterance]) -> Tensor:
        """CTC's mean loss a label of each utterance, ``loss_B``; 0 where the labels do not fit the frames."""
        labels = [torch.tensor(self.tokenizer.encode(utterance)) for utterance in utterances]
        labels_BU = nn.utils.rnn.pad_sequence(labels, batch_first=True)
        logits_BFV = self.layer(out.h_BFD[:, : int(out.frame_lengths_B.max())])
        return ctc_losses(
            logits_BFV.float().log_softmax(-1),
            out.frame_lengths_B,
            labels_BU.to(logits_BFV.device, non_blocking=True),
            torch.tensor([len(label) for label in labels]),
        )


class Seq2SeqModule(ASRModule):
    """Whisper, trained to write the transcript after its prompt.

    Args:
        model: encoder and decoder.
        decoder: how transcripts are searched for.
        label_smoothing: share of the target's mass spread over the vocabulary.
        auxiliary: CTC on the encoder's states, to train with; None for none.
        tokenizer, policy, optim, normalizers: see `ASRModule`.

    ``detect`` is set where languages are to be heard: of utterances that name ``missing`` ones, or of ``all``, where
    the language that is named is the one written in all the same. ``times`` is set where words are to have times.
    """

    tokenizer: WhisperTokenizer

    def __init__(
        self,
        *,
        model: WhisperSeq2Seq,
        decoder: WhisperGreedy | WhisperBeam,
        label_smoothing: float,
        auxiliary: AuxiliaryCtc | None = None,
        tokenizer: WhisperTokenizer,
        policy: FreezePolicy,
        optim: OptimConfig | None,
        normalizers: dict[str, Normalizer],
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
        self.decode_with(decoder)
        self.detect: Literal["missing", "all"] | None = None
        self.times = False
        self.auxiliary = auxiliary
        # Its weights are part of the module's; the rest of it is not.
        self.ctc = None if auxiliary is None else auxiliary.layer
        generation = model.generation
        self.suppression = Suppression(
            always=tuple(generation.get("suppress_tokens") or ()),
            first=tuple(generation.get("begin_suppress_tokens") or ()),
        )

    def decode_with(self, decoder: WhisperGreedy | WhisperBeam) -> None:
        """Write texts in this way from here on.

        Raises:
            LanguageModelError: a file of the decoder's is missing or wrong.
        """
        self.decoder = decoder
        self.rescorer = decoder.rescorer() if isinstance(decoder, WhisperBeam) else None
        self._parts: list[Any] = []
        if isinstance(decoder, WhisperBeam) and (decoder.lm is not None or decoder.hotwords or decoder.word_score != 0):
            tokens = [self.tokenizer.spell([token]) for token in range(self.tokenizer.vocab_size)]
            self._parts = decoder.fusion().parts([fold(token) for token in tokens], tokens)

    def _whole(self, batch: Batch) -> Tensor:
        """Prompt and transcript of each utterance, ``(B, P + U)``: the one start token is the prompt's."""
        prompts = [self.tokenizer.prompt(utterance) for utterance in batch.utterances]
        prompt_BP = torch.tensor(prompts).to(batch.tokens_BU.device, non_blocking=True)
        return torch.cat([prompt_BP, batch.tokens_BU], dim=1)

    def loss(self, batch: Batch, out: EncoderOutput | None = None) -> Loss:
        """Cross-entropy summed over the tokens of every transcript, its end included, and their number."""
        out = self.encode(batch) if out is None else out
        whole_BU = self._whole(batch)
        inputs_BU, targets_BU = whole_BU[:, :-1], whole_BU[:, 1:]
        states_BUD = self.model(inputs_BU, out.h_BFD, out.context_lengths_B)
        # What counts is a matter of position, never of the token's value: the end token is also Whisper's
        # padding and must be learnt. Known on the CPU, the rows are picked without waiting for a device.
        first = whole_BU.shape[1] - batch.tokens_BU.shape[1] - 1
        rows_N = _rows(batch.token_lengths_B, first, inputs_BU.shape[1])
        rows_N = rows_N.to(states_BUD.device, non_blocking=True)
        logits_NV = self.model.logits(states_BUD.flatten(0, 1)[rows_N])
        loss_N = functional.cross_entropy(
            logits_NV.float(),
            targets_BU.flatten()[rows_N],
            reduction="none",
            label_smoothing=self.label_smoothing if self.training else 0.0,
        )
        if self.auxiliary is not None:
            loss_N = self._with_ctc(loss_N, batch, out)
        weight_N = batch.weights_B.repeat_interleave(batch.token_lengths_B).to(loss_N.device, non_blocking=True)
        return Loss((loss_N * weight_N).sum(), weight_N.sum())

    def _with_ctc(self, loss_N: Tensor, batch: Batch, out: EncoderOutput) -> Tensor:
        """Each token's loss, and beside it CTC's mean a label of its utterance."""
        assert self.auxiliary is not None
        ctc_B = self.auxiliary.losses(out, batch.utterances)
        if self.training:
            self.log_train("train/loss_ctc", ctc_B.detach().mean(), len(batch))
        share = self.auxiliary.weight
        ctc_N = ctc_B.repeat_interleave(batch.token_lengths_B.to(ctc_B.device), output_size=len(loss_N))
        return (1 - share) * loss_N + share * ctc_N

    def transcribe(self, batch: Batch, out: EncoderOutput | None = None) -> list[Hypothesis]:
        """What the decoder's option finds."""
        assert not self.model.net.training, "decoding in train mode keeps dropout on"
        out = self.encode(batch) if out is None else out
        options = self.decoder
        detected = self._detect(batch, out)
        utterances = [
            utterance if utterance.lang else replace(utterance, lang=lang)
            for utterance, lang in zip(batch.utterances, detected, strict=True)
        ]
        prompts = [self._prompt(utterance, options) for utterance in utterances]
        found: dict[int, list[Decoded]] = {}
        # Prompts of a length are searched together.
        for length in sorted({len(prompt) for prompt in prompts}):
            rows = [row for row, prompt in enumerate(prompts) if len(prompt) == length]
            own = out if len(rows) == len(prompts) else out.rows(rows)
            part = self._find(options, own, [utterances[row] for row in rows], [prompts[row] for row in rows])
            found |= dict(zip(rows, part, strict=True))
        in_order = [found[row] for row in range(len(batch))]
        ranking = ranking_of(options) if isinstance(options, WhisperBeam) else {}
        hypotheses = to_hypotheses(batch, in_order, self.tokenizer, rescorer=self.rescorer, **ranking)
        return [
            replace(
                one,
                detected=lang,
                segments=self.phrases(one, utterance.duration)[0],
                words=self._words(one, utterance, out, row) if self.times else [],
            )
            for row, (one, lang, utterance) in enumerate(zip(hypotheses, detected, utterances, strict=True))
        ]

    def _prompt(self, utterance: Utterance, options: WhisperGreedy | WhisperBeam) -> list[int]:
        """What the decoder is given before an utterance's text."""
        before = utterance.tags.get("prompt", options.prompt)
        previous = self.tokenizer.previous(before) if before else []
        return [*previous, *self.tokenizer.prompt(utterance, timestamps=options.timestamps)]

    def _find(
        self,
        options: WhisperGreedy | WhisperBeam,
        out: EncoderOutput,
        utterances: Sequence[Utterance],
        prompts: list[list[int]],
    ) -> list[list[Decoded]]:
        """The texts of utterances whose prompts have one length, best first."""
        if not isinstance(options, WhisperBeam):
            return [[row] for row in self._greedy(options, out, utterances, prompts)]
        beams = beams_of(options)
        search = self._search(options, utterances)
        if self._parts:
            rows = len(utterances) * options.beam_size
            search["scorers"] = [CandidateScorer(self._parts, rows=rows, candidates=options.max_labels)]
        return beam_search(self.model, out.h_BFD, out.context_lengths_B, prompts, **beams, **search)

    def _words(self, hypothesis: Hypothesis, utterance: Utterance, out: EncoderOutput, row: int) -> list[Word]:
        """The words of a hypothesis with times, by where the decoder's heads that follow speech looked."""
        tokenizer = self.tokenizer
        tokens = [token for token in hypothesis.tokens if token < tokenizer.end_id]
        prompt = tokenizer.prompt(utterance)
        inputs_BU = torch.tensor([[*prompt, *tokens]], device=out.h_BFD.device)
        length = out.context_lengths_B[row : row + 1]
        heads = [(int(layer), int(head)) for layer, head in self.model.generation["alignment_heads"]]
        weights_BHUF, states_BUD = self.model.cross_weights(
            inputs_BU, out.h_BFD[row : row + 1, : int(length)], length, heads
        )
        # From the last of the prompt on, each place foretells the next token, the last one the end.
        first, frames = len(prompt) - 1, max(1, int(out.frame_lengths_B[row]))
        log_probs_UV = self.model.logits(states_BUD[0, first:-1]).float().log_softmax(-1)
        chosen = torch.tensor(tokens, dtype=torch.int64, device=log_probs_UV.device)
        return words_of_tokens(
            tokens,
            weights_BHUF[0, :, first:, :frames],
            log_probs_UV.gather(1, chosen[:, None])[:, 0].exp().tolist(),
            spell=tokenizer.spell,
            frame_s=SAMPLES_PER_FRAME / SAMPLE_RATE,
            lang=utterance.lang,
        )

    def phrases(self, hypothesis: Hypothesis, duration: Seconds) -> tuple[list[Word], Seconds]:
        """The phrases of a hypothesis with times, and how far it heard; none and all where it was asked for no times.

        See `ssl_asr.decoding.timestamps.phrases`.
        """
        if not self.decoder.timestamps:
            return [], duration
        return phrases(
            hypothesis.tokens,
            begin=self.tokenizer.timestamp_begin_id,
            duration=duration,
            decode=self.tokenizer.decode,
            score=math.exp(hypothesis.score),
        )

    def _search(self, options: WhisperGreedy | WhisperBeam, utterances: Sequence[Utterance]) -> dict[str, Any]:
        """What both searches are told."""
        tokenizer = self.tokenizer
        rules = TimestampRules(
            begin=tokenizer.timestamp_begin_id,
            no_timestamps=tokenizer.no_timestamps_id,
            end=tokenizer.end_id,
            latest_first=self.model.generation.get("max_initial_timestamp_index"),
        )
        return {
            "end_id": tokenizer.end_id,
            "suppression": self.suppression if options.suppress else Suppression(),
            "limits": token_limits(options.max_tokens_per_s, utterances, options.max_tokens),
            "rules": [
                *([rules] if options.timestamps else []),
                *([] if options.min_tokens is None else [AtLeast(options.min_tokens, tokenizer.end_id)]),
            ],
        }

    def _greedy(
        self, options: WhisperGreedy, out: EncoderOutput, utterances: Sequence[Utterance], prompts: list[list[int]]
    ) -> list[Decoded]:
        """Greedy texts; those that fail are drawn again at the next temperature, each by a seed of its own."""
        inputs = (self.model, out.h_BFD, out.context_lengths_B)
        first, *others = options.temperatures
        if first == 0:
            found = greedy(*inputs, prompts, **self._search(options, utterances))
        else:
            found = [self._drawn(options, out, i, utterances, prompts, first) for i in range(len(utterances))]
        silence = self._silence(out) if options.no_speech is not None else [0.0] * len(found)
        for i, share in enumerate(silence):
            for temperature in others:
                silent = options.no_speech is not None and share > options.no_speech
                if silent or not fails(self.tokenizer.decode(found[i].tokens), found[i].score, options):
                    break
                found[i] = self._drawn(options, out, i, utterances, prompts, temperature)
            unlikely = options.min_log_prob is not None and found[i].score < options.min_log_prob
            if options.no_speech is not None and share > options.no_speech and unlikely:
                found[i] = Decoded([], found[i].score)
        return found

    def _drawn(
        self,
        options: WhisperGreedy,
        out: EncoderOutput,
        row: int,
        utterances: Sequence[Utterance],
        prompts: list[list[int]],
        temperature: float,
    ) -> Decoded:
        """A text drawn for one utterance, the same whatever is beside it."""
        own = utterances[row]
        name = f"{own.id} {own.offset:.3f} {temperature}".encode()
        generator = torch.Generator(out.h_BFD.device).manual_seed(zlib.crc32(name))
        length = out.context_lengths_B[row : row + 1]
        h_BFD = out.h_BFD[row : row + 1, : int(length)]
        search = self._search(options, [own])
        return greedy(
            self.model, h_BFD, length, [prompts[row]], temperature=temperature, generator=generator, **search
        )[0]

    def _silence(self, out: EncoderOutput) -> list[float]:
        """How likely each utterance is no speech at all, as Whisper hears it."""
        probabilities_BV = first_logits(self.model, out, self.tokenizer).float().softmax(-1)
        share: list[float] = probabilities_BV[:, self.tokenizer.no_speech_id].tolist()
        return share

    def _detect(self, batch: Batch, out: EncoderOutput) -> list[str | None]:
        """The language of each utterance where it is to be heard, else None."""
        unknown = any(utterance.lang is None for utterance in batch.utterances)
        if self.detect is None or (self.detect == "missing" and not unknown):
            return [None] * len(batch)
        heard = detect_languages(self.model, out, self.tokenizer)
        wanted = [self.detect == "all" or utterance.lang is None for utterance in batch.utterances]
        return [lang if listen else None for (lang, _), listen in zip(heard, wanted, strict=True)]


def first_logits(model: WhisperSeq2Seq, out: EncoderOutput, tokenizer: WhisperTokenizer) -> Tensor:
    """What Whisper would say after the start alone, ``logits_BV``: a language, or that there is no speech."""
    start_B1 = torch.full((len(out.h_BFD), 1), tokenizer.start_id, device=out.h_BFD.device)
    return model.step(start_B1, model.begin(out.h_BFD, out.context_lengths_B, 1))


def detect_languages(model: WhisperSeq2Seq, out: EncoderOutput, tokenizer: WhisperTokenizer) -> list[tuple[str, float]]:
    """The likeliest language of each utterance and its probability among all of them, as Whisper hears it.

    Args:
        model: a multilingual checkpoint.
        out: its encoder's states.
        tokenizer: names the languages.
    """
    logits_BV = first_logits(model, out, tokenizer)
    names = list(tokenizer.languages)
    ids = torch.tensor([tokenizer.languages[name] for name in names], device=logits_BV.device)
    best = logits_BV[:, ids].float().softmax(-1).max(-1)
    return [(names[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def to_hypotheses(
    batch: Batch,
    found: Sequence[Sequence[Decoded]],
    tokenizer: Tokenizer,
    *,
    n_best: int = 1,
    rescorer: Rescorer | None = None,
    length_penalty: float = 1.0,
) -> list[Hypothesis]:
    """The best of what was found for each utterance, the others beside it.

    Args:
        batch: the utterances.
        found: texts of each, best first.
        tokenizer: spells them.
        n_best: texts given of each.
        rescorer: ranks them anew; None for nobody.
        length_penalty: the power of the length, its end counted, that scores were divided by.
    """
    hypotheses = []
    for utterance, own in zip(batch.utterances, found, strict=True):
        texts, scores = [tokenizer.decode(one.tokens) for one in own], [one.score for one in own]
        ranked = list(enumerate(scores))
        if rescorer is not None:
            divisors = [(len(one.tokens) + 1) ** length_penalty for one in own]
            ranked = rescorer.ranked(texts, scores, divisors=divisors)
        (best, score), *others = ranked[:n_best]
        alternatives = [Alternative(texts[place], other) for place, other in others]
        hypotheses.append(Hypothesis(utterance.id, texts[best], score, own[best].tokens, alternatives=alternatives))
    return hypotheses


def _rows(token_lengths_B: Tensor, first: int, width: int) -> Tensor:
    """Flat indices of the places that count: ``token_lengths_B[b]`` from ``first`` on in row ``b``."""
    starts_B = torch.arange(len(token_lengths_B)) * width + first
    ends_B = token_lengths_B.cumsum(0)
    within_N = torch.arange(int(ends_B[-1])) - (ends_B - token_lengths_B).repeat_interleave(token_lengths_B)
    return starts_B.repeat_interleave(token_lengths_B) + within_N
