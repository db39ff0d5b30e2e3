"""The words of the command line: each command, and the options that it takes."""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from tunery_api.errors import did_you_mean
from tunery_api.fields import parse_quantity
from tunery_api.names import RUN_DIR, RUN_FILE
from tunery_api.reasons import FailureReason
from tunery_api.remedies import retry
from tunery_api.runspec import Task
from tunery_common.errors import TuneryError

OTHER_IMAGE: Final = retry("Use the trainer image of the operator's version (trainer.image of the chart)")
"""What to use for what is not known here."""
FOLLOW: Final = "follow"
"""The trainer's own: what it starts its other processes with. Nobody is told of it."""
_LEAST_MEMORY: Final = 2**20
_INVALID_CHOICE: Final = re.compile(r"argument COMMAND: invalid choice: '(?P<word>.*)' \(choose from (?P<known>.*)\)")
"""What argparse says of a command that it does not know."""


def version() -> str:
    """Return the version of this trainer."""
    return importlib.metadata.version("tunery-trainer")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the command and its options; raises TuneryError(InvalidSpec) with what is wrong, and the usage."""
    parser = _Parser(prog="python -m tunery_trainer", description="Train and merge PEFT adapters.")
    parser.add_argument("--version", action="version", version=version())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    texts = {
        Task.PREFLIGHT: "check data, model, credentials and output on the CPU",
        Task.TRAIN: "train an adapter and publish it",
        Task.MERGE: "merge adapters and publish the result",
        Task.PUBLISH_BEST: "publish the best trial's adapter of a sweep, and remove those that are not kept",
        Task.PUBLISH: "publish what is best in the newest checkpoint of a run that was stopped",
        Task.REPORT: "read back and say again what train, merge or publish-best has published",
    }
    for task, text in texts.items():
        command = commands.add_parser(task.value, help=text)
        command.add_argument("path", nargs="?", default=f"{RUN_DIR}/{RUN_FILE}", help="the operator's run.json")
    run = commands.add_parser("run", help="run a LoRAJob, a LoRASweep or an AdapterMerge without a cluster")
    run.add_argument("path", metavar="manifest.yaml", help="the manifest, as for kubectl apply")
    run.add_argument("--work-dir", help="where downloads, caches and checkpoints lie; a rerun goes on from there")
    run.add_argument("--name", help="which object, if the manifest holds several")
    _add_estimate(commands)
    _add_check(
        commands.add_parser(
            "check", help="say what is in a data set, or what a LoRASweep would search, without a cluster"
        )
    )
    follow = commands.add_parser(FOLLOW)
    follow.add_argument("path", type=Path)
    follow.add_argument("folder", type=Path)
    first = next(iter(arguments), "").partition("=")[0]
    if first.startswith("-") and first not in ("-h", "--help", "--version"):
        parser.error(f"{first} is no option of {parser.prog}; options of a command come after it")
    return parser.parse_args(arguments)


def _add_estimate(commands: Any) -> None:
    estimate = commands.add_parser("estimate", help="say what a LoRAJob would take, and which methods fit which GPU")
    estimate.add_argument("path", metavar="lorajob.yaml", help="the manifest, as for kubectl apply")
    estimate.add_argument("--name", help="which object, if the manifest holds several")
    estimate.add_argument("--model", metavar="FOLDER", help="where the model's config.json lies; no weights are needed")
    estimate.add_argument(
        "--from",
        dest="start",
        type=Path,
        metavar="FOLDER",
        help="a copy of the adapter or the checkpoints that continueFrom or resumeFrom names",
    )
    estimate.add_argument("--gpu-memory", type=_bytes, metavar="24Gi", help="memory of each GPU that it shall train on")
    estimate.add_argument(
        "--tokens-per-second",
        type=_rate,
        metavar="N",
        help="as an earlier run's status.progress has it, of all devices together: tells the time",
    )
    estimate.add_argument("--json", action="store_true", help="for programs, in bytes")


def _add_check(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "path",
        metavar="data.jsonl",
        type=Path,
        help="a file or folder of rows, or the manifest of a LoRAJob or LoRASweep",
    )
    command.add_argument("--model", type=Path, help="a model's folder: tokens are counted and examples shown")
    command.add_argument("--task", help="SFT, DPO, ORPO or KTO")
    command.add_argument("--format", help="of the rows, where it is not to be found out")
    command.add_argument("--template", help="Chat or Plain")
    command.add_argument("--split", help="of a folder; default: train")
    command.add_argument(
        "--columns", type=_columns, default=(), metavar="FIELD=COLUMN,…", help="columns with other names than the usual"
    )
    command.add_argument("--max-length", type=int, metavar="TOKENS", help="where rows are cut; default: 2048")
    command.add_argument("--max-invalid-rows", type=int, metavar="ROWS", help="so many may be left out; default: 0")
    command.add_argument(
        "--output", type=Path, metavar="FOLDER", help="write data-report.json and data-report.md there"
    )
    command.add_argument("--name", help="which object, if a manifest holds several")


def _columns(text: str) -> tuple[tuple[str, str], ...]:
    pairs = tuple(
        (field.strip(), column.strip()) for field, _, column in (one.partition("=") for one in text.split(","))
    )
    if not all(field and column for field, column in pairs):
        raise argparse.ArgumentTypeError("must be FIELD=COLUMN, such as prompt=question,completion=answer")
    return pairs


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are like any other: a reason, a sentence, and the exit code for what no retry mends."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what is not known here, where the command's own options are, and not in the parser of all commands."""
        found, unknown = super().parse_known_args(args, namespace)
        options = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        if options:
            self.error(
                f"{options[0]} is no option of {self.prog}{did_you_mean(options[0], self._option_string_actions)}"
            )
        if unknown:
            self.error(f"{unknown[0]} is one argument too many")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Raise TuneryError with the usage of this command; one that is not known may be one of a newer operator."""
        choice = _INVALID_CHOICE.match(message)
        remedies = [retry(f"Follow the {' '.join(self.format_usage().split())}")]
        if choice is not None:
            known = [word for word in re.findall(r"[\w-]+", choice["known"]) if word != FOLLOW]
            close = did_you_mean(choice["word"], known)
            message = f"there is no command {choice['word']}{close}"
            remedies = [retry(f"Use one of {', '.join(known)}; {self.prog} --help describes each")]
            remedies += [] if close else [OTHER_IMAGE]
        raise TuneryError(FailureReason.INVALID_SPEC, message, *remedies)


def _bytes(text: str) -> int:
    """Return the bytes of a quantity such as 24Gi."""
    try:
        count = int(parse_quantity(text))
    except (ArithmeticError, ValueError):
        count = 0
    if count < _LEAST_MEMORY:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 24Gi")
    return count


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens a second")
    return rate
