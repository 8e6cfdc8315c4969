"""What a run shows in Prefect's UI: its progress, and an overview of the manifest.

A failure here is logged as a warning and never fails a build.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import artifacts as ui
from prefect import get_run_logger

from lasr.terminal.summary import counted

if TYPE_CHECKING:
    from pipeline.summary import Summary

PREFIX = "build-patches"  # of the artifacts' keys


@contextmanager
def optional() -> Iterator[None]:
    """Log an exception as a warning and continue."""
    try:
        yield
    except Exception as error:
        get_run_logger().warning("not shown in Prefect's UI: %s", error)


def progress_bar() -> Callable[[float], object]:
    """Create a progress artifact; return the function that sets it, in per cent."""
    with optional():
        bar = ui.create_progress_artifact(0.0, f"{PREFIX}-progress", "parts done, per cent")
        return partial(ui.update_progress_artifact, bar)
    return lambda percent: None


def show_counts(summary: "Summary") -> None:
    """Create the artifact of a finished run whose manifest is in object storage: counts alone.

    DuckDB reads local files, and a contact sheet would download every part.
    """
    with optional():
        rows = [{"status": s, "photographs": n} for s, n in sorted(summary.status.items())]
        total = ", ".join(counted(n, f"{role} patch") for role, n in summary.patches.items())
        ui.create_table_artifact(rows, f"{PREFIX}-counts", f"photographs by status; {total}")


def show_overview(manifest: Path) -> None:
    """Create the artifacts of a finished run: counts, a contact sheet, the most frequent words."""
    with optional():
        from pipeline.report.overview import describe

        shown = describe(manifest)
        about = "photographs and patches by status"
        ui.create_table_artifact(shown.counts, f"{PREFIX}-counts", about)
        # As Markdown: an image artifact would print the whole data: URI below the picture.
        picture = f"![far patches above near ones]({shown.contact_sheet})"
        ui.create_markdown_artifact(
            picture, f"{PREFIX}-picture", "far (LR) above near (HR) patches"
        )
        about = "the most frequent words of each role"
        if shown.untrained:
            about = f"random CLIP, the words are noise: {about}"
        ui.create_table_artifact(shown.words, f"{PREFIX}-words", about)
