"""Base class of all tasks: two optimizers, frozen parts, validation, and transcription."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ssl_asr.data.filters import Limits
from ssl_asr.data.identity import row_key
from ssl_asr.data.state_store import state_digest
from ssl_asr.decoding.alignment import Measure
from ssl_asr.decoding.option import DecoderOption
from ssl_asr.errors import CheckpointError, ConfigError
from ssl_asr.metrics.report import Prediction
from ssl_asr.models.encoder import EncoderOutput, LayerGroup, SpeechEncoder
from ssl_asr.models.freezing import FreezePolicy
from ssl_asr.training.parts import whole
from ssl_asr.training.pictures import Picture
from ssl_asr.training.sides import OptimConfig, Sides
from ssl_asr.training.skips import over_ranks
from ssl_asr.training.state_cache import StateCache
from ssl_asr.training.validation import ValidationLoop
from ssl_asr.types import SAMPLE_RATE, Batch, Downmix, Hypothesis, Normalizer, Seconds, Tokenizer, Utterance

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LongFormMethod = Literal["windows", "timestamps"]
"""How a model transcribes a recording that is too long for one pass.

``windows``: overlapping windows with joined log-probabilities, for `WindowedModule`. ``timestamps``: from one
segment's end to the next, for `TimestampModule`. Any model can transcribe the parts that voice activity leaves.
"""


@dataclass(frozen=True, kw_only=True)
class TranscribeOptions:
    """What `ASRModule.transcribe` returns besides text, and from what.

    Attributes:
        confidence: Measure of confidence of words, which then have times; None returns no words.
        align: Align the text of each utterance instead of decoding; needs ``confidence``.
        timestamps: Decode with timestamp tokens, whatever the decoder option says. Whisper only.
    """

    confidence: Measure | None = None
    align: bool = False
    timestamps: bool = False


TEXT_ONLY = TranscribeOptions()
"""Text, with segments if the decoder option asks for timestamps."""


class ASRModule(ValidationLoop):
    """A speech recognizer: trains with two optimizers and transcribes.

    The first optimizer has the pretrained encoder, the second all other parameters. ``global_step`` is the number of
    updates. A subclass defines `loss`, `transcribe`, `set_decoder` and `description`.

    Args:
        encoder: The pretrained encoder.
        rest: All other parameters (head, or decoder without its encoder).
        rest_groups: Layer groups of ``rest``.
        tokenizer: Spells targets and hypotheses. Its state goes into checkpoints.
        policy: Which layer groups train.
        optim: How updates are made, or None for a module that only transcribes.
        normalizers: Text normalizers by name. The first one's WER is ``val/wer``.
    """

    task_name: str
    """Name of the task: ``ctc``, ``joint`` or ``seq2seq``, as in the ``tasks`` of options."""

    aligns: bool = False
    """Whether the model can align known texts."""

    downmix: Downmix = "mean"
    """What several channels become, as in the training of the model."""

    run_config: dict[str, Any] | None = None
    """Configuration of the run that trained the model, as plain data. None for pretrained models."""

    long_form: LongFormMethod | None = None
    """How long recordings are transcribed without voice activity detection; None if they cannot be."""

    def __init__(
        self,
        *,
        encoder: SpeechEncoder,
        rest: nn.Module,
        rest_groups: Sequence[LayerGroup],
        tokenizer: Tokenizer,
        policy: FreezePolicy,
        optim: OptimConfig | None,
        normalizers: dict[str, Normalizer],
    ) -> None:
        sides = Sides(
            encoder=encoder, encoder_groups=encoder.layer_groups(), rest=rest, rest_groups=rest_groups, policy=policy
        )
        super().__init__(encoder=encoder, sides=sides, optim=optim, normalizers=normalizers)
        self.tokenizer, self.policy = tokenizer, policy
        self._state_cache: StateCache | None = None
        self._frozen_digest: str | None = None
        self._gathered: tuple[list[Prediction], list[Prediction]] = ([], [])

    # Encoding ------------------------------------------------------------------------------------------------

    @property
    def reads_layers(self) -> bool:
        """Whether the task reads the states of every layer of the encoder."""
        return False

    def encode(self, batch: Batch) -> EncoderOutput:
        """The encoder's output; without gradients if the encoder is frozen, from the state cache if there is one."""
        if self._state_cache is not None and not self.trainer.testing:
            assert self.sides.encoder_is_frozen
            return self._state_cache.encode(batch)
        with torch.no_grad() if self.sides.encoder_is_frozen else nullcontext():
            out: EncoderOutput = self.speech_encoder(batch.waveform_BT, batch.lengths_B, layers=self.reads_layers)
        return out

    def _fresh(self, batch: Batch) -> EncoderOutput:
        """The encoder's output, whatever a state cache has. Gradients are off where this is used."""
        out: EncoderOutput = self.speech_encoder(batch.waveform_BT, batch.lengths_B, layers=self.reads_layers)
        return out

    @property
    def caches_states(self) -> bool:
        """Whether states are read from a state cache, so that the encoder does not run in later epochs."""
        return self._state_cache is not None

    def use_state_cache(self, cache: StateCache) -> None:
        """Read the states of training and dev utterances from a cache. The encoder must be frozen."""
        self._state_cache = cache

    def on_fit_start(self) -> None:
        """Set the rank of the state cache before any batch, those of a sanity validation included.

        The digest of frozen weights that checkpoints leave out is that of the pretrained weights, which are float32.
        """
        if self.optim is not None and self.optim.bf16_weights and self.policy.only_trained:
            self._frozen_digest = state_digest((name, p) for name, p in self.named_parameters() if not p.requires_grad)
        super().on_fit_start()
        if self._state_cache is not None:
            self._state_cache.store.rank = self.global_rank

    def on_train_epoch_end(self) -> None:
        """Log skipped updates, and write encoded states to disk."""
        super().on_train_epoch_end()
        self._flush_states()

    def on_validation_epoch_end(self) -> None:
        """Log error rates, and write encoded states to disk."""
        super().on_validation_epoch_end()
        self._flush_states()

    def _flush_states(self) -> None:
        """Write encoded states on every rank before any rank reads the index of states."""
        if self._state_cache is not None:
            self._state_cache.store.flush()
            self.trainer.strategy.barrier()

    # What a task defines ---------------------------------------------------------------------------------------

    def transcribe(
        self, batch: Batch, out: EncoderOutput | None = None, options: TranscribeOptions = TEXT_ONLY
    ) -> list[Hypothesis]:
        """One hypothesis for each utterance, in batch order.

        Args:
            batch: Utterances. Targets are not used, except with ``options.align``.
            out: The encoder's output for the batch if it is already computed.
            options: What to return besides text.
        """
        raise NotImplementedError

    decoder: DecoderOption
    """The ``decoder`` option by which the model decodes."""

    def set_decoder(self, decoder: DecoderOption) -> None:
        """Decode by this ``decoder`` option from now on.

        Raises:
            ConfigError: The option is for models of another task.
            LanguageModelError: A file of the decoder is missing or wrong.
        """
        raise NotImplementedError

    def cap_tokens(self, max_tokens_per_s: float) -> None:
        """Limit the tokens of each hypothesis by the length of its utterance.

        Raises:
            ConfigError: The model does not decode token by token.
        """
        raise ConfigError("max_tokens_per_s", "this model does not decode token by token", "leave it out")

    def confidence_measure(self, measure: Measure, *, required: bool) -> Measure | None:
        """The measure of confidence that `transcribe` can give words, or None if it cannot time words.

        Args:
            measure: The requested measure.
            required: Raise if words cannot be timed.

        Raises:
            ConfigError: Word times are required, but the model cannot time words, or not with this measure.
        """
        raise NotImplementedError

    def description(self) -> dict[str, Any]:
        """Plain data from which an untrained twin of the pretrained model is built (`ssl_asr.build.restore`)."""
        raise NotImplementedError

    def pictures(self, batch: Batch) -> list[Picture]:
        """What the model makes of each utterance, to be drawn: posteriors or attention. Empty if there is nothing."""
        return []

    def gather_dev_predictions(self) -> list[Prediction]:
        """The last validation's predictions of all ranks, each utterance once, in order of id."""
        # A validation starts with a new list. Several callbacks ask for the predictions.
        if self._gathered[0] is not self.dev_predictions:
            self._gathered = self.dev_predictions, gathered(self.dev_predictions)
        return self._gathered[1]

    def transformers_model(self) -> "PreTrainedModel":
        """A model of transformers that shares the weights of this one.

        Raises:
            CheckpointError: transformers has no class of this shape.
        """
        remedy = "train task=ctc with head=linear, or a Whisper with task=seq2seq"
        raise CheckpointError("model", f"transformers has no class for task={self.task_name}", remedy)

    # Languages -------------------------------------------------------------------------------------------------

    def detects_language(self, utterance: Utterance) -> bool:
        """Whether `transcribe` detects the language of an utterance."""
        return False

    def language_probabilities(self, out: EncoderOutput) -> list[dict[str, float]]:
        """Probability of each language for each utterance. Only for models that detect languages."""
        raise NotImplementedError

    # Limits ----------------------------------------------------------------------------------------------------

    def limits(self) -> Limits:
        """Which utterances the model can take."""
        encoder = self.speech_encoder
        return Limits(encoder.min_samples / SAMPLE_RATE, encoder.max_s, "Whisper's window")

    def longest_pass_s(self, chunk_s: Seconds) -> Seconds:
        """Longest recording that is transcribed in one pass, given the window length for longer ones."""
        limit = self.speech_encoder.max_s
        return chunk_s if limit is None else min(limit, chunk_s)

    # Checkpoints -----------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the masters of weights. Leave out frozen weights if the policy says so, and record their digest."""
        if self.masters is not None:
            self.masters.replace_in(checkpoint["state_dict"], self)
        if not self.policy.only_trained:
            return
        left_out = [name for name, parameter in self.named_parameters() if not parameter.requires_grad]
        weights = checkpoint["state_dict"]
        frozen = [(name, weights.pop(name)) for name in left_out]
        checkpoint["frozen"] = self._frozen_digest or state_digest(frozen)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fill in the weights that the checkpoint left out."""
        checkpoint["state_dict"] = self.with_frozen(checkpoint["state_dict"], checkpoint)

    def with_frozen(self, weights: dict[str, Tensor], checkpoint: dict[str, Any]) -> dict[str, Tensor]:
        """The weights of a checkpoint, completed by this model's frozen weights if the checkpoint left them out.

        Raises:
            CheckpointError: The checkpoint was trained from other pretrained weights than this model has.
        """
        if "frozen" not in checkpoint:
            return weights
        own = {name: whole(value) for name, value in self.state_dict().items() if not name.startswith("_metrics.")}
        left_out = {name: value for name, value in own.items() if name not in weights}
        if (self._frozen_digest or state_digest(left_out.items())) != checkpoint["frozen"]:
            what = "was trained from other pretrained weights than these"
            raise CheckpointError("checkpoint", what, "use the backbone.source and revision it was trained from")
        return {**left_out, **weights}

    def load_for_inference(self, checkpoint: dict[str, Any]) -> None:
        """Load the weights that transcription needs.

        Raises:
            CheckpointError: See `with_frozen`.
        """
        not_needed = ("_metrics.", *self.training_only)
        weights = {key: value for key, value in checkpoint["state_dict"].items() if not key.startswith(not_needed)}
        self.load_state_dict(self.with_frozen(weights, checkpoint))

    training_only: tuple[str, ...] = ()
    """Prefixes of weights that only training uses."""


def gathered(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The predictions of all ranks, each row once, in order of id. Rows of different audio may have the same id."""
    by_key = {row_key(prediction): prediction for prediction in over_ranks(predictions)}
    return sorted(by_key.values(), key=lambda prediction: prediction.id)
