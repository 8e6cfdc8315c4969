"""Commands: what runs behind `lasr NAME`, and errors as one line."""

import atexit
import difflib
import importlib
import logging
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic

from lasr import help as pages
from lasr.errors import UserError, is_out_of_memory, of_machine, one_line, printable
from lasr.flags import (
    HELP,
    HELP_ALL,
    HELP_SHORT,
    QUIET,
    VERBOSE,
    WEIGHTS_DIR,
    Config,
    Flags,
    UsageError,
    summary,
)  # fmt: skip
from lasr.terminal.output import be_quiet, is_quiet, safe_streams, until_pipe_closes
from lasr.terminal.progress import progress, set_up_logging
from lasr.terminal.summary import say_next
from lasr.weights.locate import use_folder

if TYPE_CHECKING:
    import cyclopts

__all__ = ["Command", "Group", "Lazy", "progress", "refuse", "run_command", "show"]

OURS = ("lasr", "pipeline", "trainer", "schemas", "benchmarks")
STOPPED = "stopped; run the same command again to resume"
LESS_MEMORY = ("batch_size", "tile", "patches", "shard_size")  # fields: with less, less is needed
# Commands with --weights-dir: where one needed it, the next one that is named needs it, too.
TAKE_WEIGHTS = {
    "build", "finetune-set", "depth", "patches", "caption", "train", "pretrain", "upscale", "ui",
    "evaluate", "compare", "features", "export", "weights", "metrics",
}  # fmt: skip


@dataclass
class Command(Generic[Config]):
    """A command; calling it with arguments runs it and returns the exit status.

    Each command module ends with

        main = Command(UpscaleConfig, run, name="lasr upscale", about=__doc__)

    model: the pydantic model whose fields are the flags. run: what to do with an instance of it;
    it raises UserError where the user can help. name, about, positional, weights, configurable: see
    Flags. following: the words of the command to type next, once `run` is done, with the paths that
    it wrote; none where there is no such command. After --dry-run it is the command itself.
    """

    model: type[Config]
    run: Callable[[Config], object]
    name: str
    about: str | None = ""
    positional: str = ""
    weights: bool = False
    configurable: bool = False
    following: Callable[[Config], Sequence[object]] | None = None
    line: str = field(default="", init=False)  # the command line of the last call

    @property
    def flags(self) -> Flags[Config]:
        """The flags of this command."""
        return Flags(
            self.model, self.name, self.about or "", self.positional, self.weights,
            self.configurable,
        )  # fmt: skip

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        try:
            return self._call(sys.argv[1:] if argv is None else argv)
        except KeyboardInterrupt as error:  # while the flags are read, or the library for it
            return stopped(error)

    def _call(self, argv: Sequence[str]) -> int:
        self.line = f"{self.name} {shlex.join(argv)}"
        asked = [word for word in argv if word in (HELP, HELP_SHORT, HELP_ALL)]
        if asked:
            return show(pages.page(self.flags, everything=HELP_ALL in asked))
        try:
            config, common = self.flags.parse(argv)
        except UsageError as error:
            return refuse(error)
        if "weights_dir" in common:
            use_folder(str(common["weights_dir"]))
        less = [self.flags.label(name) for name in LESS_MEMORY if name in self.model.model_fields]

        def body() -> None:
            self.run(config)
            if os.environ.get("RANK", "0") == "0":  # under torchrun, one process of many says it
                say_next(self._following(config, common, argv))

        return run_command(body, bool(common.get("debug")), less, _loudness(common))

    def _following(
        self, config: Config, common: Mapping[str, object], argv: Sequence[str]
    ) -> Sequence[object]:
        if getattr(config, "dry_run", False):
            return [*self.name.split(), *(w for w in argv if w.partition("=")[0] != "--dry-run")]
        words = list(self.following(config) if self.following else ())
        takes = words and words[1] in TAKE_WEIGHTS and WEIGHTS_DIR not in words
        if takes and "weights_dir" in common:
            words += [WEIGHTS_DIR, common["weights_dir"]]
        return words

    @property
    def summary(self) -> str:
        """A line about the command."""
        return summary(self.about or "")

    def app(self) -> "cyclopts.App":
        """The command for cyclopts, which generates shell completion from it."""
        return self.flags.app()


@dataclass(frozen=True)
class Lazy:
    """A command of another module, which is imported when the command is called."""

    name: str
    module: str
    summary: str

    def load(self) -> "Command[Any] | Group":
        """The module's `main`."""
        main: Command[Any] | Group = importlib.import_module(self.module).main
        return main


