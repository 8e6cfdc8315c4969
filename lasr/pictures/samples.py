"""What every decoder returns: a file's samples, before they are converted to sRGB and turned."""

import io
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image

Space = Literal["grey", "rgb", "cmyk", "lab"]
CHANNELS: dict[Space, int] = {"grey": 1, "rgb": 3, "cmyk": 4, "lab": 3}

# Called with width and height as soon as a header is read, before any pixel is decoded. It raises
# to refuse the picture.
Check = Callable[[int, int], None]

MAX_PIXELS = 2**28  # 268 megapixels: 0.8 GB in 8 bit, 1.6 GB in 16 bit
LARGEST = 2**30  # what the decoders themselves can hold; no option goes beyond it
_unlimited = threading.Lock()  # of Pillow's limit, while a header is read
MAX_PROFILE = 2**25  # bytes of a profile or a text after decompression: 32 MB


class NotSupported(ValueError):
    """A file that is not damaged but holds something that no decoder reads; the text names it."""


@dataclass(frozen=True)
class Metadata:
    """What an enlarged picture inherits from its original.

    exif: a TIFF structure without the prefix `Exif\\0\\0`. dpi: horizontal and vertical.
    profile: the embedded ICC profile, if there was one.
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    profile: bytes | None = None


@dataclass(frozen=True)
class Samples:
    """The samples of a picture as stored, with palettes and alpha resolved.

    values: h x w x c, uint8 or uint16, c as in CHANNELS. cmyk: 0 is no ink. lab: encoded as ICC v4
    does, L* 0 to 100 and a*, b* -128 to 127 (8 bit) or -128 to 127.996 (16 bit).
    alpha: h x w of the same dtype, None if the picture is opaque; `values` are not premultiplied.
    profile: the ICC profile that gives the numbers their meaning, embedded or built from the file's
    tags. None: sRGB, grey with sRGB's curve, CMYK of no known press, CIELAB of D50.
    orientation: as in EXIF, 1 to 8.
    notes: what the user should know of, one line each.
    """

    values: np.ndarray
    space: Space
    alpha: np.ndarray | None = None
    profile: bytes | None = None
    orientation: int = 1
    metadata: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = ()


def frame_notes(image: Image.Image) -> tuple[str, ...]:
    """Says that an animation's other frames are not read."""
    try:
        return count_notes(getattr(image, "n_frames", 1))
    except Exception:  # a later frame is damaged; decoders raise nearly anything
        return ("only the first of several frames is read",)


def count_notes(frames: int) -> tuple[str, ...]:
    """As `frame_notes`, for a number."""
    return (f"only the first of its {frames} frames is read",) if frames > 1 else ()


def open_with(plugin: str, content: bytes) -> Image.Image:
    """Open a file with one of Pillow's plugins. No pixel is decoded.

    `Image.open` would add a limit of its own on pixels, and try further formats, one of which
    (EPS) starts another program.
    """
    return _open(plugin, io.BytesIO(content))


def open_file(file: BinaryIO) -> Image.Image | None:
    """As `open_with`, for results of ours other than PNG; None: another format."""
    start = file.read(12)
    file.seek(0)
    for plugin, magic, at in (
        ("JPEG", b"\xff\xd8\xff", 0),
        ("WEBP", b"WEBP", 8),
        ("TIFF", b"II", 0),
        ("TIFF", b"MM", 0),
    ):
        if start.startswith(magic, at):
            return _open(plugin, file)
    return None


def _open(plugin: str, file: BinaryIO) -> Image.Image:
    Image.init()
    factory = Image.OPEN[plugin][0]
    with _unlimited:  # opening a WebP checks Pillow's limit, which is not ours
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = factory(file, b"")  # type: ignore[arg-type]
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    if not isinstance(image, Image.Image):
        raise ValueError(f"not a {plugin} file")
    return image


def scaled(values: np.ndarray, bits: int) -> np.ndarray:
    """Samples of `bits` bits to uint8 (up to 8 bits) or uint16 (more): 0 and the largest stay ends.

    values: unsigned integers, at most 2^bits - 1.
    """
    if bits == 8:
        return values.astype(np.uint8, copy=False)
    if bits == 16:
        return values.astype(np.uint16, copy=False)
    if bits > 16:  # 65535 / (2^bits - 1) is 2^(16 - bits) to within a part in 65536
        shifted: np.ndarray = values >> np.asarray(bits - 16, values.dtype)
        return shifted.astype(np.uint16)
    largest = 2**bits - 1
    full, dtype = (255, np.uint8) if bits < 8 else (65_535, np.uint16)
    table = (np.arange(largest + 1) * full + largest // 2) // largest
    result: np.ndarray = table.astype(dtype)[values]
    return result


def from_float(values: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Floats, 0 black and 1 white, to uint16; what is beyond is clipped and noted.

    Raises NotSupported: values that are not numbers, or a picture in another range, most of which
    would become white.
    """
    if (count := int(np.isnan(values).sum())) > 0:
        raise NotSupported(f"{count} of {values.size} floats are not numbers (NaN)")
    above = int((values > 1).sum())
    if above > values.size / 2:
        raise NotSupported(
            f"most of its floats are above 1, up to {values.max():.6g}, and 1 is white; scale them"
        )
    outside = above + int((values < 0).sum())
    notes = (f"{outside} of {values.size} floats outside 0 to 1 are clipped",) if outside else ()
    # float64: float16 cannot hold 65535, float32 would round twice.
    clipped = np.clip(values, 0, 1).astype(np.float64)
    return (clipped * 65_535 + 0.5).astype(np.uint16), notes


def straight(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Divide premultiplied h x w x c values by alpha; where that is 0, they become 0."""
    full = int(np.iinfo(values.dtype).max)
    divisor = np.maximum(alpha, 1).astype(np.uint32)[..., None]
    result: np.ndarray = (values.astype(np.uint32) * full + divisor // 2) // divisor
    result[alpha == 0] = 0
    np.minimum(result, full, out=result)
    return result.astype(values.dtype)


def orientation_of(exif: Image.Exif, xmp: bytes | None = None) -> int:
    """The tag Orientation, or that of XMP if there is none; 1 if there is none that is valid."""
    if 0x0112 not in exif and xmp:
        tag = re.search(rb'tiff:Orientation(?:="|>)([1-8])', xmp)
        return int(tag[1]) if tag else 1
    value = exif.get(0x0112, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
