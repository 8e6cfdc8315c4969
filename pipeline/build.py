"""The stages of a build as plain functions: plan it, turn a shard into a part, publish.

The Prefect flow (flows.py) calls these and adds nothing to the rows; they run and are tested
without it.
"""

import functools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from pipeline import images, parts
from pipeline.captions import Captioner, dictionary_sha256, read_dictionary
from pipeline.config import DICTIONARY, BuildConfig
from pipeline.depth import DepthModel, load_depth
from pipeline.images import Found, Photograph, Unusable
from pipeline.rows import catalogue_row, patch_row, unusable_row
from pipeline.select import Patch, select
from schemas.device import pick_device
from schemas.errors import UserError
from schemas.manifest import (
    IMAGES,
    PATCH_SIZE,
    PATCHES,
    Row,
    file_metadata,
    write_part,
)
from schemas.weights import locate, untrained

log = logging.getLogger(__name__)

AHEAD = 4  # photographs decoded before their turn; bounds memory
Tick = Callable[[int], object]


@dataclass(frozen=True)
class Build:
    """A planned build: everything a worker needs to make any of its parts."""

    config: BuildConfig
    plan: parts.Plan
    metadata: dict[str, Any]

    def summary(self) -> str:
        """What would be done, for --dry-run."""
        to_do = sum(len(shard.photographs) for shard in self.plan.to_do)
        return (
            f"{self.plan.photographs} photographs, {self.plan.photographs - to_do} done before,"
            f" {to_do} to do in {len(self.plan.to_do)} parts\n"
            f"depth: {self.metadata['parameters']['depth_model']}\n"
            f"captions: {self.metadata['parameters']['caption_model']},"
            f" {self.metadata['parameters']['words']} words\n"
            f"at most {2 * self.config.k} patches a photograph,"
            f" about {self.plan.photographs * self.config.k * 0.1:.0f} MB\n"
            f"manifest: {self.config.out}"
        )


@dataclass(frozen=True)
class Models:
    """The networks of a build, loaded once per process."""

    depth: DepthModel
    captioner: Captioner


def plan_build(config: BuildConfig) -> Build:
    """Look at photographs, models and what is done already; changes nothing.

    Raises UserError: no photographs, missing weights, an unreadable dictionary, no GPU.
    """
    pick_device(config.device)
    words = read_dictionary(config.dictionary or DICTIONARY)
    depth, clip = locate(config.depth_name, "depth"), locate(config.clip_name, "clip")
    found = images.find(config.images)[: config.limit]
    parameters = config.row_parameters() | {
        "dictionary": dictionary_sha256(words),
        "depth_model": depth.identity,
        "caption_model": clip.identity,
    }
    plan = parts.plan_build(config.out, found, parts.fingerprint(parameters), config.shard_size)
    parameters |= {
        "profile": config.profile,
        "images": config.images,
        "words": len(words),
        "untrained": bool(untrained(config.clip_name)),
    }
    return Build(config, plan, file_metadata(parameters, dictionary_sha256(words)))


@functools.lru_cache(maxsize=1)
def _models(
    depth: str, clip: str, words: tuple[str, ...], device: str, seed: int, identities: str
) -> Models:
    where = torch.device(device)
    return Models(load_depth(depth, where, seed), Captioner(clip, words, where))


def load_models(config: BuildConfig) -> Models:
    """The networks that `config` names; the same ones again in the same process."""
    words = tuple(read_dictionary(config.dictionary or DICTIONARY))
    device = pick_device(config.device).type
    depth, clip = config.depth_name, config.clip_name
    # Names stay where files change: a process that serves for weeks must not keep old weights.
    identities = locate(depth, "depth").identity + locate(clip, "clip").identity
    return _models(depth, clip, words, device, config.seed, identities)


def build_shard(build: Build, shard: parts.Shard, tick: Tick = lambda n: None) -> str:
    """Make one part: read, decode, estimate, select, caption and write its photographs.

    Each photograph is read and decoded once. One that cannot be used is recorded and never stops
    the others. tick(n) is told of every n photographs done. Returns the part's name.
    """
    models = load_models(build.config)
    patches_path, images_path = parts.part_paths(build.plan.work, shard.name)
    catalogue: list[Row] = []
    with (
        ThreadPoolExecutor(build.config.workers) as executor,
        write_part(patches_path, PATCHES, build.metadata) as write,
    ):
        for found, decoded in _decoded(shard.photographs, executor):
            rows, entry = _process(found, decoded, build.config, models, executor)
            write(rows)
            catalogue.append(entry)
            tick(1)
    with write_part(images_path, IMAGES, parts.members_metadata(shard)) as write:
        write(catalogue)
    return shard.name


def publish(build: Build) -> parts.Summary:
    """Make the finished parts the manifest."""
    return parts.publish(build.plan, build.metadata)


def _decoded(
    photographs: Sequence[Found], executor: Executor
) -> Iterator[tuple[Found, Photograph | Unusable]]:
    """Photographs in their order, the next AHEAD being decoded while one is worked on."""
    ahead: deque[tuple[Found, Future[Photograph | Unusable]]] = deque()
    for found in photographs:
        ahead.append((found, executor.submit(_load, found)))
        if len(ahead) > AHEAD:
            first, future = ahead.popleft()
            yield first, future.result()
    while ahead:
        first, future = ahead.popleft()
        yield first, future.result()


def _load(found: Found) -> Photograph | Unusable:
    try:
        return images.load(found, PATCH_SIZE["hr"])
    except Unusable as reason:
        return reason


def _process(
    found: Found,
    photograph: Photograph | Unusable,
    config: BuildConfig,
    models: Models,
    executor: Executor,
) -> tuple[list[Row], Row]:
    """Manifest rows and the catalogue row of one photograph.

    Networks see one photograph's pictures at a time: a batch of several would change the last bits
    of a score with who is in it, and rows must not hang on shards or on where a build was stopped.
    """
    if isinstance(photograph, Unusable):
        return [], unusable_row(found, photograph)
    try:
        distance = models.depth.distances([photograph.pixels])[0]
    except Exception as error:  # one photograph never stops a build; the catalogue says why
        log.warning("%s: no distance map (%s)", found.name, error)
        why = Unusable("failed", f"no distance map: {error}", photograph.image_id)
        return [], unusable_row(found, why, photograph)
    patches = select(photograph.pixels, distance, photograph.image_id, config)
    crops = [crop(photograph.pixels, patch) for patch in patches]
    pngs = executor.map(_png, crops)
    captions = models.captioner.caption(crops, executor)
    rows = [
        patch_row(
            photograph,
            patch,
            caption,
            png,
            config.strategy,
            models.depth.identity,
            models.captioner.clip.identity,
        )
        for patch, caption, png in zip(patches, captions, pngs, strict=True)
    ]
    return rows, catalogue_row(photograph, patches)


def crop(pixels: np.ndarray, patch: Patch) -> np.ndarray:
    """The patch's pixels, size x size x 3 uint8."""
    return pixels[patch.y : patch.y + patch.size, patch.x : patch.x + patch.size]


def _png(pixels: np.ndarray) -> bytes:
    done, encoded = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    if not done:
        raise UserError("OpenCV could not write a PNG; check the installation of OpenCV")
    return encoded.tobytes()
