"""``ssl-asr COMMAND`` and ``python -m ssl_asr COMMAND``."""

import importlib
import importlib.util
import keyword
import shlex
import sys
from pathlib import Path

COMMANDS = {
    "train": "fine-tune a pretrained speech model and report its WER",
    "evaluate": "score a run, a checkpoint or a pretrained model on manifests",
    "transcribe": "transcribe files, folders or manifests",
    "serve": "serve models over HTTP, with OpenAI's audio API and a page",
    "align": "find the time of each word of known texts",
    "extract": "write the states of an encoder's layers",
    "export": "write a model for another runtime, and compare its transcripts",
    "import": "convert a checkpoint of fairseq or SpeechBrain",
    "prepare": "make manifests from corpora and other formats, and convert them",
    "compare": "test whether one system is better than another",
    "report": "write runs, comparisons and sweeps as one HTML page",
    "lm": "estimate an n-gram language model",
    "tune_decoding": "find the weights of a beam search on dev data",
    "check": "decode and read manifests, and report what is wrong with them",
    "corpus": "synthesize a small corpus for smoke tests",
    "dashboard": "write a W&B workspace with panels for speech recognition",
    "doctor": "check this machine, and the time and memory of a training run",
    "plan": "estimate the memory and the time of a training run before it starts",
    "demo": "synthesize a corpus, evaluate, fine-tune and transcribe",
}


def run_command(name: str) -> None:
    """Run a command on the rest of the command line."""
    from ssl_asr.config.interruption import interruptible

    with interruptible():
        from ssl_asr.config import launch

        def load() -> launch.Job:
            # A name that Python reserves, such as import, has an underscore at its end.
            work = f"{name}_" if keyword.iskeyword(name) else name
            job: launch.Job = getattr(importlib.import_module(f"ssl_asr.commands.{work}"), work)
            return job

        launch.run(name, load)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    ending = ["ssl-asr COMMAND --help explains a command. ssl-asr --completion bash prints a completion script."]
    return "\n".join(["usage: ssl-asr COMMAND [key=value …]", "", *lines, "", *ending])


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ssl_asr")
    except PackageNotFoundError:
        return "not installed"


def _complete(arguments: list[str]) -> None:
    """Print the completion script of a shell, or the candidates for a command line."""
    from ssl_asr.config.completion import BASH, complete

    if arguments[0] == "--complete":
        print("\n".join(complete(" ".join(arguments[1:]), list(COMMANDS))))
    elif arguments[1:] == ["bash"]:
        print(BASH, end="")
    else:
        print("usage: ssl-asr --completion bash", file=sys.stderr)
        sys.exit(2)


def _no_command(arguments: list[str]) -> tuple[str, str, str]:
    """The error for a command line that starts with no command: where, what, and what to type."""
    from ssl_asr.errors import closest

    first = arguments[0]
    named = next((word for word in arguments if word in COMMANDS), None)
    near = closest(first, list(COMMANDS))
    if named is not None:
        rest = [word for word in arguments if word != named]
        return first, "comes before the command", f"write {shlex.join(['ssl-asr', named, *rest])}"
    if near is not None:
        return "ssl-asr", f"no command '{first}'", f"did you mean ssl-asr {near}?"
    if Path(first).exists():
        return first, "is no command", f"to transcribe it, write {shlex.join(['ssl-asr', 'transcribe', first])} model=…"
    return "ssl-asr", f"no command '{first}'", "ssl-asr --help lists the commands"


def main() -> None:
    """Run the command that is named first."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in COMMANDS:
        if arguments[0] == "train":
            # Lightning starts the other processes of a run by the module of this one, with the rest of its arguments.
            sys.modules["__main__"].__spec__ = importlib.util.find_spec("ssl_asr.train")
        run_command(sys.argv.pop(1))
    elif arguments and arguments[0] in ("--completion", "--complete"):
        _complete(arguments)
    elif arguments == ["--version"]:
        print(f"ssl-asr {_version()}")
    elif arguments in ([], ["--help"], ["-h"]):
        print(_usage())
    else:
        from ssl_asr.errors import UserError

        print(f"error: {UserError(*_no_command(arguments))}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
