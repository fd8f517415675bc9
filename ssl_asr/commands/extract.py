"""``ssl-asr extract``: states of an encoder's layers, as safetensors shards and an index."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_asr.config.schemas import ExtractConfig
from ssl_asr.errors import ConfigError

if TYPE_CHECKING:
    from ssl_asr.data.manifest import Manifest
    from ssl_asr.models.encoder import SpeechEncoder


def extract(config: ExtractConfig, folder: Path) -> float | None:  # noqa: ARG001
    """Write states. Utterances with states on disk are not encoded again."""
    from ssl_asr.console import hush, make_console, say_to
    from ssl_asr.data.inputs import expand, gather
    from ssl_asr.inference.extraction import extract_states
    from ssl_asr.inference.model import load_encoder
    from ssl_asr.inference.options import inference_options, run_options
    from ssl_asr.inference.summary import Summary
    from ssl_asr.training.state_cache import StateCache

    hush()
    console = make_console() if config.verbose else None
    given = gather(expand(config.input, sys.stdin), root=config.root)
    _check_ids(given.manifest)
    if not len(given.manifest):
        # Raises, so that the encoder is not loaded for nothing.
        Summary(given.count, 0, given.skips, given.notes, verb="encoded").show(console, file=sys.stdout)
    encoder = load_encoder(config.model, inference_options(config), say_to(console))
    cache = StateCache(
        encoder,
        folder=Path(config.output_dir),
        layers=_cut(encoder, config.layers),
        dtype=config.dtype,
        silence=config.silence,
        downmix=config.downmix,
    )
    skips = extract_states(cache, given.manifest, run=run_options(config), console=console)
    done = len(given.manifest) - len(skips)
    summary = Summary(given.count, done, [*given.skips, *skips], given.notes, verb="encoded")
    summary.show(console, file=sys.stdout)
    return None


def _check_ids(manifest: "Manifest") -> None:
    """States are stored by id, so the ids of all recordings must differ.

    Raises:
        ConfigError: Two recordings have one id.
    """
    first: dict[str, str] = {}
    for utterance in manifest:
        where = utterance.where or utterance.audio_filepath
        if utterance.id in first:
            what = f"id '{utterance.id}' is used at {first[utterance.id]} and at {where}, and states are stored by id"
            raise ConfigError("input", what, "give each utterance an id of its own")
        first[utterance.id] = where


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
