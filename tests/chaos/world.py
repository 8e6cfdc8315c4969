"""The folders that an episode works in, and what undisturbed commands make of them."""

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.demo import copy_photographs
from schemas.manifest import ManifestError, open_manifest
from tests.chaos.programs import Program, start
from tests.support.upstream import save_clip
from tests.support.words import WORDS
from trainer.data.reader import Reader
from trainer.models.rrdb import untrained_rrdb
from trainer.models.save import save_network

SIZE = (260, 244)  # of a photograph: two near patches of 224 pixels fit
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".bmp": "BMP", ".webp": "WEBP"}
STEPS = 12  # of a training run
VARIANTS: dict[str, list[str]] = {
    "two": ["--k", "2"],
    "three": ["--k", "3", "--strategy", "overlap"],
    "apart": ["--k", "2", "--min-separation", "60"],
}
CLOCKS = ("seconds_per_step", "waiting_for_data", "waiting_for_device")
Rows = list[dict[str, Any]]
Snapshot = dict[str, tuple[str, int]]  # path -> digest, modification time in nanoseconds


def cuts(source: Path) -> list[Image.Image]:
    """Pieces of real photographs."""
    pieces = []
    for path in sorted(source.iterdir()):
        with Image.open(path) as picture:
            whole = picture.convert("RGB")
        corners = product(
            range(0, whole.width - SIZE[0], SIZE[0]), range(0, whole.height - SIZE[1], SIZE[1])
        )
        pieces += [whole.crop((x, y, x + SIZE[0], y + SIZE[1])) for x, y in corners]
    return pieces


