"""Plan a build: check the inputs, find what is finished, and cut the rest into shards.

`prepare` checks everything that needs no lock, once per command; `plan_build` reads the finished
parts. `pipeline.build.shard` makes each shard a part and `pipeline.build.publish` the parts a
manifest. All of these are plain functions that run without Prefect.
"""

import logging
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from lasr.device import Precision, is_surely_cpu, pick_device, pick_precision
from lasr.errors import UserError
from lasr.pictures.search import expand_lists
from lasr.terminal.summary import counted
from lasr.weights.locate import locate_all, untrained
from pipeline.build.fingerprint import Identities, fingerprint, identify
from pipeline.build.models import Job
from pipeline.build.parts import Part, Shard, read_parts
from pipeline.config import BuildConfig
from pipeline.inputs.changes import Changes, compare, kept, names_below
from pipeline.inputs.photographs import KEEP, Found, Photographs, State, find_all
from pipeline.outputs import check_found, check_outputs
from pipeline.stages.captions import DICTIONARY, dictionary_sha256, read_dictionary
from pipeline.stages.depth import with_family
from pipeline.storage import StoragePath
from pipeline.summary import describe_found, photographs
from schemas.manifest import file_metadata

# Parameters that a part's metadata leaves out: they do not change its rows.
_NOT_IN_METADATA = {
    "out", "cache", "dry_run", "device", "workers", "runner", "ray_address", "gpus_per_task",
    "verify", "keep_unreachable",
}  # fmt: skip
PATCH_MB = 0.05  # of a row, on average: a PNG of 56 or 224 pixels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A build whose inputs are checked: what its workers need, and the photographs found."""

    job: Job
    inputs: Photographs

    @property
    def photographs(self) -> list[Found]:
        """The photographs of this build: those found, or the first --limit of them."""
        return self.inputs.found[: self.job.config.limit]


@dataclass(frozen=True)
class Plan:
    """The finished parts that a build reuses, and the shards that remain.

    gone: photographs of the earlier build that are not found. kept: those out of reach whose rows
    stay. states: part -> name -> new state of a photograph whose bytes are unchanged. parts: the
    finished ones, by name.
    """

    finished: tuple[str, ...]
    to_do: tuple[Shard, ...]
    photographs: int
    gone: int = 0
    kept: int = 0
    states: dict[str, dict[str, State]] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Build:
    """A planned build."""

    job: Job
    plan: Plan
    inputs: Photographs

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
            f"{photographs(self.plan.photographs)}, {self.plan.photographs - self.to_do} finished,"
            f" {self.to_do} to do in {counted(len(self.plan.to_do), 'part')}{reused}\n"
            f"{self._inputs()}"
            f"depth: {parameters['depth_model']}\n"
            f"captions: {parameters['caption_model']}, {parameters['words']} words\n"
            f"at most {2 * config.k} patches per photograph, about {self.megabytes:.0f} MB to write"
            f"{self._free()}\n"
            f"manifest: {config.out}"
        )

    def _inputs(self) -> str:
        """What is found, by suffix; what is not read and what is passed over; what is gone."""
        found, plan = self.inputs.found, self.plan
        lines = describe_found(found)
        if left_out := len(found) + plan.kept - plan.photographs:
            lines.append(("left out", f"{left_out} by --limit"))
        if self.inputs.passed.counts:
            lines.append(("passed over", str(self.inputs.passed)))
        if plan.kept:
            lines.append(("kept", f"{photographs(plan.kept)} out of reach"))
        if plan.gone:
            lines.append(("gone", f"{photographs(plan.gone)} of the earlier build"))
        return "".join(f"{title}: {text}\n" for title, text in lines)

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
    given = [*expand_lists(config.images), config.depth, config.clip, config.dictionary]
    check_outputs(out, config.work, [str(each) for each in given if each], cache)
    inputs = find_all(config.images)
    if not config.keep_unreachable:
        inputs.check_complete()
        inputs.check_any(config.images)
    check_found((out, config.work, config.cache_folder), (one.path for one in inputs.found))
    words = read_dictionary(config.dictionary or DICTIONARY)
    depth, clip = locate_all((config.depth_name, "depth"), (config.clip_name, "clip"))
    depth = with_family(depth)
    config = config.model_copy(update={"precision": resolved_precision(config)})
    parameters = config.model_dump(mode="json", exclude=_NOT_IN_METADATA) | {
        "depth": config.depth_name,
        "clip": config.clip_name,
        "far_texture": config.least_texture("lr"),
        "min_texture": config.least_texture("hr"),
        "dictionary": dictionary_sha256(words),
        "depth_model": depth.identity,
        "caption_model": clip.identity,
        "words": len(words),
        "untrained": bool(untrained(config.clip_name)),
    }
    identities = identify(config, depth, clip, dictionary_sha256(words))
    metadata = file_metadata(parameters, dictionary_sha256(words))
    job = Job(config, depth, clip, tuple(words), identities, metadata)
    return Prepared(job, inputs)


def resolved_precision(config: BuildConfig) -> Precision:
    """The precision that a build computes in, which its rows depend on.

    On a Ray cluster this machine cannot look: `auto` is bfloat16 if the build asks for GPUs, and
    float32 otherwise. Raises UserError: no GPU, or a precision that a CPU does not have.
    """
    if config.runner == "ray":
        asks = config.device.startswith("cuda") or bool(config.gpus_per_task)
        half: Precision = "bfloat16" if asks else "float32"
        return half if config.precision == "auto" else config.precision
    if config.precision == "auto" and is_surely_cpu(config.device):
        return "float32"  # without PyTorch, which takes seconds and 500 MB of memory
    return pick_precision(config.precision, pick_device(config.device), old_gpu="float16")


