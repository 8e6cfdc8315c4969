"""Compare the pipeline with a plain loop over the same photographs and models, in one run.

    python -m benchmarks.build                                    # two minutes on two cores
    python -m benchmarks.build --growth 50 200 800 1000           # how time and memory grow
    python -m benchmarks.build --depth DIR --clip DIR --device cuda

The loop is the obvious program: open a photograph, estimate depth with the library's own call or by
the formula, select patches, crop, call clip-interrogator's `rank` for each patch, write. It selects
as LA-SR does, so that both have the same patches, and nearly all the same words. Each run is a
process of its own and loads its models before its time is taken. CPU time, of all threads, tells
more than time where other programs run.
"""

import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageEnhance
from pydantic import BaseModel, Field

from lasr.cli import Command
from lasr.device import Device, pick_device
from lasr.weights.registry import Profile
from pipeline.config import BuildConfig
from pipeline.stages.captions import DICTIONARY, read_dictionary
from pipeline.stages.depth import load_depth
from pipeline.stages.select import select
from schemas.manifest import patch_id

Way = Literal["loop", "ours", "flow"]
TITLES: dict[Way, str] = {
    "loop": "plain loop", "ours": "LA-SR", "flow": "LA-SR, through Prefect"
}  # fmt: skip


class BuildBenchmark(BaseModel):
    """Parameters of `benchmarks.build`."""

    photographs: int = Field(48, ge=2, description="photographs to build from, made from real ones")
    width: int = Field(1020, ge=300, description="width in pixels; the height is two thirds of it")
    rounds: int = Field(3, ge=1, description="runs of each program, in turn")
    growth: list[int] = Field(
        [50, 200, 800],
        description="photographs in the runs that show how time and memory grow; 0: none",
    )
    ways: list[Way] = Field(["loop", "ours", "flow"], description="programs to compare")
    k: int = Field(8, ge=1, description="patches per role and photograph")
    shard_size: int = Field(64, ge=1, description="photographs per part")
    profile: Profile = Field("offline", description="models, unless --depth and --clip name others")
    depth: str | None = Field(None, description="depth estimator: name or folder")
    clip: str | None = Field(None, description="CLIP: name or folder")
    device: Device = Field("auto", description="where the networks run")
    child: Way | None = Field(None, description="(internal) run one program, print JSON")
    folder: Path | None = Field(None, description="(internal) folder of photographs and results")


def make_photographs(folder: Path, number: int, width: int) -> None:
    """Write JPEG files of one size: real photographs, cropped, flipped and toned by a seed."""
    from pipeline.demo import copy_photographs

    copy_photographs(folder / "source")
    sources = [Image.open(path).convert("RGB") for path in sorted((folder / "source").iterdir())]
    target = folder / "photographs"
    target.mkdir()
    size = (width, width * 2 // 3)
    for i in range(number):
        rng = np.random.default_rng(i)
        image = sources[i % len(sources)]
        left, top = rng.random(2) * 0.2 * np.array(image.size)
        crop = image.crop((left, top, left + 0.8 * image.width, top + 0.8 * image.height))
        crop = crop.resize(size, Image.Resampling.BICUBIC)
        if rng.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        ImageEnhance.Brightness(crop).enhance(rng.uniform(0.8, 1.1)).save(
            target / f"{i:05}.jpg", quality=92
        )


# --- the three programs, each in a process of its own -------------------------------------------


def run_stages(config: BuildConfig) -> None:
    """Build without Prefect."""
    from pipeline.build.plan import plan_build, prepare
    from pipeline.build.publish import finish
    from pipeline.build.shard import build_shard

    build = plan_build(prepare(config))
    finish(build, [build_shard(build.job, shard) for shard in build.plan.to_do])


def run_flow(config: BuildConfig) -> None:
    """Build through the Prefect flow."""
    from pipeline.flows import server

    embedded = server.connect()
    server.load_flow().build(config, embedded=embedded)


def run_loop(config: BuildConfig, models: Any) -> None:
    """Build with a plain loop: one photograph and one patch at a time, libraries as documented."""
    rows = []
    for path in sorted(Path(config.images[0]).iterdir()):
        content = path.read_bytes()
        image = Image.open(io.BytesIO(content)).convert("RGB")
        image_id = _sha256(content)
        distance = models.distance(image)
        for found in select(np.asarray(image), distance, image_id, config):
            x, y, side = found.x, found.y, found.size
            patch = image.crop((x, y, x + side, y + side))
            png = io.BytesIO()
            patch.save(png, format="PNG")
            words = models.rank(patch)
            name = patch_id(image_id, found.role, x, y, side)
            rows.append(
                {"patch_id": name, "role": found.role, "words": words, "image": png.getvalue()}
            )
    Path(config.out).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), Path(config.out) / "part.parquet")


