"""The page: what it says of the whole manifest, the random samples, and the template."""

import base64
import hashlib
import math
from dataclasses import dataclass
from threading import Event
from typing import Any

import duckdb
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lasr.cli import progress
from lasr.errors import UserError, one_line
from lasr.marks import signed
from lasr.weights.locate import TABLE, untrained
from pipeline.query.limits import limit, out_of_memory, watched
from pipeline.query.mirror import Mirror
from pipeline.query.source import opened
from pipeline.query.views import interruptible, with_views
from pipeline.report import charts
from pipeline.report.config import COLOURS, ReportConfig
from pipeline.report.data import ReportData
from pipeline.report.originals import Originals
from pipeline.report.overview import Row, top_words
from pipeline.report.pictures import (
    DETAILS,
    Detail,
    Sheet,
    patch_picture,
    photograph_uri,
    pixels_uri,
    sheet,
)
from schemas.manifest import Manifest, check_columns

HERO = 6  # pairs in the strip at the top
TABLE_ROWS = 6  # of the table that repeats a chart; divides its number of bins
NEEDED = ("patch_id", "image_id", "image_path", "image_width", "image_height", "role", "x", "y",
          "size", "distance", "rank", "texture", "strategy", "depth_model", "caption_model",
          "words", "image")  # fmt: skip
DISTRIBUTIONS = {  # column: label, and whether the axis is logarithmic
    "distance": ("distance: 0 near, 1 far", False),
    "texture": ("texture: mean gradient of the luma", True),
    "sharpness_56": ("sharpness, both at 56 pixels: variance of the Laplacian", True),
    "sharpness": ("sharpness, each at its own size", True),
    "luma": ("brightness: mean luma", False),
    "contrast": ("contrast: standard deviation of the luma", False),
}
MEASURE_NAMES = {
    "sharpness_56": "sharpness at 56 pixels", "sharpness": "sharpness at its own size"
}  # fmt: skip


@dataclass(frozen=True)
class Samples:
    """The photographs of the gallery, and pairs as (far, near)."""

    sheets: list[Sheet]
    pairs: list[tuple[Row, Row]]


def build_page(config: ReportConfig) -> tuple[str, Detail]:
    """Return the page as HTML and the resolution of its pictures. Raises UserError."""
    with opened(config.manifest) as (manifest, mirror):
        return page_of(config, manifest, mirror)


def page_of(
    config: ReportConfig, manifest: Manifest, mirror: Mirror | None = None
) -> tuple[str, Detail]:
    """The same of a manifest that is open. mirror: of one in storage, which `manifest` is then."""
    if mirror:
        config = config.model_copy(update={"manifest": mirror.address})  # as the page names it
    with interruptible():
        facts, samples = _asked(config, manifest, mirror)
    most = int(config.max_mb * 1e6)
    for detail in DETAILS:
        page = _render(facts, samples, detail)
        if len(page.encode()) <= most:
            return page, detail
    raise UserError(
        f"--max-mb {config.max_mb:g}: the page needs at least {len(page.encode()) / 1e6:.2f} MB",
        "give a larger --max-mb",
    )


def _asked(
    config: ReportConfig, manifest: Manifest, mirror: Mirror | None
) -> tuple[dict[str, Any], Samples]:
    """All that the page needs of the manifest."""
    check_columns(manifest.schema, NEEDED, manifest.files[0])
    with with_views(manifest) as connection:
        limit(connection, config.memory_limit)
        # Thirty scans of as many footers as there are parts: of 10 million rows each parses them
        # for 3 s of CPU. The cache takes 1.2 GB of them.
        connection.execute("SET parquet_metadata_cache = true")
        data = ReportData(connection, config.seed, mirror)
        found: list[tuple[dict[str, Any], Samples]] = []

        def work(stop: Event) -> None:
            if mirror:
                mirror.fetch(connection, data.reads(), stop)
            facts = _facts(config, manifest, data)
            originals = Originals(manifest, config.images, config.device)
            found.append((facts, _sample(config, manifest, data, originals)))

        try:
            watched(work, connection, config.timeout)
        except duckdb.OutOfMemoryException as error:
            raise out_of_memory(str(error)) from error
        except duckdb.InterruptException:
            raise  # for `interruptible`
        except duckdb.Error as error:
            raise UserError(
                f"{config.manifest}: cannot be read ({one_line(error)})", "build it again"
            ) from error
    return found[0]


