"""``ssl-asr serve``: an HTTP server for transcription, compatible with OpenAI's audio API."""

from pathlib import Path

from ssl_asr.config.serving import ServeConfig


def serve(config: ServeConfig, folder: Path) -> float | None:  # noqa: ARG001
    """Serve until a signal stops the command. Writes nothing."""
    from ssl_asr.console import hush, make_console
    from ssl_asr.serve.server import run_server

    hush()
    run_server(config, make_console(stderr=True) if config.verbose else None)
    return None
