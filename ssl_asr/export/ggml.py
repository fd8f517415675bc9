"""whisper.cpp's ggml format.

Layout of the file, little-endian::

    magic      "ggml"
    sizes      11 int32: vocabulary, frames, features, heads, layers of the encoder; tokens, features, heads, layers of
               the decoder; mel bands; type of the weights
    filters    2 int32 and the mel filters, float32
    tokens     number, then length and bytes of each text token
    weights    for each: dimensions, length of the name, type; shape, last dimension first; name; data

The names are those of OpenAI's implementation. The output layer is the token embedding and is not stored. As in
whisper.cpp's ``quantize``, only matrices are quantized: the kernels of the convolutions stay in float16, vectors and
positions in float32. whisper.cpp runs no file in float32, because its convolutions need kernels in float16. It reads
Whisper's vocabularies only, because it knows special tokens by their ids.
"""

import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_asr.errors import ConfigError, UserError
from ssl_asr.export.base import ExportModel, Runtime, TimedWord
from ssl_asr.export.whisper import WhisperParts, whisper_refusal, with_silence
from ssl_asr.models.spectrograms import slaney_filters
from ssl_asr.models.whisper import N_FFT, SAMPLES_PER_FRAME
from ssl_asr.types import SAMPLE_RATE

FILE_NAME = "ggml-model.bin"

_MAGIC = 0x67676D6C
# Added to the type of quantized files: the version of the block formats times a factor.
_QUANTIZATION_VERSION = 2 * 1000
# Type of the file, type of a quantized matrix. Both are numbers of ggml's enumerations.
_TYPES = {"f16": (1, 1), "q8_0": (7, 8), "q5_1": (9, 7), "q5_0": (8, 6), "q4_1": (3, 3), "q4_0": (2, 2)}
_BLOCK = 32
# Vocabularies of whisper.cpp: English-only, multilingual, large-v3.
_VOCABULARIES = (51_864, 51_865, 51_866)
_FLOAT32 = ("encoder.positional_embedding", "decoder.positional_embedding")
_NAMES = (
    (r"^model\.", ""),
    (r"\.layers\.", ".blocks."),
    (r"encoder\.layer_norm", "encoder.ln_post"),
    (r"decoder\.layer_norm", "decoder.ln"),
    (r"embed_positions\.weight", "positional_embedding"),
    (r"embed_tokens", "token_embedding"),
    (r"encoder_attn_layer_norm", "cross_attn_ln"),
    (r"self_attn_layer_norm", "attn_ln"),
    (r"final_layer_norm", "mlp_ln"),
    (r"encoder_attn\.", "cross_attn."),
    (r"self_attn\.", "attn."),
    (r"q_proj", "query"),
    (r"k_proj", "key"),
    (r"v_proj", "value"),
    (r"out_proj", "out"),
    (r"fc1", "mlp.0"),
    (r"fc2", "mlp.2"),
)

_USAGE = """\
whisper.cpp, with 30 s as in the training of Whisper:

```bash
whisper-cli -m {folder}/{file} -f speech.wav{options}
```

In Python:

```python
from pywhispercpp.model import Model

model = Model("{folder}/{file}"{arguments})
print("".join(segment.text for segment in model.transcribe("speech.wav")))
```

To encode an utterance and {tail_s:g} s of silence instead of 30 s, append the silence and set the number of encoder
frames, 50 a second and at most 1500. Switch flash attention off, which attends to padding. On the command line, the
options are `-ac FRAMES -nfa`. In Python:

```python
import math
import numpy as np
from pywhispercpp.model import Model

model = Model("{folder}/{file}"{arguments}, context_params={{"flash_attn": False}})

def transcribe(audio):  # float32 samples at 16 kHz, less than 30 s
    audio = np.pad(audio, (0, {tail}))[:480000]
    frames = math.ceil(len(audio) / {per_frame})
    found = model.transcribe(audio, audio_ctx=frames, no_timestamps=True, single_segment=True)
    return "".join(segment.text for segment in found)
```
"""


