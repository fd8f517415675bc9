"""Training with parameters, gradients and optimizer states sharded over ranks: FSDP2 through Lightning.

    between updates   each rank holds 1/N of every parameter, gradient and optimizer state      DTensor
    forward           each transformer layer gathers its parameters, computes, and frees them
    backward          each layer gathers again; its gradients are averaged over ranks and sharded
    validation, test  every rank holds all parameters, because ranks decode for different numbers of steps
    checkpoints       whole tensors in the format of every other run: one process can read them

Parameters outside of transformer layers are gathered together for the whole forward and backward pass.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from ssl_asr.models.layers import Layered
from ssl_asr.training.optimizers import parameters_of
from ssl_asr.training.parts import is_sharded, load_whole, sharded_like, whole
from ssl_asr.training.updates import UpdateLoop

if TYPE_CHECKING:
    from lightning import Trainer


class ShardedStrategy(ModelParallelStrategy):
    """``trainer.strategy=fsdp2``. See the text of the module."""

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """False: weights are loaded into the whole model, which is then sharded."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """True: Lightning hands the states of a checkpoint to `load_optimizer_state_dict`."""
        return True

    def setup_environment(self) -> None:
        """Start the processes. All of them hold shards of one model."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def setup(self, trainer: "Trainer") -> None:
        """Shard the model if it trains, then make optimizers over the shards."""
        module = self.lightning_module
        if isinstance(module, UpdateLoop) and not isinstance(module, FSDPModule):
            shard(module, self.device_mesh["data_parallel"])
        # Lightning's own strategy leaves sharding to the module's `configure_model`, and loads weights after it.
        ParallelStrategy.setup(self, trainer)

    # Validation and test ---------------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        """Give every rank all parameters, and the buffers of the first rank."""
        module = self.lightning_module
        assert module is not None
        for unit in _units(module):
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, src=0)

    def on_validation_end(self) -> None:
        """Shard the parameters again."""
        module = self.lightning_module
        assert module is not None
        for unit in _units(module):
            unit.reshard()
            # Parameters outside of layers stay until the backward pass.
            unit.set_reshard_after_forward(not isinstance(unit, UpdateLoop), recurse=False)

    on_test_start, on_test_end = on_validation_start, on_validation_end

    # Checkpoints -----------------------------------------------------------------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole weights. Ranks other than the first take part, and get empty tensors."""
        module = self.lightning_module
        assert module is not None
        return self._on_first(module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Whole states, keyed as by an optimizer of one process. Other ranks than the first get empty tensors."""
        bare = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return self._on_first(bare.state_dict())

    def _on_first(self, states: dict[str, Any]) -> dict[str, Any]:
        def gathered(value: object) -> object:
            if not is_sharded(value):
                return value
            tensor = whole(value)
            return tensor.cpu() if self.is_global_zero else torch.empty(0)

        found: dict[str, Any] = pytree.tree_map(gathered, states)
        return found

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load whole weights into the model, which may be sharded already."""
        module = self.lightning_module
        assert module is not None
        load_whole(module, checkpoint["state_dict"], strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Shard the whole states of a checkpoint."""
        for optimizer, states in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = parameters_of(optimizer)
            sharded = {
                place: {key: sharded_like(parameters[place], value) for key, value in own.items()}
                for place, own in states["state"].items()
            }
            optimizer.load_state_dict({**states, "state": sharded})

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write the file on the first rank."""
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the file on every rank."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)


def shard(module: UpdateLoop, mesh: DeviceMesh) -> None:
    """Shard the parameters of a module in place, each transformer layer as a unit of its own.

    Args:
        module: The whole module. Its `loss` is the forward pass.
        mesh: The ranks.
    """
    names = {parameter: name for name, parameter in module.named_parameters()}
    for part in module.modules():
        if isinstance(part, Layered):
            for layer, method in part.separate_layers():
                fully_shard(layer, mesh=mesh)
                if method is not None:
                    register_fsdp_forward_method(layer, method)
    fully_shard(module, mesh=mesh)
    register_fsdp_forward_method(module, "loss_parts")
    # The units learn which module is their root. Otherwise it would be the one that runs first.
    root: Any = module
    root._get_fsdp_state()._lazy_init()
    sharded = dict(module.named_parameters())
    module.sides.replace_parameters({parameter: sharded[name] for parameter, name in names.items()})


def _units(module: nn.Module) -> Iterator[FSDPModule]:
    return (part for part in module.modules() if isinstance(part, FSDPModule))
