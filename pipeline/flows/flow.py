"""The flow `build-patches`: its task for each part, the form of its parameters, its errors."""

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import httpx
from prefect import flow, get_run_logger, task
from prefect.client.orchestration import get_client
from prefect.exceptions import FailedRun
from prefect.futures import as_completed
from prefect.settings import get_current_settings
from prefect.states import Failed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import unmapped
from pydantic import ValidationError

from lasr.cli import progress
from lasr.errors import UserError, one_line
from pipeline.config import BuildConfig
from pipeline.flows import artifacts
from pipeline.flows.plugin import setup_environment
from pipeline.roots import VARIABLE, check_parameters, check_photographs, roots

if TYPE_CHECKING:
    from pipeline.build.parts import Shard
    from pipeline.build.plan import Build, Prepared

__all__ = ["build", "build_patches", "serve", "setup_environment"]

NAME = "build-patches"
ABOUT = "Photographs to a manifest of far (LR) and near (HR) patches with captions."
RETRIES = 2
RETRY_SECONDS = 5
# What `build` prepared for the run that it starts. A served deployment prepares by itself.
_prepared: "ContextVar[Prepared | None]" = ContextVar("prepared", default=None)
# Whether this process was asked for the run by whoever started it, and not through the server.
_own_run: ContextVar[bool] = ContextVar("own_run", default=False)


def _build_patches(**parameters: Any) -> Any:
    # Imported when a run starts: serving the deployment does not need PyTorch.
    from pipeline.build.lock import sole_build
    from pipeline.build.plan import plan_build, prepare
    from pipeline.build.publish import finish, sweep

    try:
        config = BuildConfig(**parameters)
        if not _own_run.get():
            check_parameters(config)
        prepared = _prepared.get() or prepare(config)
        if not _own_run.get():
            check_photographs(found.path for found in prepared.inputs.found)
        with sole_build(config.work):
            sweep(config.work)
            build = plan_build(prepared)
            summary = finish(build, _make_parts(build))
    except (UserError, OSError, ValidationError) as error:
        failure = _user_error(error)
        return Failed(message=str(failure), data=failure)  # raising it would log a traceback
    log = get_run_logger()
    log.info("%s: %d lr and %d hr patches", summary.manifest, *summary.patches.values())
    artifacts.show_overview(Path(summary.manifest))
    return asdict(summary)


def _user_error(error: UserError | OSError | ValidationError) -> UserError:
    """The error as the user reads it."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError):
        return UserError(one_line(error))
    wrong = [(".".join(map(str, e["loc"])) or "parameters", e["msg"]) for e in error.errors()]
    return UserError(", ".join(f"{field}: {message}" for field, message in wrong))


def _make_parts(build: "Build") -> list[str]:
    """Make the parts that are missing, here or on Ray. Returns their names."""
    get_run_logger().info("%d photographs, %d to do", build.plan.photographs, build.to_do)
    if not build.plan.to_do:
        return []
    with progress(build.to_do, "photographs", "img") as bar:
        done = _on_ray(build, bar) if build.job.config.runner == "ray" else _here(build, bar)
        show, made = artifacts.progress_bar(), []
        for name in done:
            made.append(name)
            with artifacts.optional():
                show(100 * len(made) / len(build.plan.to_do))
    return made


def _is_transient(task: Any, run: Any, state: Any) -> bool:
    """Whether a failed part is tried again: after any error but one that the user must fix."""
    return not isinstance(state.data, UserError)


def _task_options() -> dict[str, Any]:
    # One task for each part, not for each photograph: a task costs tens of milliseconds.
    return {
        "name": "build-part",
        "task_run_name": "{shard.name}",
        "retries": RETRIES,
        "retry_delay_seconds": RETRY_SECONDS,
        "retry_condition_fn": _is_transient,
    }


def _here(build: "Build", bar: Any) -> Iterator[str]:
    """Make the parts one after the other in this process; inside a part, stages overlap."""
    from pipeline.build.shard import build_shard

    # `build` is captured, not passed: Prefect searches every argument for futures, which takes a
    # second for each task with a plan of 88,000 photographs.
    @task(**_task_options())  # type: ignore[untyped-decorator]
    def build_part(shard: "Shard") -> str:
        before = bar.n
        try:
            return build_shard(build.job, shard, bar.update)
        except Exception:
            bar.update(before - bar.n)  # a retry counts these photographs again
            raise

    for part in as_completed(build_part.map(list(build.plan.to_do))):
        yield part.result()


def _on_ray(build: "Build", bar: Any) -> Iterator[str]:
    """Make the parts as Ray tasks. The progress bar advances by whole parts."""
    from pipeline.build import ray as cluster

    config = build.job.config
    with cluster.connected(config.ray_address):
        from prefect_ray import RayTaskRunner  # `connected` has checked that Ray is installed
        from prefect_ray.context import remote_options

        named = get_current_settings().api.url
        api = None if named else str(get_client(sync_client=True).api_url)
        # An importable function, so that a worker loads its module and caches the models there.
        build_part = task(**_task_options())(cluster.build_part)
        parameters = {"job": unmapped(cluster.portable(build.job)), "shard": build.plan.to_do}
        with RayTaskRunner() as runner, remote_options(**cluster.task_options(config, api)):
            futures = runner.map(build_part, parameters)
            for future, shard in zip(futures, build.plan.to_do, strict=True):
                try:
                    name: str = future.result()
                except Exception as error:
                    raise cluster.lost(error) or error from error
                bar.update(len(shard.photographs))
                yield name


def _without_traceback(record: logging.LogRecord) -> bool:
    """Log filter: errors of the user and of the machine are logged once, without a traceback."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, (UserError, OSError)):
        record.exc_info = None
    return not isinstance(error, FailedRun)  # Prefect wraps the state that the flow returned


