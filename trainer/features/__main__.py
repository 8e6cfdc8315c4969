"""Show what training changed in the encoders: t-SNE maps, as figure 7 of the paper.

    lasr features --weights data/runs/patches --manifest data/patches.parquet
    lasr features --weights data/runs/patches --manifest data/held-out.parquet \\
        --words water sky grass cat dog

Draws maps of F_LR and F_HR by role (figure 7a) and of F_HR by caption word (7b), before and after
training. Measures on the features themselves how well the groups are separated, since a map may
show groups that do not exist. Needs the extra `plots`.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from lasr.cli import Command
from lasr.device import Device, pick_device
from lasr.errors import UserError, one_line, require
from lasr.marks import KEY
from lasr.ownership import check_folder, own_path, write_own
from lasr.storage.config import ManifestAddress, StorageConfig
from lasr.storage.manifest import open_manifest
from lasr.terminal.output import say
from lasr.terminal.summary import counted
from lasr.weights.locate import Located, locate, untrained
from trainer.features.maps import View, draw
from trainer.features.sample import COLUMNS, FEWEST, WORDS, choose, word_labels

if TYPE_CHECKING:
    from trainer.config import TrainConfig


FIGURE, COORDINATES, SCORES = "features.png", "coordinates.parquet", "scores.json"


class FeaturesConfig(StorageConfig):
    """The flags of `lasr features`."""

    SECTIONS: ClassVar = {"The maps": ["clip", "pca", "perplexity", "seed"]}

    weights: Path = Field(description="a run's folder, whose checkpoint has the trained encoders")
    manifest: ManifestAddress = Field(
        description="where patches are drawn from; preferably not trained on"
    )
    out: Path | None = Field(None, description="folder to write to (default: features/ in the run)")
    patches: int = Field(2000, ge=2 * FEWEST, description="patches to draw, half of each role")
    words: list[str] | None = Field(
        None,
        min_length=1,
        description=f"caption words (default: the {WORDS} that most captions begin with)",
    )
    pca: int = Field(50, ge=0, description="principal components before t-SNE; 0 for no PCA")
    perplexity: float = Field(30, gt=0, description="of t-SNE; smaller for few patches")
    seed: int = Field(0, ge=0, description="of the choice of patches and of t-SNE")
    clip: str | None = Field(None, description="the CLIP before training (default: the run's)")
    device: Device = Field("auto", description="where the encoders run")

    @property
    def folder(self) -> Path:
        """Where files are written."""
        return self.out or self.weights / "features"


def run(config: FeaturesConfig) -> None:
    """Write features.png, coordinates.parquet and scores.json; print the scores.

    Raises UserError: no such run or manifest, no checkpoint yet, or another CLIP than the run's.
    """
    run_files = [config.weights / name for name in ("config.json", "checkpoint.pt")]
    check_folder(
        config.folder,
        [config.manifest, config.clip, *run_files],
        [config.folder / name for name in (FIGURE, COORDINATES, SCORES)],
    )
    manifest = open_manifest(config.manifest, COLUMNS, config)
    from trainer import checkpoint

    trained, identities = checkpoint.read_config(config.weights)
    clip = locate_clip(config, trained, identities["clip"])
    state = checkpoint.load(config.weights)
    if state is None:
        raise UserError(
            f"{config.weights}: no checkpoint yet", "wait until the run has written one"
        )
    table = choose(manifest, config.patches // 2, config.seed)
    words = word_labels(table, config.words)
    for module in ("matplotlib", "sklearn.manifold"):  # before minutes of work, not after
        require(module, "plots")
    from trainer.features.encode import encode
    from trainer.models.encoders import load_encoders

    device = pick_device(config.device)
    encoders = load_encoders(clip, device)
    stages = {"before training": encode(encoders, table, device, "features before training")}
    try:
        encoders.load_state_dict(state["encoders"])
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"{config.weights}: its checkpoint is of another network ({one_line(error, 100)})",
            "give the folder of the run that trained this CLIP",
        ) from error
    after = encode(encoders, table, device, "features after training")
    stages[f"after {counted(state['step'], 'step')}"] = after
    note = "random weights: no result of the method" if untrained(trained.clip_name) else ""
    _write(config, _views(table, words, stages), note)


def locate_clip(config: FeaturesConfig, trained: "TrainConfig", identity: str) -> Located:
    """Find the CLIP that a run started from. identity: of that CLIP, from the run's config.json.

    Raises UserError: the CLIP is missing, or its content is another one.
    """
    located = locate(config.clip or trained.clip_name, "clip")
    if located.identity.split("@")[1] != identity.split("@")[1]:
        raise UserError(
            f"{located.name}: is {located.identity}, but the run started from {identity}",
            "give the path of that CLIP with --clip",
        )
    return located


def _views(table: pa.Table, words: np.ndarray, stages: dict[str, np.ndarray]) -> list[View]:
    roles = np.array(table["role"].to_pylist(), dtype=object)
    return [
        View(title, stage, features[rows], labels[rows], table.take(rows))
        for title, labels in (("F_LR and F_HR", roles), ("F_HR by word", words))
        for rows in [np.flatnonzero([label is not None for label in labels])]
        for stage, features in stages.items()
    ]


def _write(config: FeaturesConfig, views: list[View], note: str) -> None:
    out = config.folder
    with own_path(out / FIGURE) as temporary:
        scores, coordinates = draw(
            views, temporary, config.pca, config.perplexity, config.seed, note
        )
    with own_path(out / COORDINATES) as temporary:
        pq.write_table(coordinates.replace_schema_metadata({KEY: "{}"}), temporary)
    # JSON has no NaN.
    plain = [{k: None if v != v else v for k, v in score.items()} for score in scores]
    write_own(out / SCORES, (json.dumps(plain, indent=2) + "\n").encode())
    for score in scores:
        print("{view}, {stage}: {sentence}".format(**score))
    say(f"written: {out}/{FIGURE}, {COORDINATES}, {SCORES}")


main = Command(
    FeaturesConfig, run, name="lasr features", about=__doc__, weights=True,
    following=lambda config: [
        "lasr", "compare", "--manifest", config.manifest, "--weights", config.weights,
    ],
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
