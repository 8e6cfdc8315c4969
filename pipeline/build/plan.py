"""Plan a build: check the inputs, find what is finished, and cut the rest into shards.

`prepare` checks everything that needs no lock, once per command; `plan_build` reads the finished
parts. `pipeline.build.shard` makes each shard a part and `pipeline.build.publish` the parts a
manifest. All of these are plain functions that run without Prefect.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from lasr.device import pick_device
from lasr.pictures.find import expand_lists
from lasr.weights.locate import locate_all, untrained
from pipeline.build.fingerprint import Identities, fingerprint, identify
from pipeline.build.models import Job
from pipeline.build.parts import Part, Shard, read_parts, state_of
from pipeline.config import BuildConfig
from pipeline.outputs import check_found, check_outputs
from pipeline.stages import images
from pipeline.stages.captions import DICTIONARY, dictionary_sha256, read_dictionary
from pipeline.stages.depth import with_family
from pipeline.stages.images import Found
from pipeline.storage import StoragePath
from schemas.manifest import file_metadata

# Parameters that a part's metadata leaves out: they do not change its rows.
_NOT_IN_METADATA = {
    "out", "cache", "dry_run", "device", "workers", "runner", "ray_address", "gpus_per_task"
}  # fmt: skip
PATCH_MB = 0.05  # of a row, on average: a PNG of 56 or 224 pixels


@dataclass(frozen=True)
class Prepared:
    """A build whose inputs are checked: what its workers need, and the photographs found."""

    job: Job
    photographs: tuple[Found, ...]


@dataclass(frozen=True)
class Plan:
    """The finished parts that a build reuses, and the shards that remain."""

    finished: tuple[str, ...]
    to_do: tuple[Shard, ...]
    photographs: int


@dataclass(frozen=True)
class Build:
    """A planned build."""

    job: Job
    plan: Plan

    @property
    def to_do(self) -> int:
        """Photographs in the shards that remain."""
        return sum(len(shard.photographs) for shard in self.plan.to_do)

    def summary(self) -> str:
        """The text of --dry-run."""
        config, parameters = self.job.config, self.job.metadata["parameters"]
        reusable = sum(len(shard.reusable) for shard in self.plan.to_do)
        reused = f" ({reusable} of them keep their patches)" if reusable else ""
        return (
            f"{self.plan.photographs} photographs, {self.plan.photographs - self.to_do} finished,"
            f" {self.to_do} to do in {len(self.plan.to_do)} parts{reused}\n"
            f"depth: {parameters['depth_model']}\n"
            f"captions: {parameters['caption_model']}, {parameters['words']} words\n"
            f"at most {2 * config.k} patches per photograph, about {self.megabytes:.0f} MB to write"
            f"{self._free()}\n"
            f"manifest: {config.out}"
        )

    @property
    def megabytes(self) -> float:
        """An estimate of what remains to be written."""
        return self.to_do * 2 * self.job.config.k * PATCH_MB

    def _free(self) -> str:
        folder = StoragePath(self.job.config.out).parent
        if not folder.is_local or not folder.exists():
            return ""
        return f", {shutil.disk_usage(folder.path).free / 1e6:.0f} MB free"


def prepare(config: BuildConfig) -> Prepared:
    """Check outputs, dictionary, weights and device, and find the photographs; changes nothing.

    Raises UserError: an output that is not a build's own, no GPU, an unreadable dictionary,
    missing or damaged weights, no photographs.
    """
    out, cache = (
        StoragePath(config.out),
        None if config.cache is None else StoragePath(config.cache),
    )
    inputs = [*expand_lists(config.images), config.depth, config.clip, config.dictionary]
    check_outputs(out, config.work, [str(each) for each in inputs if each], cache)
    found = images.find(config.images)
    check_found((out, config.work, config.cache_folder), (photograph.path for photograph in found))
    photographs = found[: config.limit]
    words = read_dictionary(config.dictionary or DICTIONARY)
    depth, clip = locate_all((config.depth_name, "depth"), (config.clip_name, "clip"))
    depth = with_family(depth)
    if config.runner == "local":  # a cluster's machines have GPUs of their own
        pick_device(config.device)  # last: it loads PyTorch
    parameters = config.model_dump(mode="json", exclude=_NOT_IN_METADATA) | {
        "depth": config.depth_name,
        "clip": config.clip_name,
        "dictionary": dictionary_sha256(words),
        "depth_model": depth.identity,
        "caption_model": clip.identity,
        "words": len(words),
        "untrained": bool(untrained(config.clip_name)),
    }
    identities = identify(config, depth, clip, dictionary_sha256(words))
    metadata = file_metadata(parameters, dictionary_sha256(words))
    job = Job(config, depth, clip, tuple(words), identities, metadata)
    return Prepared(job, tuple(photographs))


def plan_build(prepared: Prepared) -> Build:
    """Find what is finished and what remains; changes nothing. Hold `sole_build` meanwhile."""
    job = prepared.job
    parts = read_parts(job.config.work)
    plan = plan_shards(parts, prepared.photographs, job.identities, job.config.shard_size)
    return Build(job, plan)


def plan_shards(
    parts: Sequence[Part], photographs: Sequence[Found], identities: Identities, shard_size: int
) -> Plan:
    """Keep the finished parts whose photographs are all unchanged, and cut the rest into shards.

    A photograph counts as unchanged while its name, size and modification time are the same. So a
    rerun after a kill repeats only the shard that was interrupted, and new photographs cost only
    themselves. The photographs of a part that has to be made again stay together: a new parameter
    does not reshuffle shards.
    """
    states = {photograph.name: state_of(photograph) for photograph in photographs}
    finished, outdated, covered = [], [], set[str]()
    for part in parts:
        done = part.done()
        current = all(states.get(name) == state for name, state in done.items())
        if done and current and part.rows == identities.rows and not covered & done.keys():
            finished.append(part.name)
            covered |= done.keys()
        else:
            outdated.append(part)
    remaining = {photo.name: photo for photo in photographs if photo.name not in covered}
    reusable = _reusable(outdated, states, identities.selection)
    shards: list[Shard] = []
    for names in [*(part.done() for part in outdated), list(remaining)]:
        group = [remaining.pop(name) for name in names if name in remaining]
        cuts = (group[i : i + shard_size] for i in range(0, len(group), shard_size))
        shards.extend(_shard(cut, reusable) for cut in cuts)
    return Plan(tuple(finished), tuple(shards), len(photographs))


def _reusable(
    parts: Sequence[Part], states: dict[str, list[int]], selection: str
) -> dict[str, str]:
    """Unchanged photograph -> finished part with the patches that this build would select."""
    return {
        name: part.name
        for part in parts
        if part.selection == selection
        for name, state in part.done().items()
        if states.get(name) == state
    }


def _shard(photographs: Sequence[Found], reusable: dict[str, str]) -> Shard:
    states = [[photograph.name, *state_of(photograph)] for photograph in photographs]
    own = {p.name: reusable[p.name] for p in photographs if p.name in reusable}
    return Shard(f"shard-{fingerprint(states)}", tuple(photographs), own)
