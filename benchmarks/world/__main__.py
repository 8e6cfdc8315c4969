"""Train LA-SR in a world whose truth is known, and compare with the truth.

    python -m benchmarks.world --photographs GOOD --unseen OTHERS --out data/world
    python -m benchmarks.world ... --variants paper equal-size --steps 200 --seeds 0 1 2

Scenes are rendered from the photographs of --photographs, and a manifest is made of them by their
true depth. Every variant trains on it from the same start. They are scored on the far surfaces of
scenes of --unseen, which no network has seen: against the truth (PSNR, SSIM, GMSD, squeeze) and
without it (NIQE, BRISQUE, PIQE). `oracle` trains on the pairs of far surfaces and their truth. A
second call continues what is not finished.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field

from benchmarks.proof.runs import PARTS, VARIANTS, Part, is_trained, name_of, settings, train_all
from benchmarks.proof.scores import Judge, table
from benchmarks.world.scenes import BANDS, WIDTH, Scene, save, scenes, sources
from lasr.cli import Command, progress
from lasr.device import Device, pick_device
from lasr.errors import UserError
from lasr.weights.locate import PROFILES, Profile, locate
from pipeline.build.workers import cut_out
from pipeline.inputs.photographs import find
from pipeline.stages import images
from pipeline.stages.captions import DICTIONARY, Captioner, dictionary_sha256, read_dictionary
from pipeline.stages.rows import captioned, patch_row
from pipeline.stages.select import SelectConfig, select
from schemas.manifest import PATCH_SIZE, PATCHES, SCALE, file_metadata, open_manifest
from schemas.parquet import rows_to
from trainer.config import Precision
from trainer.models.load import load_sr
from trainer.models.save import save_network

ORACLE = "oracle"
METRICS = ["psnr", "ssim", "gmsd", "niqe", "brisque", "piqe"]  # of `lasr evaluate`
SHOWN = [*METRICS[:3], "squeeze", *METRICS[3:], "consistency", "colour shift"]


class WorldConfig(BaseModel):
    """The parameters of this benchmark."""

    photographs: list[str] = Field(min_length=1, description="to train on: 2,560 pixels wide")
    unseen: list[str] = Field(min_length=1, description="to test on: other photographs, as large")
    out: Path = Field(Path("data/world"), description="folder for scenes, runs and scores")
    only: list[Part] = Field(list(PARTS), description=f"parts to run, of {' '.join(PARTS)}")
    scenes: int = Field(60, ge=2, description="scenes to train on")
    tests: int = Field(12, ge=1, description="scenes to test on")
    variants: list[str] = Field(["equal-size+sr", ORACLE], description=f"of {[*VARIANTS, ORACLE]}")
    seeds: list[int] = Field([0], description="one run of each variant for each seed")
    steps: int = Field(200, ge=1, description="training steps")
    batch_size: int = Field(8, ge=2, description="patches of each role in a step")
    lr: float = Field(5e-5, gt=0, description="learning rate of the SR network")
    lr_encoders: float = Field(1e-5, gt=0, description="learning rate of the encoders")
    warmup: int = Field(0, ge=0, description="first steps, in which the learning rates grow")
    weight_vgg: float = Field(0.1, ge=0, description="of the perceptual term, where it is on")
    profile: Profile = Field("offline", description="the models that training starts from")
    start: str | None = Field(None, description="initial SR network (default: the profile's)")
    precision: Precision = Field("auto", description="of training")
    parallel: int = Field(1, ge=1, description="runs at a time")
    device: Device = Field("auto", description="where networks run")

    @property
    def sr(self) -> str:
        """Name or path of the initial SR network."""
        return self.start or PROFILES[self.profile]["sr"]


def claim(config: WorldConfig) -> None:
    """Note what the folder is made from. Raises UserError: it is made from something else."""
    path, made_from = config.out / "world.json", {"photographs", "unseen", "scenes", "tests"}
    content = config.model_dump_json(include=made_from)
    if path.exists() and path.read_text() == content:
        return
    if config.out.exists() and any(config.out.iterdir()):
        raise UserError(f"{config.out}: holds something else", "choose another --out")
    config.out.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def prepare(config: WorldConfig) -> Path:
    """Render the scenes and write the manifest, unless it is there; returns its path."""
    manifest = config.out / "world.parquet"
    if manifest.exists():
        return manifest
    for name in ("scenes", "far", "far-truth", "test", "test-truth"):
        (config.out / name).mkdir(parents=True, exist_ok=True)
    train = list(scenes(sources_of(config.photographs), config.scenes, 0))
    for number, scene in enumerate(train):
        save(config.out / "scenes" / f"{number:04}.png", scene.picture)
        save_pair(config.out, "far", number, scene)
    for number, scene in enumerate(scenes(sources_of(config.unseen), config.tests, 1)):
        save_pair(config.out, "test", number, scene)
    write_manifest(config, manifest, train)
    return manifest


def sources_of(paths: list[str]) -> list[np.ndarray]:
    """Photographs that are large enough. Raises UserError: none is."""
    found = sources(paths)
    if not found:
        raise UserError(
            f"{paths[0]}: no photograph is {SCALE * WIDTH} pixels wide and"
            f" {SCALE * BANDS[0][1]} high",
            "give larger ones",
        )
    return found


def save_pair(out: Path, name: str, number: int, scene: Scene) -> None:
    """Write the judged part of a far surface and its truth."""
    save(out / name / f"{number:04}.png", scene.strip)
    save(out / f"{name}-truth" / f"{number:04}.png", scene.truth)


def write_manifest(config: WorldConfig, manifest: Path, train: list[Scene]) -> None:
    """Far and near patches of the scenes by their true depth, captioned by the profile's CLIP."""
    words, device = read_dictionary(DICTIONARY), pick_device(config.device)
    captioner = Captioner(locate(PROFILES[config.profile]["clip"], "clip"), words, device)
    selection = SelectConfig(k=6)
    pictures = find([str(config.out / "scenes")])
    with (
        rows_to(manifest, PATCHES, file_metadata({}, dictionary_sha256(words))) as write,
        progress(len(pictures), "scenes", "scene") as bar,
    ):
        for picture, scene in zip(pictures, train, strict=True):
            photograph = images.load(picture, PATCH_SIZE["hr"])
            patches = select(photograph.pixels, scene.distance, photograph.image_id, selection)
            crops = [cut_out(photograph.pixels, patch) for patch in patches]
            write(
                [
                    captioned(
                        patch_row(photograph, patch, pixels, "depth", "true depth"),
                        caption,
                        captioner.clip.identity,
                    )
                    for patch, pixels, caption in zip(
                        patches, crops, captioner.caption(crops), strict=True
                    )
                ]
            )
            bar.update()