def _sha256(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


class PlainModels:
    """Unmodified libraries: transformers or the formula, clip-interrogator's `rank`."""

    def __init__(self, config: BuildConfig):
        from types import SimpleNamespace

        from clip_interrogator import Config, LabelTable

        from lasr.weights.clip import load_clip
        from lasr.weights.locate import locate

        self.device = pick_device(config.device)
        self.clip = load_clip(locate(config.clip_name, "clip"), self.device)
        settings = Config(caption_model_name=None, quiet=True, device=str(self.device))
        settings.cache_path, settings.download_cache = None, False
        words = read_dictionary(DICTIONARY)
        interrogator = SimpleNamespace(
            clip_model=self.clip.model, config=settings, tokenize=self.clip.tokenize
        )
        self.table = LabelTable(words, None, interrogator)
        self.depth = self.formula = None
        if not Path(config.depth_name).is_dir():
            self.formula = load_depth(locate(config.depth_name, "depth"), self.device).prepare
        else:
            from transformers import pipeline

            self.depth = pipeline(
                "depth-estimation", model=config.depth_name, device=self.device, use_fast=True
            )

    def distance(self, image: Image.Image) -> np.ndarray:
        """Return the distance map, 0 near to 1 far, at the image's size."""
        if self.depth:
            near = self.depth(image)["predicted_depth"].float().cpu().numpy()
            near = cv2.resize(near, image.size, interpolation=cv2.INTER_CUBIC)
            return np.asarray((near.max() - near) / (near.max() - near.min()))
        assert self.formula
        far = self.formula(np.asarray(image))
        return np.clip(cv2.resize(far, image.size, interpolation=cv2.INTER_CUBIC), 0, 1)

    def rank(self, patch: Image.Image) -> list[str]:
        """Return the 24 best words."""
        with torch.no_grad():
            batch = self.clip.preprocess(patch)[None].to(self.device)
            features = self.clip.model.encode_image(batch, normalize=True)
            words: list[str] = self.table.rank(features, top_count=24)
        return words


def child(options: BuildBenchmark) -> None:
    """Load the models, run one program, print its time and memory as JSON."""
    assert options.folder is not None
    out = options.folder / f"{options.child}-{os.getpid()}" / "patches.parquet"
    config = BuildConfig(
        images=[str(options.folder / "photographs")],
        out=out,
        depth=options.depth,
        clip=options.clip,
        profile=options.profile,
        k=options.k,
        shard_size=options.shard_size,
        device=options.device,
    )
    if options.child == "loop":
        models = PlainModels(config)
        started, cpu = time.perf_counter(), time.process_time()
        run_loop(config, models)
    else:
        from pipeline.build.models import load_models
        from pipeline.build.plan import prepare

        loaded = load_models(prepare(config).job)
        assert loaded.depth and loaded.captioner
        started, cpu = time.perf_counter(), time.process_time()
        (run_flow if options.child == "flow" else run_stages)(config)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak_mb": peak, "out": str(out)}))


# --- the comparison ------------------------------------------------------------------------------


def measure(way: Way, folder: Path, options: BuildBenchmark) -> dict[str, Any]:
    """Run a program in a child process and read its result. Raises CalledProcessError."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "benchmarks.build",
        "--child",
        way,
        "--folder",
        str(folder),
    ]
    for name in ("k", "shard_size", "profile", "depth", "clip", "device"):
        if (value := getattr(options, name)) is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    quiet = os.environ | {"PREFECT_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
    quiet |= {"PREFECT_HOME": str(folder / "prefect"), "DO_NOT_TRACK": "1"}
    done = subprocess.run(command, env=quiet, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def words_of(out: str) -> dict[str, list[str]]:
    """Return the words of each patch_id."""
    table = pq.read_table(out, columns=["patch_id", "words"]).to_pylist()
    return {row["patch_id"]: row["words"] for row in table}


def compare(options: BuildBenchmark) -> None:
    """Run the programs in turn and print rates, spread and ratios."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_photographs(folder, options.photographs, options.width)
        ways = [way for way in TITLES if way in {"loop", "ours", *options.ways}]
        runs: dict[Way, list[dict[str, Any]]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way in ways:
                runs[way].append(measure(way, folder, options))
        results = {way: words_of(runs[way][0]["out"]) for way in ways}
        same = sum(results["ours"].get(name) == words for name, words in results["loop"].items())
        patches, height = len(results["ours"]), options.width * 2 // 3
        print(
            f"\n{options.photographs} photographs of {options.width}x{height}, {patches} patches,"
            f" {options.depth or options.profile}, {options.clip or options.profile},"
            f" {pick_device(options.device)}, {os.cpu_count()} cores, {options.rounds} rounds;"
            f" {same} of the loop's {len(results['loop'])} patches have the same position and words"
            " in LA-SR\n"
        )
        print("| program | photographs/s (spread) | patches/s | ratio | CPU time a photograph |"
              " ratio | peak memory |")  # fmt: skip
        print("|---|---|---|---|---|---|---|")
        plain, plain_cpu = (
            median(run[name] for run in runs["loop"]) for name in ("seconds", "cpu")
        )
        for way in ways:
            times = sorted(run["seconds"] for run in runs[way])
            middle, peak = median(times), max(run["peak_mb"] for run in runs[way])
            cpu = median(run["cpu"] for run in runs[way])
            fast, usual, slow = (options.photographs / t for t in (times[0], middle, times[-1]))
            print(
                f"| {TITLES[way]} | {usual:.2f} ({slow:.2f} to {fast:.2f}) | {patches / middle:.0f}"
                f" | {plain / middle:.2f}x | {1e3 * cpu / options.photographs:.0f} ms"
                f" | {plain_cpu / cpu:.2f}x | {peak:.0f} MB |"
            )
        if "flow" in runs:
            pairs = zip(runs["flow"], runs["ours"], strict=True)
            over = median(flow["seconds"] - ours["seconds"] for flow, ours in pairs)
            print(f"\nPrefect adds {over:.1f} s to a run, its embedded server's start included.")


def grow(options: BuildBenchmark) -> None:
    """Print time and memory for increasing numbers of photographs."""
    print("\n| photographs | seconds | photographs/s | peak memory |\n|---|---|---|---|")
    for number in filter(None, options.growth):
        with tempfile.TemporaryDirectory() as place:
            make_photographs(Path(place), number, options.width)
            run = measure("ours", Path(place), options)
            print(
                f"| {number} | {run['seconds']:.1f} | {number / run['seconds']:.2f}"
                f" | {run['peak_mb']:.0f} MB |",
                flush=True,
            )


def run(options: BuildBenchmark) -> None:
    """Measure all ways, or the one that a parent process asks for."""
    if options.child:
        child(options)
    else:
        compare(options)
        grow(options)


main = Command(BuildBenchmark, run, name="python -m benchmarks.build", about=__doc__)

if __name__ == "__main__":
    sys.exit(main())
