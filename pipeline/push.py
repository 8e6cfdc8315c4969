"""Upload a manifest to the Hugging Face Hub as a data set, with its data card.

    lasr push dataset data/patches.parquet owner/name --dry-run
    lasr push dataset data/patches.parquet owner/name --private --licence cc-by-4.0

The repository gets the parts, the catalogue, the near-duplicates and, as README.md, the data card
beside the manifest, so that `load_dataset("owner/name")` works. Edit that card before you push. The
card and the files name the paths of your photographs as they were given to `lasr build`.
"""

import re
import sys
from pathlib import Path

from pydantic import BaseModel, Field

from lasr.cli import Command
from lasr.errors import UserError
from lasr.files import read_text
from lasr.terminal.output import say
from schemas.catalogue import beside, companion
from schemas.manifest import Manifest, open_manifest


class PushDatasetConfig(BaseModel):
    """The parameters of `lasr push dataset`."""

    manifest: Path = Field(description="the manifest to upload")
    repository: str = Field(description="owner/name on the Hub")
    private: bool = Field(False, description="make a new repository private")
    licence: str | None = Field(
        None, description="the licence of the photographs, for the card: a name the Hub knows"
    )
    message: str = Field("Upload by lasr push", description="of the commits")
    dry_run: bool = Field(False, description="look at the repository, say what would be done, stop")


def files(manifest: Manifest, licence: str | None) -> dict[str, Path | bytes]:
    """What the repository holds, by path. Raises UserError: there is no data card."""
    path = manifest.path
    card = path.with_name(beside(path.name, "card.md"))
    if not card.is_file():
        raise UserError(
            f"{card}: no data card beside the manifest",
            "repeat the `lasr build` or `lasr query --save` that wrote the manifest",
        )
    inside = f"{path.name}/" if path.is_dir() else ""
    found: dict[str, Path | bytes] = {f"{inside}{file.name}": file for file in manifest.files}
    for name in ("images.parquet", "duplicates.parquet"):
        if (file := companion(manifest, name)).is_file():
            found[beside(path.name, name)] = file
    return found | {"README.md": with_licence(read_text(card), licence).encode()}


def with_licence(card: str, licence: str | None) -> str:
    """A data card without its mark, and with a licence in its front matter."""
    text = re.sub(r"<!-- la-sr [0-9a-f]{16}[^\n]*-->\n$", "", card)
    if licence is None:
        return text
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise UserError(f"--licence {licence}: no name of the Hub", "use one such as cc-by-4.0")
    text = re.sub(r"^license_name: .*\n", "", text, count=1, flags=re.M)
    return re.sub(r"^license: .*$", f"license: {licence}", text, count=1, flags=re.M)


def run(config: PushDatasetConfig) -> None:
    """Upload, and print the address. Raises UserError."""
    manifest = open_manifest(config.manifest)
    content = files(manifest, config.licence)
    from lasr.hub.repository import check_name, look, push

    check_name(config.repository)
    plan = look(config.repository, "dataset", content, config.private)
    say_lines(str(plan))
    if config.licence is None and b"that-of-the-photographs" in bytes(content["README.md"]):  # type: ignore[arg-type]
        say("licence:    not stated in the card: pass --licence")
    if not config.dry_run:
        say(f"pushed:     {push(plan, config.message)}")


def say_lines(text: str) -> None:
    """Print lines that hold foreign names."""
    for line in text.splitlines():
        say(line)


main = Command(
    PushDatasetConfig, run, name="lasr push dataset", about=__doc__,
    positional="manifest repository",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
