"""A pytest plugin that writes a row per test: ``pytest -p tests.gpu.report``.

A report file of pytest's own is written at the end of the session, and lost if the time limit ends it.
"""

from tests.gpu.rows import add_row

_LONGEST_TRACE = 2000


def pytest_configure(config):
    # With xdist, workers send their reports to the controller, which has no `workerinput`.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Rows(), "gpu_rows")


class _Rows:
    def pytest_collection_finish(self, session):
        add_row({"collected": len(session.items)})

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.outcome == "passed":
            return
        row = {"test": report.nodeid, "outcome": report.outcome, "s": round(report.duration, 2)}
        if report.outcome != "passed":
            row["when"] = report.when
            row["trace"] = report.longreprtext[-_LONGEST_TRACE:]
        add_row(row)
