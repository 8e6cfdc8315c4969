"""One page that shows a manifest: do its far patches look worse than its near ones?

    python -m pipeline.report --manifest data/patches.parquet --out data/report.html

The page is a single file that needs no network. Sums are over all patches; photographs and pairs
are drawn at random, from --seed.
"""

import base64
import hashlib
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import BaseModel, Field

from lasr.cli import Command, progress
from lasr.device import Device
from lasr.errors import UserError
from lasr.files import write_bytes
from lasr.weights.locate import TABLE, untrained
from pipeline.query.views import connect
from pipeline.report import charts as report_charts
from pipeline.report import pictures as report_pictures
from pipeline.report.data import Questions
from pipeline.report.originals import Originals
from pipeline.report.overview import Row, top_words
from pipeline.report.picture import COLOURS
from pipeline.report.pictures import (
    DETAILS,
    Detail,
    Sheet,
    patch_picture,
    photograph_uri,
    pixels_uri,
)
from schemas.manifest import Manifest, open_manifest

HERO = 6  # pairs at the top
TABLE_ROWS = 6  # of a distribution in the table that stands for its chart
NEEDED = ("patch_id", "image_id", "image_path", "image_width", "image_height", "role", "x", "y",
          "size", "distance", "rank", "texture", "strategy", "depth_model", "caption_model",
          "words", "image")  # fmt: skip
DISTRIBUTIONS = {  # column: its label, and whether its axis is logarithmic
    "distance": ("distance: 0 near, 1 far", False),
    "texture": ("texture: mean gradient of the luma", True),
    "sharpness": ("sharpness: variance of the Laplacian", True),
    "luma": ("brightness: mean luma", False),
    "contrast": ("contrast: standard deviation of the luma", False),
}


class ReportConfig(BaseModel):
    """What `pipeline.report` takes."""

    manifest: Path = Field(Path("data/patches.parquet"), description="the manifest to show")
    out: Path = Field(Path("data/report.html"), description="the page to write")
    images: list[str] | None = Field(
        None,
        min_length=1,
        description="where the photographs are (default: where the build found them)",
    )
    photographs: int = Field(12, ge=0, description="photographs in the gallery")
    pairs: int = Field(24, ge=0, description="pairs of a far and a near patch")
    max_mb: float = Field(
        8.0, gt=0, description="size of the page at most; pictures become smaller until it fits"
    )
    seed: int = Field(0, ge=0, description="of what is drawn at random")
    device: Device = Field("auto", description="where a depth network runs, if no map was kept")


@dataclass(frozen=True)
class Drawn:
    """What was drawn at random: photographs, and pairs as (far, near)."""

    sheets: list[Sheet]
    pairs: list[tuple[Row, Row]]


def report(config: ReportConfig) -> tuple[str, Detail]:
    """The page as HTML, and how finely its pictures are written. Raises UserError."""
    manifest = open_manifest(config.manifest, NEEDED)
    with connect(config.manifest) as connection:
        questions = Questions(connection, config.seed)
        try:
            facts = _facts(config, manifest, questions)
            drawn = _draw(config, questions, Originals(manifest, config.images, config.device))
        except duckdb.Error as error:
            raise UserError(
                f"{config.manifest}: cannot be read ({error}); build it again"
            ) from error
    budget = int(config.max_mb * 1e6)
    for detail in DETAILS:
        page = _page(facts, drawn, detail)
        if len(page.encode()) <= budget:
            return page, detail
    raise UserError(
        f"--max-mb {config.max_mb:g}: the page takes {len(page.encode()) / 1e6:.2f} MB at the least"
    )