for _logger in ("prefect.task_runs", "prefect.flow_runs"):
    logging.getLogger(_logger).addFilter(_without_traceback)


def _signature() -> inspect.Signature:
    """The fields of BuildConfig as parameters of the flow: Prefect's form has the same fields."""
    return inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=Annotated[field.annotation, field],  # with its bounds
                default=inspect.Parameter.empty if field.is_required() else field.default,
            )
            for name, field in BuildConfig.model_fields.items()
            if name != "dry_run"
        ]
    )


def _docstring() -> str:
    """The descriptions of the fields, where Prefect's form reads them."""
    fields = BuildConfig.model_fields.items()
    return "\n".join([ABOUT, "", "Args:", *(f"    {name}: {f.description}" for name, f in fields)])


_build_patches.__signature__ = _signature()  # type: ignore[attr-defined]
_build_patches.__doc__ = _docstring()

# One part at a time: inside a part, decoding, networks and PNG writing overlap already.
build_patches = flow(
    name=NAME,
    description=ABOUT,
    task_runner=ThreadPoolTaskRunner(max_workers=1),
    validate_parameters=False,  # BuildConfig validates them
)(_build_patches)


@contextmanager
def _reachable_server() -> Iterator[None]:
    """Turn the error of a server that does not answer into a UserError."""
    try:
        yield
    except (RuntimeError, httpx.ConnectError) as error:
        if isinstance(error, RuntimeError) and "Failed to reach API" not in str(error):
            raise
        raise UserError(
            f"Failed to reach API at {get_current_settings().api.url}",
            "start that Prefect server, or unset PREFECT_API_URL; `lasr build` then uses the"
            " embedded one",
        ) from error


def build(config: BuildConfig, prepared: "Prepared | None" = None) -> dict[str, Any]:
    """Run the flow in this process and return its summary.

    prepared: the result of `pipeline.build.plan.prepare(config)`, if the caller has it already.
    Raises UserError.
    """
    token, own = _prepared.set(prepared), _own_run.set(True)
    try:
        with _reachable_server():
            state = build_patches(**config.model_dump(exclude={"dry_run"}), return_state=True)
        result: dict[str, Any] = state.result()  # raises the UserError of a Failed state
    finally:
        _prepared.reset(token)
        _own_run.reset(own)
    return result


def serve() -> None:
    """Serve the deployment from this folder until stopped. Raises UserError."""
    if get_current_settings().api.url is None:
        raise UserError(
            "PREFECT_API_URL is not set, so there is no server to register the deployment with",
            "start `prefect server start` and set PREFECT_API_URL=http://127.0.0.1:4200/api",
        )
    print(f"runs may read and write below {', '.join(roots())} ({VARIABLE})", flush=True)
    with _reachable_server():
        build_patches.serve(name=NAME)
