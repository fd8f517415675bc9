"""Freed memory is reused, and peak memory is measured."""

import subprocess
import sys

import pytest
import torch

from ssl_asr.training import memory
from ssl_asr.training.memory import (
    LiveMemory,
    available_bytes,
    group_limits,
    keep_freed_memory,
    machine_bytes,
    peak_gb,
)

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
    total, available = machine_bytes(), available_bytes(torch.device("cpu"))
    assert total is not None
    assert available is not None
    assert 0 < available < total
    assert available_bytes(torch.device("meta")) is None


def tree(root, files):
    """Files under a folder, by path, with a number for each text that is not one already."""
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(str(text))


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"


def v2(folder, limit, use, files):
    return {
        f"{V2}/{folder}memory.max": f"{limit}\n",
        f"{V2}/{folder}memory.current": f"{use}\n",
        f"{V2}/{folder}memory.stat": f"anon 5\nfile 9\ninactive_file {files}\n",
    }


def v1(folder, limit, use, files):
    return {
        f"{V1}/{folder}memory.limit_in_bytes": limit,
        f"{V1}/{folder}memory.usage_in_bytes": use,
        f"{V1}/{folder}memory.stat": f"inactive_file 1\ntotal_inactive_file {files}\n",
    }


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/job/step\n", v2("job/step/", "max", 700, 100) | v2("job/", 4000, 900, 300), [(4000, 600)]),
        ("0::/a\n", v2("a/", 3000, 900, 0) | v2("", 2000, 1000, 50), [(3000, 900), (2000, 950)]),
        # In a container, the path is that on the host.
        ("0::/docker/123\n", v2("", 2000, 1000, 50), [(2000, 950)]),
        ("5:cpu:/x\n4:hugetlb,memory:/slurm/job\n0::/\n", v1("slurm/job/", 8000, 900, 200), [(8000, 700)]),
        ("4:memory:/docker/123\n", v1("", 8000, 900, 200), [(8000, 700)]),
        ("4:memory:/a\n", v1("a/", 9223372036854771712, 900, 200), []),
        ("0::/a:b\n", v2("a:b/", 3000, 900, 0), [(3000, 900)]),
        ("0::/\n", {}, []),
    ],
    ids=["parent", "both", "container", "slurm", "container of version 1", "no limit", "colon", "no files"],
)
def test_limits_of_control_groups(tmp_path, groups, files, expected):
    tree(tmp_path, {"proc/self/cgroup": groups} | files)
    assert group_limits(tmp_path) == expected


def test_a_system_without_control_groups_has_no_limits(tmp_path):
    assert group_limits(tmp_path) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_the_least_of_all_limits(monkeypatch):
    monkeypatch.setattr(memory, "group_limits", lambda: [(5000, 2000), (4000, 3500)])
    assert machine_bytes() == 4000
    assert available_bytes(torch.device("cpu")) == 500
    monkeypatch.setattr(memory, "group_limits", lambda: [(5000, 5001)])
    assert available_bytes(torch.device("cpu")) == 0
