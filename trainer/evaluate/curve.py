"""Draw scores against training steps, as figure 8 of the paper.

    lasr evaluate --images mine/ --weights mine@0=start.pth data/runs/mine/weights
    lasr curve data/evaluation
    lasr curve data/runs/mine

A method called NAME@STEP is a point of the curve NAME. Any other method is a horizontal line to
compare with. Needs the extra `evaluate`. Of the folder of a run, it writes run.html: the run's
losses, validations, samples and settings on one page.
"""

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
from pydantic import BaseModel, Field

from lasr.cli import Command
from lasr.errors import UserError, require
from lasr.marks import SOFTWARE
from lasr.ownership import check_file, own_path
from lasr.terminal.output import say
from trainer.evaluate import scores


class CurveConfig(BaseModel):
    """The flags of `lasr curve`."""

    evaluation: Path = Field(
        description="folder that `lasr evaluate` wrote, or of a run, which gets a run.html"
    )
    metrics: list[str] = Field([], description="one diagram each (default: all that were scored)")
    out: Path | None = Field(
        None,
        description="PNG to write; its numbers go to a .csv beside it (default:"
        " EVALUATION/curve.png)",
    )


def run(config: CurveConfig) -> None:
    """Write the PNG and the CSV, or a run's page. Raises UserError: there is nothing to draw."""
    if is_run(config):
        draw_run(config)
        return
    out = config.out or config.evaluation / "curve.png"
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: not the name of a PNG", "use one that ends in .png")
    for path in (out, out.with_suffix(".csv")):
        check_file(path, [config.evaluation] if config.out else [])
    found = scores.read(config.evaluation)
    titles = {
        s.metric: f"{s.title} {'↑' if s.higher_is_better else '↓'}"
        for s in found
        if s.metric in (config.metrics or [s.metric])
    }
    points = [_point(row) for row in scores.means(found) if row["metric"] in titles]
    if not any(point["step"] is not None for point in points):
        raise UserError(
            f"{config.evaluation}: no checkpoint was scored",
            "give `lasr evaluate` a folder of step*.safetensors, or NAME@STEP=FILE for each",
        )
    points.sort(key=lambda point: (point["metric"], point["method"], point["step"] or 0))
    with own_path(out.with_suffix(".csv")) as temporary:
        pyarrow.csv.write_csv(pa.Table.from_pylist(points), temporary)
    _draw(out, titles, points)
    say(f"{out} and {out.with_suffix('.csv').name}")


def is_run(config: CurveConfig) -> bool:
    """Whether the folder is that of a run."""
    return (config.evaluation / "stats.jsonl").is_file()


def draw_run(config: CurveConfig) -> None:
    """Write the page of a run. Raises UserError: it cannot be written."""
    from trainer.watch.page import NAME, write_page  # loads PyTorch

    if config.out or config.metrics:
        flag = "--out" if config.out else "--metrics"
        raise UserError(
            f"{flag}: {config.evaluation} is a run, whose page is {NAME} in its folder",
            f"omit {flag}, or give a folder that `lasr evaluate` wrote",
        )
    page = config.evaluation / NAME
    if not write_page(config.evaluation):
        raise UserError(f"{page}: not written, see above")
    say(f"{page}")


def _point(row: dict[str, Any]) -> dict[str, Any]:
    method, _, step = row["method"].rpartition("@")
    is_step = bool(method) and step.isdecimal()
    return {
        "method": method if is_step else row["method"],
        "step": int(step) if is_step else None,
        "metric": row["metric"],
        "mean": row["mean"],
        "images": row["images"],
    }


def _draw(out: Path, titles: dict[str, str], points: list[dict[str, Any]]) -> None:
    require("matplotlib", "evaluate").use("Agg")  # draws to files; needs no screen
    plt = require("matplotlib.pyplot", "evaluate")
    ticker = require("matplotlib.ticker", "evaluate")

    columns = min(3, len(titles))
    rows = -(-len(titles) // columns)
    size = (4.2 * columns, 3 * rows)
    figure, grid = plt.subplots(
        rows, columns, figsize=size, dpi=150, layout="constrained", squeeze=False
    )
    methods = list(dict.fromkeys(point["method"] for point in points))
    for axes, (metric, title) in zip(grid.flat, titles.items(), strict=False):
        for number, method in enumerate(methods):
            own = [p for p in points if p["method"] == method and p["metric"] == metric]
            steps = [(p["step"], p["mean"]) for p in own if p["step"] is not None]
            if steps:
                axes.plot(*zip(*steps, strict=True), "o-", color=f"C{number}", label=method, ms=4)
            for point in own:
                if point["step"] is None:
                    axes.axhline(point["mean"], color=f"C{number}", ls="--", label=method)
        axes.set(title=title, xlabel="training steps")
        axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        axes.grid(alpha=0.3)
    for axes in list(grid.flat)[len(titles) :]:
        axes.set_axis_off()
    if len(methods) > 1:
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    with own_path(out) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": SOFTWARE})
    plt.close(figure)


def following(config: CurveConfig) -> list[object]:
    """The next command: the pictures behind the scores, or a run's network at work."""
    network = config.evaluation / "model.safetensors"
    if network.is_file():
        return ["lasr", "upscale", "--weights", network, "PICTURE", "--out", "data/upscaled"]
    return [] if is_run(config) else ["lasr", "sidebyside", config.evaluation]


main = Command(
    CurveConfig, run, name="lasr curve", about=__doc__, positional="evaluation", following=following
)

if __name__ == "__main__":
    sys.exit(main())
