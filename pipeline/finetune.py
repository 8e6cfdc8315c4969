"""Make a manifest of a few pictures, to fine-tune a network on them (appendix E.1).

    lasr finetune-set --lr-images old-photos/ --out data/mine.parquet
    lasr train --manifest data/mine.parquet --sr-init FILE --freeze-encoders --lr 1e-7

LR patches come from all over the pictures that are to be upscaled, at random positions: a network
that learns from a picture has to do well on the whole of it, not only on what is far away. So no
depth is estimated. HR patches come from the good pictures of --hr-images, or by default from the
pictures of --lr-images that are large enough. While the encoders are frozen, HR patches have no
effect, and none are needed: pictures from 56 pixels each way are enough.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from lasr.cli import Command, progress
from lasr.device import Device, pick_device
from lasr.errors import UserError
from lasr.ownership import check_file, own_path
from lasr.pictures.samples import LARGEST
from lasr.pictures.search import expand_lists
from lasr.terminal.output import note, say
from lasr.weights.locate import PROFILES, Profile, locate, notes, untrained
from pipeline.build.workers import cut_out
from pipeline.inputs.photographs import Found, find
from pipeline.outputs import check_beside
from pipeline.sidecars import write_sidecars
from pipeline.stages import images
from pipeline.stages.captions import DICTIONARY, Captioner, dictionary_sha256, read_dictionary
from pipeline.stages.images import Photograph, Unusable
from pipeline.stages.rows import captioned, catalogue_row, patch_row, unusable_row
from pipeline.stages.select import Patch, texture_map
from pipeline.storage import StoragePath
from schemas.catalogue import IMAGES, images_path
from schemas.manifest import PATCH_SIZE, PATCHES, Role, Row, file_metadata
from schemas.parquet import rows_to


class FinetuneConfig(BaseModel):
    """The parameters of `lasr finetune-set`."""

    lr_images: list[str] = Field(
        min_length=1,
        description="pictures to be upscaled: folders, files, globs, .txt lists of paths",
    )
    hr_images: list[str] | None = Field(
        None, min_length=1, description="good pictures, likewise (default: those of --lr-images)"
    )
    out: Path = Field(Path("data/mine.parquet"), description="the manifest to write: one file")
    profile: Profile = Field("default", description="the profile whose CLIP makes the captions")
    clip: str | None = Field(
        None, description="CLIP for captions: a name or a folder (default: the profile's)"
    )
    k: int = Field(64, ge=1, le=1_000_000, description="patches per role and picture")
    seed: int = Field(0, ge=0, description="for the positions of patches")
    max_pixels: int = Field(
        images.MAX_PIXELS,
        ge=1,
        le=LARGEST,
        description="pictures with more pixels are left out; bounds memory",
    )
    device: Device = Field("auto", description="where the CLIP runs")

    @property
    def clip_name(self) -> str:
        """Name or path of the CLIP."""
        return self.clip or PROFILES[self.profile]["clip"]


def write_manifest(config: FinetuneConfig) -> dict[Role, int]:
    """Write the manifest and its catalogue; returns the number of patches of each role.

    A picture that cannot be used is recorded in the catalogue and does not stop the others. Without
    --hr-images there may be no HR patch. Raises UserError: no picture, no picture large enough for
    a role, missing weights.
    """
    check_output(config)
    found = find([*config.lr_images, *(config.hr_images or [])])
    far = {picture.address for picture in find(config.lr_images)}
    near = {picture.address for picture in find(config.hr_images or config.lr_images)}
    words = read_dictionary(DICTIONARY)
    captioner = Captioner(locate(config.clip_name, "clip"), words, pick_device(config.device))
    parameters: dict[str, Any] = config.model_dump(mode="json") | {
        "clip": config.clip_name,
        "caption_model": captioner.clip.identity,
        "untrained": bool(untrained(config.clip_name)),
    }
    metadata = file_metadata(parameters, dictionary_sha256(words))
    counts: dict[Role, int] = dict.fromkeys(PATCH_SIZE, 0)
    catalogue: dict[str, Row] = {}  # by image_id, or by name if there is none
    with own_path(config.out) as temporary, rows_to(temporary, PATCHES, metadata) as write:
        with progress(len(found), "pictures", "img") as bar:
            for picture in found:
                roles: dict[Role, bool] = {
                    "lr": picture.address in far,
                    "hr": picture.address in near,
                }
                rows, entry = _rows(picture, [r for r in roles if roles[r]], captioner, config)
                first = catalogue.setdefault(entry["image_id"] or picture.name, entry)
                if first is entry:
                    write(rows)
                    for row in rows:
                        counts[row["role"]] += 1
                else:
                    why = Unusable("duplicate", f"same bytes as {first['path']}", entry["image_id"])
                    catalogue[picture.name] = unusable_row(picture, why)
                bar.update()
        _check_counts(counts, catalogue, ["lr", "hr"] if config.hr_images else ["lr"])
    with (
        own_path(images_path(config.out)) as temporary,
        rows_to(temporary, IMAGES, metadata) as write,
    ):
        write(sorted(catalogue.values(), key=lambda entry: entry["path"]))
    out = StoragePath(str(config.out))
    write_sidecars(out, metadata, work=out.parent)
    return counts


def check_output(config: FinetuneConfig) -> None:
    """Refuse an output that is not ours to replace, or that touches an input. Raises UserError."""
    inputs = expand_lists([*config.lr_images, *(config.hr_images or [])])
    check_file(config.out, [*inputs, config.clip])
    check_beside(StoragePath(str(config.out)))


def _check_counts(
    counts: dict[Role, int], catalogue: dict[str, Row], needed: Sequence[Role]
) -> None:
    for role in needed:
        if not counts[role]:
            reasons = sorted({entry["error"] for entry in catalogue.values()} - {None})
            raise UserError(
                f"no picture is large enough for '{role}' patches of {PATCH_SIZE[role]} pixels"
                f" ({', '.join(reasons) or 'all are smaller'})",
                f"give others with --{role}-images",
            )


def _rows(
    found: Found, roles: list[Role], captioner: Captioner, config: FinetuneConfig
) -> tuple[list[Row], Row]:
    """The manifest rows of a picture, LR first, and its catalogue row."""
    try:
        smallest = min(PATCH_SIZE[role] for role in roles)
        photograph = images.load(found, smallest, config.max_pixels)
    except Unusable as reason:
        return [], unusable_row(found, reason)
    patches = [
        patch for role in roles for patch in random_patches(photograph, role, config.k, config.seed)
    ]
    crops = [cut_out(photograph.pixels, patch) for patch in patches]
    rows = [
        captioned(
            patch_row(photograph, patch, pixels, "random", "none") | {"distance": None},
            caption,
            captioner.clip.identity,
        )
        for patch, pixels, caption in zip(patches, crops, captioner.caption(crops), strict=True)
    ]
    return rows, catalogue_row(photograph, patches)


def random_patches(photograph: Photograph, role: Role, k: int, seed: int) -> list[Patch]:
    """Up to k different patches at uniform positions; none if the picture is smaller than one.

    The positions depend on the seed and the picture alone. The distance is unknown: NaN.
    """
    size = PATCH_SIZE[role]
    height, width = photograph.pixels.shape[:2]
    if min(height, width) < size:
        return []
    rng = np.random.default_rng([seed, *bytes.fromhex(photograph.image_id), size])
    corners = np.stack(
        [rng.integers(0, width - size + 1, k), rng.integers(0, height - size + 1, k)], axis=1
    )
    gradient = texture_map(photograph.pixels)
    return [
        Patch(
            role, x, y, size, float("nan"), rank, float(gradient[y : y + size, x : x + size].mean())
        )
        for rank, (x, y) in enumerate(dict.fromkeys(map(tuple, corners.tolist())))
    ]


def run(config: FinetuneConfig) -> None:
    """Write the manifest and print a summary."""
    check_output(config)
    for line in notes(config.clip_name):
        note(line)
    counts = write_manifest(config)
    print(f"patches:   {counts['lr']} lr, {counts['hr']} hr")
    if not counts["hr"]:
        say("           no hr patch: no picture has 224 pixels each way. Train on it with"
            " --freeze-encoders")  # fmt: skip
    say(f"manifest:  {config.out}")
    say(f"catalogue: {images_path(config.out)}")


def following(config: FinetuneConfig) -> list[object]:
    """The next command: training on it."""
    return ["lasr", "train", "--manifest", config.out, "--profile", config.profile]


main = Command(
    FinetuneConfig, run, name="lasr finetune-set", about=__doc__, weights=True, following=following
)

if __name__ == "__main__":
    sys.exit(main())
