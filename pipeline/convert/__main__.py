"""Write a manifest for other trainers: WebDataset shards, or folders of PNG files.

    lasr convert data/patches.parquet --to webdataset --out data/shards
    lasr convert data/patches.parquet --to folder --out data/folders

webdataset: tar files such as train-hr-000000.tar with a picture, its caption and its columns for
each patch. folder: train/hr, train/lr, val/hr, val/lr for BasicSR, Real-ESRGAN and traiNNer-redux,
with lists, and options for the last. Pixels are copied, not encoded again. An interrupted command
continues when it is typed again.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

import lasr
from lasr.cli import Command, progress
from lasr.files import write_bytes
from lasr.marks import KEY
from lasr.ownership import check_folder, refused
from lasr.terminal.output import say
from schemas.manifest import PATCH_SIZE, Manifest, open_manifest

RECORD = "convert.json"
_BYTES = {"lr": 7_000, "hr": 90_000}  # of a patch, about


class ConvertConfig(BaseModel):
    """The parameters of `lasr convert`."""

    manifest: Path = Field(description="the manifest to convert")
    to: Literal["webdataset", "folder"] = Field(description="the form to write")
    out: Path = Field(description="the folder to write")
    split: Literal["train", "val", "all"] = Field("all", description="the split to write")
    role: Literal["lr", "hr", "both"] = Field("both", description="far patches, near ones or both")
    shard_size: int = Field(4096, ge=1, le=10**6, description="patches in a tar file")
    dry_run: bool = Field(False, description="print what would be written, and stop")


def run(config: ConvertConfig) -> None:
    """Convert, and print a summary. Raises UserError."""
    check_folder(config.out, [config.manifest])
    manifest = open_manifest(config.manifest, ("image_id", "role", "caption", "image"))
    from pipeline.convert.rows import SPLITS, plan

    settings = _settings(config, manifest)
    is_done = _check_record(config.out, settings)
    splits = SPLITS if config.split == "all" else (config.split,)
    roles = tuple(PATCH_SIZE) if config.role == "both" else (config.role,)
    rows = plan(manifest, splits, roles)
    counts = {group: rows.count(group) for group in rows.groups}
    text = ", ".join(f"{count} {split}/{role}" for (split, role), count in counts.items() if count)
    megabytes = sum(_BYTES[role] * count for (_, role), count in counts.items()) / 1e6
    if config.dry_run:
        free = shutil.disk_usage(_existing(config.out)).free / 1e6
        say(f"patches: {text}\nabout {megabytes:.0f} MB to write, {free:.0f} MB free")
        say(f"to:      {config.out}{' (written already)' if is_done else ''}")
        return
    config.out.mkdir(parents=True, exist_ok=True)
    _record(config.out, settings | {"complete": False})
    with progress(sum(counts.values()), "converted", "patch") as bar:
        without = _write(config, rows, bar.update)
    _record(config.out, settings | {"complete": True, "patches": text})
    say(f"patches: {text}")
    if without or rows.left_out:
        say(f"left out: {without} without a PNG, {rows.left_out} that are neither lr nor hr")
    say(f"to:      {config.out}")


def _write(config: ConvertConfig, rows: Any, on_done: Any) -> int:
    from pipeline.convert import folder, webdataset

    if config.to == "webdataset":
        return webdataset.write_shards(rows, config.out, config.shard_size, on_done)
    without = folder.write_pictures(rows, config.out, on_done)
    folder.write_lists(rows, config.out)
    options = config.out / folder.OPTIONS
    if not options.exists() and any(
        role == "hr" and rows.count((s, role)) for s, role in rows.groups
    ):
        write_bytes(options, folder.options(rows, config.out).encode())
    return without


def _settings(config: ConvertConfig, manifest: Manifest) -> dict[str, Any]:
    """What determines the files of a conversion, and the licence that they are under."""
    own = {"shard_size": config.shard_size} if config.to == "webdataset" else {}
    return {
        KEY: lasr.__version__,
        "to": config.to,
        "manifest": str(config.manifest),
        "manifest_identity": manifest.identity,
        "split": config.split,
        "role": config.role,
        "licence": "that of the photographs",
        **own,
    }


def _check_record(out: Path, settings: dict[str, Any]) -> bool:
    """Refuse a folder that is not empty and holds no, or another, conversion.

    Returns whether this one is complete.
    """
    path = out / RECORD
    if not out.exists() or not any(out.iterdir()):
        return False
    try:
        found = json.loads(path.read_bytes()) if path.is_file() and not path.is_symlink() else None
    except ValueError:
        found = None
    if not isinstance(found, dict) or KEY not in found:
        raise refused(out, "is a folder that `lasr convert` did not write")
    for name in ("to", "manifest_identity", "split", "role", "shard_size"):
        if found.get(name) != settings.get(name):
            what = name.replace("_", " ")
            raise refused(out, f"holds a conversion with another {what}: {found.get(name)}")
    return bool(found.get("complete"))


def _record(out: Path, content: dict[str, Any]) -> None:
    write_bytes(out / RECORD, json.dumps(content, indent=2).encode() + b"\n")


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


main = Command(ConvertConfig, run, name="lasr convert", about=__doc__, positional="manifest")

if __name__ == "__main__":
    sys.exit(main())
