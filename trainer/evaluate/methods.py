"""What is compared: networks, bicubic, and folders of other programs' outputs."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lasr.errors import UserError
from lasr.weights.locate import Located, locate_all

BICUBIC = "bicubic"


@dataclass(frozen=True)
class Method:
    """A row of the table. Its source is `bicubic`, weights (name or path), or an output folder."""

    name: str
    source: str
    is_folder: bool = False
    weights: Located | None = None  # of a network, once `locate_weights` found them

    @property
    def is_network(self) -> bool:
        """Whether the method runs here from weights."""
        return not self.is_folder and self.source != BICUBIC


def parse_methods(weights: Iterable[str], folders: Iterable[str]) -> list[Method]:
    """Parse `NAME=SOURCE` or `SOURCE`. A folder of step*.safetensors gives one NAME@STEP for each.

    Raises UserError: a missing folder, one without weights, or a name used twice.
    """
    methods = [method for text in weights for method in _networks(text)]
    for text in folders:
        name, source = _split(text)
        if not Path(source).is_dir():
            raise UserError(f"--outputs {source}: no such folder", "give NAME=FOLDER of pictures")
        methods.append(Method(name or Path(source).resolve().name, source, is_folder=True))
    for name, times in Counter(method.name for method in methods).items():
        if times > 1:
            raise UserError(
                f"method {name} is given {times} times", f"give each a name of its own: NAME={name}"
            )
        if not re.fullmatch(r"[^/\\\x00-\x1f|]+", name) or name.startswith("."):
            raise UserError(f"method {name!r}: its name cannot be a folder's", "give NAME=SOURCE")
    return methods


def locate_weights(methods: Sequence[Method]) -> list[Method]:
    """Return the methods with the weights of networks located. Nothing is downloaded.

    Raises WeightsError: unknown, missing or damaged weights; all missing ones are named together.
    """
    located = iter(locate_all(*((m.source, "sr") for m in methods if m.is_network)))
    return [replace(m, weights=next(located)) if m.is_network else m for m in methods]


def _split(text: str) -> tuple[str, str]:
    name, equals, source = text.partition("=")
    return (name, source) if equals and not Path(text).exists() else ("", text)


def _networks(text: str) -> list[Method]:
    name, source = _split(text)
    path = Path(source)
    if source == BICUBIC or not path.is_dir():
        return [Method(name or _label(path), source)]
    folder = path.resolve()
    steps = {_step(file): file for file in path.glob("step*.safetensors")}
    if steps:
        name = name or (folder.parent if folder.name == "weights" else folder).name
        return [Method(f"{name}@{step}", str(steps[step])) for step in sorted(steps)]
    if (path / "model.safetensors").is_file():
        return [Method(name or folder.name, str(path / "model.safetensors"))]
    raise UserError(
        f"--weights {source}: the folder has neither model.safetensors nor step*.safetensors",
        "give a run's folder, its folder of checkpoints, or a weights file",
    )


def _label(path: Path) -> str:
    return path.resolve().parent.name if path.stem == "model" else path.stem


def _step(file: Path) -> int:
    """The training step in a name such as step0005000.safetensors. Raises UserError: none."""
    digits = re.fullmatch(r"step[-_]?(\d+)", file.stem)
    if not digits:
        raise UserError(f"{file}: no training step in its name", "call it step0005000.safetensors")
    return int(digits[1])
