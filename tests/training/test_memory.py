"""Freed memory is reused, and peak memory is measured."""

import subprocess
import sys

import pytest
import torch

from ssl_asr.training.memory import LiveMemory, available_bytes, keep_freed_memory, peak_gb, total_bytes

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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_repeated_steps_need_few_new_pages():
    assert keep_freed_memory()
    returned, kept = _page_faults("return"), _page_faults("keep")
    assert kept < returned / 3, (kept, returned)


_RESIDENT_AFTER = """
import sys, torch
from ssl_asr.training.memory import keep_freed_memory, return_freed_memory
keep_freed_memory()
# The last tensor stays above the freed ones, as in a process that goes on.
held = [torch.ones(1 << 20) for _ in range(101)][-1]
if sys.argv[1] == "return":
    return_freed_memory()
print(int(open("/proc/self/statm").read().split()[1]) * 4096)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_kept_memory_can_be_returned():
    kept, returned = (
        int(subprocess.run([sys.executable, "-c", _RESIDENT_AFTER, how], capture_output=True, check=True).stdout)
        for how in ("keep", "return")
    )
    assert kept - returned > 80 * (4 << 20), (kept, returned)


@pytest.mark.skipif(sys.platform == "win32", reason="needs the module resource")
def test_peak_includes_memory_that_was_freed():
    before = peak_gb(torch.device("cpu"))
    assert before is not None
    # More than the previous peak, so that this allocation must raise the peak.
    held = torch.ones(int((before + 0.25) * 1e9 / 4))
    size_gb = held.numel() * 4 / 1e9
    del held
    after = peak_gb(torch.device("cpu"))
    assert after is not None
    assert size_gb < after < before + size_gb + 0.1


def test_peak_is_none_for_other_devices():
    assert peak_gb(torch.device("meta")) is None


def test_live_memory_follows_storages_and_not_views():
    known = torch.ones(1000)
    with LiveMemory([known]) as live:
        known.mul_(2.0)
        known[:10].view(5, 2)
        made = torch.ones(100)
        view = made[:50]
        doubled = view * 2
        del made
        assert live.now == 400 + 200
        del view
        assert live.now == 200
        del doubled
        assert live.now == 0
    assert max(live.timeline) == 600


def test_live_memory_has_a_limit():
    with LiveMemory([], limit=400):
        torch.zeros(100)
        with pytest.raises(torch.OutOfMemoryError, match="404 bytes of tensors are more than the 400 bytes"):
            torch.zeros(101)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_available_memory_is_part_of_all():
    total, available = total_bytes(torch.device("cpu")), available_bytes(torch.device("cpu"))
    assert total is not None
    assert available is not None
    assert 0 < available < total
    assert available_bytes(torch.device("meta")) is None
    assert total_bytes(torch.device("meta")) is None
