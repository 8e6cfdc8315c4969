"""Camera raw, developed by LibRaw (rawpy): the camera's white balance, sRGB. The extra `raw`."""

import io

from lasr.pictures.samples import Check, NotSupported, Samples

# Of sRGB: 1/exponent and slope near black (IEC 61966-2-1). LibRaw's default is that of BT.709.
_SRGB = (2.4, 12.92)


def decode(content: bytes, check: Check) -> Samples:
    """Develop a raw file: 8 bit, upright, brightened as LibRaw does by default.

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