def plan_build(prepared: Prepared) -> Build:
    """Find what is finished and what remains; changes nothing. Hold `sole_build` meanwhile.

    Raises UserError: a folder of the earlier build has vanished or is empty.
    """
    job, inputs, config = prepared.job, prepared.inputs, prepared.job.config
    parts = read_parts(config.work, StoragePath(config.out).names(), config.verify)
    found = {photograph.name for photograph in inputs.found}
    out_of_reach = kept(list(inputs.unreachable), parts, found)
    photographs = [*prepared.photographs, *out_of_reach]
    changes = _compare(photographs, parts, config, out_of_reach)
    missing = _vanished(inputs.hollow, parts, changes.gone - found)
    if missing and not config.keep_unreachable:
        raise _has_vanished(missing)
    if missing:
        out_of_reach += kept(list(missing), parts, found)
        photographs = [*prepared.photographs, *out_of_reach]
        changes = _compare(photographs, parts, config, out_of_reach)
    if not photographs:
        inputs.check_any(config.images)
    plan = plan_shards(parts, sorted(photographs), job.identities, config.shard_size, changes)
    _check_kept(plan, {photograph.name for photograph in out_of_reach}, parts)
    gone = len(changes.gone - found)
    return Build(job, replace(plan, gone=gone, kept=len(out_of_reach)), inputs)


def _compare(
    photographs: Sequence[Found], parts: Sequence[Part], config: BuildConfig, kept: Sequence[Found]
) -> Changes:
    trusted = {photograph.name for photograph in kept}
    return compare(photographs, parts, config.verify, trusted)


def _vanished(
    hollow: Sequence[str], parts: Sequence[Part], gone: Collection[str]
) -> dict[str, int]:
    """Folders with nothing in them -> how many photographs an earlier build had from there."""
    counts = {folder: len(names_below(folder, parts) & set(gone)) for folder in hollow}
    return {folder: count for folder, count in counts.items() if count}


def _has_vanished(missing: dict[str, int]) -> UserError:
    folder, count = next(iter(missing.items()))
    return UserError(
        f"{folder}: nothing is there, and the earlier build has {photographs(count)} from it",
        f"mount it again, or {KEEP}; if they were deleted, remove the folder, or leave it out"
        " of --images",
    )


def _check_kept(plan: Plan, kept: Collection[str], parts: Sequence[Part]) -> None:
    """Raise UserError if rows of photographs out of reach would have to be made again."""
    used = {name for part in parts for name, status in part.status.items() if status == "ok"}
    for shard in plan.to_do:
        lost = [p for p in shard.photographs if p.name in kept and p.name not in shard.reusable]
        if again := [p.path for p in lost if p.name in used]:
            raise UserError(
                f"{again[0]}: out of reach, and other parameters than before need it again",
                "make it reachable, or use the parameters of the earlier build",
            )


def plan_shards(
    parts: Sequence[Part],
    photographs: Sequence[Found],
    identities: Identities,
    shard_size: int,
    changes: Changes,
) -> Plan:
    """Keep the finished parts whose photographs are all unchanged, and cut the rest into shards.

    So a rerun after a kill repeats only the shard that was interrupted, and new photographs cost
    only themselves. The photographs of a part that has to be made again stay together: a new
    parameter does not reshuffle shards.
    """
    finished, outdated, covered = [], [], set[str]()
    wanted = {photograph.name for photograph in photographs}
    for part in parts:
        done = part.done()
        current = all((part.name, name) in changes.same and name in wanted for name in done)
        if done and current and part.rows == identities.rows and not covered & done.keys():
            finished.append(part.name)
            covered |= done.keys()
        else:
            outdated.append(part)
    remaining = {photo.name: photo for photo in photographs if photo.name not in covered}
    reusable = _reusable(parts, remaining, identities.selection, changes)
    new_names = {
        old: new
        for new, several in changes.renamed.items()
        for old in several
        if old[1] not in wanted  # else `new` is a copy
    }
    shards: list[Shard] = []
    groups = [[new_names.get((part.name, n), n) for n in part.done()] for part in outdated]
    for names in [*groups, list(remaining)]:
        group = [remaining.pop(name) for name in names if name in remaining]
        cuts = (group[i : i + shard_size] for i in range(0, len(group), shard_size))
        shards.extend(_shard(cut, reusable) for cut in cuts)
    states = {name: changes.states[name] for name in finished if name in changes.states}
    by_name = {part.name: part for part in parts}
    known = {name: by_name[name] for name in finished}
    return Plan(tuple(finished), tuple(shards), len(photographs), states=states, parts=known)


def _reusable(
    parts: Sequence[Part], names: Collection[str], selection: str, changes: Changes
) -> dict[str, tuple[str, str]]:
    """Photograph -> a finished part with the patches that this build would select, and its name.

    The bytes are the same, under the same name or another.
    """
    selected = {part.name for part in parts if part.selection == selection}
    found = {
        new: old
        for new, several in changes.renamed.items()
        for old in several
        if new in names and old[0] in selected
    }
    for part in parts:
        if part.name in selected:
            own = ((part.name, name) for name in part.done() if name in names)
            found |= {origin[1]: origin for origin in own if origin in changes.same}
    return found


def _shard(photographs: Sequence[Found], reusable: dict[str, tuple[str, str]]) -> Shard:
    states = [[photograph.name, *photograph.state] for photograph in photographs]
    own = {p.name: reusable[p.name] for p in photographs if p.name in reusable}
    return Shard(f"shard-{fingerprint(states)}", tuple(photographs), own)
