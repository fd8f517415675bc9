"""Models to export, and the texts that they write."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import WhisperForConditionalGeneration

from ssl_asr.data.audio import read_waveform
from ssl_asr.data.dataset import collate
from ssl_asr.data.manifest import read_manifest
from ssl_asr.decoding.seq2seq import WhisperGreedy
from ssl_asr.export.base import ExportModel
from ssl_asr.inference.model import InferenceOptions, load_model
from ssl_asr.models.encoder import Window
from ssl_asr.training.module import ASRModule
from ssl_asr.types import Example, Utterance
from tests.toys import whisper_config


def pretrained_whisper(folder: Path) -> ExportModel:
    """A Whisper checkpoint in transformers' layout, as it is exported."""
    module = load_model(str(folder), InferenceOptions())
    module.set_decoder(WhisperGreedy(suppress=True, max_tokens_per_s=None))
    net = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    encoder = module.speech_encoder
    return ExportModel(module=module, net=net.requires_grad_(False), window=encoder.window, tail_s=encoder.tail_s)


def save_english_whisper(folder: Path) -> Path:
    """Saves a tiny random Whisper with the vocabulary size and the special tokens of English-only checkpoints."""
    torch.manual_seed(4)
    config = whisper_config()
    sizes = {"d_model": 64, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256, "vocab_size": 51_864}
    config.update({**sizes, "decoder_start_token_id": 50_257})
    config.update({f"{name}_token_id": 50_256 for name in ("eos", "bos", "pad")})
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [f"Ġ{a}{b}{c}{d}" for a, b, c, d in itertools.product("abcdefghijklmno", repeat=4)][: 50_256 - 256]
    tokenizer = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate([*alphabet, *letters])}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    languages = [f"<|{number}|>" for number in range(99)]
    last = ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"]
    specials = ["<|endoftext|>", "<|startoftranscript|>", *languages, *(f"<|{name}|>" for name in last)]
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(folder / "tokenizer.json"))
    # whisper.cpp always suppresses these.
    symbols = [i for i, character in enumerate(alphabet) if character in '"#()*+/:;<=>@[\\]^_`{|}~']
    suppressed = {
        "suppress_tokens": [*symbols, *range(50_257, 51_864)],
        "begin_suppress_tokens": [alphabet.index("Ġ"), 50_256],
    }
    (folder / "generation_config.json").write_text(json.dumps(suppressed))
    return folder


def examples_of(waveforms: Sequence[torch.Tensor]) -> list[Example]:
    """Waveforms at 16 kHz as utterances."""
    rows = [Utterance(str(i), "", len(waveform) / 16000) for i, waveform in enumerate(waveforms)]
    return [Example(row, waveform, []) for row, waveform in zip(rows, waveforms, strict=True)]


def batch_of(waveforms: Sequence[torch.Tensor]):
    """A batch of waveforms at 16 kHz."""
    return collate(examples_of(waveforms))


def texts_of(module: ASRModule, waveforms: Sequence[torch.Tensor], window: Window | None = None) -> list[str]:
    """Texts of waveforms, one at a time."""
    module.speech_encoder.set_window(window, None)
    with torch.inference_mode():
        return [module.transcribe(batch_of([waveform]))[0].text for waveform in waveforms]


def noise(*lengths: int) -> list[torch.Tensor]:
    """Waveforms of these lengths: noise with a loudness that varies."""
    generator = torch.Generator().manual_seed(3)
    waves = [torch.randn(length, generator=generator) for length in lengths]
    return [wave * torch.linspace(0.01, 0.5, len(wave)) for wave in waves]


def speech(manifest: Path, count: int) -> list[torch.Tensor]:
    """The first waveforms of a manifest."""
    return [read_waveform(utterance) for utterance in read_manifest(manifest)[:count]]


def read(path: Path):
    """Content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
