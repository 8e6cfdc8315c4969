"""Build a manifest of far (LR) and near (HR) patches from photographs.

    lasr build --images ~/photos --out data/patches.parquet
    lasr build --images ~/photos --profile offline      # no downloads, for a first look
    lasr build --images ~/photos --dry-run              # show what would be done

After an interruption or a kill, the same command continues the build.
"""

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lasr.cli import Command
from lasr.errors import UserError
from lasr.terminal.output import note
from lasr.weights.locate import notes
from pipeline.config import BuildConfig
from pipeline.storage import StoragePath

if TYPE_CHECKING:
    from pipeline.summary import Summary


def run(config: BuildConfig) -> None:
    """Build through the Prefect flow and print a summary."""
    # Errors come before Prefect's server starts, which takes seconds.
    from pipeline.build.lock import check_free
    from pipeline.build.plan import plan_build, prepare

    started = time.monotonic()
    prepared = prepare(config)
    check_free(config.work)
    for line in notes(config.depth_name, config.clip_name):
        note(line)
    if config.dry_run:
        print(plan_build(prepared).summary())
        return
    from pipeline.flows import server
    from pipeline.summary import Summary

    embedded = server.connect()
    summary = server.load_flow().build(config, prepared, embedded)
    print(Summary(**summary))
    print(f"time:        {time.monotonic() - started:.0f} s")


def build_patches(
    images: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] = "data/patches.parquet",
    **parameters: Any,
) -> "Summary":
    """Build a manifest of far (LR) and near (HR) patches from photographs, or complete one.

        summary = lasr.build_patches(images=["photos"], out="patches.parquet", profile="offline")
        summary.patches  # {'lr': 56, 'hr': 54}

    The same as `lasr build`: finished parts are reused, so that an interrupted build resumes, and
    one process at a time builds a manifest. It runs in this process.

    Args:
        images: folders, files, globs or .txt lists of paths.
        out: the manifest to write, a folder of Parquet parts.
        parameters: any other parameter of `lasr build`, by its name with underscores.

    Returns:
        The path of the manifest and of its catalogue, and the numbers of parts, of photographs by
        status, and of patches by role.

    Raises:
        UserError: missing weights, no photograph, an output that is not a build's own, and
            everything else that `lasr build` answers with one line.
        pydantic.ValidationError: a parameter that is unknown or out of range.
    """
    config = BuildConfig(images=[os.fspath(path) for path in images], out=out, **parameters)
    if config.dry_run or config.runner != "local":
        raise UserError("build_patches: dry_run and runner='ray' need Prefect", "use `lasr build`")
    from pipeline.build.lock import sole_build
    from pipeline.build.plan import plan_build, prepare
    from pipeline.build.publish import finish, sweep
    from pipeline.build.shard import build_shard

    prepared = prepare(config)
    with sole_build(config.work):
        sweep(config.work)
        build = plan_build(prepared)
        made = [build_shard(build.job, shard) for shard in build.plan.to_do]
        return finish(build, made)


def following(config: BuildConfig) -> list[object]:
    """The next command: the report, which reads local files; then training."""
    out = StoragePath(config.out)
    if not out.is_local:
        return ["lasr", "train", "--manifest", config.out, "--profile", config.profile]
    report = out.path.with_name(f"{out.name.removesuffix('.parquet')}.html")
    return ["lasr", "report", "--manifest", config.out, "--out", report]


main = Command(
    BuildConfig, run, name="lasr build", about=__doc__, weights=True, configurable=True,
    following=following,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
