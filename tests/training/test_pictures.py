"""Pictures are the same in any style of matplotlib."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from ssl_asr.training.pictures import Picture, draw


def test_rows_and_their_names_are_in_one_order_in_any_style():
    picture = Picture("a", "posteriors", np.array([[1.0, 1.0], [0.0, 0.0]], dtype=np.float32), ["one", "two"], 0.02)
    with plt.style.context("ssl_asr.training.pictures"):
        assert mpl.rcParams["image.origin"] == "lower"
        axes, _ = draw(picture).axes
    [image] = axes.images
    # With this extent, the first row is at the top if the origin is, as its name is.
    assert (image.origin, image.get_extent()[2:]) == ("upper", [1.5, -0.5])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two"]
    assert not any(line.get_visible() for line in axes.get_xgridlines())
