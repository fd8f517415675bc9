"""Accelerators and devices that a machine does not have are refused, with those that it has."""

import pytest
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator

from ssl_asr.errors import ConfigError
from ssl_asr.training.trainer import check_accelerator


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    for kind in (CUDAAccelerator, MPSAccelerator):
        monkeypatch.setattr(kind, "is_available", staticmethod(lambda: False))


@pytest.mark.parametrize(
    ("accelerator", "devices", "message"),
    [
        ("gpu", 1, r"^trainer.accelerator: is 'gpu', which this machine does not have. Use auto or cpu.$"),
        ("cuda", 1, r"^trainer.accelerator: is 'cuda', which this machine does not have"),
        ("foo", 1, r"^trainer.accelerator: is 'foo', which is no accelerator. Use auto or cpu.$"),
        ("cpu", "two", r"^trainer.devices: is 'two'"),
        ("cpu", 0, r"^trainer.devices: is 0: at least one device is needed"),
        ("auto", -1, r"^trainer.devices: is -1"),
    ],
)
def test_what_a_machine_does_not_have_is_refused(accelerator, devices, message):
    with pytest.raises(ConfigError, match=message):
        check_accelerator(accelerator, devices, prefix="trainer.")


def test_what_a_machine_has_is_taken():
    for accelerator, devices in (("auto", "auto"), ("cpu", 2), ("cpu", "1"), ("auto", 1)):
        check_accelerator(accelerator, devices)
