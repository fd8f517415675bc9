"""``ssl-asr COMMAND`` and ``python -m ssl_asr COMMAND``."""

import importlib
import importlib.util
import sys

COMMANDS = {
    "train": "fine-tune a pretrained speech model and report its WER",
    "evaluate": "score a run, a checkpoint or a pretrained model on manifests",
    "transcribe": "transcribe files, folders or manifests",
    "align": "find the time of each word of known texts",
    "extract": "write the states of an encoder's layers",
    "compare": "test whether one system is better than another",
    "lm": "estimate an n-gram language model",
    "tune_decoding": "find the weights of a beam search on dev data",
    "corpus": "synthesize a small corpus for smoke tests",
    "demo": "synthesize a corpus, evaluate, fine-tune and transcribe",
}


def run_command(name: str) -> None:
    """Run a command on the rest of the command line."""
    from ssl_asr.config import launch

    def load() -> launch.Job:
        job: launch.Job = getattr(importlib.import_module(f"ssl_asr.commands.{name}"), name)
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
        from ssl_asr.errors import UserError, did_you_mean

        error = UserError("ssl-asr", f"no command '{arguments[0]}'", did_you_mean(arguments[0], list(COMMANDS)))
        print(f"error: {error}\n", file=sys.stderr)
        print(_usage(), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
