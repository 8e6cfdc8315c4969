"""Flags from a pydantic model, errors as one line, progress for terminals and for logs."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from types import NoneType
from typing import Any, Literal, TextIO, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from tqdm import tqdm

from lasr.errors import UserError
from lasr.weights.locate import use_folder

Config = TypeVar("Config", bound=BaseModel)


def parse(
    model: type[Config],
    argv: list[str] | None,
    prog: str,
    about: str,
    positional: str = "",
    weights: bool = False,
) -> Config:
    """Read `model` from the command line: one flag per field, its description as the help text.

    Defaults and checks stay in the model, so that a flag, a Prefect form and a stored
    configuration can never disagree. positional: the field that is given without a flag, if any.
    weights: whether the command takes weights, and so --weights-dir.
    Raises SystemExit(2) with argparse's one-line error on bad arguments.
    """
    parser = argparse.ArgumentParser(
        prog=prog, description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, field in model.model_fields.items():
        _add_flag(parser, name, field, positional == name)
    if weights:
        add_weights_dir(parser)
    given = vars(parser.parse_args(argv))
    given.pop("weights_dir", None)
    try:
        return model(**given)
    except ValidationError as error:
        first = error.errors()[0]
        flag = "--" + "-".join(str(part) for part in first["loc"][:1]).replace("_", "-")
        parser.error(f"{flag}: {first['msg']}" if first["loc"] else first["msg"])


def add_weights_dir(parser: argparse.ArgumentParser) -> None:
    """The flag --weights-dir. It sets LASR_WEIGHTS, so that processes started later follow."""
    parser.add_argument(
        "--weights-dir",
        type=use_folder,
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="folder of weights, such as `lasr.weights export` writes (default: $LASR_WEIGHTS,"
        " else data/weights)",
    )


def _add_flag(
    parser: argparse.ArgumentParser, name: str, field: FieldInfo, positional: bool
) -> None:
    kinds = [kind for kind in get_args(field.annotation) if kind is not NoneType]
    kind: Any = field.annotation
    if len(kinds) < len(get_args(kind)):
        kind = kinds[0]  # `int | None`
    options: dict[str, Any] = {"help": _help(field), "default": argparse.SUPPRESS}
    if not positional:
        options["required"] = field.is_required()
    elif not field.is_required():
        options["nargs"] = "?"
    if kind is bool:
        options.pop("required")
        options["action"] = "store_true"
    elif get_origin(kind) is list:
        options |= {"nargs": "+", "type": get_args(kind)[0]}
    elif get_origin(kind) is Literal:
        options["choices"] = get_args(kind)
    else:
        options["type"] = kind
    parser.add_argument(name if positional else "--" + name.replace("_", "-"), **options)


def _help(field: FieldInfo) -> str:
    text = (field.description or "").replace("%", "%%")
    plain = field.default is None or isinstance(field.default, bool) or field.is_required()
    return text if plain or field.default_factory else f"{text} (default: {field.default})"


def run_command(command: Callable[[], None]) -> int:
    """Run a command's body; a user's error becomes one line on stderr. Returns the exit status."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, force=True)
    for ours in ("pipeline", "trainer", "schemas"):
        logging.getLogger(ours).setLevel(logging.INFO)
    # Loaded by other libraries where it is installed, and warns of a kernel that nobody asked for.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        command()
        sys.stdout.flush()
    except UserError as error:
        line = " ".join(str(error).split())  # libraries' words and file names may hold newlines
        print(f"error: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command carries on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` closed the pipe: nothing left to say it to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


class _Lines:
    """A stream for tqdm where there is no terminal: a plain line now and then, no control codes."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            self._stream.write(line + "\n")

    def flush(self) -> None:
        self._stream.flush()


def progress(
    total: int | None,
    what: str,
    unit: str,
    initial: int = 0,
    quiet: bool = False,
    scaled: bool = False,
) -> "tqdm[Any]":
    """A progress bar with rate and ETA on a terminal, a log line every ten seconds elsewhere.

    quiet: show nothing, where another process shows it. scaled: 12.3M instead of 12300000.
    """
    stream = sys.stderr
    if stream.isatty():
        return tqdm(
            total=total,
            desc=what,
            unit=unit,
            initial=initial,
            disable=quiet,
            unit_scale=scaled,
            dynamic_ncols=True,
            smoothing=0.1,
        )
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        initial=initial,
        disable=quiet,
        unit_scale=scaled,
        file=_Lines(stream),  # type: ignore[arg-type]
        mininterval=10,
        ascii=True,
        bar_format="{desc}: {n_fmt}/{total_fmt} {unit} ({rate_fmt}, ETA {remaining}){postfix}",
    )
