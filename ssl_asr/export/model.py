"""From a model that transcribes to the model that is exported."""

from ssl_asr.console import no_message
from ssl_asr.errors import UserError
from ssl_asr.export.base import ExportModel
from ssl_asr.inference.model import InferenceOptions, load_model
from ssl_asr.models.adapters import merge_adapters
from ssl_asr.models.checkpoints import Say
from ssl_asr.training.module import ASRModule


def export_model(module: ASRModule) -> ExportModel:
    """The model that is exported: in float32 on the CPU, in eval mode, with LoRA adapters merged into the weights.

    Args:
        module: The model. It is changed in place.
    """
    module.float().cpu().eval().requires_grad_(False)
    merge_adapters(module)
    net, reason = None, None
    try:
        net = module.transformers_model()
    except UserError as error:
        reason = error
    encoder = module.speech_encoder
    # Formats of CTC models have the window of the model in their graph.
    window = encoder.window if module.task_name == "seq2seq" else None
    return ExportModel(module=module, net=net, window=window, tail_s=encoder.tail_s, reason=reason)


def load_export_model(name: str, options: InferenceOptions, say: Say = no_message) -> ExportModel:
    """The model of a run directory, checkpoint, backbone option or pretrained name. See `load_model`."""
    return export_model(load_model(name, options, say))
