"""Joint CTC-attention on a pretrained encoder (Kim et al., 2017, arXiv:1609.06773).

loss = w * CTC + (1 - w) * cross-entropy        each the mean over the labels of an utterance
"""

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ssl_asr.data.filters import Limits
from ssl_asr.decoding.ctc import CtcDecoder, CtcGreedy
from ssl_asr.decoding.fusion.tables import LazyFusion
from ssl_asr.decoding.hypotheses import to_hypotheses
from ssl_asr.decoding.option import DecoderOption
from ssl_asr.decoding.segments import transcript
from ssl_asr.decoding.seq2seq import AttentionDecoder
from ssl_asr.decoding.step_model import Constraints
from ssl_asr.models.attention import JointHead, attention_loss
from ssl_asr.models.encoder import EncoderOutput, SpeechEncoder
from ssl_asr.models.freezing import FreezePolicy
from ssl_asr.models.states import States
from ssl_asr.training.ctc import CTCModule, check_decoder
from ssl_asr.training.ctc_loss import ctc_losses
from ssl_asr.training.module import TEXT_ONLY, TranscribeOptions
from ssl_asr.training.sides import OptimConfig
from ssl_asr.training.tasks import Joint
from ssl_asr.training.updates import Loss
from ssl_asr.types import BLANK_ID, Batch, Hypothesis, LabelTokenizer, Normalizer, on_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

JointDecoder = AttentionDecoder | CtcDecoder


