"""Command-line flags from a pydantic model: one flag per field, parsed by cyclopts.

The model keeps the defaults, checks and descriptions, so that a flag, Prefect's form and a stored
configuration cannot disagree.
"""

import difflib
import inspect
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from lasr.errors import UserError, one_line, printable
from lasr.files import read_text

if TYPE_CHECKING:
    import cyclopts

Config = TypeVar("Config", bound=BaseModel)
Sections = Mapping[str, Sequence[str]]  # title on a help page: names of fields

_FLAG = re.compile(r"--?[A-Za-z]\S*")
_LARGEST = 2**53  # of whole numbers; JSON and Prefect's form in the browser go no further
HELP, HELP_SHORT, HELP_ALL = "--help", "-h", "--help-all"
WEIGHTS_DIR, DEBUG, CONFIG = "--weights-dir", "--debug", "--config"
QUIET, VERBOSE = "--quiet", "--verbose"
SHORT = {HELP: HELP_SHORT, QUIET: "-q", VERBOSE: "-v"}
COMMON = {  # flags that are no fields: metavar and description
    CONFIG: ("FILE", "read options from a TOML file or a run's config.json; flags given here win"),
    WEIGHTS_DIR: ("DIR", "folder of model weights (default: $LASR_WEIGHTS, else data/weights)"),
    QUIET: ("", "print errors and the result only"),
    VERBOSE: ("", "log what libraries say, too, such as Prefect"),
    DEBUG: ("", "log more, and show the traceback of an error (or set LASR_DEBUG=1)"),
    HELP: ("", "show the common options"),
    HELP_ALL: ("", "show all options"),
}
# What a run's config.json records beside its options.
RECORDED = {"weights", "manifest_identity", "images_identity"}


class UsageError(UserError):
    """Arguments that a command does not take; the command ends with status 2."""


class NoFlags(BaseModel):
    """The model of a command that takes no parameters."""