@dataclass
class World:
    """A project of a user: photographs, a manifest, a run, and files that are not ours."""

    folder: Path
    pool: list[Image.Image] = field(repr=False)
    programs: int = 0  # started so far
    references: dict[str, "Reference"] = field(default_factory=dict)
    losses: Rows = field(default_factory=list)  # of a run that was left alone
    weights: str = ""  # digest of its network
    damaged: list[Path] = field(default_factory=list)  # files of builds, in this episode
    training_state: "Snapshot" = field(default_factory=dict)  # as the last disturbance left it
    # Of the run that is under way: whether its statistics were damaged, whether the manifest
    # changed since it began, and whether in a way that changes the order of the rows.
    stats_damaged: bool = False
    manifest_changed: bool = False
    order_changed: bool = False

    @classmethod
    def create(cls, folder: Path, rng: random.Random) -> "World":
        """A world with photographs; no command has run in it."""
        source = folder / "source"
        copy_photographs(source)
        world = cls(folder, cuts(source))
        shutil.rmtree(source)
        for name in ("photos/a", "photos/b c", "data", "logs", "models"):
            (folder / name).mkdir(parents=True)
        (folder / "words.txt").write_text("\n".join(WORDS[:30]))
        save_clip(folder / "models" / "clip")
        save_network(untrained_rrdb(8, 1, 8), folder / "models", "sr")
        for number in range(8):
            world.add(rng, f"start{number}")
        (world.photos / "broken.jpg").write_bytes(b"no picture")
        Image.new("RGB", (100, 80), "gray").save(world.photos / "a" / "small.png")
        (world.photos / "notes.txt").write_text("The user's own.\n")
        (world.data / "thesis.md").write_text("# Not ours\n")
        (world.data / "precious.parquet").write_bytes(b"PAR1 of another program")
        return world

    @property
    def photos(self) -> Path:
        return self.folder / "photos"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def out(self) -> Path:
        return self.data / "patches.parquet"

    @property
    def work(self) -> Path:
        return self.data / "patches.work"

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "run"

    @property
    def training(self) -> Path:
        """The manifest that the run trains on; no build changes it."""
        return self.folder / "training.parquet"

    @property
    def untouched(self) -> Path:
        """A copy of it that nothing damages."""
        return self.folder / "training.untouched"

    @property
    def prefect(self) -> Path:
        """Prefect's database."""
        return self.folder / "prefect" / "prefect.db"

    @property
    def training_is_damaged(self) -> bool:
        return contents(self.training) != contents(self.untouched)

    def note_damage(self) -> None:
        """Remember what a damaged manifest, before or after a change of it, means for the run."""
        self.manifest_changed |= self.run.exists()
        with contextlib.suppress(ManifestError):
            self.order_changed |= len(Reader(open_manifest(self.training), 1).index.faulty) > 0
        self.training_state = snapshot(self.training.rglob("*"))

    def mend_training(self) -> None:
        """Put the manifest of the run back as it was, as repeating its build would."""
        self.note_damage()
        shutil.rmtree(self.training, ignore_errors=True)
        shutil.copytree(self.untouched, self.training)
        self.training_state = snapshot(self.training.rglob("*"))

    # --- Photographs ------------------------------------------------------------------------------

    def add(self, rng: random.Random, name: str) -> Path:
        """A photograph with new content, in one of the folders."""
        suffix = rng.choice(sorted(FORMATS))
        folders = [path for path in [self.photos, *self.photos.rglob("*")] if path.is_dir()]
        path = rng.choice(sorted(folders)) / f"{name}{suffix}"
        path.write_bytes(self.picture(rng, suffix))
        return path

    def picture(self, rng: random.Random, suffix: str) -> bytes:
        """The bytes of a photograph that was not there before."""
        picture = rng.choice(self.pool).rotate(rng.randrange(4) * 90).resize(SIZE)
        shifted = Image.new("RGB", SIZE)
        shifted.paste(picture, (rng.randrange(8), rng.randrange(8)))
        shifted.save(buffer := io.BytesIO(), FORMATS[suffix])
        return buffer.getvalue()

    def pictures(self) -> list[Path]:
        """Files that could be photographs, by their names."""
        return sorted(
            path
            for path in self.photos.rglob("*")
            if path.suffix in (*FORMATS, ".heic") and not path.is_dir()
        )

    def photographs(self) -> list[Path]:
        """Those that are."""
        return [p for p in self.pictures() if p.name.startswith(("start", "new", "swap"))]

    # --- Commands ---------------------------------------------------------------------------------

    def build(self, variant: str, *more: str, flow: bool = False) -> Program:
        """Start a build of the photographs."""
        return self.start("flow" if flow else "build", *self.build_flags(variant), *more)

    def build_flags(self, variant: str) -> list[str]:
        flags = ["--images", "photos", "--out", "data/patches.parquet", "--profile", "test"]
        flags += ["--dictionary", "words.txt", "--shard-size", "3", "--workers", "2"]
        return flags + VARIANTS[variant]

    def train(self, run: str = "runs/run", manifest: str = "training.parquet") -> Program:
        """Start or resume a training run."""
        text = (
            f"--manifest {manifest} --out {run} --profile test --clip models/clip --lr 1e-3"
            f" --sr-init models/sr.safetensors --batch-size 2 --steps {STEPS} --log-every 1"
            " --checkpoint-every 2 --sample-every 100 --workers 2 --max-skipped 0.4 --split all"
        )
        return self.start("train", *text.split())

    def start(self, name: str, *argv: str) -> Program:
        self.programs += 1
        log = self.folder / "logs" / f"{self.programs:05}-{name}.log"
        return start(name, list(argv), self.folder, log)

    # --- What undisturbed commands make of it -----------------------------------------------------

    def reference(self, variant: str) -> "Reference":
        """What a build of these photographs gives that nothing disturbs, in a folder of its own."""
        key = f"{variant}-{digest(json.dumps(contents(self.photos)).encode())[:16]}"
        if key not in self.references:
            place = self.folder / "reference" / key
            copy_tree(self.photos, place / "photos")
            argv = [
                x.replace("data/patches", f"{place}/patches") for x in self.build_flags(variant)
            ]
            argv[argv.index("photos")] = str(place / "photos")
            program = self.start("build", *argv)
            program.wait(600)
            assert program.outcome == "done", f"an undisturbed build: {program.text}"
            self.references[key] = Reference.read(place / "patches.parquet")
            shutil.rmtree(place)
        return self.references[key]


