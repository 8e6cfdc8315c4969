"""A real run of `lasr train` on a manifest made here: data, step, log and checkpoint together."""

import json
import time

from benchmarks.build import make_photographs, run_stages
from benchmarks.device.networks import clip_folder, free, peak_gb, sr_file, vgg_file
from benchmarks.device.record import Part
from lasr.device import pick_device
from pipeline.config import BuildConfig
from trainer import loop
from trainer.config import TrainConfig


def measure(part: Part) -> None:
    """200 steps at the paper's setting with the default precision; 3 small ones on a CPU."""
    device = pick_device(part.device)  # type: ignore[arg-type]
    folder = part.folder / "training"
    folder.mkdir()
    make_photographs(folder, 4 if part.small else 24, 360 if part.small else 1020)
    manifest = folder / "patches.parquet"
    run_stages(
        BuildConfig(
            images=[str(folder / "photographs")],
            out=str(manifest),
            profile="test",
            device="cpu",
            k=2 if part.small else 8,
        )
    )
    steps = 3 if part.small else 200
    config = TrainConfig(
        manifest=manifest, out=folder / "run", steps=steps, batch_size=2 if part.small else 16,
        clip=str(clip_folder(part.folder, part.small, device)),
        sr_init=str(sr_file(part.folder, part.small)), vgg=str(vgg_file(part.folder, part.small)),
        vgg_layers=["conv1_2"] if part.small else None, device=part.device,
        log_every=1 if part.small else 50, sample_every=10**6, checkpoint_every=10**6,
        validate_every=0,
        workers=2 if part.small else 8,
    )  # fmt: skip
    free(device)
    started = time.perf_counter()
    loop.train(config)
    seconds = time.perf_counter() - started
    lines = (config.folder / "stats.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        part.row(f"steps until {line['step']}", 1e3 * line["seconds_per_step"], "ms a step",
                 waiting_for_data=line["waiting_for_data"],
                 waiting_for_device=line["waiting_for_device"], total=line["total"])  # fmt: skip
    part.row(f"{steps} steps, with loading and saving", seconds, "s", peak_GB=peak_gb(device))
