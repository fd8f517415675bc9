"""Fine-tune pretrained speech models; importing the package imports no torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_asr.api import Transcriber

__version__ = "0.1.0"


def load(model: str, **options: Any) -> "Transcriber":
    """A model that transcribes: see `ssl_asr.api.load`."""
    from ssl_asr.api import load as load_transcriber

    return load_transcriber(model, **options)
