"""The precision of recognition: the dtype of the weights, which are cast once when a model is loaded.

Waveform normalization, spectrograms, softmax and log-probabilities are computed in float32 whatever the weights are.
Autocast is not offered: it casts every weight again in every operation, so a decoder casts them once per token.
"""

import torch

from ssl_asr.types import RecognitionPrecision

_DTYPES: dict[RecognitionPrecision, torch.dtype] = {
    "32-true": torch.float32,
    "16-true": torch.float16,
    "bf16-true": torch.bfloat16,
}


def weights_dtype(precision: RecognitionPrecision, device: torch.device) -> torch.dtype:
    """The dtype of the weights on a device.

    ``auto`` is bfloat16 on an NVIDIA GPU, float16 if the GPU does not compute in bfloat16, and float32 on every other
    device.
    """
    if precision != "auto":
        return _DTYPES[precision]
    if device.type != "cuda":
        return torch.float32
    # GPUs before Ampere emulate bfloat16, which is slower than float32.
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
