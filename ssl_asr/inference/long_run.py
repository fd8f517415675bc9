"""All long recordings of manifests, several at once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ssl_asr.console import shows_bars
from ssl_asr.data.manifest import Manifest
from ssl_asr.data.signal import notices
from ssl_asr.errors import AudioError
from ssl_asr.inference.long_form import LongForm
from ssl_asr.inference.long_recordings import transcribe_long
from ssl_asr.inference.recognizer import Recognizer
from ssl_asr.inference.recording import Recording
from ssl_asr.inference.running import RunOptions, inference_device
from ssl_asr.inference.together import Job, run_together
from ssl_asr.metrics.report import Prediction
from ssl_asr.training.memory import keep_freed_memory
from ssl_asr.training.module import ASRModule, TranscribeOptions
from ssl_asr.types import Notice, Seconds, Skip, Utterance


class LongRun:
    """Transcribes long recordings, several at once, with a progress bar in minutes of audio."""

    def __init__(
        self,
        module: ASRModule,
        run: RunOptions,
        options: TranscribeOptions,
        long_form: LongForm,
        console: Console | None,
    ) -> None:
        self._module, self._run, self._options, self._long_form = module, run, options, long_form
        self._console = console
        self._noticed: dict[int, Sequence[Notice]] = {}

    def __call__(
        self, manifests: Mapping[str, Manifest], longest_s: Seconds
    ) -> Iterator[tuple[str, Prediction | Skip, Sequence[Notice]]]:
        """Each recording as it ends: the name of its manifest, its prediction, and findings in its audio.

        A recording that could not be read has a `Skip` in place of a prediction, and no findings.

        Args:
            manifests: Manifests by name.
            longest_s: Only longer recordings are transcribed.
        """
        is_long = {name: one.durations_N > longest_s for name, one in manifests.items()}
        names = [name for name, is_long_N in is_long.items() for _ in range(is_long_N.sum())]
        utterances = [manifests[name][i] for name in manifests for i in np.flatnonzero(is_long[name]).tolist()]
        if not utterances:
            return
        device = inference_device(self._run.accelerator)
        if device.type == "cpu":
            keep_freed_memory()
        self._module.eval().to(device)
        with _MinutesBar(self._console, utterances) as bar:
            jobs = [
                Job(partial(self._one, place, bar=bar, utterance=one), one.duration)
                for place, one in enumerate(utterances)
            ]
            for place, result in run_together(self._module, jobs, max_batch_s=self._long_form.batch_s):
                bar.end(place)
                yield names[place], result, self._noticed.get(place, ())

    @property
    def notices(self) -> dict[Notice, None]:
        """Findings in the audio, in the order of the recordings."""
        return dict.fromkeys(notice for place in sorted(self._noticed) for notice in self._noticed[place])

    def _one(
        self, place: int, model: Recognizer, check: Callable[[], None], *, bar: "_MinutesBar", utterance: Utterance
    ) -> Prediction | Skip:
        recording = Recording(utterance, downmix=self._run.downmix, check=check)
        try:
            hypothesis = transcribe_long(model, recording, self._long_form, self._options, partial(bar.update, place))
        except AudioError as error:
            if self._run.on_bad_audio == "error":
                raise
            return Skip(utterance.id, utterance.where, error.reason, str(error), utterance.duration)
        self._noticed[place] = notices(utterance.id, recording.signals)
        return Prediction.of(utterance, hypothesis)


class _MinutesBar:
    """A progress bar in minutes of all long recordings, removed at its end.

    Args:
        console: Where it is shown. None shows nothing.
        utterances: The recordings.
    """

    def __init__(self, console: Console | None, utterances: Sequence[Utterance]) -> None:
        columns = (
            # Brackets in file names are not markup.
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.1f}/{task.total:.1f} min"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        disable = console is None or not shows_bars(console)
        self._progress = Progress(*columns, console=console, transient=True, disable=disable)
        self._seconds, self._done_s = [one.duration for one in utterances], [0.0] * len(utterances)
        what = utterances[0].id if len(utterances) == 1 else f"{len(utterances)} long recordings"
        self._task = self._progress.add_task(what, total=sum(self._seconds) / 60)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, place: int, seconds: Seconds) -> None:
        """Show how much of a recording is done. Can be called from any thread."""
        self._done_s[place] = seconds
        self._progress.update(self._task, completed=sum(self._done_s) / 60)

    def end(self, place: int) -> None:
        """Show that a recording has ended, also one that could not be read."""
        self.update(place, self._seconds[place])
