"""``ssl-asr tune_decoding``: find a beam search's weights on dev data, and write them down."""

from pathlib import Path
from typing import Any

from ssl_asr.errors import ConfigError


def tune_decoding(config: dict[str, Any], folder: Path) -> float | None:  # noqa: ARG001
    """Tune as the resolved config says; returns the WER on dev."""
    from ssl_asr.build.assembly import InferenceOptions, load_model, make_decoder
    from ssl_asr.config.resolve import write_decoder
    from ssl_asr.console import hush, make_console
    from ssl_asr.data.manifest import read_manifest
    from ssl_asr.data.text import get_normalizer
    from ssl_asr.inference.batches import recognise
    from ssl_asr.inference.decoder_tuning import Heard, Recorder, Trials, show, tune
    from ssl_asr.metrics.edit import Edits, word_edits
    from ssl_asr.training.ctc import CTCModule

    hush()
    console = make_console() if config["verbose"] else None
    manifests = {name: read_manifest(path) for name, path in config["manifest"].items()}
    options = InferenceOptions(window=config["window"], tail_s=config["tail_s"])
    module = load_model(config["model"], options, console.print if console else (lambda _: None))
    if not isinstance(module, CTCModule):
        raise ConfigError("model", "has no CTC layer, and it is CTC's beam search that is tuned", "a CTC or joint run")
    start = make_decoder(config["decoder"])
    # Its files are read before the model runs.
    start.build(module.labels)
    module.search = recorder = Recorder()
    keys = ("max_batch_s", "num_workers", "accelerator", "precision")
    recognise(
        module,
        manifests,
        on_bad_audio="skip",
        max_skip_fraction=0.05,
        console=console,
        **{key: config[key] for key in keys},
    )
    predictions = [one for name in manifests for one in module.predictions[name]]
    normalize = get_normalizer(config["normalizer"])
    heard = [Heard(*pair) for pair in zip(recorder.kept, predictions, strict=True)]
    greedy = sum((word_edits(normalize(p.ref, p.lang), normalize(p.hyp, p.lang)) for p in predictions), Edits())
    tried = ("lm_weights", "word_scores", "unknown_scores", "beam_sizes", "rescore_weights", "rescore_word_scores")
    grid = {key: config[key] for key in tried}
    tuned = tune(Trials(module, heard, normalize), start, console=console, **grid)
    write_decoder(Path(config["output"]), tuned.options)
    if console is not None:
        show(tuned, greedy.rate, console)
        console.print(f"WER {100 * tuned.wer:.2f} on dev; the settings are in {config['output']}")
    return tuned.wer