def train(config: WorldConfig, manifest: Path, judge: Judge | None) -> dict[str, Path]:
    """Train all variants for all seeds, or continue; returns their folders by name."""
    runs = config.out / "runs"
    shared = {
        "profile": config.profile, "steps": config.steps, "batch_size": config.batch_size,
        "lr": config.lr, "lr_encoders": config.lr_encoders, "warmup": config.warmup,
        "weight_vgg": config.weight_vgg, "sr_init": config.sr,
        "log_every": 10, "sample_every": 100, "checkpoint_every": 100,
        "weights_every": max(config.steps // 3, 1),  # for scores on the way
    }  # fmt: skip
    methods, waiting = {}, []
    for seed in config.seeds:
        for variant in config.variants:
            folder = methods[f"{variant} #{seed}"] = runs / name_of(variant, seed)
            if variant == ORACLE:
                if not is_trained(folder):
                    train_oracle(config, folder, seed)
            else:
                options = shared | VARIANTS[variant]
                waiting.append(
                    settings(
                        manifest, runs, variant, seed, options, config.device, config.precision
                    )
                )
    train_all(waiting, config.parallel, judge.run if judge else None)
    return methods


def train_oracle(config: WorldConfig, folder: Path, seed: int) -> None:
    """Train on pairs, L1, as nobody can outside this world: the same start, steps and pictures."""
    device = pick_device(config.device)
    network = load_sr(locate(config.sr, "sr")).to(device)
    optimizer, rng = torch.optim.Adam(network.parameters(), config.lr), np.random.default_rng(seed)
    names = sorted(path.name for path in (config.out / "far").iterdir())
    pairs = [
        [cv2.imread(str(config.out / f / n), cv2.IMREAD_COLOR_RGB) for f in ("far", "far-truth")]
        for n in names
    ]
    side = PATCH_SIZE["lr"]
    with progress(config.steps, "steps of the oracle", "step") as bar:
        for _ in range(config.steps):
            crops: list[list[np.ndarray]] = [[], []]
            for index in rng.integers(0, len(pairs), config.batch_size):
                low, high = pairs[index]
                y, x = (int(rng.integers(0, n - side + 1)) for n in low.shape[:2])
                crops[0].append(low[y : y + side, x : x + side])
                ends = (SCALE * n for n in (y, y + side, x, x + side))
                top, bottom, left, right = ends
                crops[1].append(high[top:bottom, left:right])
            lr, hr = (
                torch.from_numpy(np.stack(c)).to(device).permute(0, 3, 1, 2) / 255 for c in crops
            )
            optimizer.zero_grad()
            F.l1_loss(network(lr), hr).backward()
            optimizer.step()
            bar.update()
    folder.mkdir(parents=True, exist_ok=True)
    save_network(network, folder, "model")


def run(config: WorldConfig) -> None:
    """Render, train, score, and print the table."""
    unknown = set(config.variants) - {*VARIANTS, ORACLE}
    if unknown:
        raise UserError(f"--variants: no {unknown.pop()}", f"take of {', '.join(VARIANTS)}")
    claim(config)
    manifest = prepare(config)
    open_manifest(manifest)
    judge = Judge(
        config.out / "test", config.out / "test-truth", tuple(METRICS), config.out / "scores",
        config.device,
    )  # fmt: skip
    judges = "score" in config.only
    made = train(config, manifest, judge if judges else None) if "train" in config.only else {}
    if not judges:
        return
    found = {"bicubic": judge("bicubic", "bicubic"), "start": judge("start", config.sr)}
    for name, folder in made.items():
        found[name] = judge.network(folder)
    text = table(found, SHOWN)
    (config.out / "table.md").write_text(text + "\n")
    print(text)


main = Command(WorldConfig, run, name="python -m benchmarks.world", about=__doc__)

if __name__ == "__main__":
    sys.exit(main())
