"""Write a page that shows a manifest: do its far patches look worse than its near ones?

    lasr report --manifest data/patches.parquet --out data/report.html

The page is one file and loads nothing from the network. Figures cover all patches; photographs and
pairs are random samples that depend on --seed alone.
"""

import sys
import time

from lasr.cli import Command
from lasr.ownership import check_file, write_own
from lasr.terminal.output import say
from pipeline.query.source import opened
from pipeline.report.config import ReportConfig
from schemas.address import address_of
from schemas.manifest import open_manifest


def run(config: ReportConfig) -> None:
    """Write the page and print its size. Raises UserError."""
    start = time.monotonic()
    check_file(config.out, [config.manifest, *(config.images or [])])
    with opened(config.manifest) as (manifest, mirror):
        from pipeline.report.page import page_of  # imports DuckDB, once a wrong path was reported
        from pipeline.report.pictures import DETAILS

        page, detail = page_of(config, manifest, mirror)
    content = page.encode()
    write_own(config.out, content)
    smaller = " (with smaller pictures to fit)" if detail is not DETAILS[0] else ""
    say(f"report: {config.out}, {len(content) / 1e6:.1f} MB{smaller}")
    print(f"time:   {time.monotonic() - start:.0f} s")


def following(config: ReportConfig) -> list[object]:
    """The next command: training, with the profile of the build."""
    if address := address_of(config.manifest):
        return ["lasr", "train", "--manifest", address]
    parts = sorted(config.manifest.glob("*.parquet")) or [config.manifest]
    profile = open_manifest(parts[0], columns=()).metadata.get("parameters", {})
    named = ["--profile", profile["profile"]] if "profile" in profile else []
    return ["lasr", "train", "--manifest", config.manifest, *named]


main = Command(ReportConfig, run, name="lasr report", about=__doc__, following=following)

if __name__ == "__main__":
    sys.exit(main())
