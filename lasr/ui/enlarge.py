"""Upscale a dropped picture: the same file that `lasr upscale` writes, and what the page shows."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lasr.errors import UserError
from lasr.pictures.read import read_picture
from lasr.pictures.samples import LARGEST
from lasr.ui.jobs import Answer, Job
from lasr.ui.previews import BACKDROP, SIDE, write_preview
from lasr.ui.uploads import Store
from lasr.weights.locate import found, locate, notes
from lasr.weights.registry import TABLE

if TYPE_CHECKING:
    from lasr.device import Device
    from trainer.upscale.picture import Upscaling

NETWORKS = {"model.safetensors": "", "best.safetensors": ", best"}  # files of a run


@dataclass(frozen=True)
class Choice:
    """Weights that the page offers. value: what `--weights` of `lasr upscale` would be."""

    label: str
    value: str
    note: str = ""


class Enlarger:
    """Upscales one picture at a time; the network of the last one stays loaded."""

    def __init__(
        self, store: Store, weights: list[str], runs: Path, device: "Device", tile: int | None,
        max_pixels: int,
    ):  # fmt: skip
        self._store, self._given, self._runs = store, weights, runs
        self._device, self._tile, self._max_pixels = device, tile, max_pixels
        self._loaded: tuple[str, Upscaling] | None = None  # by the weights' identity

    def choices(self) -> list[Choice]:
        """What can be chosen now: given weights, those of the table that are here, and runs."""
        here = [w for w in TABLE.values() if w.kind == "sr" and w.trained]
        here = [w for w in here if not w.built_in and found(w) and w.name not in self._given]
        return [
            *(Choice(text, text, " ".join(notes(text))) for text in self._given),
            *(
                Choice(f"{folder.name} (your run{best})", str(folder / name))
                for folder in sorted(self._runs.glob("*/"))
                for name, best in NETWORKS.items()
                if (folder / name).is_file()
            ),
            *(Choice(w.name, w.name, f"{w.note or w.about}. Licence: {w.terms}.") for w in here),
        ]

    def value_of(self, label: str) -> str:
        """The weights behind a label of `choices`. Raises UserError: there are none."""
        values = {choice.label: choice.value for choice in self.choices()}
        if label not in values:
            raise UserError(f"'{label}': no such weights here", "reload the page, and choose again")
        return values[label]

    def upscale(self, job: Job, weights: str, source: Path) -> Answer:
        """Upscale FOLDER/in/NAME, of a folder of the store. Raises UserError, Stopped."""
        from trainer.upscale.picture import upscale_picture
        from trainer.upscale.results import software_of

        picture = read_picture(source, self._max_pixels)
        identity, upscaling = self._load(weights)
        folder = source.parent.parent
        result = folder / "result.png"
        height, width = picture.pixels.shape[:2]
        upscale_picture(
            upscaling, picture, result,
            software_of(identity, source, upscaling.scale, upscaling.config),
            lambda done: job.progress(done / (width * height)),
        )  # fmt: skip
        before = write_preview(picture.over(BACKDROP), folder, "before")
        after = write_preview(read_picture(result, LARGEST).over(BACKDROP), folder, "after")
        size = [upscaling.scale * width, upscaling.scale * height]
        command = ["--weights", weights, source.name, "--out", "upscaled"]
        return {
            "before": self._store.offer(before),
            "after": self._store.offer(after),
            "download": self._store.offer(result),
            "name": f"{source.stem}.png",
            "from": [width, height],
            "to": size,
            "reduced": SIDE if max(size) > SIDE else 0,
            "bytes": result.stat().st_size,
            "notes": list(picture.notes),
            "command": f"lasr upscale {shlex.join(command)}",
        }

    def _load(self, weights: str) -> "tuple[str, Upscaling]":
        """The identity of weights, and what upscales with them as `lasr upscale` would."""
        from trainer.upscale.config import UpscaleConfig
        from trainer.upscale.run import start

        located = locate(weights, "sr")
        if self._loaded is None or self._loaded[0] != located.identity:
            self._loaded = None  # its memory goes first
            config = UpscaleConfig(
                inputs=["-"], weights=weights, out=Path(), device=self._device, tile=self._tile
            )
            self._loaded = located.identity, start(located, config)
        return self._loaded
