"""The ``data`` option. Imports no Lightning, so that a command line is checked quickly."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Interval

from ssl_asr.errors import ConfigError
from ssl_asr.types import (
    Downmix,
    Expected,
    Fraction,
    InputPath,
    IsPath,
    ManifestPath,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Seconds,
    WorkerCount,
)

if TYPE_CHECKING:
    from ssl_asr.config.schemas import TrainConfig

SpeedFactor = Annotated[float, Interval(ge=0.5, le=2), Expected("a factor from 0.5 to 2")]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The ``data`` group: manifests, which utterances are kept, and how they are batched.

    Attributes:
        train: Manifests of the train split by names of their corpora. A config may also give a path, or a list of
            paths.
        dev: Manifest of the dev split, or None for no validation.
        test: Manifests of test splits by name. A config may also give a path, or a list of paths.
        max_batch_s: Seconds that the encoder computes for a training batch, padding included. A Whisper with
            window=30s computes 30 seconds for each utterance, one with window=real the longest tail of silence.
            ``auto`` takes the most that fits the memory of the device, see `ssl_asr.build.budget`.
        max_batch_size: Utterances in a training batch, or None for no limit.
        eval_batch_s: The same for a dev or test batch. null is 120; or, with Whisper, 480 with window=30s and 180 with
            window=real.
        min_s: Shorter utterances are dropped, in seconds.
        max_s: Longer utterances are dropped, in seconds. None leaves the limit to the model.
        split_segments: Train on the ``segments`` of lines that have some, each as an utterance, in place of the whole.
        mix_by: Key of the manifest by which training utterances are grouped, such as ``lang``. ``corpus`` groups them
            by manifest.
        mix_weights: Weight of each group by its name, or None for equal weights. Other groups have the weight 1. A
            group of weight 0 is never drawn. See `ssl_asr.data.mixture`.
        mix_temperature: Above 1, small groups are drawn more often.
        concatenate_s: Join short training utterances of one speaker up to this length, in seconds. None joins none.
        speed_factors: Factors of speed perturbation, drawn for each utterance and epoch: usually [0.9, 1.0, 1.1]. An
            empty list leaves the audio unchanged.
        tempo_factors: Factors of tempo, drawn in the same way. Tempo keeps the pitch. Each pair of a speed and a tempo
            is drawn equally often.
        num_workers: Processes that read audio. 0 reads in the main process.
        downmix: What to do with several channels: ``mean``, ``first`` or ``refuse``. Channels that cancel when mixed
            become one of them.
        resample: Whether files of other sample rates than 16 kHz are resampled. false drops them as audio that cannot
            be used, see ``on_bad_audio`` and ``max_skip_fraction``.
        check_audio: Open every file at the start, and compare its header with the manifest. Audio behind addresses is
            fetched for it, see `ssl_asr.data.remote`.
        on_bad_audio: ``skip`` counts and names files that cannot be read. ``error`` stops at the first one.
        max_skip_fraction: Largest fraction of a split that may be dropped.
        allow_duplicate_ids: Whether train, dev and test may share utterance ids.
        root: Folder that all audio of the manifests must lie in, or None for any folder. Symbolic links are resolved.
            Set it for manifests that you did not make: a line may name any file of the machine. Addresses are in no
            folder.
        max_leakage: Largest fraction of a dev or test split whose audio may also be in train, under whatever name. 1
            skips the check for shared audio, texts and speakers.
    """

    train: Annotated[dict[str, str], IsPath("manifest")]
    dev: ManifestPath | None
    test: Annotated[dict[str, str], IsPath("manifest")]
    max_batch_s: PositiveFloat | Literal["auto"]
    max_batch_size: PositiveInt | None
    eval_batch_s: PositiveFloat | None
    min_s: NonNegativeFloat
    max_s: PositiveFloat | None
    split_segments: bool
    mix_by: str
    mix_weights: dict[str, NonNegativeFloat] | None
    mix_temperature: PositiveFloat
    concatenate_s: PositiveFloat | None
    speed_factors: list[SpeedFactor]
    tempo_factors: list[SpeedFactor]
    num_workers: WorkerCount
    downmix: Downmix
    check_audio: bool
    on_bad_audio: Literal["skip", "error"]
    max_skip_fraction: Fraction
    allow_duplicate_ids: bool
    max_leakage: Fraction
    root: InputPath | None = None
    resample: bool = True

    @property
    def batch_s(self) -> Seconds:
        """``max_batch_s``, after `ssl_asr.build.budget` has replaced ``auto`` by a number."""
        assert self.max_batch_s != "auto"
        return self.max_batch_s

    def conflicts(self, run: "TrainConfig") -> Iterator[ConfigError]:
        """A run without a train split."""
        if not self.train and run.needs_data:
            yield ConfigError("data.train", "has no manifest", "give data.train=…")
        if self.max_batch_s == "auto":
            what, remedy = "is auto, which does not work with", "give a number of seconds"
            if run.trainer.strategy.startswith("fsdp"):
                yield ConfigError("data.max_batch_s", f"{what} trainer.strategy={run.trainer.strategy}", remedy)

    def prepare(self) -> None:
        """Called before the manifests are read. A corpus of your own may download or create its files here.

        Every process of a run calls this method.
        """
