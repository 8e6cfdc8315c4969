"""The Prefect flow `build-patches`; the only module that imports Prefect."""

import inspect
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

# Before Prefect is imported: it reads these once. No run of ours reports to anybody.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
# Its own 20 s for the embedded server are too few on a new database and a busy machine.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")

import httpx
from prefect import artifacts as ui
from prefect import flow, get_run_logger, task
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import FailedRun
from prefect.futures import as_completed
from prefect.plugins import register_hook
from prefect.settings import get_current_settings
from prefect.states import Failed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import unmapped
from pydantic import ValidationError

from lasr.cli import progress
from lasr.errors import UserError
from pipeline.config import BuildConfig

if TYPE_CHECKING:
    from pipeline.build.parts import Shard
    from pipeline.build.plan import Build, Prepared

NAME = "build-patches"
ABOUT = "Photographs to a manifest of far (LR) and near (HR) patches with captions."
RETRIES = 2
RETRY_SECONDS = 5
# What `build` prepared for the run that it starts; a served deployment prepares by itself.
_prepared: "ContextVar[Prepared | None]" = ContextVar("prepared", default=None)


def _build_patches(**parameters: Any) -> Any:
    # Imported when a run starts: the command `prefect` loads this module for its plugin and
    # should not wait for PyTorch.
    from pipeline.build.lock import sole_build
    from pipeline.build.plan import plan_build, prepare
    from pipeline.build.publish import finish, sweep

    try:
        config = BuildConfig(**parameters)
        prepared = _prepared.get() or prepare(config)
        with sole_build(config.work):
            sweep(config.work)
            build = plan_build(prepared)
            summary = finish(build, _make_parts(build))
    except (UserError, OSError) as error:
        return Failed(message=str(error))  # a state: raising would log a traceback
    except ValidationError as error:  # past a server that did not check
        return Failed(message="; ".join(f"{_field(e)}: {e['msg']}" for e in error.errors()))
    log = get_run_logger()
    log.info("%s: %d lr and %d hr patches", summary.manifest, *summary.patches.values())
    with _only_shown():
        _show(Path(summary.manifest))
    return asdict(summary)


def _make_parts(build: "Build") -> list[str]:
    """The parts that are to be made, on this machine or on Ray; returns their names."""
    get_run_logger().info("%d photographs, %d to do", build.plan.photographs, build.to_do)
    if not build.plan.to_do:
        return []
    with progress(build.to_do, "photographs", "img") as bar:
        done = _on_ray(build, bar) if build.job.config.runner == "ray" else _here(build, bar)
        show, made = _progress_artifact(), []
        for name in done:
            made.append(name)
            with _only_shown():
                show(100 * len(made) / len(build.plan.to_do))
    return made


def _may_pass(task: Any, run: Any, state: Any) -> bool:
    """Whether a part is worth another try: after any fault but one that the user must mend."""
    return not isinstance(state.data, UserError)


# A task per part, never per photograph: it costs Prefect tens of milliseconds.
_TASK: dict[str, Any] = {
    "name": "build-part",
    "task_run_name": "{shard.name}",
    "retries": RETRIES,
    "retry_delay_seconds": RETRY_SECONDS,
    "retry_condition_fn": _may_pass,
}


def _here(build: "Build", bar: Any) -> Iterator[str]:
    """The shards in this process, one after the other: inside of one all stages overlap."""
    from pipeline.build.shard import build_shard

    # `build` comes by closure: Prefect searches every argument for futures, and a plan of 88,000
    # photographs would take a second each time.
    @task(**_TASK)  # type: ignore[untyped-decorator]
    def build_part(shard: "Shard") -> str:
        before = bar.n
        try:
            return build_shard(build.job, shard, bar.update)
        except Exception:
            bar.update(before - bar.n)  # not done; another try counts them anew
            raise

    for part in as_completed(build_part.map(list(build.plan.to_do))):
        yield part.result()


def _on_ray(build: "Build", bar: Any) -> Iterator[str]:
    """The shards as Ray tasks; the bar is told of each finished shard's photographs."""
    from pipeline.build import ray as cluster

    config = build.job.config
    with cluster.connected(config.ray_address):
        from prefect_ray import RayTaskRunner  # after Ray was found
        from prefect_ray.context import remote_options

        named = get_current_settings().api.url
        api = None if named else str(get_client(sync_client=True).api_url)
        # By its importable function: a worker loads the same module, and its cache of models.
        build_part = task(**_TASK)(cluster.build_part)
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


