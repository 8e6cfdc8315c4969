"""Checks of the machine: weights, disk, memory, folders and environment variables."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from lasr.doctor.environment import Result
from lasr.errors import UserError
from lasr.weights.locate import found, locate_all, weights_folder, with_needs
from lasr.weights.registry import PROFILES, TABLE, Kind, Profile, Weights

# All sizes in megabytes.
PER_PHOTOGRAPH = 1.5  # 16 patches, 0.4 MB, in a part and in the manifest; the rest is caches
# SR network and CLIP with Adam's two averages: three times 4 bytes for each of 444 million
# parameters. While a checkpoint is written there are three.
TRAINING = 3 * 5_400
TRAINING_OFFLINE = 100
BASE_MEMORY = 2_000  # libraries and stages; an offline build peaks at 1,600
SHARED_MEMORY = 1_000  # /dev/shm; Ray and NCCL fail with less

HARMFUL = {
    "HF_HUB_OFFLINE": "`lasr weights fetch` downloads nothing",
    "TRANSFORMERS_OFFLINE": "`lasr weights fetch` downloads nothing",
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "other programs may run code from weights",
}


def needed(profile: Profile, kinds: tuple[Kind, ...]) -> list[Weights]:
    """The weights of a profile, of these kinds, and what they need."""
    return with_needs([TABLE[PROFILES[profile][kind]] for kind in kinds], built_in=True)


def weights(profile: Profile, kinds: tuple[Kind, ...]) -> str:
    """Find a profile's weights and verify their digests. Raises WeightsError."""
    located = locate_all(*((entry.name, entry.kind) for entry in needed(profile, kinds)))
    return f"{', '.join(each.identity for each in located)} in {weights_folder()}"


def disk(data: Path, profile: Profile, kinds: tuple[Kind, ...], photographs: int) -> str:
    """Compare the free space at the data folder with what will be written to that disk."""
    folder, build, train, fetch = _existing(data), 0.0, 0, 0
    if "depth" in kinds:
        build = PER_PHOTOGRAPH * photographs
    if "sr" in kinds:
        train = TRAINING_OFFLINE if profile == "offline" else TRAINING
    if _existing(weights_folder()).stat().st_dev == folder.stat().st_dev:
        missing = [e for e in needed(profile, kinds) if not (e.built_in or found(e))]
        fetch = sum(entry.megabytes for entry in missing)
    free, need = shutil.disk_usage(folder).free / 1e6, build + train + fetch
    seen = (
        f"{free / 1e3:.1f} GB free at {folder}, {need / 1e3:.1f} GB needed ({photographs}"
        f" photographs {build / 1e3:.1f}, training {train / 1e3:.1f}, weights to fetch"
        f" {fetch / 1e3:.1f})"
    )
    if free < need:
        raise UserError(seen, "free some space, or use --data on another disk")
    return seen


def memory(profile: Profile, kinds: tuple[Kind, ...]) -> str:
    """Compare free memory with what libraries and weights take."""
    need = BASE_MEMORY + sum(entry.megabytes for entry in needed(profile, kinds))
    free = _free_memory()
    seen = f"{free / 1e3:.1f} GB free, {need / 1e3:.1f} GB needed (libraries and weights)"
    if free < need:
        raise UserError(seen, "end other programs, or use --profile offline for a first look")
    return seen


def _free_memory() -> float:
    """Megabytes free on the machine or below the container's limit, whichever is less."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():  # not Linux: no limit known
        return float("inf")
    lines = meminfo.read_text().splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 1e3
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        return min(free, (limit - used) / 1e6)
    except (OSError, ValueError):  # no container, or one without a limit
        return free


def writable(folder: Path) -> str:
    """Write a temporary file into a folder, or its nearest parent. Raises UserError."""
    absolute = folder.absolute()
    try:
        found = next(path for path in (absolute, *absolute.parents) if os.path.lexists(path))
        with tempfile.TemporaryFile(dir=found):  # fails where this is no folder
            return f"{folder.absolute()} can be written"
    except OSError as error:
        problem = f"{folder.absolute()} cannot be written ({error.strerror})"
        raise UserError(problem, "change its permissions, or use another folder") from error


def settings() -> Iterator[Result]:
    """Find environment variables that prevent downloads or let files run code, and little shm."""
    for name, effect in HARMFUL.items():
        if os.environ.get(name, "").lower() in ("1", "y", "yes", "true", "on"):
            yield Result("warning", "variable", f"{name} is set: {effect}", f"run `unset {name}`")
    endpoint = os.environ.get("HF_ENDPOINT", "")
    if endpoint and urlsplit(endpoint).scheme not in ("http", "https"):
        fix = "set it to the mirror's https://…, or unset it"
        yield Result("wrong", "variable", f"HF_ENDPOINT={endpoint} is no address", fix)
    shared = Path("/dev/shm")
    if shared.is_dir() and (size := shutil.disk_usage(shared).total / 1e6) < SHARED_MEMORY:
        fix = "in a container use `docker run --shm-size 2g`; only Ray and several GPUs need it"
        yield Result("warning", "shared memory", f"/dev/shm has {size / 1e3:.1f} GB", fix)


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    folder = folder.absolute()
    return next((p for p in (folder, *folder.parents) if p.is_dir()), Path("/"))
