"""How and where a model is run."""

from dataclasses import dataclass
from typing import Literal

import torch

from ssl_asr.types import Downmix, Seconds


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a model is run over manifests.

    Attributes:
        max_batch_s: Computed seconds in a batch, padding included. None for the default of the encoder, see
            `SpeechEncoder.budget_s`.
        num_workers: Number of processes that read audio; 0 reads in the main process.
        accelerator: Lightning's accelerator.
        downmix: What several channels become: their ``mean``, the ``first``, or an error (``refuse``).
        on_bad_audio: ``skip`` counts and names files that cannot be read, ``error`` stops at the first.
        max_skip_fraction: A manifest that loses a larger fraction of its utterances is an error.
    """

    max_batch_s: Seconds | None
    num_workers: int
    accelerator: str
    downmix: Downmix = "mean"
    on_bad_audio: Literal["skip", "error"] = "skip"
    max_skip_fraction: float = 1.0


def inference_device(accelerator: str) -> torch.device:
    """The device that Lightning would choose."""
    if accelerator == "cpu":
        return torch.device("cpu")
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
