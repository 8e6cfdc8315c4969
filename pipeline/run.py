"""Build a manifest of far (LR) and near (HR) patches from photographs.

    lasr build --images ~/photos --out data/patches.parquet
    lasr build --images ~/photos --profile offline      # no downloads, for a first look
    lasr build --images ~/photos --dry-run              # show what would be done

After an interruption or a kill, the same command continues the build.
"""

import sys
import time

from lasr.cli import Command
from lasr.weights.locate import untrained
from pipeline.config import BuildConfig


def run(config: BuildConfig) -> None:
    """Build through the Prefect flow and print a summary."""
    # Errors come before Prefect's server starts, which takes seconds.
    from pipeline.build.lock import check_free
    from pipeline.build.plan import plan_build, prepare

    started = time.monotonic()
    prepared = prepare(config)
    check_free(config.work)
    if untrained(config.clip_name):
        print("UNTRAINED: tiny-clip; captions are noise, they show the path only", file=sys.stderr)
    if config.dry_run:
        print(plan_build(prepared).summary())
        return
    from pipeline.flows import flow

    summary = flow.build(config, prepared)
    status = ", ".join(f"{count} {name}" for name, count in sorted(summary["status"].items()))
    print(f"photographs: {status}")
    if again := sum(summary["status"].get(name, 0) for name in ("failed", "unreadable")):
        print(f"             run the same command to retry {again} failed or unreadable ones")
    print(f"patches:     {summary['patches']['lr']} lr, {summary['patches']['hr']} hr")
    print(f"manifest:    {summary['manifest']} ({summary['parts']} parts)")
    print(f"catalogue:   {summary['images']}")
    print(f"time:        {time.monotonic() - started:.0f} s")


main = Command(BuildConfig, run, name="lasr build", about=__doc__, weights=True)

if __name__ == "__main__":
    sys.exit(main())
