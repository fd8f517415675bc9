"""Matrices as pictures: the PNG holds the values."""

import base64
import io
import re

import numpy as np
import pytest

from ssl_asr.pages.pictures import matrix, png


def test_the_png_holds_the_transparency_of_each_cell():
    image = pytest.importorskip("matplotlib.image", reason="matplotlib is not installed")
    alpha_RF = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    pixels = image.imread(io.BytesIO(png(alpha_RF, (51, 102, 204))), format="png")
    assert pixels.shape == (3, 4, 4)
    assert np.array_equal(np.round(pixels[..., 3] * 255), alpha_RF)
    assert np.allclose(pixels[..., :3], [0.2, 0.4, 0.8])


def test_a_matrix_has_a_row_for_each_name():
    picture = matrix("posteriors", np.eye(3, dtype=np.float32), ["blank", "<a>", "b"], 0.06)
    assert re.findall(r'class="name"[^>]*>([^<]*)<', picture) == ["blank", "&lt;a&gt;", "b"]
    [data] = re.findall(r"data:image/png;base64,([^\"]*)", picture)
    assert base64.b64decode(data).startswith(b"\x89PNG")
    assert matrix("posteriors", np.zeros((2, 0), dtype=np.float32), ["a", "b"], 0.0) == ""