@dataclass(frozen=True)
class Flags(Generic[Config]):
    """The flags of a command.

    model: its fields are the flags. A class variable SECTIONS names the fields that only
    `--help-all` shows, by section; ALIASES gives fields a short flag, as `-o`. name: as typed,
    `lasr build`. about: the module's docstring. positional: the fields that are given without a
    flag, in order, separated by spaces.
    weights: whether to add --weights-dir. configurable: whether to add --config.
    """

    model: type[Config]
    name: str
    about: str = ""
    positional: str = ""
    weights: bool = False
    configurable: bool = False

    @property
    def sections(self) -> Sections:
        """The less common fields, by section."""
        sections: Sections = getattr(self.model, "SECTIONS", {})
        return sections

    @property
    def aliases(self) -> Mapping[str, str]:
        """The short flags of fields, by field."""
        aliases: Mapping[str, str] = getattr(self.model, "ALIASES", {})
        return aliases

    @property
    def common(self) -> list[str]:
        """The flags that are no fields."""
        offered = {WEIGHTS_DIR: self.weights, CONFIG: self.configurable}
        return [flag for flag in COMMON if offered.get(flag, True)]

    @property
    def names(self) -> list[str]:
        """The fields of the model, positional ones first."""
        positional = self.positional.split()
        return [*positional, *(n for n in self.model.model_fields if n not in positional)]

    def is_positional(self, field: str) -> bool:
        """Whether a field is given without a flag."""
        return field in self.positional.split()

    def label(self, field: str) -> str:
        """How a user writes a field: its flag, or its name in capitals if it is positional."""
        if self.is_positional(field):
            return field.upper()
        return "--" + field.strip("_").replace("_", "-")  # `json_`: `json` is a method of a model

    def app(self, argv: Sequence[str] | None = None) -> "cyclopts.App":
        """A cyclopts application whose command returns the values that were given.

        argv: arguments to parse; flags that are not in them are left out, because cyclopts takes
        half a millisecond for each, at every parse. None: all flags, as for shell completion.
        """
        import cyclopts

        def given(**values: Any) -> dict[str, Any]:
            return values

        words = None if argv is None else {word.partition("=")[0] for word in argv}

        def is_wanted(label: str) -> bool:
            return words is None or label in words or SHORT.get(label) in words

        parameters = [
            self._parameter(name, str if words else Path)
            for name in self.names
            if self.is_positional(name) or is_wanted(self.label(name))
        ]
        for flag in filter(is_wanted, self.common):
            names = (flag, SHORT[flag]) if flag in SHORT else (flag,)
            options = cyclopts.Parameter(name=names, negative=(), help=COMMON[flag][1])
            kind = (str if words else Path) if COMMON[flag][0] else bool
            name = flag.strip("-").replace("-", "_")
            parameters.append(_optional(name, kind, options))
        given.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return cyclopts.App(
            name=self.name.split()[-1],
            help=summary(self.about),
            default_command=given,
            help_flags=(),
            version_flags=(),
            help_format="plaintext",
        )

    def _parameter(self, name: str, path: type) -> inspect.Parameter:
        import cyclopts

        field, positional = self.model.model_fields[name], self.is_positional(name)
        kind, short = without_none(field.annotation), self.aliases.get(name)
        options = cyclopts.Parameter(
            name=None if positional else tuple(filter(None, (self.label(name), short))),
            negative=(),
            consume_multiple=(1, None) if get_origin(kind) is list else False,
            json_list=False,
            allow_repeating=True,  # the last one counts, as in a shell alias; lists grow
            allow_leading_hyphen=positional,  # an SQL comment; flags are refused before
            help=field.description,
        )
        return _optional(name, _parsed_as(kind, path), options, positional)

    def parse(self, argv: Sequence[str]) -> tuple[Config, dict[str, Any]]:
        """Read `argv`; returns the configuration, and the common flags that were given.

        Raises UsageError: an unknown flag, a value that is missing or out of range.
        """
        import cyclopts

        see = f"see `{self.name} --help`"
        known = [self.label(n) for n in self.model.model_fields if not self.is_positional(n)]
        shorts = [*self.aliases.values(), *SHORT.values()]
        refuse_unknown_flags(argv, [*known, *shorts, *self.common], see)
        argv = self._spelt_out(argv)
        options: dict[str, Any] = {"exit_on_error": False, "print_error": False, "verbose": False}
        try:
            _, bound, _ = self.app(argv).parse_args(list(argv), **options)
        except cyclopts.UnusedCliTokensError as error:
            token = (error.unused_tokens or [""])[0]
            raise UsageError(f"unexpected argument '{token}'", see) from error
        except cyclopts.MissingArgumentError as error:
            raise UsageError(f"{error.keyword} needs a value", see) from error
        except cyclopts.CoercionError as error:
            assert error.token is not None
            wanted = ", ".join(get_args(error.target_type)) or "true, false"
            text = f"{error.token.keyword} {error.token.value}: choose from {wanted}"
            raise UsageError(text, see) from error
        except cyclopts.CycloptsError as error:
            text = str(error).rstrip(".")
            raise UsageError(text[:1].lower() + text[1:], see) from error
        given = dict(bound.arguments)
        fields = {key: given.pop(key) for key in self.model.model_fields if key in given}
        self._check_paths(fields | given, see)
        if path := given.pop(CONFIG.strip("-"), None):
            fields = self._read_config(Path(path)) | fields
        try:
            config = self.model(**fields)
        except ValidationError as error:
            raise UsageError(self._explain(error), see) from error
        self._check_numbers(config, see)
        return config, given

    def _check_paths(self, given: Mapping[str, Any], see: str) -> None:
        """Raise UsageError for a path that is empty, as a variable of the shell that is not set."""
        for name, value in given.items():
            field = self.model.model_fields.get(name)
            kind = without_none(field.annotation) if field else Path
            if kind in (Path, list[Path]) and "" in (value if isinstance(value, list) else [value]):
                raise UsageError(f"{self.label(name)} '': an empty path", see)

    def _check_numbers(self, config: BaseModel, see: str) -> None:
        """Raise UsageError for a number that libraries cannot compute with.

        They count in 64 bits, and add to what they are given, a rank to a seed.
        """
        for name, value in config:
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, float) and not math.isfinite(number):
                    raise UsageError(f"{self.label(name)} {number}: not a finite number", see)
                if isinstance(number, int) and abs(number) > _LARGEST:
                    problem = f"{self.label(name)} {number}: more than {_LARGEST} (2^53)"
                    raise UsageError(problem, see)

    def _spelt_out(self, argv: Sequence[str]) -> list[str]:
        """The arguments with short flags written as long ones.

        The values of a short flag for a positional field are put in front of the first flag, where
        cyclopts expects them.
        """
        end = list(argv).index("--") if "--" in argv else len(argv)
        front: list[str] = []
        words: list[str] = []
        target = front
        for word in argv[:end]:
            flag, equals, value = word.partition("=")
            field = next((f for f, short in self.aliases.items() if short == flag), None)
            if field is not None and self.is_positional(field):
                target = front
                front += [value] if equals else []
                continue
            if _FLAG.fullmatch(flag):
                target = words
            target.append(word if field is None else self.label(field) + equals + value)
        return [*front, *words, *argv[end:]]

    def _read_config(self, path: Path) -> dict[str, Any]:
        """Values of fields from a file.

        Raises UsageError: unreadable, an unknown option, one that is given twice, or a truth value
        where pydantic would make a number of it.
        """
        see = f"see `{self.name} --help-all`"
        try:
            text = read_text(path)
            is_json = text.lstrip().startswith("{")
            content = json.loads(text, object_pairs_hook=_once) if is_json else tomllib.loads(text)
            written = _once((key.replace("-", "_"), value) for key, value in content.items())
        except OSError as error:
            problem = f"{path}: cannot be read ({error.strerror})"
            raise UsageError(problem, "check the path") from error
        except UserError as error:  # of its encoding
            raise UsageError(error.problem, error.fix) from error
        except _Twice as error:
            raise UsageError(f"{path}: {error} is given twice", "remove one of them") from error
        except (ValueError, RecursionError) as error:  # of JSON or TOML
            reason = one_line(error, 100)
            raise UsageError(
                f"{path}: neither TOML nor JSON ({reason})",
                "write lines such as `batch_size = 8`, or give a run's config.json",
            ) from error
        for name in RECORDED & written.keys():
            del written[name]
        for name in written:
            if name not in self.model.model_fields:
                nearest = difflib.get_close_matches(name, self.model.model_fields, 1)
                fix = f"did you mean {nearest[0]}?" if nearest else see
                raise UsageError(f"{path}: unknown option {printable(name)[:100]}", fix)
            if isinstance(written[name], bool) and not _takes_bool(self.model, name):
                shown = str(written[name]).lower()
                raise UsageError(
                    f"{path}: {name} = {shown}: not a value of {self.label(name)}", see
                )
        return {name: value for name, value in written.items() if value is not None}

    def _explain(self, error: ValidationError) -> str:
        """What is missing, all together, or else the model's first complaint."""
        problems = error.errors()
        missing = [self.label(str(p["loc"][0])) for p in problems if p["type"] == "missing"]
        if missing:
            return f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} required"
        first = problems[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            return message
        label = self.label(str(first["loc"][0]))
        return f"{label} {first['input']}: {message[:1].lower()}{message[1:]}"


class _Twice(Exception):
    """A key that occurs twice; its text names it."""


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dictionary. Raises _Twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Twice(printable(key)[:100])
        found[key] = value
    return found


def _takes_bool(model: type[BaseModel], name: str) -> bool:
    return without_none(model.model_fields[name].annotation) is bool


def _optional(name: str, hint: Any, options: Any, positional: bool = False) -> inspect.Parameter:
    """A parameter that cyclopts does not require: the model says what is missing.

    Its default is never used, but cyclopts checks that it is of the right type.
    """
    kind = inspect.Parameter.POSITIONAL_ONLY if positional else inspect.Parameter.KEYWORD_ONLY
    unused = get_args(hint)[0] if get_origin(hint) is Literal else (get_origin(hint) or hint)()
    return inspect.Parameter(name, kind, default=unused, annotation=Annotated[hint, options])


def _parsed_as(kind: Any, path: type) -> Any:
    """What cyclopts makes of a value; of a path, `path`.

    Numbers stay text: the model converts and checks them. So do paths, unless for completion: an
    empty one would become the current folder.
    """
    if get_origin(kind) is list:
        return list[_parsed_as(get_args(kind)[0], path)]  # type: ignore[misc]
    if kind is Path:
        return path
    return kind if kind is bool or get_origin(kind) is Literal else str


def without_none(annotation: Any) -> Any:
    """The type of a field without None: `int | None` is int."""
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    return kinds[0] if len(kinds) < len(get_args(annotation)) else annotation


def summary(about: str) -> str:
    """The first line of a docstring, without its full stop."""
    return about.strip().partition("\n")[0].rstrip(".")


def refuse_unknown_flags(argv: Iterable[str], known: Sequence[str], see: str) -> None:
    """Raise UsageError for the first flag that is not in `known`, with the nearest that is."""
    for token in argv:
        if token == "--":  # no flags after it
            return
        flag = token.partition("=")[0]
        if _FLAG.fullmatch(flag) and flag not in known:
            nearest = difflib.get_close_matches(flag, known, 1)
            fix = f"did you mean {nearest[0]}?" if nearest else see
            raise UsageError(f"unknown flag {flag}", fix)
