"""Photographs: find, hash, decode, turn upright. No other module opens one."""

import hashlib
import io
import itertools
import os
import posixpath
import stat
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

from lasr.errors import UserError
from lasr.pictures.find import FORMATS, expand_lists, find_files, is_picture_name
from lasr.pictures.read import to_srgb
from pipeline.storage import StoragePath, reason, reported

# Raise it when a file decodes to other pixels than before. 0, its first value, adds nothing to the
# fingerprint: parts that were finished before it existed stay valid.
VERSION = 0
MAX_PIXELS = 2**27  # 134 megapixels: bounds the memory for one photograph
MAX_BYTES = 2**30
_BACKDROP = (128, 128, 128)  # behind transparent pixels: in the middle of the range


class ImagesConfig(BaseModel):
    """The parameters of this stage."""

    model_config = ConfigDict(frozen=True)

    images: list[str] = Field(
        min_length=1,
        description="photographs: folders (searched downwards), files, globs, .txt lists of paths",
    )


def fingerprint_inputs() -> tuple[object, ...]:
    """What determines the pixels of a photograph, besides its bytes."""
    return ("images", VERSION) if VERSION else ()


@dataclass(frozen=True, order=True)
class Found:
    """A file that may be a photograph, with what the file system says of it."""

    name: str  # POSIX path relative to the images root: the manifest's image_path
    path: StoragePath
    size: int  # bytes; -1: not a regular file
    modified: int  # nanoseconds


@dataclass(frozen=True)
class Photograph:
    """A decoded photograph: H x W x 3 uint8, sRGB, upright."""

    found: Found
    image_id: str  # sha256 of the file's bytes, hex
    pixels: np.ndarray


class Unusable(Exception):
    """Raised for a photograph that cannot be used, with status and reason for the catalogue."""

    def __init__(self, status: str, reason: str, image_id: str | None = None):
        super().__init__(reason)
        self.status, self.reason, self.image_id = status, reason, image_id


def find(images: Iterable[str]) -> list[Found]:
    """Find all photographs below the given paths, each once, sorted by name.

    images: folders, files, globs and `.txt` lists as `lasr.pictures.find.find_files` takes them, or
    folders and files in object storage (`s3://bucket/folder`).
    Names are relative to the deepest folder that contains them all.
    Raises UserError: a path does not exist, a folder cannot be listed, or nothing is found.
    """
    images = list(images)
    inputs = list(expand_lists(images))
    local = (_stat(path) for path, _ in find_files(given for given in inputs if "://" not in given))
    remote = (found for given in inputs if "://" in given for found in _in_object_storage(given))
    files: dict[str, Found] = {}
    for found in itertools.chain(local, remote):
        files.setdefault(found.path.uri, found)
    if not files:
        raise UserError(
            f"no photograph found in {', '.join(images)}",
            f"give a file, or a folder with files that end in {' '.join(sorted(FORMATS))}",
        )
    try:
        root = posixpath.commonpath([posixpath.dirname(uri) for uri in files])
    except ValueError as error:  # a local path and a URI
        raise UserError(
            f"{' '.join(images)}: folders on this machine and in object storage cannot"
            " share the names of one manifest",
            "build two manifests",
        ) from error
    return sorted(_named(found, root) for found in files.values())


def _named(found: Found, root: str) -> Found:
    # Linux allows names that are not UTF-8; the catalogue gets `\xff` spelt out.
    relative = posixpath.relpath(found.path.uri, root)
    name = os.fsencode(relative).decode("utf-8", "backslashreplace")
    return Found(name, found.path, found.size, found.modified)


def _stat(file: Path) -> Found:
    path = StoragePath(os.path.abspath(file))
    try:
        state = file.stat()
    except OSError:  # gone, or a dangling link: recorded as unreadable
        return Found("", path, 0, 0)
    # Reading a pipe or a device might never end.
    size = state.st_size if stat.S_ISREG(state.st_mode) else -1
    return Found("", path, size, state.st_mtime_ns)


def _in_object_storage(uri: str) -> list[Found]:
    path = StoragePath(uri.rstrip("/"))
    with reported(path, "read"):
        info = path.fs.get_file_info(path.key)
        if info.type == pafs.FileType.Directory:
            found = path.fs.get_file_info(pafs.FileSelector(path.key, recursive=True))
        else:
            found = [info]
    if info.type == pafs.FileType.NotFound:
        raise UserError(f"{uri}: no such folder or file", "check the address")
    scheme = uri.split("://", 1)[0]
    return [
        Found("", StoragePath(f"{scheme}://{file.path}"), file.size, file.mtime_ns or 0)
        for file in found
        if file.is_file and (is_picture_name(file.base_name) or file is info)
    ]


def load(found: Found, min_side: int) -> Photograph:
    """Read a photograph: hash its bytes, decode them, turn it upright, convert it to sRGB.

    16-bit and grey pictures become 8-bit RGB, palettes are resolved, transparency is composited
    over mid grey, CMYK and wide-gamut pictures are converted by their ICC profile. The first of
    several frames is used. Raises Unusable (too_small below `min_side` pixels, too_large,
    unreadable).
    """
    if found.size < 0:
        raise Unusable("unreadable", "not a regular file")
    if found.size > MAX_BYTES:
        raise Unusable("too_large", f"{found.size} bytes: over {MAX_BYTES}")
    try:
        content = found.path.read_bytes()
    except OSError as error:
        raise Unusable("unreadable", f"cannot be read: {reason(error)}") from error
    image_id = hashlib.sha256(content).hexdigest()
    if not content:
        raise Unusable("unreadable", "the file is empty", image_id)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd EXIF and of sizes below MAX_PIXELS
            with Image.open(io.BytesIO(content)) as image:
                _check_size(image.size, min_side, image_id)
                pixels = np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except Unusable:
        raise
    except Image.DecompressionBombError as error:
        raise Unusable("too_large", f"more than {MAX_PIXELS} pixels", image_id) from error
    except UnidentifiedImageError as error:
        raise Unusable("unreadable", "not a picture in a known format", image_id) from error
    except Exception as error:  # decoders raise many types on damaged files
        raise Unusable(
            "unreadable", f"damaged: {error or type(error).__name__}", image_id
        ) from error
    return Photograph(found, image_id, pixels)


def _check_size(size: tuple[int, int], min_side: int, image_id: str) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise Unusable("too_large", f"{size[0]}x{size[1]}: over {MAX_PIXELS} pixels", image_id)
    if min(size) < min_side:
        reason = f"{size[0]}x{size[1]}: a patch needs {min_side} pixels each way"
        raise Unusable("too_small", reason, image_id)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips it at 255
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray((values >> 8 if values.max() > 255 else values).astype(np.uint8))
    elif image.mode == "F":  # float TIFF: 0..1 by convention, else already 0..255
        values = np.nan_to_num(np.asarray(image))
        values = values * 255 if values.max() <= 1 else values
        image = Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        backdrop = Image.new("RGBA", image.size, (*_BACKDROP, 255))
        image = Image.alpha_composite(backdrop, image)
    return _through_profile(image).convert("RGB")


def _through_profile(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "CMYK"):
        return image
    # With a broken profile the numbers are shown as they are, as viewers do.
    return to_srgb(image, profile) or image
