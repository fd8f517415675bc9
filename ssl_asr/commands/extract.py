"""``ssl-asr extract``: states of an encoder's layers, as safetensors shards and an index."""

from pathlib import Path
from typing import TYPE_CHECKING

from ssl_asr.config.schemas import ExtractConfig
from ssl_asr.errors import ConfigError

if TYPE_CHECKING:
    from ssl_asr.models.encoder import SpeechEncoder


def extract(config: ExtractConfig, folder: Path) -> float | None:  # noqa: ARG001
    """Write states. Utterances with states on disk are not encoded again."""
    from ssl_asr.console import hush, make_console, say_to
    from ssl_asr.data.inputs import gather
    from ssl_asr.inference.extraction import extract_states
    from ssl_asr.inference.model import load_encoder
    from ssl_asr.inference.options import inference_options, run_options
    from ssl_asr.training.state_cache import StateCache

    hush()
    console = make_console() if config.verbose else None
    manifest, unreadable = gather([Path(path) for path in config.input])
    encoder = load_encoder(config.model, inference_options(config), say_to(console))
    cache = StateCache(
        encoder,
        folder=Path(config.output_dir),
        layers=_cut(encoder, config.layers),
        dtype=config.dtype,
        silence=config.silence,
        downmix=config.downmix,
    )
    skips = extract_states(cache, manifest, run=run_options(config), console=console)
    for skip in [*unreadable, *skips]:
        print(f"skipped {skip.id}: {skip.reason}: {skip.detail}")
    if not len(cache.store):
        raise ConfigError("input", "nothing could be encoded", "see the lines above")
    return None


def _cut(encoder: "SpeechEncoder", wanted: str | list[int]) -> list[int]:
    """The layers to write. Layers above the highest one are removed from the encoder.

    Raises:
        ConfigError: The encoder does not have one of the layers.
    """
    top = encoder.n_layers
    layers = {"last": [top], "all": list(range(top + 1))}.get(wanted) if isinstance(wanted, str) else wanted
    if not layers or any(not 0 <= layer <= top for layer in layers) or sorted(set(layers)) != layers:
        expected = f"expected last, all, or a rising list of numbers from 0 (input of the first layer) to {top}"
        raise ConfigError("layers", f"is {wanted!r}, {expected}", "write for example layers=[0,1]")
    encoder.cut(layers[-1])
    return layers
