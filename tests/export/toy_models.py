"""Toy models that are exported."""

from pathlib import Path

import torch

from ssl_asr.data.characters import CharTokenizer
from ssl_asr.data.pieces import Pieces, PieceTokenizer
from ssl_asr.data.symbols import SymbolTokenizer
from ssl_asr.decoding.ctc import CtcGreedy
from ssl_asr.export.base import ExportModel
from ssl_asr.export.model import export_model
from ssl_asr.inference.model import InferenceOptions, load_model
from ssl_asr.models.freezing import TrainAll
from ssl_asr.models.heads import LinearHead
from ssl_asr.models.states import LastLayer
from ssl_asr.training.ctc import CTCModule
from ssl_asr.types import Utterance
from tests.toys import toy_encoder

CHARACTERS = CharTokenizer(characters=" abc'", normalizer="lower")
SYMBOLS = SymbolTokenizer(symbols=["AA", "K", "T", "ʃ"], normalizer="none")
SENTENCES = ["a cab is back", "back to the cab", "the cat sat on a mat", "that cat is back at the cab", "so be it"]


def pieces(kind: str) -> PieceTokenizer:
    """A SentencePiece tokenizer of a few sentences."""
    rows = [Utterance(str(i), "", 1.0, text=text) for i, text in enumerate(SENTENCES)]
    return PieceTokenizer.from_texts(rows, options=Pieces(model=kind, size=24, normalizer="lower"))


def ctc_module(name: str, checkpoints: dict[str, Path], tokenizer=CHARACTERS, head=None, states=None) -> CTCModule:
    """A CTC model with a random head that writes many labels."""
    encoder = toy_encoder(name, checkpoints)
    layer = (states or LastLayer(stride=1)).build(encoder)
    made = (head or LinearHead(dropout=0.1)).build(dim=layer.dim, vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(2.0 * torch.randn_like(parameter))
    return CTCModule(
        encoder=encoder,
        states=layer,
        head=made,
        decoder=CtcGreedy(),
        tokenizer=tokenizer,
        policy=TrainAll(),
        optim=None,
        normalizers={},
    ).eval()


def ctc_model(name: str, checkpoints: dict[str, Path], **parts) -> ExportModel:
    """A CTC model that is exported. See `ctc_module`."""
    return export_model(ctc_module(name, checkpoints, **parts))


def whisper_model(checkpoints: dict[str, Path], **options) -> ExportModel:
    """The toy Whisper."""
    return export_model(load_model(str(checkpoints["whisper"]), InferenceOptions(**options)))


def waveforms(*seconds: float) -> list[torch.Tensor]:
    """Noise that changes its color."""
    made = []
    for i, length in enumerate(seconds):
        generator = torch.Generator().manual_seed(i)
        noise = torch.randn(int(length * 16000), generator=generator)
        made.append(0.1 * noise * torch.linspace(0, 12, len(noise)).sin())
    return made