class JointModule(CTCModule):
    """Encoder, states, and a trunk with a CTC layer and an attention decoder.

    Args:
        encoder, states: See `CTCModule`.
        head: Trunk, CTC layer and attention decoder.
        decoder: A ``decoder`` option for CTC or for the attention decoder.
        task: How the two losses are weighted.
        tokenizer, policy, optim, normalizers: See `ASRModule`.
    """

    task_name = "joint"
    head: JointHead

    def __init__(
        self,
        *,
        encoder: SpeechEncoder,
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
            decoder=CtcGreedy(),
            tokenizer=tokenizer,
            policy=policy,
            optim=optim,
            normalizers=normalizers,
        )
        self.task = task
        self.set_decoder(decoder)

    # Loss ------------------------------------------------------------------------------------------------------

    def _trunk(self, batch: Batch, out: EncoderOutput | None) -> tuple[Tensor, Tensor]:
        h_BFD, frame_lengths_B = self.states(self.encode(batch) if out is None else out)
        return self.head.trunk(h_BFD, frame_lengths_B), frame_lengths_B

    def _ctc_log_probs(self, h_BFD: Tensor) -> Tensor:
        """``log_probs_BFV`` of the CTC layer on the trunk's states, float32."""
        log_probs_BFV: Tensor = self.head.ctc(h_BFD).float().log_softmax(-1)
        return log_probs_BFV

    @property
    def loss_follows_updates(self) -> bool:
        """Whether CTC's share of the loss changes."""
        return self.task.ctc_weight_end is not None

    def loss(self, batch: Batch, out: EncoderOutput | None = None) -> Loss:
        """Weighted loss of each utterance, summed; the count is the sum of the manifest's weights."""
        h_BFD, frame_lengths_B = self._trunk(batch, out)
        ctc_B = ctc_losses(self.head.ctc(h_BFD), frame_lengths_B, batch.tokens_BU, batch.token_lengths_B)
        inputs_BU, targets_BU = _with_sentence(batch.tokens_BU, batch.token_lengths_B)
        states_BUD = self.head.decoder(inputs_BU, h_BFD, frame_lengths_B)
        attention_B = attention_loss(
            self.head.decoder.logits(states_BUD),
            targets_BU,
            batch.token_lengths_B + 1,
            label_smoothing=self.task.label_smoothing if self.training else 0.0,
        )
        share = self.task.ctc_share(self.global_step)
        weight_B = on_device(batch.weights_B, ctc_B.device)
        if self.training:
            for name, part_B in (("ctc", ctc_B), ("attention", attention_B)):
                self.log_train(f"train/loss_{name}", part_B.detach().mean(), len(batch))
            self.log_train("train/ctc_weight", torch.tensor(share), len(batch))
        return Loss((weight_B * (share * ctc_B + (1 - share) * attention_B)).sum(), weight_B.sum())

    def limits(self) -> Limits:
        """Which utterances the model can take: targets must fit into the frames and into the attention decoder."""
        return replace(super().limits(), max_tokens=self.head.decoder.max_tokens, prompt_tokens=1)

    def transformers_model(self) -> "PreTrainedModel":
        """None: transformers has no class with an attention decoder of this shape.

        Raises:
            CheckpointError: Always.
        """
        return super(CTCModule, self).transformers_model()

    # Text ------------------------------------------------------------------------------------------------------

    def set_decoder(self, decoder: DecoderOption) -> None:
        """Decode by this ``decoder`` option from now on: by CTC, by the attention decoder, or by both.

        Raises:
            ConfigError: The option is for models of another task.
            LanguageModelError: A file of the decoder is missing or wrong.
        """
        check_decoder(decoder, self.task_name)
        self._attention: AttentionDecoder | None = None
        self._fusion = LazyFusion([], size=len(self.labels))
        if "ctc" in decoder.tasks:
            super().set_decoder(decoder)
            self.long_form = "windows"
            return
        self.decoder = decoder
        self._attention = option = cast(AttentionDecoder, decoder)
        self.long_form = None
        self._fusion = LazyFusion(option.parts(self.labels), size=len(self.labels))
        self._rescorer = option.rescorer()

    def cap_tokens(self, max_tokens_per_s: float) -> None:
        """Limit the tokens of the attention decoder's hypotheses by the length of the utterance."""
        if self._attention is None:
            super().cap_tokens(max_tokens_per_s)
        else:
            self.set_decoder(self._attention.with_token_cap(max_tokens_per_s))

    def transcribe(
        self, batch: Batch, out: EncoderOutput | None = None, options: TranscribeOptions = TEXT_ONLY
    ) -> list[Hypothesis]:
        """The best text of each utterance by the decoder option, or with ``options.align`` the manifest's text."""
        decoder = self._attention
        if options.align or decoder is None:
            return super().transcribe(batch, out, options)
        h_BFD, frame_lengths_B = self._trunk(batch, out)
        # Beam search and word times both read the CTC layer, and neither always does.
        ctc_log_probs = cache(lambda: self._ctc_log_probs(h_BFD))
        scorers = decoder.scorers(ctc_log_probs, frame_lengths_B, self._fusion.on(h_BFD.device))
        found = decoder.search(
            self.head.decoder,
            h_BFD,
            frame_lengths_B,
            [[BLANK_ID]] * len(h_BFD),
            constraints=Constraints(end_id=BLANK_ID, limits=self._token_limits(decoder, batch, frame_lengths_B)),
            scorers=scorers,
        )
        hypotheses = to_hypotheses(
            batch,
            found,
            self.tokenizer,
            n_best=decoder.n_best,
            rescorer=self._rescorer,
            length_penalty=decoder.length_penalty,
        )
        timer = self._timer(options)
        if timer is None:
            return hypotheses
        rows = zip(hypotheses, ctc_log_probs(), frame_lengths_B.tolist(), batch.utterances, strict=True)
        return [
            transcript(replace(one, words=timer.words(one.tokens, row_FV[:frames])), duration=utterance.duration)
            for one, row_FV, frames, utterance in rows
        ]

    def _token_limits(self, decoder: AttentionDecoder, batch: Batch, frame_lengths_B: Tensor) -> list[int]:
        """Most tokens of each hypothesis: never more than frames, so that decoding ends."""
        limits: list[int] = frame_lengths_B.clamp(min=1).tolist()
        by_length = decoder.limits(batch.utterances)
        if by_length is None:
            return limits
        return [min(pair) for pair in zip(limits, by_length, strict=True)]


def _with_sentence(tokens_BU: Tensor, token_lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """The attention decoder's inputs (start, labels) and targets (labels, end), both of shape (B, U + 1)."""
    start_B1 = tokens_BU.new_full((len(tokens_BU), 1), BLANK_ID)
    places_U = torch.arange(tokens_BU.shape[1], device=tokens_BU.device)
    beyond_BU = places_U >= on_device(token_lengths_B, tokens_BU.device)[:, None]
    tokens_BU = tokens_BU.masked_fill(beyond_BU, BLANK_ID)
    return torch.cat([start_B1, tokens_BU], dim=1), torch.cat([tokens_BU, start_B1], dim=1)
