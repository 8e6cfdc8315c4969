"""What is compared: networks, bicubic, and folders of other methods' outputs."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lasr.device import device_name
from lasr.errors import UserError
from lasr.files import atomic_path
from lasr.weights.digests import sha256
from lasr.weights.locate import locate
from schemas.manifest import SCALE
from trainer.evaluate.ledger import Ledger
from trainer.evaluate.matlab_resize import enlarge
from trainer.evaluate.testset import Picture
from trainer.models.load import load_model
from trainer.sheets import to_uint8
from trainer.upscale.tiles import upscale

BICUBIC = "bicubic"
WARM_UP = 64  # pixels: side of the piece enlarged before the clock starts


@dataclass(frozen=True)
class Method:
    """A row of the table; its source: `bicubic`, weights (name or path), or a folder of outputs."""

    name: str
    source: str
    is_folder: bool = False

    @property
    def is_network(self) -> bool:
        """Whether it runs here from weights."""
        return not self.is_folder and self.source != BICUBIC


@dataclass(frozen=True)
class Output:
    """A method's answer to one picture, and what making it took (None for files from elsewhere)."""

    path: Path
    seconds: float | None = None
    parameters: int | None = None
    device: str | None = None


def parse_methods(weights: Iterable[str], folders: Iterable[str]) -> list[Method]:
    """Methods of `NAME=SOURCE` or `SOURCE`; a folder of step*.safetensors becomes NAME@STEP each.

    Raises UserError: a folder that is not there or has no weights, or a name that comes twice.
    """
    methods = [method for text in weights for method in _networks(text)]
    for text in folders:
        name, source = _split(text)
        if not Path(source).is_dir():
            raise UserError(f"--outputs {source}: no such folder; give NAME=FOLDER of pictures")
        methods.append(Method(name or Path(source).resolve().name, source, is_folder=True))
    for name, times in Counter(method.name for method in methods).items():
        if times > 1:
            raise UserError(f"method {name} comes {times} times; name them apart: NAME={name}")
        if not re.fullmatch(r"[^/\\\x00-\x1f|]+", name) or name.startswith("."):
            raise UserError(f"method {name!r}: its name must be fit for a folder; give NAME=…")
    return methods


def _split(text: str) -> tuple[str, str]:
    name, equals, source = text.partition("=")
    return (name, source) if equals and not Path(text).exists() else ("", text)


def _networks(text: str) -> list[Method]:
    name, source = _split(text)
    path = Path(source)
    if source == BICUBIC or not path.is_dir():
        return [Method(name or _label(path), source)]
    folder = path.resolve()
    steps = {step_of(file): file for file in path.glob("step*.safetensors")}
    if steps:
        name = name or (folder.parent if folder.name == "weights" else folder).name
        return [Method(f"{name}@{step}", str(steps[step])) for step in sorted(steps)]
    if (path / "model.safetensors").is_file():
        return [Method(name or folder.name, str(path / "model.safetensors"))]
    raise UserError(f"--weights {source}: neither model.safetensors nor step*.safetensors there")


def _label(path: Path) -> str:
    return path.resolve().parent.name if path.stem == "model" else path.stem


def step_of(file: Path) -> int:
    """The training step in a name such as step0005000.safetensors. Raises UserError: none there."""
    digits = re.fullmatch(r"step[-_]?(\d+)", file.stem)
    if not digits:
        raise UserError(f"{file}: no training step in its name; call it step0005000.safetensors")
    return int(digits[1])


class Maker:
    """Makes a method's SR pictures in `folder`, and remembers in a ledger which of them stand."""

    def __init__(self, method: Method, folder: Path, passes: int, tile: int, device: torch.device):
        self._source, self._folder, self._device = method.source, folder, device
        self._passes, self._tile = passes, tile
        self._identity = BICUBIC
        if method.is_network:
            self._identity = locate(method.source, "sr").identity
        self._made = Ledger(folder / "made.jsonl")
        self._run: Callable[[Tensor], Tensor] | None = None
        self._parameters: int | None = None

    def make(self, picture: Picture) -> Output:
        """The SR picture, written as PNG, or as it was made before.

        Raises UserError: the picture cannot be read, the weights cannot be loaded, or the network's
        answer is not finite.
        """
        path = self._folder / f"{picture.name}.png"
        key = f"{self._identity}, {self._passes} times, {picture.name}: {picture.identity}"
        known = self._made.get(key)
        if known is None or not path.is_file() or sha256(path) != known["output"]:
            pixels = picture.read()
            run = self._run or self._start(pixels)
            begin = time.perf_counter()
            enlarged = run(pixels)
            seconds = time.perf_counter() - begin
            with atomic_path(path) as temporary:
                Image.fromarray(to_uint8(enlarged)).save(temporary, format="PNG")
            known = {
                "output": sha256(path),
                "seconds": seconds,
                "parameters": self._parameters,
                "device": device_name(self._device) if self._parameters else "CPU",
            }
            self._made.add(key, known)
        return Output(path, known["seconds"], known["parameters"], known["device"])

    def _start(self, picture: Tensor) -> Callable[[Tensor], Tensor]:
        if self._source == BICUBIC:
            self._run = lambda picture: enlarge(picture, SCALE**self._passes)
        else:
            model = load_model(locate(self._source, "sr"))
            if model.scale != SCALE:
                raise UserError(f"{self._source}: enlarges x{model.scale}, x{SCALE} is compared")
            network = model.fitted().eval().to(self._device)
            self._parameters = sum(weight.numel() for weight in network.parameters())

            def run(picture: Tensor) -> Tensor:
                for _ in range(self._passes):
                    picture = upscale(network, picture.float(), self._tile)
                return picture

            self._run = run
        self._run(picture[:, :WARM_UP, :WARM_UP])
        return self._run