def _facts(config: ReportConfig, manifest: Manifest, questions: Questions) -> dict[str, Any]:
    """All that is said about the whole manifest."""
    roles = questions.roles()
    if not roles:
        raise UserError(f"{config.manifest}: no patch in it; there is nothing to show")
    words = questions.words()
    comparisons = questions.comparisons()
    charts = []
    for column, (label, logarithmic) in DISTRIBUTIONS.items():
        if histogram := questions.histogram(column, logarithmic):
            svg = report_charts.distribution(histogram, logarithmic)
            table = histogram.table(TABLE_ROWS)
            charts.append({"column": column, "label": label, "svg": svg, "table": table})
    models = questions.models()
    parameters = manifest.metadata.get("parameters", {})
    return {
        "config": config,
        "roles": roles,
        "statuses": questions.statuses(),
        "rejected": questions.rejected(),
        "has_catalogue": questions.has_catalogue,
        "comparisons": comparisons,
        "ratios": [report_charts.ratio(comparison) for comparison in comparisons],
        "distributions": charts,
        "words": words,
        "common": top_words(questions.connection),
        "word_chart": report_charts.words(words) if words else None,
        "strategies": sorted({row["strategy"] for row in models}),
        "models": _models(models),
        "parameters": {k: v for k, v in parameters.items() if k != "images"},
        "sources": parameters.get("images", []),
    }


def _models(rows: list[Row]) -> list[Row]:
    """The models that made the rows: what they are, their licence, whether they know anything."""
    models: dict[tuple[str, str], Row] = {}
    for row in rows:
        for what in ("depth", "caption"):
            identity = row[f"{what}_model"]
            name, _, version = (identity or "").partition("@")
            known = TABLE.get(name)
            entry = models.setdefault(
                (what, identity),
                {
                    "what": {"depth": "distance", "caption": "captions"}[what],
                    "identity": identity or "none",
                    "about": known.about if known else "weights of your own",
                    "licence": known.licence if known else "not known here",
                    # A folder of one's own may bear the name of a built-in.
                    "untrained": version == "built-in" and bool(untrained(name)),
                    "formula": version == "built-in" and not untrained(name),
                    "patches": 0,
                },
            )
            entry["patches"] += row["patches"]
    return [models[key] for key in sorted(models, key=lambda key: key[0], reverse=True)]


def _draw(config: ReportConfig, questions: Questions, originals: Originals) -> Drawn:
    """Draw photographs and pairs, and read the pixels of these alone."""
    photographs = questions.sample(config.photographs)
    pairs = questions.pairs(config.pairs)
    wanted = questions.patches_of([photograph["image_id"] for photograph in photographs])
    patches = questions.patches([*wanted, *(pair[role] for pair in pairs for role in ("lr", "hr"))])
    sheets = []
    with progress(len(photographs), "photographs", "img") as bar:
        for photograph in photographs:
            own = [p for p in patches.values() if p["image_id"] == photograph["image_id"]]
            sheets.append(report_pictures.sheet(photograph, own, originals))
            bar.update()
    return Drawn(sheets, [(patches[pair["lr"]], patches[pair["hr"]]) for pair in pairs])


def _page(facts: dict[str, Any], drawn: Drawn, detail: Detail) -> str:
    """Fill the template."""
    environment = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,  # names, captions and paths come from anywhere
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"n": "{:,}".format, "figures": figures, "percent": "{:.0%}".format}
    # The policy of the page allows this one script, by its digest, and no other.
    script = Markup(environment.get_template("report.js").render())
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

    return environment.get_template("report.html").render(
        facts,
        colours=COLOURS,
        script=script,
        script_hash=digest,
        sheets=drawn.sheets[: math.ceil(len(drawn.sheets) * detail.share)],
        pairs=drawn.pairs[: math.ceil(len(drawn.pairs) * detail.share)],
        hero=drawn.pairs[:HERO],
        detail=detail,
        pixels_uri=pixels_uri,
        photograph_uri=photograph_uri,
        patch_picture=patch_picture,
    )


def figures(value: float | None) -> str:
    """A number as a reader wants it: three significant figures, no exponent."""
    if value is None:
        return "\N{EN DASH}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{float(f'{value:.3g}'):g}"


def run(config: ReportConfig) -> None:
    """Write the page and say what it holds."""
    start = time.monotonic()
    page, detail = report(config)
    content = page.encode()
    write_bytes(config.out, content)
    smaller = " (pictures made smaller to fit)" if detail is not DETAILS[0] else ""
    print(f"report: {config.out}, {len(content) / 1e6:.1f} MB{smaller}")
    print(f"time:   {time.monotonic() - start:.0f} s")


main = Command(ReportConfig, run, name="lasr report", about=__doc__)

if __name__ == "__main__":
    sys.exit(main())
