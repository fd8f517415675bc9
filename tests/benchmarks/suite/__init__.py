"""The CPU benchmarks in one command: ``python -m tests.benchmarks.suite``."""
