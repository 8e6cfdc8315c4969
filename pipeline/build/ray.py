"""Shards on many machines: a connection to a Ray cluster, and the checks that a shard needs there.

Every machine sees photographs, work folder and weights under the same paths (a shared file system,
or object storage) and has the project's libraries; the project's own code is sent along.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lasr
import pipeline
import schemas
from lasr.errors import UserError, one_line, require
from lasr.weights.locate import TABLE, locate_all, weights_folder
from pipeline.build.lock import LOCK
from pipeline.build.models import Job
from pipeline.build.parts import Shard
from pipeline.build.shard import build_shard
from pipeline.config import BuildConfig
from pipeline.stages.depth import with_family

# Only names of parts pass through Ray's shared memory. 75 MB is the least it accepts.
_OBJECT_STORE = 100_000_000
_HELP = "see docs/cluster.md"
# Ray reads these when it is imported.
_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",  # send no statistics
    # A machine whose power fails closes no connection. Ray repeats its shards when a ping of this
    # process has no answer: by default after seven minutes, so after 80 s. Servers permit a ping
    # a minute.
    "RAY_grpc_client_keepalive_time_ms": "60000",
    "RAY_grpc_client_keepalive_timeout_ms": "20000",
}


def portable(job: Job) -> Job:
    """The same job with absolute paths: a worker has another current folder."""
    config = job.config
    changes = {
        name: type(path)(os.path.abspath(path))
        for name in ("out", "cache", "dictionary", "depth", "clip")
        # Not URIs, nor names of weights.
        if (path := getattr(config, name)) and "://" not in str(path) and path not in TABLE
    }
    return replace(job, config=config.model_copy(update=changes))


def build_part(job: Job, shard: Shard) -> str:
    """`build_shard` on the machine that runs this, after checks of that machine.

    Raises UserError, besides those of `build_shard`: the machine does not see the files that the
    others see, or has other weights by the same name. Without these checks its photographs would
    count as unreadable, its parts be lost on its own disk, or its captions come from another
    network.
    """
    machine = f"the cluster's machine {socket.gethostname()}"
    folder = job.config.work
    if not (folder / LOCK).exists():
        raise UserError(
            f"{folder}: {machine} does not see this build's folder",
            f"put --out on a file system that all machines share, or in object storage ({_HELP})",
        )
    if not any(photograph.path.exists() for photograph in shard.photographs):
        raise UserError(
            f"{shard.photographs[0].path}: {machine} does not see this photograph",
            "put --images on a file system that all machines share, or in object storage"
            f" ({_HELP})",
        )
    # The weights of this machine: the job's paths are those of the machine that planned it.
    config = job.config
    depth, clip = locate_all((config.depth_name, "depth"), (config.clip_name, "clip"))
    for located, planned in ((depth, job.depth), (clip, job.clip)):
        if located.identity != planned.identity:
            raise UserError(
                f"{located.identity}: the weights on {machine} differ from those of this build,"
                f" {planned.identity}",
                f"copy the same files to every machine ({_HELP})",
            )
    return build_shard(replace(job, depth=with_family(depth), clip=clip), shard)


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to the Ray cluster at `address`, or start one on this machine for the block.

    A process that is already connected stays connected. Raises UserError: Ray is not installed, or
    nothing answers at the address.
    """
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    if address:
        # Workers must run the code that the fingerprints describe, not a copy of their own.
        packages = [str(Path(package.__path__[0])) for package in (lasr, pipeline, schemas)]
        options = {"runtime_env": {"py_modules": packages}}
    try:
        _check_answers(address)
        ray.init(address or "local", logging_level="WARNING", **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(
            f"--ray-address {address}: no Ray cluster answers ({one_line(error)})",
            "start one with `ray start --head`, or leave the flag out for one on this machine"
            f" ({_HELP})",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def task_options(config: BuildConfig, prefect: dict[str, str] | None) -> dict[str, Any]:
    """The resources that a shard reserves, as arguments of `ray.remote`.

    prefect: the variables for a Prefect server that only this machine reaches.
    Raises UserError: no machine has these resources. Ray would wait for one for ever.
    """
    ray = _ray()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    machines = [node["Resources"] for node in nodes]
    gpus = config.gpus_per_task
    if gpus is None:
        gpus = float(config.device != "cpu" and any(has.get("GPU") for has in machines))
    sizes = [(has.get("CPU", 0), has.get("GPU", 0)) for has in machines]
    if not any(size[0] >= config.workers and size[1] >= gpus for size in sizes):
        largest = max(sizes, default=(0, 0))
        raise UserError(
            f"no machine of the cluster has {config.workers} CPUs and {gpus:g} GPUs for a shard:"
            f" the largest has {largest[0]:g} and {largest[1]:g}",
            "lower --workers or --gpus-per-task",
        )
    variables = {"LASR_WEIGHTS": str(weights_folder().resolve())}
    here = {node["NodeManagerAddress"] for node in nodes} <= {ray.util.get_node_ip_address()}
    if prefect and here:
        variables |= prefect
    return {"num_cpus": config.workers, "num_gpus": gpus, "runtime_env": {"env_vars": variables}}


def lost(error: Exception) -> UserError | None:
    """The message for a machine or process that died for good; None for any other error."""
    if not isinstance(error, _ray().exceptions.RayError):
        return None
    return UserError(
        f"the Ray cluster lost a shard and could not repeat it ({type(error).__name__}:"
        f" {one_line(error)})",
        "run the same command again; finished parts are kept. Where memory was short, a larger"
        " --workers reserves more of a machine for a part, so that fewer run at once",
    )


def _check_answers(address: str | None) -> None:
    """Try the port first: Ray itself retries for minutes, and then ends the process."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()


def _ray() -> Any:
    for name, value in _RAY.items():
        os.environ.setdefault(name, value)
    return require("ray", "ray")
