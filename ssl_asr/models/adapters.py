"""Freeze policies that train a few parameters inside frozen layers: LoRA, MMS adapters, biases."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from ssl_asr.errors import ConfigError, optional_import
from ssl_asr.models.encoder import SpeechEncoder
from ssl_asr.models.freezing import ConstantPolicy
from ssl_asr.types import Dropout, PositiveFloat, PositiveInt

# Linear layers of a decoder that get LoRA adapters by default: queries and values of attention.
_DECODER_TARGETS = ("q_proj", "v_proj")


def _transformer_layers(names: Sequence[str]) -> set[str]:
    return {name for name in names if name.startswith(("layers.", "decoder.layers."))}


def _without_pretrained(rest: Sequence[str]) -> set[str]:
    """Returns the groups that have no pretrained weights: states and head."""
    return {name for name in rest if not name.startswith("decoder.")}


@dataclass(frozen=True, kw_only=True)
class LoRA(ConstantPolicy):
    """Low-rank adapters in linear layers of the transformer (Hu et al., 2021, arXiv:2106.09685), by peft.

    A linear layer with the frozen weight ``W`` becomes

        y = W x + (alpha / rank) * B A dropout(x)

    where ``A`` (rank, in) is random and ``B`` (out, rank) is zero at the start. Only ``A`` and ``B`` train, and a new
    head trains completely.

    Attributes:
        rank: int, rank of the adapters.
        alpha: float, scale of the adapters in units of ``1 / rank``.
        dropout: float in [0, 1), dropout probability of the adapters' input.
        targets: list of str, names of the linear layers within a transformer layer. None selects the queries and values
            of attention.
        encoder: bool, insert adapters in the encoder.
        decoder: bool, insert adapters in Whisper's decoder. Ignored for models without a pretrained decoder.
        checkpoint: ``whole`` writes complete checkpoints. ``adapter`` writes only the weights that train, a few percent
            of the size; to load the checkpoint, the pretrained weights must be available.
    """

    rank: PositiveInt
    alpha: PositiveFloat
    dropout: Dropout
    targets: list[str] | None
    encoder: bool
    decoder: bool
    checkpoint: Literal["whole", "adapter"]

    @property
    def only_trained(self) -> bool:
        """Whether checkpoints hold only the parameters that train."""
        return self.checkpoint == "adapter"

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """Returns the transformer layers with adapters, and the groups without pretrained weights.

        Raises:
            ConfigError: If no layer gets adapters.
        """
        chosen = _transformer_layers(encoder) if self.encoder else set()
        chosen |= _transformer_layers(rest) if self.decoder else set()
        if not chosen:
            remedy = "use freeze_policy.encoder=true, or freeze_policy.decoder=true for Whisper's decoder"
            raise ConfigError("freeze_policy", "no layer gets adapters", remedy)
        return frozenset(chosen | _without_pretrained(rest))

    def selects(self, group: str, parameter: str) -> bool:
        """Selects the adapters of a pretrained group, every parameter of a new one."""
        return "lora_" in parameter or not group.startswith(("layers.", "decoder.layers."))

    def prepare(self, encoder: SpeechEncoder, decoder: nn.Module | None) -> None:
        """Inserts adapters. They do not change the output before they are trained.

        Raises:
            ConfigError: If peft is not installed, or the model has no layers named in ``targets``.
        """
        if self.encoder:
            targets = self.targets if self.targets is not None else list(encoder.lora_targets)
            _insert(encoder.net, self, targets)
        if self.decoder and decoder is not None:
            _insert(decoder, self, self.targets if self.targets is not None else list(_DECODER_TARGETS))


def _insert(net: nn.Module, options: LoRA, targets: list[str]) -> None:
    """Inserts adapters into a model of transformers."""
    with optional_import("freeze_policy=lora", "peft", "lora", "freeze_policy=bitfit"):
        from peft import LoraConfig, inject_adapter_in_model
    known = {name.rpartition(".")[2] for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    if unknown := sorted(set(targets) - known):
        what = f"no linear layers named {', '.join(unknown)}"
        raise ConfigError("freeze_policy.targets", what, f"known names are {', '.join(sorted(known))}")
    config = LoraConfig(r=options.rank, lora_alpha=options.alpha, lora_dropout=options.dropout, target_modules=targets)  # type: ignore[arg-type]
    inject_adapter_in_model(config, net)


def merge_adapters(model: nn.Module) -> None:
    """Merges every LoRA adapter into the weight of its linear layer and removes the adapter."""
    # A model has LoRA layers only if peft was imported to insert them, and importing peft is slow.
    if "peft" not in sys.modules:
        return
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            merged: Any = module
            merged.merge()
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], merged.get_base_layer())


@dataclass(frozen=True, kw_only=True)
class Adapters(ConstantPolicy):
    """Trains the adapters at the end of each layer of MMS (Pratap et al., 2023, arXiv:2305.13516) and a new head.

    The backbone already has adapters (``mms_1b_all``) or gets new ones (``backbone.adapter_dim``).
    """

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """Returns the transformer layers and the groups without pretrained weights."""
        return frozenset(_transformer_layers(encoder) | _without_pretrained(rest))

    def selects(self, group: str, parameter: str) -> bool:
        """Selects the adapters of a pretrained group, every parameter of a new one."""
        return "adapter_layer" in parameter or not group.startswith("layers.")

    def prepare(self, encoder: SpeechEncoder, decoder: nn.Module | None) -> None:
        """Checks that the encoder has adapters; the model is unchanged.

        Raises:
            ConfigError: If the encoder has no adapters.
        """
        if not any("adapter_layer" in name for name, _ in encoder.named_parameters()):
            remedy = "use backbone=mms_1b_all, backbone.adapter_dim=16 or freeze_policy=lora"
            raise ConfigError("freeze_policy", "this encoder has no adapters to train", remedy)


@dataclass(frozen=True, kw_only=True)
class BitFit(ConstantPolicy):
    """Trains the transformer's biases, norms included (Ben Zaken et al., 2021, arXiv:2106.10199), and a new head."""

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """Returns all groups except ``feature_encoder`` and the decoder's embeddings."""
        return frozenset([*encoder, *rest]) - {"feature_encoder", "decoder.embed"}

    def selects(self, group: str, parameter: str) -> bool:
        """Selects the biases of a pretrained group, every parameter of a new one."""
        return parameter.endswith("bias") or group in ("states", "head", "ctc")
