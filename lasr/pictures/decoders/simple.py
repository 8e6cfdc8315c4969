"""Formats that a library decodes right in all their kinds.

GIF, BMP and WebP by Pillow; camera raw by LibRaw (rawpy, the extra `raw`).
"""

import io
import struct

import numpy as np
from PIL import Image

from lasr.pictures.profiles import rgb_profile
from lasr.pictures.samples import (
    Check,
    Metadata,
    NotSupported,
    Samples,
    Space,
    frame_notes,
    open_with,
    orientation_of,
)


def decode_gif(content: bytes, check: Check) -> Samples:
    """Decode the first frame of a GIF. Raises ValueError and OSError (damaged)."""
    with open_with("GIF", content) as image:
        check(*image.size)
        notes = frame_notes(image)
        values, alpha = _planes(image)
    profile = _gif_profile(content)
    return Samples(values, _space(values), alpha, profile, 1, Metadata(profile=profile), notes)


def decode_bmp(content: bytes, check: Check) -> Samples:
    """Decode a BMP: palette, RLE, 5-5-5, 5-6-5, 24 and 32 bit, with alpha where a mask says so.

    Raises NotSupported: other bit masks, a picture that is a JPEG or PNG inside.
    """
    try:
        image = open_with("BMP", content)
    except OSError as error:
        if "bitfields" in str(error) or "compression" in str(error) or "depth" in str(error):
            raise NotSupported(f"a BMP of an unusual kind ({error})") from error
        raise
    with image:
        check(*image.size)
        values, alpha = _planes(image)
        profile, notes = _bmp_profile(content)
        dpi = image.info.get("dpi")
    metadata = Metadata(dpi=dpi if dpi and min(dpi) > 0 else None, profile=profile)
    return Samples(values, _space(values), alpha, profile, 1, metadata, notes)


def decode_webp(content: bytes, check: Check) -> Samples:
    """Decode the first frame of a WebP. Raises ValueError and OSError (damaged)."""
    with open_with("WEBP", content) as image:
        check(*image.size)
        notes = frame_notes(image)
        values, alpha = _planes(image)
        profile, exif, xmp = (image.info.get(key) for key in ("icc_profile", "exif", "xmp"))
        orientation = orientation_of(image.getexif())
    metadata = Metadata(exif and exif.removeprefix(b"Exif\0\0"), xmp, None, profile)
    return Samples(values, _space(values), alpha, profile, orientation, metadata, notes)


def _planes(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Grey or RGB values and alpha of an 8-bit image."""
    grey = image.mode in ("1", "L", "LA")
    alpha = image.has_transparency_data
    mode = ("LA" if grey else "RGBA") if alpha else ("L" if grey else "RGB")
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    return (pixels[..., :-1], pixels[..., -1]) if alpha else (pixels, None)


def _space(values: np.ndarray) -> Space:
    return "grey" if values.shape[2] == 1 else "rgb"


def _gif_profile(content: bytes) -> bytes | None:
    """The profile of the application extension ICCRGBG1: sub-blocks with their lengths."""
    at = content.find(b"\x21\xff\x0bICCRGBG1012") + 14
    if at < 14:
        return None
    blocks = []
    while at < len(content) and (size := content[at]):
        blocks.append(content[at + 1 : at + 1 + size])
        at += 1 + size
    return b"".join(blocks) or None


def _bmp_profile(content: bytes) -> tuple[bytes | None, tuple[str, ...]]:
    """The profile of a BMP of version 4 or 5: embedded, or of its end points and gamma."""
    (size,) = struct.unpack_from("<I", content, 14)
    if size < 108 or len(content) < 14 + size:
        return None, ()
    kind = content[14 + 56 : 14 + 60][::-1]
    if kind == b"\0\0\0\0":  # calibrated RGB; most writers leave the numbers out
        values = np.array(struct.unpack_from("<9I", content, 14 + 60)).reshape(3, 3) / 2**30
        gammas = np.array(struct.unpack_from("<3I", content, 14 + 96)) / 2**16
        sums = values.sum(axis=1)
        if (sums > 0).all() and (gammas > 0).all() and np.ptp(gammas) < 0.01:
            white = values.sum(axis=0) / values.sum()
            points = [white[0], white[1], *(values[:, :2] / sums[:, None]).ravel()]
            try:
                return rgb_profile(points, (float(gammas[0]),)), ()
            except ValueError:
                return None, ()
    if size >= 124 and kind == b"MBED":
        start, length = struct.unpack_from("<II", content, 14 + 112)
        return content[14 + start : 14 + start + length], ()
    if size >= 124 and kind == b"LINK":
        return None, ("its colour profile is in another file and is ignored",)
    return None, ()


# Of sRGB: 1/exponent and slope near black (IEC 61966-2-1). LibRaw's default is that of BT.709.
_SRGB = (2.4, 12.92)


def decode_raw(content: bytes, check: Check) -> Samples:
    """Develop a raw file in the camera's white balance: 8 bit, sRGB, upright.

    It is brightened as LibRaw does by default.

    Raises NotSupported (LibRaw does not know its kind), ValueError (damaged).
    """
    import rawpy

    try:
        with rawpy.imread(io.BytesIO(content)) as raw:
            check(raw.sizes.iwidth, raw.sizes.iheight)
            return Samples(raw.postprocess(use_camera_wb=True, gamma=_SRGB), "rgb")
    except rawpy.LibRawFileUnsupportedError as error:
        raise NotSupported("a camera raw file of a kind that LibRaw does not know") from error
    except rawpy.LibRawError as error:
        reason = error.args[0] if error.args else error
        text = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise ValueError(text) from error