def _facts(config: ReportConfig, manifest: Manifest, data: ReportData) -> dict[str, Any]:
    """What the page says of the whole manifest."""
    roles = data.roles()
    if not roles:
        raise UserError(f"{config.manifest}: it has no patch, so there is nothing to show")
    words, comparisons, models = data.words(), data.comparisons(), data.models()
    distributions = []
    for column, (label, logarithmic) in DISTRIBUTIONS.items():
        if histogram := data.histogram(column, logarithmic):
            chart = charts.distribution(histogram, logarithmic)
            table = histogram.table(TABLE_ROWS)
            distributions.append({"column": column, "label": label, "chart": chart, "table": table})
    parameters = manifest.metadata.get("parameters", {})
    made_with = _models(models)
    noise = any(model["untrained"] for model in made_with if model["task"] == "captions")
    return {
        "config": config,
        "roles": roles,
        "statuses": data.statuses(),
        "rejected": data.rejected(),
        "has_catalogue": data.has_catalogue,
        "comparisons": comparisons,
        # Then their texture says nothing: without a filter of both, far patches have more of it.
        "far_filtered": (parameters.get("far_texture") or 0) > (parameters.get("min_texture") or 0),
        "worth": data.worth(noise),
        "names": MEASURE_NAMES,
        "ratios": [charts.ratio(comparison.ratios) for comparison in comparisons],
        "distributions": distributions,
        "words": words,
        "common": top_words(data.connection),
        "word_chart": charts.words(words),
        "strategies": sorted({row["strategy"] for row in models}),
        "models": made_with,
        "parameters": {k: v for k, v in parameters.items() if k != "images"},
        "sources": parameters.get("images", []),
    }


def _models(rows: list[Row]) -> list[Row]:
    """The models behind the rows: description, licence, and whether they are trained."""
    models: dict[tuple[str, str], Row] = {}
    for row in rows:
        for kind, task in (("depth", "distance"), ("caption", "captions")):
            identity = row[f"{kind}_model"]
            name, _, version = (identity or "").partition("@")
            known = TABLE.get(name)
            entry = models.setdefault(
                (kind, identity),
                {
                    "task": task,
                    "identity": identity or "none",
                    "about": known.about if known else "weights given as a path",
                    "licence": known.licence if known else "unknown",
                    # A user's own weights may have the name of a built-in model.
                    "untrained": version == "built-in" and bool(untrained(name)),
                    "formula": version == "built-in" and not untrained(name),
                    "note": known.note if known else "",
                    "patches": 0,
                },
            )
            entry["patches"] += row["patches"]
    return [models[key] for key in sorted(models, key=lambda key: key[0], reverse=True)]


def _sample(
    config: ReportConfig, manifest: Manifest, data: ReportData, originals: Originals
) -> Samples:
    """Draw photographs and pairs, and read the pixels of these alone."""
    photographs = data.sample(config.photographs)
    pairs = data.pairs(config.pairs)
    shown = data.patches_of([photograph["image_id"] for photograph in photographs])
    drawn = [pair[role] for pair in pairs for role in ("lr", "hr")]
    patches = data.patches(manifest, [*shown, *drawn])
    sheets = []
    with progress(len(photographs), "photographs", "img") as bar:
        for photograph in photographs:
            own = [p for p in patches.values() if p["image_id"] == photograph["image_id"]]
            sheets.append(sheet(photograph, own, originals))
            bar.update()
    return Samples(sheets, [(patches[pair["lr"]], patches[pair["hr"]]) for pair in pairs])


def _render(facts: dict[str, Any], samples: Samples, detail: Detail) -> str:
    """Fill in the template."""
    environment = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,  # names, captions and paths are untrusted
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"n": "{:,}".format, "figures": figures, "percent": "{:.0%}".format}
    # The page's content security policy allows this script, by its digest, and no other.
    script = Markup(environment.get_template("report.js").render())
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("report.html").render(
        facts,
        colours=COLOURS,
        script=script,
        script_hash=digest,
        sheets=samples.sheets[: math.ceil(len(samples.sheets) * detail.share)],
        pairs=samples.pairs[: math.ceil(len(samples.pairs) * detail.share)],
        hero=samples.pairs[:HERO],
        detail=detail,
        pixels_uri=pixels_uri,
        photograph_uri=photograph_uri,
        patch_picture=patch_picture,
    )
    return signed(page)


def figures(value: float | None) -> str:
    """Format a number with three significant figures and no exponent."""
    if value is None:
        return "\N{EN DASH}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{float(f'{value:.3g}'):g}"
