"""The rows of a photograph: of its patches in the manifest, and its own in the catalogue."""

from collections.abc import Sequence

import numpy as np

from lasr.pictures.png import encode_png, is_intact_png
from pipeline.inputs.photographs import Found
from pipeline.stages.captions import Caption
from pipeline.stages.images import Photograph, Unusable
from pipeline.stages.measure import measure, perceptual_hash
from pipeline.stages.select import Patch
from schemas.manifest import PATCH_SIZE, Row, patch_id, split_of

# Raise it when the same patch and caption give another row than before. 0, its first value, adds
# nothing to the fingerprint: parts that were finished before it existed stay valid.
VERSION = 0


def fingerprint_inputs() -> tuple[object, ...]:
    """What determines a row, besides its patch and caption."""
    return ("rows", VERSION) if VERSION else ()


def catalogue_row(photograph: Photograph, patches: Sequence[Patch]) -> Row:
    """The catalogue row of a photograph that was used, or in which no patch was found."""
    height, width = photograph.pixels.shape[:2]
    counts = {f"n_{role}": sum(patch.role == role for patch in patches) for role in PATCH_SIZE}
    return {
        "image_id": photograph.image_id,
        "path": photograph.found.name,
        "width": width,
        "height": height,
        "status": "ok" if patches else "no_patches",
        "error": None if patches else "no patch has enough texture (--min-texture, --far-texture)",
        **counts,
        "phash": perceptual_hash(photograph.pixels),
        "split": split_of(photograph.image_id),
        "note": photograph.note,
    }


def unusable_row(found: Found, why: Unusable, photograph: Photograph | None = None) -> Row:
    """The catalogue row of a photograph without patches: the reason, and its size if decoded."""
    height, width = photograph.pixels.shape[:2] if photograph else (None, None)
    return {
        "image_id": why.image_id,
        "path": found.name,
        "width": width,
        "height": height,
        "status": why.status,
        "error": why.reason,
        "n_lr": 0,
        "n_hr": 0,
        "split": split_of(why.image_id) if why.image_id else None,
    }


def patch_row(
    photograph: Photograph, patch: Patch, pixels: np.ndarray, strategy: str, depth_model: str
) -> Row:
    """The manifest row of a patch, without its caption. pixels: n x n x 3 uint8."""
    height, width = photograph.pixels.shape[:2]
    identity = patch_id(photograph.image_id, patch.role, patch.x, patch.y, patch.size)
    return {
        "patch_id": identity,
        "image_id": photograph.image_id,
        "image_path": photograph.found.name,
        "image_width": width,
        "image_height": height,
        **vars(patch),
        "strategy": strategy,
        "depth_model": depth_model,
        "image": {"bytes": encode_png(pixels), "path": f"{identity}.png"},
        **vars(measure(pixels)),
        "split": split_of(photograph.image_id),
    }


def captioned(row: Row, caption: Caption, caption_model: str) -> Row:
    """The row with this caption, which replaces any other."""
    return row | {
        "caption_model": caption_model,
        "caption": caption.text,
        "words": caption.words,
        "word_scores": caption.scores,
    }


def is_consistent(row: Row, entry: Row | None) -> bool:
    """Whether a complete row agrees with itself and with its photograph's catalogue row.

    It finds most changed bits in a file without digests; one of a distance or score it cannot find.
    """
    place = [row[name] for name in ("image_id", "role", "x", "y", "size")]
    return (
        entry is not None
        and row["image_id"] == entry["image_id"]
        and row["size"] == PATCH_SIZE.get(row["role"])
        and row["patch_id"] == patch_id(*place)
        and row["caption"] == ", ".join(row["words"])
        and is_intact_png(row["image"]["bytes"])
    )
