"""``ssl-asr extract``: states of any layer of an encoder, as safetensors shards and an index."""

from pathlib import Path
from typing import Any

from ssl_asr.errors import ConfigError


def extract(config: dict[str, Any], folder: Path) -> float | None:  # noqa: ARG001
    """Write the states the resolved config asks for; utterances that are there already are passed over."""
    from ssl_asr.build.assembly import InferenceOptions, load_states_encoder
    from ssl_asr.console import hush, make_console
    from ssl_asr.data.inputs import gather
    from ssl_asr.inference.batches import extract_states
    from ssl_asr.training.state_cache import StateCache

    hush()
    console = make_console() if config["verbose"] else None
    manifest, unreadable = gather([Path(path) for path in config["input"]])
    options = InferenceOptions(window=config["window"], tail_s=config["tail_s"])
    encoder = load_states_encoder(config["model"], options, console.print if console else (lambda _: None))
    cache = StateCache(
        encoder,
        folder=Path(config["output_dir"]),
        layers=_layers(config["layers"], encoder),
        dtype=config["dtype"],
        silence=config["silence"],
        downmix="mean",
    )
    keys = ("max_batch_s", "num_workers", "accelerator", "precision")
    skips = extract_states(cache, manifest, console=console, **{key: config[key] for key in keys})
    for skip in [*unreadable, *skips]:
        print(f"skipped {skip.id}: {skip.reason}: {skip.detail}")
    if not len(cache.store):
        raise ConfigError("input", "nothing could be encoded", "see the lines above")
    return None


def _layers(wanted: str | list[int], encoder: Any) -> list[int]:
    """Layer numbers; those above the highest are taken off the encoder.

    Raises:
        ConfigError: there is no such layer.
    """
    top = encoder.n_layers
    layers = {"last": [top], "all": list(range(top + 1))}.get(wanted) if isinstance(wanted, str) else wanted
    if not layers or any(not 0 <= layer <= top for layer in layers) or sorted(set(layers)) != layers:
        fix = f"last, all, or a rising list of 0 (what the first layer reads) to {top}"
        raise ConfigError("layers", f"is {wanted!r}", f"it should be {fix}")
    encoder.cut(layers[-1])
    return layers