@dataclass(frozen=True)
class Reference:
    """Rows of a manifest and its catalogue, without what depends on the folder's name."""

    rows: Rows
    catalogue: Rows

    @classmethod
    def read(cls, out: Path) -> "Reference":
        """Of the manifest at `out`. Raises AssertionError: rows of a photograph lie apart."""
        files = open_manifest(out).files
        table = pa.concat_tables([pq.read_table(file) for file in files])
        check_order(table)
        rows: Rows = table.drop_columns(["image_path"]).to_pylist()
        for row in rows:
            row["image"] = digest(row["image"]["bytes"])
        entries: Rows = pq.read_table(out.with_name("images.parquet")).to_pylist()
        names = ("path", "image_id", "width", "height", "status", "n_lr", "n_hr")
        catalogue: Rows = [{name: entry[name] for name in names} for entry in entries]
        for entry in catalogue:
            entry["path"] = Path(entry["path"]).name
        return cls(
            sorted(rows, key=lambda row: str(row["patch_id"])),
            sorted(catalogue, key=lambda row: (str(row["path"]), str(row["image_id"]))),
        )

    @property
    def answer(self) -> str:
        """What `world.QUESTION` answers."""
        return "\n".join(sorted(str(row["patch_id"]) for row in self.rows))


QUESTION = "SELECT patch_id FROM patches ORDER BY patch_id"


def check_order(table: pa.Table) -> None:
    """Rows of one photograph together, lr before hr."""
    seen, last, roles = set[str](), None, list[str]()
    for image_id, role in zip(
        table["image_id"].to_pylist(), table["role"].to_pylist(), strict=True
    ):
        if image_id != last:
            assert image_id not in seen, f"rows of {image_id} lie apart"
            seen.add(image_id)
            last, roles = image_id, []
        roles.append(role)
        assert roles == sorted(roles, reverse=True), f"rows of {image_id}: hr before lr"


def statistics(run: Path) -> tuple[Rows, int]:
    """The lines of stats.jsonl without what a clock wrote, and how many cannot be read."""
    path, found, damaged = run / "stats.jsonl", [], 0
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            values = json.loads(line)
            found.append({k: v for k, v in values.items() if k not in CLOCKS})
        except (ValueError, AttributeError):
            damaged += 1
    return found, damaged


def read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def contents(folder: Path) -> dict[str, str]:
    """Digest of each regular file below a folder; of what else is there, its kind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if not stat.S_ISDIR(mode):
            name = path.relative_to(folder).as_posix()
            found[name] = digest(path.read_bytes()) if stat.S_ISREG(mode) else oct(mode)
    return found


def snapshot(paths: Iterable[Path]) -> Snapshot:
    """State of files that no command may change."""
    found: Snapshot = {}
    for path in paths:
        with contextlib.suppress(PermissionError):  # locked by a disturbance
            if path.is_file() and not path.is_symlink():
                found[str(path)] = (digest(path.read_bytes()), path.stat().st_mtime_ns)
    return found


def copy_tree(source: Path, target: Path) -> None:
    """A copy with its modification times and its pipes."""
    for path in [source, *sorted(source.rglob("*"))]:
        copy = target / path.relative_to(source)
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            copy.mkdir(parents=True)
        elif stat.S_ISFIFO(mode):
            os.mkfifo(copy)
        else:
            shutil.copy2(path, copy, follow_symlinks=False)


def mount(folder: Path, megabytes: int, again: bool = False) -> bool:
    """A small disk at `folder`; again: of another size. False where that is not allowed."""
    options = f"{'remount,' if again else ''}size={megabytes}m"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


def unmount(folder: Path) -> None:
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)
