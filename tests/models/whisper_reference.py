"""The states of Whisper's encoder by transformers' layers, for windows of any length."""

from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional

from ssl_asr.models.whisper import HOP, WhisperEncoder


def states_alone(encoder: WhisperEncoder, waveform_BT: Tensor, lengths_B: Tensor) -> Iterator[list[Tensor]]:
    """States of all layers of each utterance by itself, without masks.

    transformers' encoder takes windows of 30 s only, so its layers are called one by one. The spectrogram is that of
    the batch.
    """
    net = encoder.net
    mel_lengths_B = -(-encoder._context_samples(lengths_B) // HOP)
    mel_BMF = encoder.as_weights(encoder.log_mel.of_lengths(waveform_BT, mel_lengths_B))
    for row, frames in enumerate(mel_lengths_B.tolist()):
        x = functional.gelu(net.conv1(mel_BMF[row : row + 1, :, :frames]))
        h_BFD = functional.gelu(net.conv2(x)).transpose(1, 2)
        states = [h_BFD + net.embed_positions.weight[: h_BFD.shape[1]]]
        for layer in net.layers:
            states.append(layer(states[-1], None))
        states[-1] = net.layer_norm(states[-1])
        yield [state[0] for state in states]