@dataclass
class Group:
    """Several commands behind one name; calling it runs the one that the first argument names.

    sections: commands by the title that `--help` lists them under. version: what --version prints.
    """

    name: str
    about: str | None
    sections: Mapping[str, Sequence[Command[Any] | Lazy]]
    version: Callable[[], str] | None = None

    @property
    def commands(self) -> dict[str, Command[Any] | Lazy]:
        """All commands by name."""
        return {c.name.split()[-1]: c for section in self.sections.values() for c in section}

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        argv = sys.argv[1:] if argv is None else argv
        first = argv[0] if argv else HELP
        if first in (HELP, HELP_SHORT, HELP_ALL):
            return show(self._page())
        if first == "--version" and self.version:
            return show(self.version())
        if first not in self.commands:
            what = "flag" if first.startswith("-") else "command"
            nearest = difflib.get_close_matches(first, self.commands, 1)
            fix = f"did you mean {nearest[0]}?" if nearest else f"see `{self.name} --help`"
            return refuse(UsageError(f"unknown {what} {first}", fix))
        command = self.commands[first]
        try:
            return (command.load() if isinstance(command, Lazy) else command)(argv[1:])
        except KeyboardInterrupt as error:  # while the command's module is imported
            return stopped(error)

    def _page(self) -> str:
        lines = [f"Usage: {self.name} COMMAND [options]", "", (self.about or "").strip(), ""]
        for title, commands in self.sections.items():
            lines.append(f"{title}:")
            for command in commands:
                lines += pages.entry(command.name.split()[-1], command.summary)
            lines.append("")
        return "\n".join([*lines, f"`{self.name} COMMAND --help` describes the options of one."])

    def app(self) -> "cyclopts.App":
        """All commands for cyclopts, which generates shell completion from them."""
        import cyclopts

        app = cyclopts.App(name=self.name, help=summary(self.about or ""), version_flags=())
        for name, command in self.commands.items():
            loaded = command.load() if isinstance(command, Lazy) else command
            app.command(loaded.app(), name=name)
        return app


def show(text: str) -> int:
    """Print what was asked for; returns the exit status."""
    return run_command(lambda: print(text))


def refuse(error: UsageError) -> int:
    """Print what is wrong with the arguments; returns the exit status."""
    if os.environ.get("RANK", "0") == "0":  # under torchrun, one process of many prints it
        with safe_streams():
            print(f"error: {printable(str(error))}", file=sys.stderr)
    return 2


def _loudness(common: Mapping[str, object]) -> str:
    """The flag among --quiet and --verbose that was given."""
    return next((flag for flag in (QUIET, VERBOSE) if common.get(flag.strip("-"))), "")


def run_command(
    command: Callable[[], object], debug: bool = False, less: Sequence[str] = (), loudness: str = ""
) -> int:
    """Run a command's body; an error becomes one line on stderr. Returns the exit status.

    debug: log at debug level and show the traceback of an unexpected error; so does LASR_DEBUG=1.
    less: flags to lower where memory runs out. loudness: --quiet, --verbose or neither.
    """
    debug = debug or os.environ.get("LASR_DEBUG", "0") not in ("", "0")
    before = is_quiet()
    be_quiet(loudness == QUIET)
    try:
        with safe_streams():
            return _run(command, debug, less, loudness)
    finally:
        be_quiet(before)


def _run(command: Callable[[], object], debug: bool, less: Sequence[str], loudness: str) -> int:
    ours, others = logging.INFO, logging.WARNING
    if loudness == QUIET:
        ours = others = logging.ERROR
    if loudness == VERBOSE or debug:
        others = logging.INFO
    set_up_logging(logging.DEBUG if debug else ours, OURS, others)
    try:
        with until_pipe_closes():
            command()
    except KeyboardInterrupt as error:
        return stopped(error)
    except Exception as error:
        print_error(error, less=less)
        return 1
    return 0


def stopped(error: KeyboardInterrupt) -> int:
    """Print that the command was stopped, and how far it came; returns the exit status."""
    # What runs at exit may take seconds: another Ctrl-C then ends the process without a word.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)
    so_far = f"stopped ({error});" if error.args else "stopped;"
    with safe_streams():
        print(STOPPED.replace("stopped;", so_far), file=sys.stderr)
    return 130


def print_error(error: BaseException, rank: str = "", less: Sequence[str] = ()) -> None:
    """Print an error as one line, with its traceback before it if the log is at debug level.

    rank: put in front, such as "rank 1: ". less: flags to lower where memory runs out.
    """
    if logging.getLogger(OURS[0]).isEnabledFor(logging.DEBUG):
        traceback.print_exception(error)
    print(f"error: {rank}{_describe(error, less)}", file=sys.stderr, flush=True)


def _describe(error: BaseException, less: Sequence[str]) -> str:
    if isinstance(error, UserError):
        return printable(str(error))
    if is_out_of_memory(error):
        lower = f"lower {' or '.join(less)}, or " if less else ""
        return f"out of memory ({one_line(error, 100)}); {lower}close other programs"
    if isinstance(error, OSError) and error.strerror:
        return printable(str(of_machine(error)))
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop from"):  # pathlib
        return printable(f"{str(error)[19:-1]}: a link that leads to itself; name another path")
    return (
        f"unexpected {type(error).__name__}: {one_line(error)}; run again with --debug for the"
        " traceback, and report it"
    )
