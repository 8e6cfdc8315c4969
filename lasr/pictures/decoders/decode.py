"""The bytes of a picture file → its samples, by the decoder of its format."""

import importlib
import io
import struct
import zlib
from collections.abc import Callable

from PIL import Image

from lasr.errors import one_line
from lasr.pictures.formats import Reader, why_not_read
from lasr.pictures.recognise import recognise
from lasr.pictures.samples import Check, NotSupported, Samples

Decoder = Callable[[bytes, Check], Samples]

_BY_CONTENT: tuple[tuple[int, bytes, str, str], ...] = (  # offset, bytes, module, function
    (0, b"\xff\xd8\xff", "jpeg", "decode"),
    (0, b"\x89PNG\r\n\x1a\n", "png", "decode"),
    (0, b"II*\0", "tiff", "decode"),
    (0, b"MM\0*", "tiff", "decode"),
    (0, b"II+\0", "tiff", "decode"),
    (0, b"MM\0+", "tiff", "decode"),
    (0, b"GIF87a", "simple", "decode_gif"),
    (0, b"GIF89a", "simple", "decode_gif"),
    (8, b"WEBPVP8", "simple", "decode_webp"),
    (0, b"BM", "simple", "decode_bmp"),
    (0, b"\x00\x00\x00\x0cjP  \r\n\x87\n", "isobmff", "decode_jpeg_2000"),
    (0, b"\xff\x4f\xff\x51", "isobmff", "decode_jpeg_2000"),
    (4, b"ftypavif", "isobmff", "decode_avif"),
    (4, b"ftypavis", "isobmff", "decode_avif"),
    *((0, b"P" + digit, "netpbm", "decode") for digit in (b"1", b"2", b"3", b"4", b"5", b"6")),
    (0, b"Pf", "netpbm", "decode"),
    (0, b"PF", "netpbm", "decode"),
)

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
    kind = recognise(io.BytesIO(content), name)
    if kind and (why := why_not_read(kind, name)):
        raise NotSupported(why) if kind.is_picture else Damaged(why)
    if kind and kind.reader is not Reader.BASE:
        return _guarded(_decoder(*_BY_EXTRA[kind.reader]), content, check)
    for offset, magic, module, function in _BY_CONTENT:
        if content.startswith(magic, offset):
            return _guarded(_decoder(module, function), content, check)
    raise Damaged("not a picture in a known format")


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
