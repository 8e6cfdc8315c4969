"""A build as plain functions: plan it, turn each shard into a part (shard.py), publish.

The Prefect flow (flows.py) calls these and adds nothing to the rows; they run and are tested
without it.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow.compute as pc

from lasr.device import pick_device
from lasr.weights.locate import locate_all, untrained
from pipeline.build import cache as kept
from pipeline.build import parts
from pipeline.build.fingerprint import identify
from pipeline.build.publish import Summary, publish, tidy
from pipeline.build.shard import Job
from pipeline.config import DICTIONARY, BuildConfig
from pipeline.ownership import check_outputs
from pipeline.sidecars import write_sidecars
from pipeline.stages import images
from pipeline.stages.captions import dictionary_sha256, read_dictionary
from pipeline.storage import Place, read_table
from schemas.manifest import file_metadata

# What a part does not say of itself: where it stands and how the work was done.
_HOW = {"device", "workers", "runner", "ray_address", "gpus_per_task"}
_NOT_OF_A_PART = {"out", "kept", "dry_run", *_HOW}
PATCH_MB = 0.05  # of a row, on average: a PNG of 56 or 224 pixels


@dataclass(frozen=True)
class Build:
    """A planned build: what is done, what is to do, and what a worker needs to do it."""

    job: Job
    plan: parts.Plan

    @property
    def to_do(self) -> int:
        """Photographs of the shards that are to be made."""
        return sum(len(shard.photographs) for shard in self.plan.to_do)

    def summary(self) -> str:
        """What would be done, for --dry-run."""
        config, parameters = self.job.config, self.job.metadata["parameters"]
        at_hand = sum(len(shard.earlier) for shard in self.plan.to_do)
        copied = f" ({at_hand} of them from rows at hand)" if at_hand else ""
        return (
            f"{self.plan.photographs} photographs, {self.plan.photographs - self.to_do} done"
            f" before, {self.to_do} to do in {len(self.plan.to_do)} parts{copied}\n"
            f"depth: {parameters['depth_model']}\n"
            f"captions: {parameters['caption_model']}, {parameters['words']} words\n"
            f"at most {2 * config.k} patches a photograph, about {self.megabytes:.0f} MB to write"
            f"{self._free()}\n"
            f"manifest: {config.out}"
        )

    @property
    def megabytes(self) -> float:
        """What is left to write, estimated."""
        return self.to_do * 2 * self.job.config.k * PATCH_MB

    def _free(self) -> str:
        folder = Place(self.job.config.out).parent
        if not folder.is_local or not folder.exists():
            return ""
        return f", {shutil.disk_usage(folder.path).free / 1e6:.0f} MB free"


def plan_build(config: BuildConfig) -> Build:
    """Look at photographs, models and what is done already; changes nothing.

    Raises UserError: no photographs, missing weights, an unreadable dictionary, no GPU.
    """
    check_outputs(Place(config.out), config.work, config.images)
    if config.runner == "local":  # a cluster's machines have GPUs of their own
        pick_device(config.device)
    words = read_dictionary(config.dictionary or DICTIONARY)
    depth, clip = locate_all((config.depth_name, "depth"), (config.clip_name, "clip"))
    found = images.find(config.images)[: config.limit]
    identities = identify(config, depth, clip, dictionary_sha256(words))
    plan = parts.plan(config.work, found, identities, config.shard_size)
    parameters = config.model_dump(mode="json", exclude=_NOT_OF_A_PART) | {
        "depth": config.depth_name,
        "clip": config.clip_name,
        "dictionary": dictionary_sha256(words),
        "depth_model": depth.identity,
        "caption_model": clip.identity,
        "words": len(words),
        "untrained": bool(untrained(config.clip_name)),
    }
    metadata = file_metadata(parameters, dictionary_sha256(words))
    return Build(Job(config, identities, metadata), plan)


def finish(build: Build, made: Sequence[str]) -> Summary:
    """Make the finished parts the manifest, and remove what it no longer needs.

    made: the names that build_shard returned. Raises UserError.
    """
    config, finished = build.job.config, build.plan.finished
    summary = publish(Place(config.out), config.work, finished, made, build.job.metadata)
    write_sidecars(Place(config.out), build.job.metadata, config.work)
    tidy(config.work, [*finished, *made])
    if config.kept is None:
        image_ids = read_table(Place(summary.images), ["image_id"])["image_id"]
        wanted = set(pc.unique(image_ids).to_pylist())
        kept.tidy(config.kept_folder, build.job.identities, wanted)
    return summary
