"""Joint CTC-attention on a pretrained encoder."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ssl_asr.decoding.beam import Scorer, beam_search
from ssl_asr.decoding.coverage import CoverageScorer
from ssl_asr.decoding.ctc import CtcGreedy
from ssl_asr.decoding.ctc_prefix import CtcPrefixScorer
from ssl_asr.decoding.fusion import Fusion, FusionScorer
from ssl_asr.decoding.language_models import Rescoring
from ssl_asr.decoding.seq2seq import (
    AttentionBeam,
    AttentionGreedy,
    Decoded,
    StepModel,
    Suppression,
    beams_of,
    greedy,
    ranking_of,
    token_limits,
)
from ssl_asr.metrics.report import Normalizer
from ssl_asr.models.attention import JointHead, attention_loss
from ssl_asr.models.encoder import EncoderOutput
from ssl_asr.models.freezing import FreezePolicy
from ssl_asr.models.states import States
from ssl_asr.training.ctc import CtcDecoder, CTCModule, ctc_losses
from ssl_asr.training.module import Loss, OptimConfig
from ssl_asr.training.seq2seq import to_hypotheses
from ssl_asr.training.tasks import Joint
from ssl_asr.types import BLANK_ID, Batch, Hypothesis, LabelTokenizer

JointDecoder = AttentionGreedy | AttentionBeam | CtcDecoder


class JointModule(CTCModule):
    """Encoder, states, a trunk with CTC on it and a decoder that attends to it.

    The loss of an utterance is ``weight * CTC + (1 - weight) * cross-entropy``, each a label's mean.

    Args:
        encoder, states: see `CTCModule`.
        head: trunk, CTC layer and decoder.
        decoder: which half writes the text.
        task: how the two losses are weighed.
        tokenizer, policy, optim, normalizers: see `ASRModule`.
    """

    head: JointHead

    def __init__(
        self,
        *,
        encoder: Any,
        states: States,
        head: JointHead,
        decoder: JointDecoder,
        task: Joint,
        tokenizer: LabelTokenizer,
        policy: FreezePolicy,
        optim: OptimConfig | None,
        normalizers: dict[str, Normalizer],
    ) -> None:
        super().__init__(
            encoder=encoder,
            states=states,
            head=head,
            decoder=decoder if isinstance(decoder, CtcDecoder) else CtcGreedy(),
            tokenizer=tokenizer,
            policy=policy,
            optim=optim,
            normalizers=normalizers,
        )
        self.task = task
        self.decode_with(decoder)

    def _trunk(self, batch: Batch, out: EncoderOutput | None) -> tuple[Tensor, Tensor]:
        h_BFD, frame_lengths_B = self.states(self.encode(batch) if out is None else out)
        return self.head.trunk(h_BFD, frame_lengths_B), frame_lengths_B

    def loss(self, batch: Batch, out: EncoderOutput | None = None) -> Loss:
        """Both halves' losses of each utterance, weighted and summed; the count is of utterances, weighted."""
        h_BFD, frame_lengths_B = self._trunk(batch, out)
        log_probs_BFV = self.head.ctc(h_BFD).float().log_softmax(-1)
        ctc_B = ctc_losses(log_probs_BFV, frame_lengths_B, batch.tokens_BU, batch.token_lengths_B)
        ends_B = batch.token_lengths_B + 1
        inputs_BU, targets_BU = _with_sentence(batch.tokens_BU, batch.token_lengths_B)
        states_BUD = self.head.decoder(inputs_BU, h_BFD, frame_lengths_B)
        attention_B = attention_loss(
            self.head.decoder.logits(states_BUD),
            targets_BU,
            ends_B,
            label_smoothing=self.task.label_smoothing if self.training else 0.0,
        )
        share = self.task.ctc_share(self.trainer.global_step)
        weight_B = batch.weights_B.to(ctc_B.device, non_blocking=True)
        if self.training:
            for name, part_B in (("ctc", ctc_B), ("attention", attention_B)):
                self.log_train(f"train/loss_{name}", part_B.detach().mean(), len(batch))
            self.log_train("train/ctc_weight", torch.tensor(share), len(batch))
        return Loss((weight_B * (share * ctc_B + (1 - share) * attention_B)).sum(), weight_B.sum())

    def decode_with(self, decoder: JointDecoder) -> None:
        """Write texts in this way from here on.

        Raises:
            LanguageModelError: a file of the decoder's is missing or wrong.
        """
        self.decoder = decoder
        if isinstance(decoder, CtcDecoder):
            self.search_with(decoder)
        self._parts = decoder.parts(self.labels) if isinstance(decoder, AttentionBeam) else []
        self.rescorer = decoder.rescorer() if isinstance(decoder, Rescoring) else None
        self._fusion: Fusion | None = None

    def transcribe(self, batch: Batch, out: EncoderOutput | None = None) -> list[Hypothesis]:
        """What the decoder option finds, by the half it names or by both."""
        options = self.decoder
        if self.forced or isinstance(options, CtcDecoder):
            return super().transcribe(batch, out)
        h_BFD, frame_lengths_B = self._trunk(batch, out)
        # A text of more tokens than frames is no text: the end is sure to come.
        limits: list[int] = frame_lengths_B.clamp(min=1).tolist()
        asked = token_limits(options.max_tokens_per_s, batch.utterances)
        if asked is not None:
            limits = [min(pair) for pair in zip(limits, asked, strict=True)]
        search: dict[str, Any] = {"end_id": BLANK_ID, "suppression": Suppression(), "limits": limits}
        found: list[list[Decoded]]
        prompts = [[BLANK_ID]] * len(batch)
        if isinstance(options, AttentionBeam):
            beams = beams_of(options)
            scorers = self._scorers(options, h_BFD, frame_lengths_B)
            share = 1 - options.ctc_weight
            decoder: StepModel = self.head.decoder
            if options.coverage_weight != 0:
                decoder = watched = CoverageScorer(
                    decoder,
                    beams=options.beam_size,
                    weight=options.coverage_weight,
                    threshold=options.coverage_threshold,
                )
                scorers.append(watched)
            search |= {"scorers": scorers}
            found = beam_search(decoder, h_BFD, frame_lengths_B, prompts, decoder_weight=share, **beams, **search)
        else:
            found = [[row] for row in greedy(self.head.decoder, h_BFD, frame_lengths_B, prompts, **search)]
        ranking = ranking_of(options) if isinstance(options, AttentionBeam) else {}
        hypotheses = to_hypotheses(batch, found, self.tokenizer, rescorer=self.rescorer, **ranking)
        if self.times is None:
            return hypotheses
        log_probs_BFV = self.head.ctc(h_BFD).float().log_softmax(-1)
        rows = zip(hypotheses, log_probs_BFV, frame_lengths_B.tolist(), strict=True)
        return [replace(one, words=self._words(one.tokens, own[:frames])) for one, own, frames in rows]

    def _scorers(self, options: AttentionBeam, h_BFD: Tensor, frame_lengths_B: Tensor) -> list[Scorer]:
        """What is added to the decoder's scores."""
        scorers: list[Scorer] = []
        if options.ctc_weight > 0:
            log_probs_BFV = self.head.ctc(h_BFD).float().log_softmax(-1)
            scorers.append(
                CtcPrefixScorer(
                    log_probs_BFV,
                    frame_lengths_B,
                    beams=options.beam_size,
                    blank=BLANK_ID,
                    weight=options.ctc_weight,
                    candidates=options.max_labels,
                )
            )
        if self._parts:
            if self._fusion is None or self._fusion.device != h_BFD.device:
                self._fusion = Fusion(self._parts, size=len(self.labels), device=h_BFD.device)
            scorers.append(FusionScorer(self._fusion, rows=len(h_BFD) * options.beam_size))
        return scorers


def _with_sentence(tokens_BU: Tensor, token_lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """What the decoder is given, from the start on, and what it is to say, up to the end."""
    start_B1 = tokens_BU.new_full((len(tokens_BU), 1), BLANK_ID)
    places_U = torch.arange(tokens_BU.shape[1], device=tokens_BU.device)
    beyond_BU = places_U >= token_lengths_B.to(tokens_BU.device, non_blocking=True)[:, None]
    tokens_BU = tokens_BU.masked_fill(beyond_BU, BLANK_ID)
    return torch.cat([start_B1, tokens_BU], dim=1), torch.cat([tokens_BU, start_B1], dim=1)
