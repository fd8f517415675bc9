"""``ssl-asr corpus``: synthesize a small corpus of a narrow domain, for smoke tests."""

from pathlib import Path

from ssl_asr.config.tools import CorpusConfig
from ssl_asr.console import shows_bars


def corpus(config: CorpusConfig, folder: Path) -> float | None:  # noqa: ARG001
    """Synthesize the corpus, and print the paths of its manifests."""
    from rich.progress import Progress

    from ssl_asr.data.corpora.spoken import CorpusSizes, make_corpus

    sizes = CorpusSizes(train=config.train, dev=config.dev, test=config.test)
    with Progress(disable=not (config.verbose and shows_bars()), transient=True) as progress:
        task = progress.add_task("speak", total=sizes.train + sizes.dev + sizes.test)
        manifests = make_corpus(
            Path(config.output_dir),
            sizes,
            seed=config.seed,
            progress=lambda done, _: progress.update(task, completed=done),
        )
    for split, path in manifests.items():
        print(f"{split}\t{path}")
    return None
