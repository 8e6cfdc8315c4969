"""Shards on many machines: a Ray cluster to work on, and what makes a shard fit to travel.

Every machine sees photographs, work folder and weights under the same paths (a shared file system,
or object storage) and has the project's libraries; the project's own code travels along.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pipeline
import schemas
from lasr.errors import UserError
from lasr.weights.locate import TABLE, weights_folder
from pipeline.build.lock import FILE as LOCK
from pipeline.build.parts import Shard
from pipeline.build.shard import Job, build_shard
from pipeline.config import BuildConfig
from pipeline.stages.models import load_models

# Only names of parts pass through Ray's shared memory; the least it takes is 75 MB.
_OBJECT_STORE = 100_000_000
_HELP = "see docs/cluster.md"


def portable(job: Job) -> Job:
    """The same job with absolute paths: a worker has another current folder."""
    config = job.config
    changes = {
        name: type(path)(os.path.abspath(path))
        for name in ("out", "kept", "dictionary", "depth", "clip")
        # Not an address, nor the name of weights.
        if (path := getattr(config, name)) and "://" not in str(path) and path not in TABLE
    }
    return replace(job, config=config.model_copy(update=changes))


def build_part(job: Job, shard: Shard) -> str:
    """`build_shard` on the machine where this runs; the shard's part stands where all see it.

    Raises UserError, besides those of `build_shard`: a machine that does not see what the others
    see, or has other weights by the same name. Without these checks its photographs would count as
    unreadable, its parts be lost on its own disk, or its captions come from another network.
    """
    here = socket.gethostname()
    folder = job.config.work
    if not (folder / LOCK).exists():
        raise UserError(
            f"{folder}: this build's folder is not seen by the cluster's machine {here}; put --out"
            f" on a file system that all machines share, or in object storage ({_HELP})"
        )
    if not any(photograph.place.exists() for photograph in shard.photographs):
        raise UserError(
            f"{shard.photographs[0].place}: not seen by the cluster's machine {here}; put --images"
            f" on a file system that all machines share, or in object storage ({_HELP})"
        )
    models, wanted = load_models(job.config), job.metadata["parameters"]
    for found, name in (
        (models.depth_located.identity, wanted["depth_model"]),
        (models.clip_located.identity, wanted["caption_model"]),
    ):
        if found != name:
            raise UserError(
                f"{found}: the weights on the cluster's machine {here} are not those of this build,"
                f" {name}; copy the same files to every machine ({_HELP})"
            )
    return build_shard(job, shard)


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A Ray cluster: that at `address`, or one of this machine's that ends with the block.

    A process that is connected already stays so. Raises UserError: Ray is not installed, or
    nothing answers at the address.
    """
    ray = _import()
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    if address:
        # What the workers run is what the fingerprints stand for: this code, not a copy of theirs.
        packages = [str(Path(package.__path__[0])) for package in (pipeline, schemas)]
        options = {"runtime_env": {"py_modules": packages}}
    try:
        _check_answers(address)
        ray.init(address or "local", logging_level="WARNING", **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(
            f"--ray-address {address}: no Ray cluster to work on there ({_first_line(error)});"
            " start one with `ray start --head`, or leave the flag out for one on this machine"
            f" ({_HELP})"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def task_options(config: BuildConfig, prefect_api: str | None) -> dict[str, Any]:
    """What a shard asks of the cluster, as `ray.remote` takes it.

    prefect_api: of a Prefect server that only this machine reaches. Raises UserError where no
    machine has so much: Ray would wait for one for ever.
    """
    ray = _import()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    machines = [node["Resources"] for node in nodes]
    gpus = config.gpus_per_task
    if gpus is None:
        gpus = float(config.device != "cpu" and any(has.get("GPU") for has in machines))
    sizes = [(has.get("CPU", 0), has.get("GPU", 0)) for has in machines]
    if not any(size[0] >= config.workers and size[1] >= gpus for size in sizes):
        largest = max(sizes, default=(0, 0))
        raise UserError(
            f"no machine of the cluster has {config.workers} CPUs and {gpus:g} GPUs for a shard;"
            f" the largest has {largest[0]:g} and {largest[1]:g}: lower --workers or"
            " --gpus-per-task"
        )
    variables = {"LASR_WEIGHTS": str(weights_folder().resolve())}
    here = {node["NodeManagerAddress"] for node in nodes} <= {ray.util.get_node_ip_address()}
    if prefect_api and here:
        variables["PREFECT_API_URL"] = prefect_api
    return {"num_cpus": config.workers, "num_gpus": gpus, "runtime_env": {"env_vars": variables}}


def lost(error: Exception) -> UserError | None:
    """What to tell of a machine or process that died for good; None for any other error."""
    if not isinstance(error, _import().exceptions.RayError):
        return None
    return UserError(
        f"the Ray cluster lost a shard and could not do it again ({type(error).__name__}:"
        f" {_first_line(error)}); nothing finished is lost: run the same command again"
    )


def _check_answers(address: str | None) -> None:
    """Knock first: Ray itself knocks for minutes, and then ends the process."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _import() -> Any:
    # No run of ours reports to anybody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "--runner ray needs Ray: `pip install 'la-sr[ray]'`, or take --runner local"
        ) from error
    return ray