def _field(error: Any) -> str:
    return ".".join(str(part) for part in error["loc"]) or "parameters"


def _one_line(record: logging.LogRecord) -> bool:
    """Log filter: a fault of the user or of the machine is told without a traceback, and once."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, (UserError, OSError)):
        record.exc_info = None
    return not isinstance(error, FailedRun)  # Prefect's own wrapping of the state we returned


for _logger in ("prefect.task_runs", "prefect.flow_runs"):
    logging.getLogger(_logger).addFilter(_one_line)


@contextmanager
def _only_shown() -> Iterator[None]:
    """What is only shown in Prefect's UI never stops a build."""
    try:
        yield
    except Exception as error:
        get_run_logger().warning("not shown in Prefect's UI: %s", error)


def _progress_artifact() -> Callable[[float], object]:
    """Begin a bar in Prefect's UI; returns what moves it, in per cent."""
    with _only_shown():
        bar = ui.create_progress_artifact(0.0, f"{NAME}-progress", "parts done, per cent")
        return partial(ui.update_progress_artifact, bar)
    return lambda percent: None


def _show(manifest: Path) -> None:
    """Leave the run's artifacts in Prefect's UI."""
    from pipeline.report.overview import describe

    shown = describe(manifest)
    words = "UNTRAINED, noise: commonest words" if shown.untrained else "commonest caption words"
    ui.create_table_artifact(shown.counts, f"{NAME}-counts", "photographs and patches by status")
    # As Markdown: an image artifact would print its whole data: URI below the picture.
    picture = f"![far patches above near ones]({shown.contact_sheet})"
    ui.create_markdown_artifact(picture, f"{NAME}-picture", "far (LR) above near (HR) patches")
    ui.create_table_artifact(shown.words, f"{NAME}-words", f"{words} of each role")


def _signature() -> inspect.Signature:
    """BuildConfig's fields as the flow's parameters: one model behind flags and Prefect's form."""
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
    """Where Prefect reads the descriptions of a form's fields."""
    fields = BuildConfig.model_fields.items()
    return "\n".join([ABOUT, "", "Args:", *(f"    {name}: {f.description}" for name, f in fields)])


_build_patches.__signature__ = _signature()  # type: ignore[attr-defined]
_build_patches.__doc__ = _docstring()

# One part at a time: inside a part, decoding, networks and PNG writing already overlap.
build_patches = flow(
    name=NAME,
    description=ABOUT,
    task_runner=ThreadPoolTaskRunner(max_workers=1),
    validate_parameters=False,  # BuildConfig does, in its own words
)(_build_patches)


@contextmanager
def _one_line_without_server() -> Iterator[None]:
    """A server that does not answer is the user's to start. Raises UserError."""
    try:
        yield
    except (RuntimeError, httpx.ConnectError) as error:
        if isinstance(error, RuntimeError) and "Failed to reach API" not in str(error):
            raise
        raise UserError(
            f"Failed to reach API at {get_current_settings().api.url}: start that Prefect server,"
            " or unset PREFECT_API_URL; `pipeline.run` then uses the embedded one"
        ) from error


def build(config: BuildConfig, prepared: "Prepared | None" = None) -> dict[str, Any]:
    """Run the flow in this process and return its summary.

    prepared: the result of `pipeline.build.plan.prepare(config)`, if the caller has it already.
    Raises UserError.
    """
    token = _prepared.set(prepared)
    try:
        with _one_line_without_server():
            state = build_patches(**config.model_dump(exclude={"dry_run"}), return_state=True)
        result: dict[str, Any] = state.result()
    except FailedRun as failed:  # the state that the flow itself returned; bugs raise as they are
        raise UserError(str(failed)) from failed
    finally:
        _prepared.reset(token)
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


def serve() -> None:
    """Serve the deployment from this folder until stopped. Raises UserError: no server is named."""
    if get_current_settings().api.url is None:
        raise UserError(
            "PREFECT_API_URL is not set, so nobody would find the deployment: start"
            " `prefect server start` and set PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    with _one_line_without_server():
        build_patches.serve(name=NAME)
