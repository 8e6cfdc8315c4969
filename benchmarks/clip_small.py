"""How often the words of clip-small are right on photographs that it was not made from.

    python -m benchmarks.clip_small --photographs FOLDER --out data/clip_small

Prints the share of crops whose word for colour, light, sharpness and so on is right, and writes
patches with their first five words, as sheets to look at and as a table to fill in. The photographs
are those marked `judge` in lasr/weights/small/photographs.txt. FOLDER: with the files of Debian
packages that are not installed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from pydantic import BaseModel, Field

from lasr.cli import Command
from lasr.weights.locate import locate
from lasr.weights.small import crops
from lasr.weights.small.fit import GROUPS, group_labels
from pipeline.stages.captions import DICTIONARY, Captioner, read_dictionary

SHOWN = 5  # words of a patch
COLUMNS, TILE, TEXT = 10, 132, 64  # of a sheet; pixels of a patch and of the lines below it
PER_SHEET = 60


class ClipSmallConfig(BaseModel):
    """What this benchmark takes."""

    photographs: list[Path] = Field([], description="folders of unpacked Debian packages")
    out: Path = Field(description="folder of the sheets and the table")
    clip: str = Field("clip-small", description="another CLIP, to compare with")
    crops: int = Field(30, ge=1, description="crops of each photograph for the shares")
    patches: int = Field(5, ge=1, description="patches of each photograph for the sheets")
    seed: int = Field(0, ge=0, description="of crops and patches")


def some_crops(config: ClipSmallConfig, count: int, plain: bool) -> list[crops.Crop]:
    """Random crops of the photographs that judge. plain: only those that are not altered."""
    found = crops.find(crops.photographs(judge=True), config.photographs)
    chosen: list[crops.Crop] = []
    for number, path in enumerate(found.values()):
        rng = np.random.default_rng([config.seed, int(plain), number])
        every = crops.random_crops(crops.read(path), number, 3 * count if plain else count, rng)
        chosen += list(every)[:: 3 if plain else 1]  # every third is as it is
    return chosen


def encoded(captioner: Captioner, some: Sequence[crops.Crop]) -> np.ndarray:
    """Features of crops, of unit length."""
    prepared = [captioner.prepare(crop.pixels) for crop in some]
    size = captioner.batch
    parts = [captioner.features(prepared[i : i + size]) for i in range(0, len(prepared), size)]
    return np.concatenate(parts)


def print_shares(captioner: Captioner, some: Sequence[crops.Crop]) -> None:
    """A line for each group of words: in how many crops the right list of the group is nearest."""
    images = torch.from_numpy(encoded(captioner, some))
    for group, lists in GROUPS.items():
        scores = []
        for texts in lists.values():
            with torch.no_grad():
                tokens = captioner.clip.tokenize(list(texts))
                features = captioner.clip.model.encode_text(tokens, normalize=True)
            scores.append((images @ features.T).mean(dim=1))
        best, right = torch.stack(scores, dim=1).argmax(dim=1), group_labels(some, group)
        known = right >= 0
        share = (best[known] == right[known]).float().mean().item()
        print(f"{group:12} {share:.0%} of {int(known.sum())} crops")


def write_sheets(config: ClipSmallConfig, captioner: Captioner, some: list[crops.Crop]) -> None:
    """Write sheet1.jpg, …, and patches.csv with an empty column for the judgement."""
    names = [photograph.name for photograph in crops.photographs(judge=True)]
    words = [caption.words[:SHOWN] for caption in captioner.rank(encoded(captioner, some))]
    rows = ["number,photograph,x,y,side,words,right"]
    for i, (crop, five) in enumerate(zip(some, words, strict=True)):
        place = f"{names[crop.photograph]},{crop.x},{crop.y},{crop.side}"
        rows.append(f"{i},{place},{'; '.join(five)},")
    (config.out / "patches.csv").write_text("\n".join(rows) + "\n")
    for first in range(0, len(some), PER_SHEET):
        part = some[first : first + PER_SHEET]
        height = -(-len(part) // COLUMNS) * (TILE + TEXT)
        sheet = Image.new("RGB", (COLUMNS * TILE, height), "white")
        draw = ImageDraw.Draw(sheet)
        for i, crop in enumerate(part):
            x, y = i % COLUMNS * TILE, i // COLUMNS * (TILE + TEXT)
            sheet.paste(Image.fromarray(crop.pixels).resize((TILE - 4, TILE - 4)), (x, y))
            lines = "\n".join([f"{first + i}: {words[first + i][0]}", *words[first + i][1:]])
            draw.multiline_text((x + 2, y + TILE - 3), lines, fill="black", font_size=10, spacing=1)
        sheet.save(config.out / f"sheet{first // PER_SHEET + 1}.jpg", quality=70)


def run(config: ClipSmallConfig) -> None:
    """Print the shares, write the sheets."""
    torch.set_num_threads(1)
    config.out.mkdir(parents=True, exist_ok=True)
    words = read_dictionary(DICTIONARY)
    captioner = Captioner(locate(config.clip, "clip"), words, torch.device("cpu"))
    print_shares(captioner, some_crops(config, config.crops, plain=False))
    write_sheets(config, captioner, some_crops(config, config.patches, plain=True))


main = Command(ClipSmallConfig, run, name="python -m benchmarks.clip_small", about=__doc__)

if __name__ == "__main__":
    sys.exit(main())
