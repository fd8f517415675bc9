"""Freed memory is kept: what was paid for once is not paid for again."""

import subprocess
import sys

import pytest
import torch

from ssl_asr.training.memory import keep_freed_memory, peak_gb

_PAGES_OF = """
import resource, sys, torch
from ssl_asr.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def step():
    kept_for_backward = [torch.ones((i + 1) << 20) for i in range(8)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _page_faults(how: str) -> int:
    run = subprocess.run([sys.executable, "-c", _PAGES_OF, how], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_a_step_like_the_last_takes_hardly_any_new_pages():
    assert keep_freed_memory()
    given_back, kept = _page_faults("give back"), _page_faults("keep")
    assert kept < given_back / 3, (kept, given_back)


@pytest.mark.skipif(sys.platform == "win32", reason="resource is not Windows'")
def test_the_peak_counts_what_was_held_and_given_back():
    before = peak_gb(torch.device("cpu"))
    assert before is not None
    # More than the process ever held, so that the peak must move by what is allocated here.
    held = torch.ones(int((before + 0.25) * 1e9 / 4))
    size_gb = held.numel() * 4 / 1e9
    del held
    after = peak_gb(torch.device("cpu"))
    assert after is not None
    assert size_gb < after < before + size_gb + 0.1


def test_a_device_nobody_counts_for_has_no_peak():
    assert peak_gb(torch.device("meta")) is None
