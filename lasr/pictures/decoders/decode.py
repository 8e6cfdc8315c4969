"""The bytes of a picture file → its samples, by the decoder of its format."""

import importlib
import io
import struct
import zlib
from collections.abc import Callable

from PIL import Image

from lasr.errors import one_line
from lasr.pictures.formats import Reader, by_suffix, why_not_read
from lasr.pictures.recognise import by_content
from lasr.pictures.samples import Check, NotSupported, Samples

Decoder = Callable[[bytes, Check], Samples]

_BASE = {  # name of the format: module, function
    "JPEG": ("jpeg", "decode"),
    "PNG": ("png", "decode"),
    "TIFF": ("tiff", "decode"),
    "GIF": ("simple", "decode_gif"),
    "WebP": ("simple", "decode_webp"),
    "BMP": ("simple", "decode_bmp"),
    "JPEG 2000": ("isobmff", "decode_jpeg_2000"),
    "AVIF": ("isobmff", "decode_avif"),
    "PNM": ("netpbm", "decode"),
}
_BY_EXTRA = {  # module, function
    Reader.HEIF: ("isobmff", "decode_heif"),
    Reader.RAW: ("simple", "decode_raw"),
}


class Damaged(ValueError):
    """A file that cannot be decoded to its end; the text says why."""


def decode(content: bytes, check: Check, name: str = "") -> Samples:
    """Decode a picture file of any format that is read.

    name: the file's; its suffix counts where the content does not tell the format.
    Raises NotSupported: a kind of picture that is not read here. Damaged: it cannot be decoded, or
    is no picture. Also what `check` raises, and MemoryError.
    """
    if not content:
        raise Damaged("an empty file")
    told = by_content(io.BytesIO(content), name)
    kind = told or by_suffix(name)
    if kind and (why := why_not_read(kind, name)):
        raise NotSupported(why) if kind.is_picture else Damaged(why)
    if kind and kind.reader is not Reader.BASE:
        return _guarded(_decoder(*_BY_EXTRA[kind.reader]), content, check)
    if told is None:
        raise Damaged("not a picture in a known format")
    return _guarded(_decoder(*_BASE[told.name]), content, check)


def _decoder(module: str, function: str) -> Decoder:
    decoders = importlib.import_module(f"lasr.pictures.decoders.{module}")
    decoder: Decoder = getattr(decoders, function)
    return decoder


def _guarded(decoder: Decoder, content: bytes, check: Check) -> Samples:
    refusals = list[Exception]()

    def checked(width: int, height: int) -> None:
        try:
            if not (isinstance(width, int) and isinstance(height, int) and min(width, height) > 0):
                raise Damaged(f"damaged: a size of {width} x {height} pixels")
            check(width, height)
        except Exception as error:
            refusals.append(error)
            raise

    try:
        samples = decoder(content, checked)
    except (NotSupported, MemoryError):
        raise
    except (zlib.error, struct.error, IndexError) as error:
        raise Damaged(f"damaged: its structure is broken ({one_line(error)})") from error
    except Image.DecompressionBombError as error:  # of a frame larger than the header says
        raise NotSupported("a frame that is larger than its picture") from error
    except Exception as error:  # decoders raise nearly anything on damaged files
        if error in refusals:
            raise
        raise Damaged(f"damaged: {one_line(error)}") from error
    return samples
