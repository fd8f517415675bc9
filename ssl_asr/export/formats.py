"""The export formats by name."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

from ssl_asr.errors import ConfigError, did_you_mean, missing_extra
from ssl_asr.export.base import Format

# The class of each format. Modules are imported when they are used, because some need an extra.
FORMATS = {
    "transformers": "ssl_asr.export.transformers.Transformers",
    "ctranslate2": "ssl_asr.export.ctranslate2.CTranslate2",
    "ggml": "ssl_asr.export.ggml.Ggml",
    "onnx": "ssl_asr.export.onnx.Onnx",
}


def load_format(name: str) -> Format:
    """The format of this name.

    Raises:
        ConfigError: There is no such format, or its extra is not installed.
    """
    if name not in FORMATS:
        raise ConfigError("to", f"no format '{name}'", did_you_mean(name, list(FORMATS)))
    module, _, kind = FORMATS[name].rpartition(".")
    make: Callable[[], Format] = getattr(import_module(module), kind)
    form = make()
    for package in form.packages:
        if find_spec(package) is None:
            assert form.extra is not None
            raise missing_extra(f"to={name}", package.replace("_", "-"), form.extra)
    return form


def checked_quantization(form: Format, quantization: str | None) -> str:
    """The quantization of an export: the given one, or the format's default.

    Raises:
        ConfigError: The format does not have it.
    """
    if quantization is None:
        return form.quantizations[0]
    if quantization not in form.quantizations:
        what = f"is {quantization}, and to={form.name} has {', '.join(form.quantizations)}"
        raise ConfigError("quantization", what, f"use quantization={form.quantizations[0]}")
    return quantization
