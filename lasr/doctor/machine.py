"""What the doctor looks at on the machine: weights, disk, memory, folders, variables."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from lasr.doctor.finding import Finding, good, warning, wrong
from lasr.weights.locate import (
    PROFILES,
    TABLE,
    Kind,
    Profile,
    WeightsError,
    locate,
    weights_folder,
    with_needs,
)

# Megabytes that a photograph leaves: 8 + 8 patches, 0.4 MB, stand in a part and in the manifest;
# the rest is its kept distance map and features.
PER_PHOTOGRAPH = 1.5
# A checkpoint holds SR network and CLIP with Adam's two averages, three times 4 bytes for each of
# 444 million parameters; while one is written there are three of them.
CHECKPOINT = 5_400
COPIES = 3
RUN_OFFLINE = 100
BASE_MEMORY = 2_000  # libraries and stages: an offline build peaks at 1,600
SHARED_MEMORY = 1_000  # /dev/shm, below which Ray and NCCL complain


def needed(profile: Profile, kinds: tuple[Kind, ...]) -> list[tuple[str, Kind]]:
    """Names of the weights of a profile's programs, and what kind each is."""
    chosen = with_needs([TABLE[PROFILES[profile][kind]] for kind in kinds], built_in=True)
    return [(weights.name, weights.kind) for weights in chosen]


def weights(profile: Profile, kinds: tuple[Kind, ...]) -> Iterator[Finding]:
    """Each of a profile's weights: here, with its size, or the command that fetches it."""
    for name, kind in needed(profile, kinds):
        about = f"weights {name}"
        try:
            path = locate(name, kind).path
        except WeightsError as error:
            what, _, fix = str(error).partition("; ")
            yield wrong(about, what, fix or f"run `python -m lasr.weights fetch {name}`")
            continue
        if path is None:
            yield good(about, "built in")
        else:
            yield good(about, f"{_size(path) / 1e6:.0f} MB at {path}")


def missing_megabytes(profile: Profile, kinds: tuple[Kind, ...]) -> int:
    """What a profile's weights still take on the disk."""
    total = 0
    for name, kind in needed(profile, kinds):
        try:
            locate(name, kind)
        except WeightsError:
            total += TABLE[name].megabytes
    return total


def disk(
    data: Path, profile: Profile, kinds: tuple[Kind, ...], photographs: int
) -> Iterator[Finding]:
    """Free disk against what the chosen programs will write."""
    fetched = missing_megabytes(profile, kinds)
    built = PER_PHOTOGRAPH * photographs if "depth" in kinds else 0
    trained = 0
    if "sr" in kinds:
        trained = RUN_OFFLINE if profile == "offline" else CHECKPOINT * COPIES
    places: dict[Path, float] = {}
    for folder, megabytes in ((data, built + trained), (weights_folder(), fetched)):
        existing = _existing(folder)
        same = [p for p in places if p.stat().st_dev == existing.stat().st_dev]
        place = same[0] if same else existing
        places[place] = places.get(place, 0) + megabytes
    for place, megabytes in places.items():
        free = shutil.disk_usage(place).free / 1e6
        found = (
            f"{free / 1e3:.1f} GB free at {place.absolute()}, {megabytes / 1e3:.1f} GB needed"
            f" (weights to fetch {fetched / 1e3:.1f}, {photographs} photographs"
            f" {built / 1e3:.1f}, training {trained / 1e3:.1f})"
        )
        if free < megabytes:
            yield wrong("disk", found, "free some, or give --data and LASR_WEIGHTS another disk")
        else:
            yield good("disk", found)


def memory(profile: Profile, kinds: tuple[Kind, ...]) -> Iterator[Finding]:
    """Free memory against the weights once and what programs take without them; /dev/shm."""
    wanted = BASE_MEMORY + sum(TABLE[name].megabytes for name, _ in needed(profile, kinds))
    free = _free_memory()
    if free is None:
        yield warning("memory", "unknown: no /proc/meminfo", "look at it yourself")
    else:
        found = f"{free / 1e3:.1f} GB free, {wanted / 1e3:.1f} GB needed (libraries and weights)"
        fix = "end other programs, or take --profile offline for a first look"
        yield good("memory", found) if free >= wanted else wrong("memory", found, fix)
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total / 1e6
        found = f"/dev/shm {size / 1e3:.1f} GB"
        fix = "in a container: `docker run --shm-size 2g`; needed by Ray and several GPUs alone"
        small = size < SHARED_MEMORY
        yield warning("shared memory", found, fix) if small else good("shared memory", found)


def _free_memory() -> float | None:
    """Megabytes: what the machine has left, or the container's limit leaves, whichever is less."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        (available,) = (line.split()[1] for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError):
        return None
    free = int(available) / 1e3
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        return min(free, (limit - used) / 1e6)
    except (OSError, ValueError):  # no container, or one without a limit
        return free


def folders(data: Path) -> Iterator[Finding]:
    """Whether the programs may write where they do."""
    for about, folder in (("data folder", data), ("temporary folder", Path(tempfile.gettempdir()))):
        if why := _refused(folder):
            fix = f"give yourself the right to write there, or run with another {about}"
            yield wrong(about, f"{folder.absolute()} cannot be written ({why})", fix)
        else:
            yield good(about, f"{folder.absolute()} can be written")


def _refused(folder: Path) -> str:
    """Why nothing can be written in or for a folder; empty where it can."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            return ""
    except OSError as error:
        return error.strerror or type(error).__name__


def variables() -> Iterator[Finding]:
    """Variables that send Prefect, the hub or PyTorch where nobody wants to go."""
    environ = os.environ
    found = []
    address = environ.get("PREFECT_API_URL", "")
    if address and (urlsplit(address).scheme not in ("http", "https") or "/api" not in address):
        fix = "set it to such as http://127.0.0.1:4200/api, or unset it"
        found.append(wrong("variable", f"PREFECT_API_URL={address} is no address of an API", fix))
    if environ.get("PREFECT_SERVER_API_AUTH_STRING") and not environ.get("PREFECT_API_AUTH_STRING"):
        what = "PREFECT_SERVER_API_AUTH_STRING is set and PREFECT_API_AUTH_STRING is not"
        found.append(warning("variable", what, "set both: the second is what programs send"))
    endpoint = environ.get("HF_ENDPOINT", "")
    if endpoint and urlsplit(endpoint).scheme not in ("http", "https"):
        fix = "set it to the mirror's https://…, or unset it"
        found.append(wrong("variable", f"HF_ENDPOINT={endpoint} is no address", fix))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if environ.get(name, "").lower() in ("1", "true", "yes", "on"):
            fix = f"run `unset {name}` before `python -m lasr.weights fetch`"
            found.append(warning("variable", f"{name} is set: nothing can be fetched", fix))
    for name in ("LASR_WEIGHTS", "HF_HOME", "PREFECT_HOME"):
        place = environ.get(name)
        if place and (why := _refused(Path(place).expanduser())):
            what = f"{name}={place} cannot be written ({why})"
            found.append(warning("variable", what, "set it to a folder of yours, or unset it"))
    if place := environ.get("LASR_WEIGHTS"):
        fix = "set it to the folder of weights, or fetch some into it"
        if not Path(place).is_dir():
            found.append(warning("variable", f"LASR_WEIGHTS={place}: no such folder yet", fix))
    if environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0").lower() in ("1", "y", "yes", "true"):
        what = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD lets other programs run code from weights"
        found.append(warning("variable", what, "run `unset TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD`"))
    yield from found or [good("variables", "none is in the way")]


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next((p for p in (folder, *folder.parents) if p.is_dir()), Path("/"))


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
