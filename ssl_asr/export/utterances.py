"""The utterances whose transcripts are compared."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssl_asr.config.nodes import named_manifests
from ssl_asr.data.audio import read_waveform
from ssl_asr.data.filters import fault_of
from ssl_asr.data.manifest import Manifest, read_named
from ssl_asr.errors import AudioError, ConfigError, ManifestError, UserError
from ssl_asr.inference.languages import spread
from ssl_asr.training.module import ASRModule
from ssl_asr.types import Example, Seconds, Skip

# Longest utterance of a CTC model that is compared.
_LONGEST_S: Seconds = 30.0


def read_examples(
    module: ASRModule, manifests: Mapping[str, Manifest], *, most: int, root: str | None
) -> tuple[list[Example], list[Skip]]:
    """Utterances that fit the model, with their audio, and those that were left out.

    Args:
        module: The model.
        manifests: Manifests by name. Empty for those of the run, see `own_manifests`.
        most: Largest number of utterances. They are evenly spread over all that fit.
        root: See `read_named`.

    Raises:
        ConfigError: No manifest is given, and the run has none that exists.
        ManifestError: A manifest cannot be read, or no utterance can be used.
    """
    manifests = manifests or own_manifests(module, root=root)
    limits = replace(module.limits(), max_s=module.longest_pass_s(_LONGEST_S), max_s_why="one pass")
    faults = [(row, fault_of(row, limits, None)) for one in manifests.values() for row in one]
    fitting = [row for row, fault in faults if fault is None]
    skips = [fault for _, fault in faults if fault is not None]
    examples: list[Example] = []
    for place in spread(range(len(fitting)), most):
        try:
            examples.append(Example(fitting[place], read_waveform(fitting[place], downmix=module.downmix), []))
        except AudioError as error:
            row = fitting[place]
            skips.append(Skip(row.id, row.where, error.reason, str(error), row.duration))
    if not examples:
        paths = ", ".join(str(one.path) for one in manifests.values())
        reasons = f": {skips[0].detail}" if skips else ""
        raise ManifestError(paths, f"no utterance can be compared{reasons}", "give other utterances: manifest=…")
    return examples, skips


def own_manifests(module: ASRModule, *, root: str | None = None) -> dict[str, Manifest]:
    """The test manifests of the run that trained a model, or else its dev manifest.

    Manifests without a file, or whose first utterance has no audio file, count as missing.

    Raises:
        ConfigError: There is none.
    """
    data: dict[str, Any] = (module.run_config or {}).get("data", {})
    missing: list[str] = []
    for given in (data.get("test"), data.get("dev")):
        paths = named_manifests(given, "test") if given else {}
        found = {name: manifest for name, path in paths.items() if (manifest := _existing(path, root)) is not None}
        if found:
            return found
        missing += paths.values()
    seen = f" (of the run, {', '.join(missing)} and its audio no longer exist)" if missing else ""
    raise ConfigError("manifest", f"is missing{seen}", "give utterances to compare: manifest=test.jsonl")


def _existing(path: str, root: str | None) -> Manifest | None:
    """A manifest with audio, or None."""
    if not Path(path).is_file():
        return None
    try:
        [manifest] = read_named({"test": path}, root=root).values()
        read_waveform(manifest[0])
    except UserError:
        return None
    return manifest