class Ggml:
    """Whisper in whisper.cpp's format. See `Format`."""

    name: ClassVar[str] = "ggml"
    extra: ClassVar[str | None] = "ggml"
    packages: ClassVar[tuple[str, ...]] = ("pywhispercpp", "gguf")
    quantizations: ClassVar[tuple[str, ...]] = tuple(_TYPES)
    real_length: ClassVar[bool] = True

    def refusal(self, model: ExportModel) -> UserError | None:
        """Models other than Whisper with its decoder, and shapes and vocabularies that whisper.cpp lacks."""
        refused = whisper_refusal(model, self.name)
        if refused is not None:
            return refused
        config = WhisperParts.of(model).net.config
        size, width = config.vocab_size, config.d_model
        if config.encoder_ffn_dim != 4 * width or config.decoder_ffn_dim != 4 * width:
            what = "is ggml, and whisper.cpp has feed-forward layers of four times the width only"
            return ConfigError("to", what, "use to=ctranslate2 or to=onnx")
        if size not in _VOCABULARIES:
            known = ", ".join(map(str, _VOCABULARIES))
            what = f"is ggml, and this model has a vocabulary of {size}. whisper.cpp has {known}"
            return ConfigError("to", what, "use to=ctranslate2 or to=onnx")
        return None

    def write(self, model: ExportModel, folder: Path, *, quantization: str) -> None:
        """See `Format`.

        Raises:
            ConfigError: A matrix does not divide into blocks.
        """
        parts = WhisperParts.of(model)
        file_type, matrix_type = _TYPES[quantization]
        quantized = quantization.startswith("q")
        if quantized:
            _check_blocks(parts, quantization)
        with (folder / FILE_NAME).open("wb") as file:
            _write_sizes(file, parts, file_type + quantized * _QUANTIZATION_VERSION)
            filters_MF = slaney_filters(parts.n_mels, n_fft=N_FFT).T.contiguous().numpy()
            file.write(struct.pack("<2i", *filters_MF.shape) + filters_MF.tobytes())
            texts = text_tokens(parts)
            file.write(struct.pack("<i", len(texts)))
            for text in texts:
                file.write(struct.pack("<i", len(text)) + text)
            for key, tensor in parts.net.state_dict().items():
                if key != "proj_out.weight":
                    _write_tensor(file, tensor_name(key), tensor.numpy(), quantization, matrix_type)

    def runtime(self, folder: Path, model: ExportModel) -> Runtime:
        """The file in whisper.cpp, by pywhispercpp, on the CPU. See `Format`."""
        from pywhispercpp.model import Model

        parts = WhisperParts.of(model)
        options: dict[str, Any] = {"language": parts.language() or "auto"} if parts.tokenizer.is_multilingual else {}
        whisper = Model(
            str(folder / FILE_NAME),
            # Flash attention pads keys to a multiple of 256 without a mask, which changes short inputs.
            context_params={"flash_attn": False},
            redirect_whispercpp_logs_to=None,
            n_threads=torch.get_num_threads(),
            print_progress=False,
            translate=parts.tokenizer.task == "translate",
            no_timestamps=True,
            single_segment=True,
            suppress_nst=bool(parts.suppressed()[0]),
            temperature_inc=0.0,
            no_speech_thold=1.0,
            **options,
        )
        return _WhisperCpp(whisper, parts)

    def usage(self, folder: str, model: ExportModel) -> str:
        """See `Format`."""
        parts = WhisperParts.of(model)
        language, translate = parts.language(), parts.tokenizer.task == "translate"
        options = "" if language is None else f" -l {language}"
        arguments = "" if language is None else f', language="{language}"'
        return _USAGE.format(
            folder=folder,
            file=FILE_NAME,
            options=options + translate * " --translate",
            arguments=arguments + translate * ", translate=True",
            tail_s=parts.tail_s,
            tail=int(parts.tail_s * SAMPLE_RATE),
            per_frame=SAMPLES_PER_FRAME,
        )


def tensor_name(key: str) -> str:
    """OpenAI's name of a weight, from transformers' name."""
    for pattern, name in _NAMES:
        key = re.sub(pattern, name, key)
    return key


def text_tokens(parts: WhisperParts) -> list[bytes]:
    """Bytes of each text token, in the order of ids. Byte-level vocabularies spell a byte by a character."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    texts = parts.tokens()[: parts.tokenizer.end_id]
    return [bytes(byte_of[character] for character in text) for text in texts]


def _check_blocks(parts: WhisperParts, quantization: str) -> None:
    """Refuse matrices whose rows do not divide into blocks."""
    width = parts.net.config.d_model
    if width % _BLOCK:
        what = f"is {quantization}, whose blocks have {_BLOCK} weights, and the model's width is {width}"
        raise ConfigError("quantization", what, "use quantization=f16")


def _write_sizes(file: BinaryIO, parts: WhisperParts, file_type: int) -> None:
    config = parts.net.config
    sizes = (
        config.vocab_size,
        config.max_source_positions,
        config.d_model,
        config.encoder_attention_heads,
        config.encoder_layers,
        config.max_target_positions,
        config.d_model,
        config.decoder_attention_heads,
        config.decoder_layers,
        config.num_mel_bins,
        file_type,
    )
    file.write(struct.pack("<12i", _MAGIC, *sizes))


def _write_tensor(file: BinaryIO, name: str, values: NDArray[np.float32], quantization: str, matrix_type: int) -> None:
    if name in ("encoder.conv1.bias", "encoder.conv2.bias"):
        values = values[:, None]
    kind, data = 0, values
    if values.ndim >= 2 and not name.endswith("bias") and name not in _FLOAT32:
        kind, data = 1, values.astype(np.float16)
        # As in whisper.cpp, whose quantize reads a file in float16.
        if quantization != "f16" and values.ndim == 2:
            kind, data = matrix_type, quantized(data.astype(np.float32), quantization)
    encoded = name.encode()
    file.write(struct.pack("<3i", values.ndim, len(encoded), kind))
    file.write(struct.pack(f"<{values.ndim}i", *reversed(values.shape)))
    file.write(encoded + np.ascontiguousarray(data).tobytes())


def quantized(values: NDArray[np.float32], quantization: str) -> NDArray[Any]:
    """Rows of a matrix as blocks of 32 weights with a scale, as bytes."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    blocks: NDArray[Any] = quantize(values, GGMLQuantizationType[quantization.upper()])
    return blocks


class _WhisperCpp:
    """See `Runtime`. With real lengths, ``audio_ctx`` is the number of frames of the utterance and its silence."""

    def __init__(self, whisper: Any, parts: WhisperParts) -> None:
        self._whisper, self._parts = whisper, parts

    def transcribe(self, waveforms: Sequence[Tensor], *, real_length: bool) -> Iterator[str]:
        """See `Runtime`."""
        for waveform_T in waveforms:
            samples = with_silence(waveform_T, self._parts.tail_s if real_length else None)
            frames = -(-len(samples) // SAMPLES_PER_FRAME)
            found = self._whisper.transcribe(samples, audio_ctx=frames if real_length else 0)
            yield " ".join(" ".join(segment.text for segment in found).split())

    def words(self, waveforms: Sequence[Tensor]) -> Iterator[list[TimedWord]] | None:
        """See `Runtime`. whisper.cpp guesses times of words from their lengths, or uses fixed heads by model name."""
        return None
