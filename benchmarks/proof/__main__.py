"""Train LA-SR on photographs from packages, and compare: tables 2, 3, 6 and 9 in miniature.

    python -m benchmarks.proof --photographs GOOD... --unseen OTHERS --out data/proof
    python -m benchmarks.proof ... --quick                          # one seed, few steps
    python -m benchmarks.proof ... --only train --device cuda       # on a machine with a GPU

Manifests are made of --photographs by each strategy and by a second depth estimator. Every network
trains from the same start. They are scored on far patches of --unseen, which nothing was trained or
tuned on. The parts `prepare`, `train` and `score` may run on different machines with the folder of
--out between them. A second call continues what is not finished.
"""

import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pydantic import BaseModel, Field

from benchmarks.build import run_stages
from benchmarks.proof.runs import (
    ABLATIONS,
    PARTS,
    VARIANTS,
    Part,
    is_trained,
    settings,
    train_all,
)
from benchmarks.proof.scores import Judge, Scores, table
from lasr.cli import Command
from lasr.device import Device
from lasr.errors import UserError
from lasr.weights.locate import PROFILES, TABLE, Profile
from lasr.weights.locate import found as found_in_table
from pipeline.config import BuildConfig
from trainer.config import Precision, TrainConfig

METRICS = ["niqe", "brisque", "piqe"]
SHOWN = [*METRICS, "consistency", "colour shift"]
MAIN = "LA-SR"  # the network that the others differ from in one thing, of --variant and by depth
# Name of a manifest: what `lasr build` is given for it.
MANIFESTS: dict[str, dict[str, Any]] = {
    "depth": {},
    "random": {"strategy": "random"},
    "overlap": {"strategy": "overlap"},
    "inclusion": {"strategy": "inclusion"},
    "colour-attenuation": {"depth": "colour-attenuation"},
}
# Title of a table: its rows, each a manifest and a variant.
TABLES: dict[str, dict[str, tuple[str, str]]] = {
    "Methods (table 2)": {MAIN: ("depth", MAIN)},
    "Strategies (table 3)": {
        name: (name, MAIN) for name in ("depth", "random", "overlap", "inclusion")
    },
    "Losses (table 6)": {"all losses": ("depth", MAIN)}
    | {name: ("depth", name) for name in ABLATIONS},
    "Depth (table 9)": {
        "scene-layout": ("depth", MAIN),
        "colour-attenuation": ("colour-attenuation", MAIN),
    },
    "What the encoders see": {MAIN: ("depth", MAIN)}
    | {name: ("depth", name) for name in ("paper", "equal-size", "equal-size+sr")},
}
CHOSEN = "weak quality, consistency 10"  # by docs/results.md, in the world of known truth
GAN = "realesrgan-x4plus"  # to compare with, where its package is installed
QUICK = 30  # steps of --quick


