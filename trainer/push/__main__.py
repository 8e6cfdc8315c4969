"""Upload a trained network to the Hugging Face Hub, with a model card.

    lasr push model data/runs/patches owner/name --dry-run
    lasr push model data/runs/patches owner/name --private --licence apache-2.0

The repository gets the weights of a finished run, its numbers, its last sample sheet, and as
README.md a card that names the training data, the measures, the settings and the licence of every
model that took part. config.json stays here: it names folders of this machine.
"""

import re
import sys
from pathlib import Path

from pydantic import BaseModel, Field

from lasr.cli import Command
from lasr.errors import UserError
from lasr.terminal.output import say

WEIGHTS = ("model.safetensors", "model.pth", "model_ema.safetensors", "best.safetensors")
OTHERS = ("stats.jsonl",)


class PushModelConfig(BaseModel):
    """The parameters of `lasr push model`."""

    folder: Path = Field(description="the run's folder")
    repository: str = Field(description="owner/name on the Hub")
    private: bool = Field(False, description="make a new repository private")
    licence: str | None = Field(
        None, description="the licence of the network, a name the Hub knows (default: the start's)"
    )
    message: str = Field("Upload by lasr push", description="of the commits")
    dry_run: bool = Field(False, description="look at the repository, say what would be done, stop")


def files(config: PushModelConfig) -> dict[str, Path | bytes]:
    """What the repository holds, by path. Raises UserError: no finished run."""
    folder, licence = config.folder, config.licence
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: no run there", "pass the folder that `lasr train` wrote, data/runs/NAME"
        )
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise UserError(f"--licence {licence}: no name of the Hub", "use one such as apache-2.0")
    if not (folder / WEIGHTS[0]).is_file():
        raise UserError(f"{folder / WEIGHTS[0]}: not written yet", "wait until the run ends")
    from trainer.checkpoint import read_settings  # loads PyTorch
    from trainer.push.card import model_card

    found: dict[str, Path | bytes] = {
        name: folder / name for name in (*WEIGHTS, *OTHERS) if (folder / name).is_file()
    }
    sheets = sorted((folder / "samples").glob("*.png"))
    if sheets:
        found["samples.png"] = sheets[-1]
    card = model_card(folder, read_settings(folder), config.repository, licence)
    return found | {"README.md": card.encode()}


def run(config: PushModelConfig) -> None:
    """Upload, and print the address. Raises UserError."""
    content = files(config)
    from lasr.hub.repository import check_name, look, push

    check_name(config.repository)
    plan = look(config.repository, "model", content, config.private)
    for line in str(plan).splitlines():
        say(line)
    if not config.dry_run:
        say(f"pushed:     {push(plan, config.message)}")


main = Command(
    PushModelConfig, run, name="lasr push model", about=__doc__, positional="folder repository"
)

if __name__ == "__main__":
    sys.exit(main())
