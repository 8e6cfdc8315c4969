"""Read a picture file of any format: upright sRGB pixels in their own depth, alpha, metadata.

Both programs read pictures here and nowhere else. docs/formats.md lists what is read and refused.
"""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lasr.errors import UserError
from lasr.pictures.colour import to_8_bit, to_srgb
from lasr.pictures.decoders.decode import Damaged, decode
from lasr.pictures.find import check_regular
from lasr.pictures.samples import LARGEST, MAX_PIXELS, Check, Metadata, NotSupported

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

RAISE_LIMIT = "raise the limit with --max-pixels"
_HEAD = 2**20  # bytes
VARIABLE = "LASR_MAX_PIXELS"  # the limit of commands that have no such flag


class TooLarge(ValueError):
    """A picture whose header states more pixels than the limit; none was decoded."""


@dataclass(frozen=True)
class Picture:
    """An upright picture in sRGB.

    pixels: h x w x 3, uint8 or uint16 as in the file; of a grey picture the three are equal, and
    the array is a read-only view.
    alpha: h x w of the same dtype, or None for an opaque file; the pixels are not premultiplied.
    notes: what the user should know of, one line each: a profile or frames that are ignored.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    is_grey: bool = False
    metadata: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = ()

    @property
    def planes(self) -> np.ndarray:
        """H x w x c: 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha."""
        colours = self.pixels[..., :1] if self.is_grey else self.pixels
        if self.alpha is None:
            return colours
        return np.concatenate([colours, self.alpha[..., None]], axis=2)

    def over(self, backdrop: int) -> np.ndarray:
        """H x w x 3 uint8: rounded to 8 bit and composited over a grey of this value."""
        pixels = to_8_bit(self.pixels)
        if self.alpha is None:
            return np.ascontiguousarray(pixels)
        from PIL import Image

        bands = [*np.moveaxis(pixels, 2, 0), to_8_bit(self.alpha)]
        front = Image.fromarray(np.ascontiguousarray(np.stack(bands, axis=2)))
        behind = Image.new("RGBA", front.size, (backdrop, backdrop, backdrop, 255))
        return np.asarray(Image.alpha_composite(behind, front).convert("RGB"))


def decode_picture(content: bytes, check: Check, name: str = "") -> Picture:
    """Decode the bytes of a picture file.

    check: called with the width and height in the header before pixels are decoded; `limited`
    makes one. name: the file's; its suffix counts where the content does not tell the format.
    Raises NotSupported, Damaged, what `check` raises, and MemoryError.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd EXIF
        samples = decode(content, check, name)
    values, notes = to_srgb(samples)
    values = _upright(values, samples.orientation)
    alpha = None if samples.alpha is None else _upright(samples.alpha, samples.orientation)
    is_grey = values.shape[2] == 1
    if is_grey:
        values = np.broadcast_to(values, (*values.shape[:2], 3))
    return Picture(values, alpha, is_grey, samples.metadata, samples.notes + notes)


def _upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored rows by their EXIF orientation; the result is contiguous."""
    if orientation == 1:
        return np.ascontiguousarray(stored)
    import cv2  # four times as fast as a copy of a view by numpy

    array = np.ascontiguousarray(stored)
    if orientation in (5, 7):
        array = cv2.transpose(array)
    flips = {2: 1, 3: -1, 4: 0, 7: -1}
    turns = {6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}
    if orientation in flips:
        array = cv2.flip(array, flips[orientation])
    elif orientation in turns:
        array = cv2.rotate(array, turns[orientation])
    return array.reshape(*array.shape[:2], *stored.shape[2:])


def limited(max_pixels: int) -> Check:
    """A check for `decode_picture` that raises TooLarge beyond `max_pixels`."""

    def check(width: int, height: int) -> None:
        if width * height > max_pixels:
            raise TooLarge(f"{width}x{height}: more than {max_pixels} pixels")

    return check


def read_picture(path: Path, max_pixels: int | None = None) -> Picture:
    """Read a picture file; log its notes.

    max_pixels: of the flag --max-pixels; None: of the environment variable LASR_MAX_PIXELS, or the
    default.
    Raises UserError: not readable, not supported, too large, or not a regular file.
    """
    check_regular(path)
    most = max_pixels or _default_limit()
    try:
        check_bytes(path.stat().st_size, most)
        picture = decode_picture(path.read_bytes(), limited(most), path.name)
    except TooLarge as error:
        fix = RAISE_LIMIT if max_pixels else f"raise the limit in {VARIABLE}, or make it smaller"
        raise UserError(f"{path}: {error}", fix) from error
    except NotSupported as error:
        raise UserError(
            f"{path}: {error}", "convert it to PNG, TIFF or JPEG, or leave it out"
        ) from error
    except (Damaged, OSError) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        raise UserError(
            f"{path}: not a readable picture ({reason})", "replace the file, or leave it out"
        ) from error
    except MemoryError as error:
        raise UserError(
            f"{path}: not enough memory to decode it", "leave it out, or make it smaller"
        ) from error
    for note in picture.notes:
        log.warning("%s: %s", path, note)
    return picture


def check_bytes(size: int, max_pixels: int) -> None:
    """Raise TooLarge for a file that is larger than any picture within the limit needs to be."""
    most = max(2**30, 8 * max_pixels)  # 16-bit RGBA, not compressed
    if size > most:
        raise TooLarge(f"{size} bytes: over {most}")


def _default_limit() -> int:
    text = os.environ.get(VARIABLE, "")
    if not text:
        return MAX_PIXELS
    if not text.isdecimal() or not 0 < int(text) <= LARGEST:
        raise UserError(f"{VARIABLE}={text}: not a number of pixels", f"use 1 to {LARGEST}")
    return int(text)


def read_rgb(path: Path) -> Tensor:
    """Read a picture for networks and metrics: (3, h, w) float32 in [0, 1], without alpha.

    Raises UserError: as `read_picture`.
    """
    import torch  # here, so that commands answer a wrong path without loading it

    pixels = read_picture(path).pixels
    tensor = torch.from_numpy(pixels.astype(np.float32)).div_(np.iinfo(pixels.dtype).max)
    return tensor.permute(2, 0, 1).contiguous()


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height from the header, as stored. Raises UserError: as `read_picture`."""

    class Known(Exception):
        """Ends decoding after the header."""

    def check(width: int, height: int) -> None:
        raise Known(width, height)

    check_regular(path)
    reason: Exception | None = None
    for most in (_HEAD, -1):  # most formats have their header at the start
        try:
            with open(path, "rb") as file:
                decode(file.read(most), check, path.name)
        except Known as known:
            width, height = known.args
            return width, height
        except (NotSupported, Damaged, OSError, MemoryError) as error:
            reason = error
    raise UserError(f"{path}: not a readable picture ({reason})")
