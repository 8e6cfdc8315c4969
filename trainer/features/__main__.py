"""How the encoders see patches before and after training: figure 7 of the paper.

    python -m trainer.features --weights data/runs/patches --manifest data/patches.parquet
    python -m trainer.features --weights data/runs/patches --manifest data/held-out.parquet \\
        --words water sky grass cat dog

Draws t-SNE maps of F_LR and F_HR by role (7a) and of F_HR by caption word (7b), and measures how
well the groups are apart, on the features themselves: a map may show groups where there are none.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, Field

from lasr.cli import parse, progress, run_command
from lasr.device import Device, pick_device
from lasr.errors import UserError
from lasr.files import atomic_path, write_bytes
from lasr.pictures.png import decode_png
from lasr.weights.locate import locate, untrained
from schemas.manifest import PATCH_SIZE, Manifest, ManifestError, Role, open_manifest
from trainer import checkpoint
from trainer.features.maps import View, draw
from trainer.models.encoders import Encoders, load_encoders

COLUMNS = ("patch_id", "image_id", "role", "words", "image")
WORDS = 6  # colours of the map by word, where none are named
SPREAD = 16  # patches of one role from one row group (some 16 photographs), at least
BATCH = 64  # pictures per call of the encoder
FEWEST = 8  # patches, below which a map says nothing


class FeaturesConfig(BaseModel):
    """What `trainer.features` takes."""

    weights: Path = Field(description="a run's folder: its checkpoint holds the trained encoders")
    manifest: Path = Field(description="where patches are drawn from; best one not trained on")
    out: Path | None = Field(None, description="folder to write to (default: features/ in the run)")
    patches: int = Field(2000, ge=2 * FEWEST, description="patches drawn, half of each role")
    words: list[str] | None = Field(
        None,
        min_length=1,
        description=f"caption words (default: the {WORDS} most often named first)",
    )
    pca: int = Field(50, ge=0, description="principal components kept before t-SNE; 0 = all")
    perplexity: float = Field(30, gt=0, description="of t-SNE; smaller where patches are few")
    seed: int = Field(0, ge=0, description="of the choice of patches and of t-SNE")
    clip: str | None = Field(None, description="the CLIP before training (default: the run's)")
    device: Device = Field("auto", description="where the encoders run")


def run(config: FeaturesConfig) -> None:
    """Write features.png, coordinates.parquet and scores.json; print the scores."""
    trained, _ = checkpoint.read_config(config.weights)
    state = checkpoint.load(config.weights)
    if state is None:
        raise UserError(f"{config.weights}: no checkpoint there yet; let the run write one")
    encoders = load_before(config)
    table = choose(open_manifest(config.manifest, COLUMNS), config.patches // 2, config.seed)
    device = pick_device(config.device)
    stages = {"before training": encode(encoders, table, device, "before")}
    encoders.load_state_dict(state["encoders"])
    stages[f"after {state['step']} steps"] = encode(encoders, table, device, "after")

    views = [
        View(title, stage, features[rows], labels[rows], table.take(rows))
        for title, labels in (
            ("F_LR and F_HR", np.array(table["role"].to_pylist(), dtype=object)),
            ("F_HR by word", word_labels(table, config.words)),
        )
        for rows in [np.flatnonzero([label is not None for label in labels])]
        for stage, features in stages.items()
    ]
    out = config.out or config.weights / "features"
    note = (
        "UNTRAINED start: shows the path, not the quality" if untrained(trained.clip_name) else ""
    )
    with atomic_path(out / "features.png") as temporary:
        scores, coordinates = draw(
            views, temporary, config.pca, config.perplexity, config.seed, note
        )
    with atomic_path(out / "coordinates.parquet") as temporary:
        pq.write_table(coordinates, temporary)
    plain = [
        {k: None if v != v else v for k, v in score.items()} for score in scores
    ]  # JSON: no NaN
    write_bytes(out / "scores.json", (json.dumps(plain, indent=2) + "\n").encode())
    for score in scores:
        print("{view}, {stage}: {sentence}".format(**score))
    print(f"written: {out}/features.png, coordinates.parquet, scores.json")


def load_before(config: FeaturesConfig) -> Encoders:
    """The encoders a run started from. Raises UserError: the CLIP is another one by now."""
    trained, identities = checkpoint.read_config(config.weights)
    name = config.clip or trained.clip_name
    identity = locate(name, "clip").identity
    if identity.split("@")[1] != identities["clip"].split("@")[1]:
        raise UserError(
            f"{name}: is {identity}, but the run started from {identities['clip']}; say with --clip"
            " where that one is now"
        )
    return load_encoders(name, pick_device(config.device))


def choose(manifest: Manifest, per_role: int, seed: int) -> pa.Table:
    """Patches drawn by seed, as many LR as HR and up to `per_role` of each, LR first, with PNGs.

    Row groups are visited in random order and give SPREAD patches or more: of a manifest of a
    million patches 60 MB in a thousand are read, not all. Raises ManifestError: too few.
    """
    parts = [(file, pq.ParquetFile(file).num_row_groups) for file in manifest.files]
    groups = [(file, group) for file, count in parts for group in range(count)]
    rng = np.random.default_rng(seed)
    quota = max(-(-per_role // max(len(groups), 1)), SPREAD)
    chosen: dict[Role, list[pa.Table]] = {role: [] for role in PATCH_SIZE}
    missing = dict.fromkeys(PATCH_SIZE, per_role)
    for place in rng.permutation(len(groups)).tolist():
        file, group = groups[place]
        rows = pq.ParquetFile(file).read_row_group(group, columns=list(COLUMNS))
        for role in PATCH_SIZE:
            own = rng.permutation(np.flatnonzero(pc.equal(rows["role"], role)))
            chosen[role].append(rows.take(own[: min(quota, missing[role])]))
            missing[role] -= len(chosen[role][-1])
        if not any(missing.values()):
            break
    for role, count in missing.items():
        if per_role - count < FEWEST:
            raise ManifestError(
                f"{manifest.path}: {per_role - count} '{role}' patches are too few to draw;"
                f" {FEWEST} or more are needed"
            )
    both = min(per_role - count for count in missing.values())
    return pa.concat_tables(pa.concat_tables(tables)[:both] for tables in chosen.values())


@torch.inference_mode()
def encode(encoders: Encoders, table: pa.Table, device: torch.device, what: str) -> np.ndarray:
    """Features of the patches in their order, (n, c) float32, each of length 1."""
    features = []
    with progress(len(table), f"features {what} training", "patch") as bar:
        for role, rows in _batches(table):
            patches = rows.select(["patch_id", "image"]).to_pylist()
            pixels = np.stack([_decode(patch, PATCH_SIZE[role]) for patch in patches])
            pictures = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float().div(255)
            features.append(torch.nn.functional.normalize(encoders.images(pictures)).cpu().numpy())
            bar.update(len(rows))
    return np.concatenate(features)


def _batches(table: pa.Table) -> Iterator[tuple[Role, pa.Table]]:
    for role in PATCH_SIZE:
        own = table.filter(pc.equal(table["role"], role))
        for start in range(0, len(own), BATCH):
            yield role, own.slice(start, BATCH)


def _decode(patch: dict[str, Any], size: int) -> np.ndarray:
    try:
        pixels = decode_png(patch["image"]["bytes"])
        if pixels.shape == (size, size, 3):
            return pixels
    except ValueError:
        pass
    raise ManifestError(f"patch {patch['patch_id']}: not a {size}x{size} PNG", "build it again")


def word_labels(table: pa.Table, words: Sequence[str] | None) -> np.ndarray:
    """For each HR patch the one of `words` that its caption names first; None: it names none.

    words None: those which most HR captions begin with. Raises UserError: a word in no caption.
    """
    captions = [
        row["words"] if row["role"] == "hr" else []
        for row in table.select(["role", "words"]).to_pylist()
    ]
    if words is None:
        firsts = Counter(sorted(caption[0] for caption in captions if caption))
        words = [word for word, _ in firsts.most_common(WORDS)]
    for word in words:
        if not any(word in caption for caption in captions):
            raise UserError(f"--words {word}: no caption of the HR patches drawn has it")
    first = [next((word for word in caption if word in words), None) for caption in captions]
    return np.array(first, dtype=object)


def main(argv: list[str] | None = None) -> int:
    """The command `python -m trainer.features`."""
    config = parse(FeaturesConfig, argv, "python -m trainer.features", __doc__ or "", weights=True)
    return run_command(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
