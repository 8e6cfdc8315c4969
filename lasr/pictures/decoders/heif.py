"""HEIC and HEIF by pillow-heif: libheif turns them upright. The extra `heif`."""

import io
from typing import Any, cast

import numpy as np

from lasr.pictures.profiles import coded_profile
from lasr.pictures.samples import Check, Metadata, Samples, Space, count_notes, scaled


def decode(content: bytes, check: Check) -> Samples:
    """Decode the primary picture of a HEIF file, 8 to 16 bit.

    Raises NotSupported (HDR), ValueError and others of pillow-heif (damaged).
    """
    import pillow_heif

    file = pillow_heif.open_heif(io.BytesIO(content), convert_hdr_to_8bit=False)
    picture = file[file.primary_index]
    check(*picture.size)
    values, info = np.asarray(picture), cast(dict[str, Any], picture.info)
    if (bits := info["bit_depth"]) > 8:  # pillow-heif fills the lower bits with zeros
        values = scaled(values >> (16 - bits), bits)
    values = values if values.ndim == 3 else values[..., None]
    channels = values.shape[2]
    alpha = values[..., -1] if channels in (2, 4) else None
    colours = values[..., : channels - (alpha is not None)]
    profile, exif, xmp = (info.get(key) for key in ("icc_profile", "exif", "xmp"))
    meaning, nclx = profile, info.get("nclx_profile")
    if not profile and nclx:
        meaning = coded_profile(nclx["color_primaries"], nclx["transfer_characteristics"])
    notes = count_notes(len(file))
    metadata = Metadata(exif and exif.removeprefix(b"Exif\0\0"), xmp, None, profile)
    kind: Space = "grey" if colours.shape[2] == 1 else "rgb"
    return Samples(colours, kind, alpha, meaning, 1, metadata, notes)
