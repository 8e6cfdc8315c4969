"""The flow `build-patches`: its task for each part, the form of its parameters, its errors."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from prefect import flow, get_run_logger, task
from prefect.exceptions import CancelledRun, FailedRun
from prefect.futures import as_completed
from prefect.runtime import flow_run
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    get_current_settings,
    temporary_settings,
)
from prefect.states import Cancelled, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import unmapped
from pydantic import ValidationError

from lasr.cli import progress
from lasr.errors import UserError, is_out_of_memory, one_line, printable
from lasr.terminal.output import interjected
from lasr.terminal.summary import counted
from pipeline.config import BuildConfig
from pipeline.flows import artifacts
from pipeline.flows.form import shaped, user_error
from pipeline.flows.plugin import setup_environment
from pipeline.roots import check_parameters, check_photographs
from pipeline.storage import StoragePath

if TYPE_CHECKING:
    from pipeline.build.parts import Shard
    from pipeline.build.plan import Build, Prepared

__all__ = ["build", "build_patches", "setup_environment"]

NAME = "build-patches"
ABOUT = "Photographs to a manifest of far (LR) and near (HR) patches with captions."
RETRIES = 2
RETRY_SECONDS = 5
# What `build` prepared for the run that it starts. A served deployment prepares by itself.
_prepared: "ContextVar[Prepared | None]" = ContextVar("prepared", default=None)
# Whether this process was asked for the run by whoever started it, and not through the server.
_own_run: ContextVar[bool] = ContextVar("own_run", default=False)
# The variables for this process's embedded server, which other machines do not reach.
_embedded: "ContextVar[dict[str, str] | None]" = ContextVar("embedded", default=None)

_stop: "ContextVar[threading.Event | None]" = ContextVar("stop", default=None)  # set by Ctrl-C


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
    except Stopped as stopped:
        return Cancelled(message=str(stopped))
    except (UserError, OSError, ValidationError) as error:
        failure = user_error(error)
        return Failed(message=str(failure), data=failure)  # raising it would log a traceback
    lr, hr = summary.patches.values()
    about = f"{summary.manifest}: {lr} lr and {counted(hr, 'hr patch')}"
    get_run_logger().info(about)  # the command itself prints more
    if StoragePath(summary.manifest).is_local:
        artifacts.show_overview(Path(summary.manifest))
    else:
        artifacts.show_counts(summary)
    return asdict(summary)


def _make_parts(build: "Build") -> list[str]:
    """Make the parts that are missing, here or on Ray. Returns their names."""
    found = counted(build.plan.photographs, "photograph")
    get_run_logger().info("%s, %d to do", found, build.to_do, extra={"ours": True})
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
    return not isinstance(state.data, (UserError, Stopped))


def _task_options() -> dict[str, Any]:
    # One task for each part, not for each photograph: a task costs tens of milliseconds.
    return {
        "name": "build-part",
        "task_run_name": "{shard.about}",
        "retries": RETRIES,
        "retry_delay_seconds": RETRY_SECONDS,
        "retry_condition_fn": _is_transient,
    }


def _here(build: "Build", bar: Any) -> Iterator[str]:
    """Make the parts one after the other in this process; inside a part, stages overlap."""
    from pipeline.build.shard import build_shard

    stop, parts, made = _stop.get(), len(build.plan.to_do), list[str]()
    faults: list[UserError] = []  # of a part, that the user must mend: no other begins

    def check() -> None:
        if faults:
            raise faults[0]
        if stop and stop.is_set():
            raise Stopped(f"{len(made)} of {counted(parts, 'part')} made")

    def tick(photographs: float) -> None:
        if not bar.n:
            bar.unpause()  # loading the networks tells nothing about the rate
        bar.update(photographs)
        check()

    # `build` is captured, not passed: Prefect searches every argument for futures, which takes a
    # second for each task with a plan of 88,000 photographs.
    @task(**_task_options())  # type: ignore[untyped-decorator]
    def build_part(shard: "Shard") -> str:
        before = bar.n
        check()
        try:
            return build_shard(build.job, shard, tick)
        except Stopped:
            raise
        except Exception as error:
            if isinstance(error, UserError):
                faults.append(error)
            bar.update(before - bar.n)  # a retry counts these photographs again
            raise

    for part in as_completed(build_part.map(list(build.plan.to_do))):
        name = part.result()
        made.append(name)
        yield name


def _on_ray(build: "Build", bar: Any) -> Iterator[str]:
    """Make the parts as Ray tasks. The progress bar advances by whole parts."""
    from pipeline.build import ray as cluster

    config = build.job.config
    with cluster.connected(config.ray_address):
        from prefect_ray import RayTaskRunner  # `connected` has checked that Ray is installed
        from prefect_ray.context import remote_options

        # An importable function, so that a worker loads its module and caches the models there.
        build_part = task(**_task_options())(cluster.build_part)
        parameters = {"job": unmapped(cluster.portable(build.job)), "shard": build.plan.to_do}
        with (
            RayTaskRunner() as runner,
            remote_options(**cluster.task_options(config, _embedded.get())),
        ):
            futures = runner.map(build_part, parameters)
            for future, shard in zip(futures, build.plan.to_do, strict=True):
                try:
                    name: str = future.result()
                except Exception as error:
                    raise cluster.lost(error) or error from error
                bar.update(len(shard.photographs))
                yield name


class Stopped(Exception):
    """The user pressed Ctrl-C; how far the build came."""


@contextmanager
def _until_stopped() -> Iterator[None]:
    """Let Ctrl-C stop the build after the photographs in work, and a second one at once.

    Raises KeyboardInterrupt. Elsewhere than in the main thread, signals cannot be received.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stop = threading.Event()

    def interrupted(*_: object) -> None:
        if stop.is_set():
            os.write(2, interjected("stopped at once; run the same command to resume"))
            os._exit(130)  # the embedded server sees that, and ends
        stop.set()
        os.write(
            2, interjected("stopping after the photographs in work; Ctrl-C again stops at once")
        )

    before, token = signal.signal(signal.SIGINT, interrupted), _stop.set(stop)
    try:
        yield
    except CancelledRun as error:
        if not stop.is_set():  # cancelled in Prefect's web page
            raise UserError("the run was cancelled", "run the same command again") from error
        raise KeyboardInterrupt(str(error)) from error
    finally:
        _stop.reset(token)
        signal.signal(signal.SIGINT, before)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Log filter: errors of the user and of the machine are logged once, without a traceback."""
    stop = _stop.get()
    if stop and stop.is_set() and record.levelno >= logging.WARNING:
        return False  # Ctrl-C is no error
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, (UserError, OSError)):
        record.exc_info = None
    if _own_run.get() and str(record.msg).startswith("Finished in state Failed"):
        return False  # the command says it itself
    record.msg, record.args = printable(record.getMessage()), ()  # names of files are foreign
    if str(record.msg).startswith("View at "):
        if _embedded.get():
            return False  # the embedded server has no web pages
        record.ours = True  # shown without --verbose, too
    return not isinstance(error, FailedRun)  # Prefect wraps the state that the flow returned


for _logger in ("prefect.task_runs", "prefect.flow_runs"):
    logging.getLogger(_logger).addFilter(_without_traceback)


def _run_name() -> str:
    """What a run does, in the list of runs: its manifest, its photographs, its profile."""
    given = flow_run.get_parameters()
    config = BuildConfig.model_construct(**given)
    images = [StoragePath(str(path)).name or str(path) for path in given.get("images", [])]
    more = f" and {len(images) - 1} more" if len(images) > 1 else ""
    return f"{StoragePath(config.out).name} from {''.join(images[:1])}{more} ({config.profile})"


# One part at a time: inside a part, decoding, networks and PNG writing overlap already.
build_patches = flow(
    name=NAME,
    description=ABOUT,
    flow_run_name=_run_name,
    task_runner=ThreadPoolTaskRunner(max_workers=1),
    validate_parameters=False,  # BuildConfig validates them
)(shaped(_build_patches, BuildConfig, ABOUT, {"dry_run"}))


@contextmanager
def reachable_server() -> Iterator[None]:
    """Turn the error of a server that does not answer into a UserError."""
    try:
        yield
    except (RuntimeError, httpx.ConnectError) as error:
        if isinstance(error, RuntimeError) and "Failed to reach API" not in str(error):
            raise
        raise UserError(
            f"Prefect's server {get_current_settings().api.url} does not answer any more",
            "run the same command again to continue; finished parts are kept",
        ) from error


def build(
    config: BuildConfig, prepared: "Prepared | None" = None, embedded: dict[str, str] | None = None
) -> dict[str, Any]:
    """Run the flow in this process and return its summary.

    prepared: the result of `pipeline.build.plan.prepare(config)`, if the caller has it already.
    embedded: `pipeline.flows.server.Client` of this process's own server.
    Raises UserError.
    """
    with ExitStack() as stack:
        for variable, value in ((_prepared, prepared), (_embedded, embedded), (_own_run, True)):
            stack.callback(variable.reset, variable.set(value))  # type: ignore[arg-type]
        if embedded:
            settings = {s: embedded[s.name] for s in (PREFECT_API_URL, PREFECT_API_AUTH_STRING)}
            stack.enter_context(temporary_settings(settings))
        stack.enter_context(reachable_server())
        if config.runner == "local":
            stack.enter_context(_until_stopped())
        state = build_patches(**config.model_dump(exclude={"dry_run"}), return_state=True)
        try:
            result: dict[str, Any] = state.result()  # raises the UserError of a Failed state
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"out of memory ({one_line(error, 100)})",
                "lower --workers, end other programs, or try --device cpu if it was a GPU's; the"
                " same command then continues",
            ) from error
    return result
