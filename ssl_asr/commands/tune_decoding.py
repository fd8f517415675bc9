"""``ssl-asr tune_decoding``: find the weights of a CTC beam search on dev data, and write them to a file."""

from pathlib import Path

from ssl_asr.config.schemas import TuneDecodingConfig


def tune_decoding(config: TuneDecodingConfig, folder: Path) -> float | None:  # noqa: ARG001
    """Tune, and return the WER on dev."""
    from ssl_asr.config.nodes import write_decoder
    from ssl_asr.console import hush, make_console, say_to
    from ssl_asr.data.manifest import read_named
    from ssl_asr.data.text import get_normalizer
    from ssl_asr.inference.decoder_tuning import Grid, Trials, record, show, tune
    from ssl_asr.inference.model import load_model
    from ssl_asr.inference.options import inference_options, run_options

    hush()
    console = make_console() if config.verbose else None
    manifests = read_named(config.manifest, root=config.root)
    module = load_model(config.model, inference_options(config), say_to(console))
    recorded = record(module, manifests, config.decoder, run=run_options(config, module), console=console)
    trials = Trials(recorded, get_normalizer(config.normalizer, key="normalizer"))
    grid = Grid(
        lm_weights=config.lm_weights,
        word_scores=config.word_scores,
        unknown_scores=config.unknown_scores,
        beam_sizes=config.beam_sizes,
        rescore_weights=config.rescore_weights,
        rescore_word_scores=config.rescore_word_scores,
    )
    tuned = tune(trials, config.decoder, grid, console=console)
    write_decoder(Path(config.output), tuned.options)
    if console is not None:
        show(tuned, trials.greedy_wer(), trials.unit, console)
    print(f"WER {100 * tuned.wer:.2f} on dev; the settings are in {config.output}")
    return tuned.wer
