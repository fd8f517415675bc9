"""``ssl-asr COMMAND`` and ``python -m ssl_asr COMMAND``."""

import importlib
import sys

COMMANDS = {
    "train": "fine-tune a pretrained speech model and report its WER",
    "evaluate": "score a run, a checkpoint or a pretrained Whisper on manifests",
    "transcribe": "write down what files, folders or manifests say",
    "align": "say when each word of known texts was said",
    "extract": "write the states of an encoder's layers",
    "compare": "say whether one system is better than another, or luckier",
    "lm": "make an n-gram language model from text",
    "tune_decoding": "find the weights of a beam search on dev data",
    "corpus": "speak a small corpus of a narrow domain, for smoke tests",
    "demo": "all of the above on a corpus made on the spot",
}


def run_command(name: str) -> None:
    """Run a command on the rest of the command line."""
    from ssl_asr.config import launch

    def load() -> launch.Job:
        job: launch.Job = getattr(importlib.import_module(f"ssl_asr.commands.{name}"), name)
        return job

    launch.run(name, load)


def main() -> None:
    """Hand the rest of the command line to the command named first."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        width = max(map(len, COMMANDS))
        print("usage: ssl-asr COMMAND [key=value …]\n")
        print("\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()))
        sys.exit(0 if sys.argv[1:] in (["--help"], ["-h"], []) else 2)
    run_command(sys.argv.pop(1))


if __name__ == "__main__":
    main()
