"""SpecAugment (Park et al., 2019): random spans of time and of features are masked in training.

Spans are drawn on the CPU, where the lengths are, and copied to the device without synchronization. The
spans of an utterance do not depend on the other utterances of the batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ssl_asr.errors import ConfigError
from ssl_asr.types import Fraction, PositiveInt, on_device

if TYPE_CHECKING:
    from ssl_asr.config.schemas import TrainConfig
    from ssl_asr.models.encoder import SpeechEncoder


def span_mask(lengths_B: Tensor, width: int, *, prob: float, span: int) -> Tensor:
    """Draws spans of ``span`` positions for each row.

    ``prob`` has the same meaning as in fairseq and transformers: a row of length ``n`` gets ``prob * n / span`` spans
    with different starts. The count is rounded up or down at random. Spans may overlap, so the masked fraction is below
    ``prob``: 0.5 masks about 39 %, 0.65 about 48 %. A row no longer than one span is not masked.

    Args:
        lengths_B: int64 tensor on the CPU, length of each row.
        width: int, width of the mask, at least the longest length.
        prob: float in [0, 1], fraction of a row that the spans would cover without overlap.
        span: int, length of a span.

    Returns:
        Bool tensor of shape (batch, width) on the CPU, True where masked.
    """
    starts_B = (lengths_B - span).clamp(min=0)
    wanted_B = (prob * lengths_B / span + torch.rand(len(lengths_B))).floor().long()
    count_B = torch.minimum(wanted_B, starts_B)
    # Random keys rank the possible starts of a row; the `count` lowest ranks are the starts of the spans.
    keys_BW = torch.rand(len(lengths_B), width)
    keys_BW = keys_BW.masked_fill(torch.arange(width)[None] >= starts_B[:, None], 2.0)
    rank_BW = keys_BW.argsort(dim=1).argsort(dim=1)
    # A position is masked if more spans have started there than have ended.
    begun_BW = (rank_BW < count_B[:, None]).long().cumsum(1)
    ended_BW = torch.nn.functional.pad(begun_BW, (span, 0))[:, :width]
    return begun_BW > ended_BW


def masked_share(mask_BF: Tensor | None, lengths_B: Tensor) -> float:
    """Returns the fraction of all valid frames that a mask covers, 0.0 without a mask."""
    return 0.0 if mask_BF is None else float(mask_BF.sum() / lengths_B.sum().clamp(min=1))


class Augment(Protocol):
    """An ``augment`` option: changes what an encoder computes in training."""

    def apply_to(self, encoder: "SpeechEncoder") -> None:
        """Sets the augmentation of an encoder. Call it before `SpeechEncoder.layer_groups`."""


@dataclass(frozen=True, kw_only=True)
class SpecAugment:
    """Masks spans of frames, and spans of features over all frames of an utterance.

    wav2vec 2.0 and related encoders mask the input of the first transformer layer. Frames are 20 ms. A masked frame is
    replaced by the learned mask vector, a masked feature by zero (Baevski et al., 2020). Whisper masks the log-mel
    spectrogram. Frames are 10 ms, features are mel bands, and masked values are zero, about the mean of Whisper's
    features. An encoder that is frozen completely is never masked.

    Attributes:
        time_prob: float in [0, 1], fraction of the frames that the spans would cover without overlap; see `span_mask`.
        time_span: int, frames of a span.
        feature_prob: float in [0, 1], fraction of the features that the spans would cover without overlap.
        feature_span: int, features of a span.
    """

    time_prob: Fraction
    time_span: PositiveInt
    feature_prob: Fraction
    feature_span: PositiveInt

    def apply_to(self, encoder: "SpeechEncoder") -> None:
        """Masks the encoder's input in train mode."""
        encoder.mask_with(self)

    def time_mask(self, lengths_B: Tensor, width: int) -> Tensor | None:
        """Draws a mask over frames.

        Args:
            lengths_B: int64 tensor on the CPU, number of valid frames.
            width: int, width of the mask.

        Returns:
            Bool tensor of shape (batch, width) on the CPU, True where masked; None if ``time_prob`` is 0.
        """
        if self.time_prob == 0:
            return None
        return span_mask(lengths_B, width, prob=self.time_prob, span=self.time_span)

    def feature_mask(self, batch: int, features: int) -> Tensor | None:
        """Draws a mask over features.

        Args:
            batch: int, number of utterances.
            features: int, number of features.

        Returns:
            Bool tensor of shape (batch, features) on the CPU, True where masked; None if ``feature_prob`` is 0.
        """
        if self.feature_prob == 0:
            return None
        lengths_B = torch.full((batch,), features)
        return span_mask(lengths_B, features, prob=self.feature_prob, span=self.feature_span)

    def mask_spectrogram(self, mel_BMF: Tensor, lengths_B: Tensor) -> tuple[Tensor, float]:
        """Draws masks over the frames and the bands of a spectrogram and sets masked values to zero.

        Args:
            mel_BMF: Spectrogram of shape (batch, bands, frames).
            lengths_B: int64 tensor on the CPU, number of frames of speech.

        Returns:
            The masked spectrogram, and the fraction of frames that is masked.
        """
        time_BF = self.time_mask(lengths_B, mel_BMF.shape[-1])
        band_BM = self.feature_mask(*mel_BMF.shape[:2])
        if time_BF is not None:
            mel_BMF = mel_BMF.masked_fill(on_device(time_BF, mel_BMF.device)[:, None], 0.0)
        if band_BM is not None:
            mel_BMF = mel_BMF.masked_fill(on_device(band_BM, mel_BMF.device)[..., None], 0.0)
        return mel_BMF, masked_share(time_BF, lengths_B)

    def conflicts(self, run: "TrainConfig") -> Iterator[ConfigError]:
        """A frozen encoder, which is never masked."""
        if run.freeze_policy.freezes_encoder:
            yield ConfigError("augment", "has no effect on a frozen encoder", "use augment=none, or freeze=false")


@dataclass(frozen=True, kw_only=True)
class NoAugment:
    """No augmentation inside the encoder."""

    def apply_to(self, encoder: "SpeechEncoder") -> None:
        """Leaves the encoder unchanged."""
