"""A pytest plugin that writes a row per test: ``pytest -p tests.gpu.report``.

A report file of pytest's own is written at the end of the session, and lost if the time limit ends it.
"""

import pytest

from tests.gpu.rows import add_row

_LONGEST_TRACE = 2000


def pytest_configure(config):
    # With xdist, workers send their reports to the controller, which has no `workerinput`.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Rows(), "gpu_rows")


class _Rows:
    def pytest_collection_finish(self, session):
        add_row({"collected": len(session.items)})

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids):
        # With xdist, only workers collect.
        add_row({"collected": len(ids)})

    def pytest_collectreport(self, report):
        if report.failed:
            self._add(report, when="collect", seconds=0.0)

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.outcome == "passed":
            return
        self._add(report, when=report.when, seconds=report.duration)

    def _add(self, report, when, seconds):
        row = {"test": report.nodeid, "outcome": report.outcome, "s": round(seconds, 2)}
        if report.outcome != "passed":
            row["when"] = when
            row["trace"] = report.longreprtext[-_LONGEST_TRACE:]
        add_row(row)
