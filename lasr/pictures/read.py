"""Read a picture file of any format: upright sRGB pixels in their own depth, alpha, metadata.

Both programs read pictures here and nowhere else. docs/formats.md lists what is read and refused.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lasr.errors import UserError
from lasr.pictures.colour import to_8_bit, to_srgb
from lasr.pictures.decode import Damaged, decode
from lasr.pictures.find import check_regular
from lasr.pictures.samples import LARGEST, MAX_PIXELS, Check, Metadata, NotSupported

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

RAISE_LIMIT = "raise the limit with --max-pixels"
_UPRIGHT = {  # EXIF orientation → turns the stored rows upright
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
    8: lambda a: np.rot90(a, 1),
}


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
    turn = _UPRIGHT.get(samples.orientation, lambda array: array)
    values = np.ascontiguousarray(turn(values))
    alpha = None if samples.alpha is None else np.ascontiguousarray(turn(samples.alpha))
    is_grey = values.shape[2] == 1
    if is_grey:
        values = np.broadcast_to(values, (*values.shape[:2], 3))
    return Picture(values, alpha, is_grey, samples.metadata, samples.notes + notes)


def limited(max_pixels: int) -> Check:
    """A check for `decode_picture` that raises TooLarge beyond `max_pixels`."""

    def check(width: int, height: int) -> None:
        if width * height > max_pixels:
            raise TooLarge(f"{width}x{height}: more than {max_pixels} pixels")

    return check


def read_picture(path: Path, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a picture file; log its notes.

    Raises UserError: not readable, not supported, too large, or not a regular file.
    """
    check_regular(path)
    try:
        picture = decode_picture(path.read_bytes(), limited(max_pixels), path.name)
    except TooLarge as error:
        raise UserError(f"{path}: {error}", RAISE_LIMIT) from error
    except NotSupported as error:
        raise UserError(f"{path}: {error}", "convert it to PNG, TIFF or JPEG, or leave it out") from error
    except (Damaged, OSError) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        raise UserError(f"{path}: not a readable picture ({reason})", "replace the file, or leave it out") from error
    except MemoryError as error:
        raise UserError(f"{path}: not enough memory to decode it", "leave it out, or make it smaller") from error
    for note in picture.notes:
        log.warning("%s: %s", path, note)
    return picture


def read_rgb(path: Path, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read a picture for networks and metrics: (3, h, w) float32 in [0, 1], without alpha.

    Raises UserError: as `read_picture`.
    """
    import torch  # here, so that commands answer a wrong path without loading it

    pixels = read_picture(path, max_pixels).pixels
    tensor = torch.from_numpy(pixels.astype(np.float32)).div_(np.iinfo(pixels.dtype).max)
    return tensor.permute(2, 0, 1).contiguous()


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height from the header, as stored. Raises UserError: as `read_picture`."""

    class Known(Exception):
        """Ends decoding after the header."""

    def check(width: int, height: int) -> None:
        raise Known(width, height)

    check_regular(path)
    try:
        decode(path.read_bytes(), check)
    except Known as known:
        width, height = known.args
        return width, height
    except (NotSupported, Damaged, OSError, MemoryError) as error:
        raise UserError(f"{path}: not a readable picture ({error})") from error
    raise UserError(f"{path}: not a readable picture")