class ProofConfig(BaseModel):
    """The parameters of this benchmark."""

    photographs: list[str] = Field([], description="to train on")
    unseen: list[str] = Field([], description="to test on: other photographs")
    out: Path = Field(Path("data/proof"), description="folder for manifests, runs and scores")
    only: list[Part] = Field(list(PARTS), description=f"parts to run, of {' '.join(PARTS)}")
    quick: bool = Field(False, description=f"the first table, one seed, {QUICK} steps")
    variant: str = Field(CHOSEN, description=f"what LA-SR is here, of {[*VARIANTS]}")
    seeds: list[int] = Field([0, 1, 2], description="one run of each row for each seed")
    steps: int = Field(300, ge=1, description="training steps")
    batch_size: int = Field(8, ge=2, description="patches of each role in a step")
    lr: float = Field(2e-5, gt=0, description="learning rate of the SR network")
    lr_encoders: float = Field(1e-5, gt=0, description="learning rate of the encoders")
    weight_vgg: float = Field(1.0, ge=0, description="of the perceptual term, where it is on")
    profile: Profile = Field("offline", description="the models that training starts from")
    precision: Precision = Field("auto", description="of training")
    device: Device = Field("auto", description="where networks run")
    parallel: int = Field(1, ge=1, description="runs at a time")

    @property
    def tables(self) -> dict[str, dict[str, tuple[str, str]]]:
        """The tables to make."""
        return dict(list(TABLES.items())[:1]) if self.quick else TABLES

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Manifest and variant of every network to train, each once."""
        return list(dict.fromkeys(row for rows in self.tables.values() for row in rows.values()))


def prepare(config: ProofConfig) -> None:
    """Make the manifests and the far patches to test on."""
    if not (config.photographs and config.unseen):
        raise UserError("nothing to make manifests of", "give --photographs and --unseen")
    for name in dict.fromkeys(manifest for manifest, _ in config.rows):
        build(config, config.photographs, name, MANIFESTS[name])
    unseen = build(config, config.unseen, "unseen", {})
    folder = config.out / "test"
    folder.mkdir(exist_ok=True)
    for row in pq.read_table(unseen, filters=[("role", "==", "lr")]).to_pylist():
        (folder / f"{row['patch_id'][:16]}.png").write_bytes(row["image"]["bytes"])


def build(config: ProofConfig, photographs: list[str], name: str, options: dict[str, Any]) -> Path:
    """Make one manifest, or what it lacks; returns its path."""
    out = config.out / name / "patches.parquet"
    shared = {"images": photographs, "out": str(out), "profile": config.profile}
    run_stages(BuildConfig.model_validate(shared | {"device": config.device} | options))
    return out


def options_of(config: ProofConfig, name: str) -> dict[str, Any]:
    """The options of `lasr train` for a row's network."""
    if name == MAIN or name in ABLATIONS:
        return VARIANTS[config.variant] | ABLATIONS.get(name, {})
    return VARIANTS[name]


def runs(config: ProofConfig) -> dict[tuple[str, str, int], TrainConfig]:
    """The settings of every run by manifest, name and seed."""
    steps, seeds = (QUICK, config.seeds[:1]) if config.quick else (config.steps, config.seeds)
    shared = {
        "profile": config.profile, "steps": steps, "batch_size": config.batch_size,
        "lr": config.lr, "lr_encoders": config.lr_encoders, "weight_vgg": config.weight_vgg,
        "warmup": steps // 10, "log_every": 10, "sample_every": 100, "checkpoint_every": 100,
    }  # fmt: skip
    return {
        (manifest, name, seed): settings(
            config.out / manifest / "patches.parquet", config.out / "runs" / f"{manifest}-{steps}",
            name, seed, shared | options_of(config, name), config.device, config.precision,
        )
        for seed in seeds
        for manifest, name in config.rows
    }  # fmt: skip


def judge_of(config: ProofConfig) -> Judge:
    """What scores networks on the held-out patches."""
    out = config.out / "scores"
    return Judge(config.out / "test", None, tuple(METRICS), out, config.device)


def scored(config: ProofConfig) -> dict[str, Scores]:
    """The scores of each table's rows, of the runs that have ended."""
    judge, made = judge_of(config), runs(config)
    references = {"bicubic": "bicubic", "start": PROFILES[config.profile]["sr"]}
    if found_in_table(TABLE[GAN]):
        references["Real-ESRGAN"] = GAN
    shared = {name: judge(name, weights) for name, weights in references.items()}
    every = {key: judge.run(run) for key, run in made.items() if is_trained(run.folder)}
    found: dict[str, Scores] = {}
    for title, rows in config.tables.items():
        found[title] = dict(shared)
        for label, row in rows.items():
            for *of, seed in every:
                if tuple(of) == row:
                    found[title][f"{label} #{seed}"] = every[*row, seed]
    return found


def run(config: ProofConfig) -> None:
    """Make manifests, train, score, and print the tables."""
    if config.variant not in VARIANTS:
        raise UserError(f"--variant: no {config.variant}", f"take one of {', '.join(VARIANTS)}")
    config.out.mkdir(parents=True, exist_ok=True)
    if "prepare" in config.only:
        prepare(config)
    if "train" in config.only:
        judge = judge_of(config).run if "score" in config.only else None
        train_all(list(runs(config).values()), config.parallel, judge)
    if "score" in config.only:
        parts = [f"## {title}\n\n{table(rows, SHOWN)}" for title, rows in scored(config).items()]
        text = "\n\n".join(parts)
        (config.out / "tables.md").write_text(text + "\n")
        print(text)


main = Command(ProofConfig, run, name="python -m benchmarks.proof", about=__doc__)

if __name__ == "__main__":
    sys.exit(main())
