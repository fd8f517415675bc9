"""Freed memory is kept: what was paid for once is not paid for again."""

import subprocess
import sys

import pytest

from ssl_asr.training.memory import keep_freed_memory

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
