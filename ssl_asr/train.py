"""``python -m ssl_asr.train``: the same as ``ssl-asr train``."""

from ssl_asr.__main__ import run_command

if __name__ == "__main__":
    run_command("train")
