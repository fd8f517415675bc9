"""Linear layers with few rows: equal to torch."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional

from ssl_asr.models import transformer
from ssl_asr.models.transformer import linear, project

SHAPES = [(1, 8), (4, 8), (12, 8), (13, 8), (16, 1, 8), (7, 5, 8), (63, 8), (64, 8), (3, 40, 8)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outputs", [6, transformer._VOCABULARY])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_linear_equals_torch_linear_for_any_number_of_rows(shape, bias, outputs, mode):
    torch.manual_seed(0)
    layer = nn.Linear(8, outputs, bias=bias)
    x = torch.randn(shape)
    with mode():
        found = linear(x, layer.weight, layer.bias)
        assert found.is_contiguous()
        torch.testing.assert_close(found, layer(x), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(project(layer, x), layer(x), rtol=1e-5, atol=1e-6)


def test_subclass_of_linear_is_called_as_a_module():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    layer = Doubled(8, 6)
    x = torch.randn(16, 8)
    with torch.no_grad():
        torch.testing.assert_close(project(layer, x), 2 * functional.linear(x, layer.weight, layer.bias))


def test_hooks_of_a_linear_layer_are_called():
    layer, calls = nn.Linear(8, 6), []
    layer.register_forward_hook(lambda *given: calls.append(given))
    with torch.no_grad():
        project(layer, torch.randn(16, 8))
    assert len(calls) == 1


def test_gradients_bfloat16_and_autocast_use_torch_linear(monkeypatch):
    called = []
    monkeypatch.setattr(transformer.functional, "linear", lambda *given: called.append(given))
    x, weight = torch.randn(16, 8), torch.randn(6, 8, requires_grad=True)
    linear(x, weight)
    with torch.no_grad():
        linear(x.bfloat16(), weight.bfloat16())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            linear(x, weight)
        assert len(called) == 3
        linear(x, weight)
    assert len(called) == 3 + (not transformer._MKL)


def test_one_compiled_graph_works_for_any_number_of_rows():
    layer = nn.Linear(8, 6)
    graphs = CompileCounter()
    compiled = torch.compile(project, backend=graphs, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for rows in (5, 13, 40, 63, 64, 90):
            x = torch.randn(rows, 8)
            torch.testing.assert_close(compiled(layer, x), layer(x))
    assert graphs.frame_count == 1
