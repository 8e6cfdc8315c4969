"""The Prefect flow `build-patches`; the only module that imports Prefect.

python -m pipeline.flows                 # serve the deployment; keep it running
prefect deployment run build-patches     # from another terminal, same folder
"""

import inspect
import os
from dataclasses import asdict
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

# Before Prefect is imported: it reads these once. No run of ours reports to anybody.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

from prefect import flow, get_run_logger, task
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import FailedRun
from prefect.plugins import register_hook
from prefect.settings import PREFECT_API_URL
from prefect.states import Failed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import unmapped
from pydantic import Field

from pipeline.config import BuildConfig
from schemas.commandline import progress
from schemas.errors import UserError

if TYPE_CHECKING:
    from pipeline.batches import Tick
    from pipeline.build import Build

NAME = "build-patches"


def _build_patches(**parameters: Any) -> Any:
    # Imported when a run starts: the command `prefect` loads this module for its plugin and
    # should not wait for PyTorch.
    from pipeline import build as stages
    from pipeline.lock import sole_build
    from pipeline.publish import sweep

    log = get_run_logger()
    config = BuildConfig(**parameters)
    try:
        with sole_build(config.work):
            sweep(config.work)
            build = stages.plan_build(config)
            log.info("%d photographs, %d to do", build.plan.photographs, build.to_do)
            with progress(build.to_do, "photographs", "img") as bar:
                if config.runner == "ray":
                    made = _on_ray(build, bar.update)
                else:
                    made = _here(build, bar.update)
            summary = stages.finish(build, made)
    except UserError as error:  # a state with a message, where raising would log a traceback
        return Failed(message=str(error))
    log.info("%s: %d lr and %d hr patches", summary.manifest, *summary.patches.values())
    return asdict(summary)


def _may_pass(task: Any, run: Any, state: Any) -> bool:
    """Whether a part is worth another try: after any fault but one that the user must mend."""
    return not isinstance(state.data, UserError)


# A task per part, never per photograph: it costs Prefect tens of milliseconds.
_TASK: dict[str, Any] = {
    "name": "build-part",
    "task_run_name": "{shard.name}",
    "retries": 2,
    "retry_delay_seconds": 5,
    "retry_condition_fn": _may_pass,
}


def _here(build: "Build", tick: "Tick") -> list[str]:
    """The shards in this process; returns the names of the parts."""
    from pipeline.shard import Job, build_shard

    @task(**_TASK)  # type: ignore[untyped-decorator]
    def build_part(job: Job, shard: Any) -> str:
        return build_shard(job, shard, tick)

    parts: list[str] = build_part.map(unmapped(build.job), list(build.plan.to_do)).result()
    return parts


def _on_ray(build: "Build", tick: "Tick") -> list[str]:
    """The shards as Ray tasks; tick(n) is told of each finished shard's photographs."""
    from pipeline import cluster

    config = build.job.config
    with cluster.connected(config.ray_address):
        from prefect_ray import RayTaskRunner  # after Ray was found
        from prefect_ray.context import remote_options

        api = None if PREFECT_API_URL.value() else str(get_client(sync_client=True).api_url)
        # By its importable function: a worker loads the same module, and its cache of models.
        build_part = task(**_TASK)(cluster.build_part)
        parameters = {"job": unmapped(cluster.portable(build.job)), "shard": build.plan.to_do}
        with RayTaskRunner() as runner, remote_options(**cluster.task_options(config, api)):
            futures = runner.map(build_part, parameters)
            made = []
            for future, shard in zip(futures, build.plan.to_do, strict=True):
                try:
                    made.append(future.result())
                except Exception as error:
                    raise cluster.lost(error) or error from error
                tick(len(shard.photographs))
    return made


def _signature() -> inspect.Signature:
    """BuildConfig's fields as the flow's parameters: one model behind flags and Prefect's form."""
    return inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=Annotated[
                    field.annotation, Field(description=field.description), *field.metadata
                ],
                default=inspect.Parameter.empty if field.is_required() else field.default,
            )
            for name, field in BuildConfig.model_fields.items()
            if name != "dry_run"
        ]
    )


def _docstring() -> str:
    """What Prefect shows of the flow and of each field of its form."""
    lines = [f"    {name}: {field.description}" for name, field in BuildConfig.model_fields.items()]
    about = "Photographs to a manifest of far (LR) and near (HR) patches with captions."
    return "\n".join([about, "", "Args:", *lines])


_build_patches.__signature__ = _signature()  # type: ignore[attr-defined]
_build_patches.__doc__ = _docstring()

# One part at a time: inside a part, decoding, networks and PNG writing already overlap.
build_patches = flow(
    name=NAME, task_runner=ThreadPoolTaskRunner(max_workers=1), validate_parameters=False
)(_build_patches)


def build(config: BuildConfig) -> dict[str, Any]:
    """Run the flow in this process and return its summary. Raises UserError."""
    try:
        state = build_patches(**config.model_dump(exclude={"dry_run"}), return_state=True)
        result: dict[str, Any] = state.result()
    except FailedRun as failed:  # the state that the flow itself returned; bugs raise as they are
        raise UserError(str(failed)) from failed
    except RuntimeError as error:
        if "Failed to reach API" not in str(error):
            raise
        raise UserError(
            f"{error}: start that Prefect server, or unset PREFECT_API_URL to use the embedded one"
        ) from error
    return result


@register_hook  # type: ignore[untyped-decorator]
def setup_environment(*, ctx: Any) -> None:
    """Prefect's plugin hook: let its command line find a deployment by its bare name.

    `prefect deployment run build-patches` then works as `build-patches/build-patches` does, where
    exactly one deployment has that name; with none or several, Prefect's own error stands.
    """
    original = PrefectClient.read_deployment_by_name

    @wraps(original)
    async def by_bare_name(self: PrefectClient, name: str) -> DeploymentResponse:
        if "/" not in name:
            wanted = DeploymentFilter(name=DeploymentFilterName(any_=[name]))
            found = await self.read_deployments(deployment_filter=wanted)
            if len(found) == 1:
                return found[0]
        return await original(self, name)

    PrefectClient.read_deployment_by_name = by_bare_name  # type: ignore[method-assign]


def main() -> None:
    """Serve the deployment from this folder until stopped."""
    build_patches.serve(
        name=NAME,
        description="Photographs to data/patches.parquet; see the README of LA-SR.",
        parameters={"out": "data/patches.parquet"},
    )


# A served run imports this module again: without the guard it would serve, too, and never run.
if __name__ == "__main__":
    main()
