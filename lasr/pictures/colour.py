"""Convert samples to sRGB through their ICC profile.

LittleCMS does it: through Pillow for 8 bit, through imagecodecs for 16 bit, which Pillow does not
offer. The intent is perceptual; for profiles of matrix and curves that is relative colorimetric.
"""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from lasr.pictures.profiles import srgb_profile
from lasr.pictures.samples import CHANNELS, Samples, Space

_SIGNATURES: dict[bytes, Space] = {
    b"GRAY": "grey", b"RGB ": "rgb", b"CMYK": "cmyk", b"Lab ": "lab"
}  # fmt: skip
_CODECS_NAME = {"grey": "gray"}  # where imagecodecs calls a space otherwise
_BROKEN = "its colour profile is broken and is ignored"


def to_srgb(samples: Samples) -> tuple[np.ndarray, tuple[str, ...]]:
    """The values in sRGB, h x w x 1 (grey) or h x w x 3, of the same dtype, and notes.

    Grey takes the curve of a grey profile, or of an RGB profile for R = G = B. A profile that is
    broken or of another space is ignored, as viewers do, and noted.
    """
    values, space, profile = samples.values, samples.space, samples.profile
    notes: tuple[str, ...] = ()
    if profile is not None:
        profile_space = _SIGNATURES.get(profile[16:20])
        if profile_space != space and not (space == "grey" and profile_space == "rgb"):
            known = profile[16:20].decode("latin-1").strip() if profile_space else "unknown"
            notes, profile = (f"its colour profile is for {known}, not {space}: ignored",), None
        elif profile_space == "rgb" and is_srgb(profile):
            return values, ()
        else:
            try:
                return _through_profile(values, space, profile), ()
            except (ImageCms.PyCMSError, ValueError, OSError, RuntimeError):
                notes = (_BROKEN,)
    if space == "cmyk":
        return _plain_cmyk(values), notes
    if space == "lab":
        return _through_profile(values, space, _lab_profile()), notes
    return values, notes


@lru_cache(maxsize=16)
def is_srgb(profile: bytes) -> bool:
    """Whether an RGB profile has the colorants and curves of sRGB, whatever its name.

    A lattice of colours, a fine ramp of greys and one of each primary come back the same to within
    1/255.
    """
    lattice = np.stack(np.meshgrid(*[np.arange(0, 256, 17)] * 3), axis=-1).reshape(-1, 3)
    ramps = [np.arange(256)[:, None] * axis for axis in (*np.eye(3, dtype=int), np.ones(3, int))]
    probe = np.concatenate([lattice, *ramps]).astype(np.uint8)[None]
    try:
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        converted = _through_pillow(probe, "RGB", profile, intent)
    except (ImageCms.PyCMSError, ValueError, OSError):
        return False
    return bool(np.abs(converted.astype(int) - probe).max() <= 1)


def _through_profile(values: np.ndarray, space: Space, profile: bytes) -> np.ndarray:
    if space == "grey":
        return _grey_through_profile(values, profile)
    if values.dtype == np.uint8 and space != "lab":
        return _through_pillow(values, "CMYK" if space == "cmyk" else "RGB", profile)
    deep = values if values.dtype == np.uint16 else values.astype(np.uint16) * 257
    return _at_depth(_deep(deep, space, profile), values.dtype)


def _grey_through_profile(values: np.ndarray, profile: bytes) -> np.ndarray:
    """Each level converted once; h x w x 1 unless the profile gives greys a hue."""
    levels = int(np.iinfo(values.dtype).max) + 1
    ramp = (np.arange(levels) * (65_535 // (levels - 1))).astype(np.uint16)[None, :, None]
    space = _SIGNATURES[profile[16:20]]
    table = _deep(np.repeat(ramp, CHANNELS[space], axis=2), space, profile)[0]
    if np.abs(table.astype(int) - ramp[0]).max() <= 257:  # sRGB's curve, as in `is_srgb`
        return values
    neutral = int(np.ptp(table.astype(int), axis=1).max()) <= 257
    table = _at_depth(table[:, 1:2] if neutral else table, values.dtype)
    result: np.ndarray = table[values[..., 0]]
    return result


def _through_pillow(
    values: np.ndarray,
    mode: str,
    profile: bytes,
    intent: ImageCms.Intent = ImageCms.Intent.PERCEPTUAL,
) -> np.ndarray:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    target = ImageCms.createProfile("sRGB")
    image = Image.frombuffer(mode, values.shape[1::-1], np.ascontiguousarray(values))
    converted = ImageCms.profileToProfile(image, source, target, intent, outputMode="RGB")
    return np.asarray(converted)


def _deep(values: np.ndarray, space: Space, profile: bytes) -> np.ndarray:
    """uint16 values of any space to uint16 sRGB."""
    from imagecodecs import CMS, cms_transform  # here: most pictures do not need it

    name = _CODECS_NAME.get(space, space)
    pixels = np.ascontiguousarray(values[..., 0] if space == "grey" else values)
    # Optimised, LittleCMS puts a table of 33^3 colours in the place of curves and matrix, which
    # errs by up to 18 of 255 where colours are clipped. (CMYK is a table already.)
    converted: np.ndarray = cms_transform(
        pixels,
        profile,
        srgb_profile(),
        colorspace=name,
        outcolorspace="rgb",
        outdtype="uint16",
        flags=CMS.FLAGS.NOOPTIMIZE if space != "cmyk" else None,
    )
    return converted


def _plain_cmyk(values: np.ndarray) -> np.ndarray:
    """Ink as a filter of light: (1 - c)(1 - k), as Pillow converts CMYK."""
    full = int(np.iinfo(values.dtype).max)
    light = full - values.astype(np.uint32)
    product = (light[..., :3] * light[..., 3:] + full // 2) // full
    return product.astype(values.dtype)


def _at_depth(deep: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return to_8_bit(deep) if dtype == np.uint8 else deep


def to_8_bit(values: np.ndarray) -> np.ndarray:
    """uint16 to uint8, rounded; uint8 stays as it is."""
    if values.dtype == np.uint8:
        return values
    # Equal to round(v / 257) for all v, in 32 bits and without a division.
    return ((values.astype(np.uint32) * 255 + 32_895) >> 16).astype(np.uint8)


@lru_cache(maxsize=1)
def _lab_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
