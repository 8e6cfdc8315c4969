"""run.html: the curves, samples over time and settings of a run, on one page without scripts."""

import json
import logging
import os
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from pydantic import ValidationError

from lasr.errors import UserError, one_line, writing
from lasr.files import read_text, write_bytes
from lasr.marks import signed
from lasr.ownership import is_ours
from trainer.config import TrainConfig
from trainer.data.skipped import read_lines
from trainer.run_log import VALIDATION
from trainer.watch.bounds import Bounds, bounds
from trainer.watch.curves import Chart, chart, number, series
from trainer.watch.samples import samples

log = logging.getLogger(__name__)

NAME = "run.html"
MINUS = "\N{MINUS SIGN}"
BY_SIZE = 0.15  # accuracy that encoders lose where sizes are equal
Lines = list[dict[str, Any]]
LOSSES = {  # title and what is said of it
    "content_encoders": ("Content, encoders (1)", "Pictures find their captions."),
    "content_sr": ("Content, SR network (2)", "SR pictures find their captions."),
    "quality_encoders": ("Quality, encoders (3)", "LR is bad, HR is good."),
    "quality_sr": (
        "Quality, SR network (4)",
        f"cos(SR, Q{MINUS}) {MINUS} cos(SR, Q+), which falls.",
    ),
    "vgg": ("VGG term", "SR pictures look like their inputs."),
    "consistency": ("Consistency term", "SR pictures, shrunk again, differ so much from LR."),
    "total": ("Total (5)", "The weighted sum."),
    "l1": ("L1", "Mean absolute difference to the photograph."),
}
MEASURES = {
    "niqe": ("NIQE", "Lower is better."),
    "brisque": ("BRISQUE", "Lower is better."),
    "piqe": ("PIQE", "Lower is better."),
    "consistency": ("Consistency, dB", "SR pictures shrunk again, against their inputs (PSNR)."),
    "colour_shift": ("Colour shift", "Between the mean colours of SR and LR. Lower is better."),
    "psnr_y": ("PSNR on Y, dB", "Against the references. Higher is better."),
    "perceptual": ("Perceptual distance", "Against the references, in features of the VGG term."),
}
SETS = {"held_out": "held-out patches", "given": "pictures given"}
PROBES: list[tuple[str, str, dict[str, str], dict[str, float]]] = [
    (
        "LR bad, HR good",
        "Share told rightly. What falls from the first curve to the second was told by size alone.",
        {"quality_as_is": "as they are", "quality_equal_size": "at equal size"},
        {"chance": 0.5},
    ),
    (
        "Called good",
        "Share of plain bicubic enlargements, which are not, and of SR pictures.",
        {"bicubic_called_good": "bicubic", "sr_called_good": "SR"},
        {},
    ),
    (
        "Caption found",
        "Share of patches whose own caption is the nearest of all.",
        {"retrieval_top1": "top 1"},
        {},
    ),
    (f"cos(Q{MINUS}, Q+)", "1: the two words say the same.", {"cos_quality_words": "cosine"}, {}),
    (
        "Drift of the encoders",
        f"1 {MINUS} cosine between features now and at the start.",
        {"drift_images": "pictures", "drift_texts": "captions"},
        {},
    ),
]
RUNNING = [
    (
        "Gradient norm",
        "Before clipping.",
        {
            "gradient_norm_sr": "SR network",
            "gradient_norm_encoders": "encoders",
            "gradient_norm": "network",
        },
    ),
    ("Colour shift in training", "Between the mean colours of SR and LR.", {"colour_shift": "SR"}),
    ("Seconds per step", "", {"seconds_per_step": "seconds"}),
    (
        "Waiting",
        "Share of the time in which the host waits.",
        {"waiting_for_data": "for data", "waiting_for_device": "for the device"},
    ),
    ("Learning rate", "As a share of its highest value.", {"rate": "rate"}),
    ("Loss scale", "Of float16.", {"loss_scale": "scale"}),
]


def write_page(folder: Path) -> bool:
    """Write run.html of a run's folder; whether it was written.

    A page that somebody edited stays. What goes wrong is said and never stops a run, apart from a
    full disk. Raises UserError: that.
    """
    path = folder / NAME
    if os.path.lexists(path) and not is_ours(path):
        log.warning("%s: was edited, or is not of LA-SR, and stays as it is", path)
        return False
    try:
        page = build_page(folder).encode()
    except Exception as error:  # a run of days is worth more than its page
        log.warning("%s: cannot be written (%s)", path, one_line(error, 150))
        return False
    with writing(path, "free some disk space and run the same command", len(page)):
        write_bytes(path, page)
    return True


def build_page(folder: Path) -> str:
    """The page of a run of either kind, as HTML. Raises UserError: no run in the folder."""
    try:
        settings = json.loads(read_text(folder / "config.json"))
        steps = int(settings["steps"])
        lines = [line for _, line in read_lines(folder / "stats.jsonl", 2**62) if line]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}: no run there ({one_line(error, 100)})",
            "pass the folder that `lasr train` wrote, such as data/runs/NAME",
        ) from error
    looks = [line for line in lines if _is_look(line)]
    logged = [line for line in lines if line not in looks]
    limits = _bounds(settings)
    best = _best(looks)
    done = max((line["step"] for line in lines), default=0)
    page = _template().render(
        name=folder.name,
        steps=steps,
        done=done,
        best=best,
        is_training="manifest" in settings,
        source=settings.get("manifest") or ", ".join(map(str, settings.get("images", []))),
        written=datetime.now().strftime("%d %B %Y, %H:%M"),
        findings=findings(looks),
        losses=_loss_charts(logged, limits),
        measures=_measure_charts(looks, best),
        probes=_charts(
            chart(title, about, {label: series(looks, key) for key, label in labels.items()}, rules)
            for title, about, labels, rules in PROBES
        ),
        running=_charts(
            chart(title, about, {label: series(logged, key) for key, label in labels.items()})
            for title, about, labels in RUNNING
        ),
        samples=samples(folder / "samples"),
        settings=_settings(settings),
        weights={k: v for k, v in settings.get("weights", {}).items() if v != "marked"},
    )
    return signed(page)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("trainer.watch"),
        autoescape=True,  # names and texts are untrusted
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figures": number, "n": "{:,}".format}
    return environment.get_template("run.html")


def _is_look(line: dict[str, Any]) -> bool:
    """Whether a line is of a validation; pretraining gives them no kind."""
    return line.get("kind") == VALIDATION or any(name.startswith("psnr_y_") for name in line)


def findings(looks: Lines) -> list[str]:
    """What the validations say, in sentences: of the first and the last one."""
    if not looks:
        return []
    first, last = looks[0], looks[-1]
    said = []
    for name in (
        ("niqe", "brisque", "piqe", "consistency", "perceptual") if last is not first else ()
    ):
        changes = [
            f"{number(first[key])} → {number(last[key])} ({label})"
            for of, label in SETS.items()
            if (key := f"{name}_{of}") in first and key in last
        ]
        if changes:
            said.append(f"{MEASURES[name][0]}: {', '.join(changes)}")
    if "quality_as_is" in last:
        as_is, equal = last["quality_as_is"], last["quality_equal_size"]
        text = f"The encoders tell LR from HR: {as_is:.0%} as they are, {equal:.0%} at equal size"
        if as_is - equal > BY_SIZE:
            text += ". They judge by size to a good part; see --encoder-view equal-size"
        said.append(text)
    if "bicubic_called_good" in last:
        text = f"They call {last['bicubic_called_good']:.0%} of bicubic enlargements good"
        if "sr_called_good" in last:
            text += f", and {last['sr_called_good']:.0%} of SR pictures"
        said.append(text)
    return said


def _loss_charts(logged: Lines, limits: dict[str, Bounds]) -> list[Chart]:
    charts = []
    for name, (title, about) in LOSSES.items():
        limit = limits.get(name)
        rules = {"optimum": limit.optimum} if limit else {}
        if limit and limit.collapse is not None:
            rules["collapse"] = limit.collapse
        charts.append(chart(title, about, {"": series(logged, name)}, rules))
    return _charts(charts)


def _measure_charts(looks: Lines, best: int | None) -> list[Chart]:
    return _charts(
        chart(
            title,
            about,
            {label: series(looks, f"{name}_{of}") for of, label in SETS.items()},
            best=best,
        )
        for name, (title, about) in MEASURES.items()
    )


def _charts(charts: Any) -> list[Chart]:
    return [each for each in charts if each is not None]


def _best(looks: Lines) -> int | None:
    scored = [(look["score"], look["step"]) for look in looks if "score" in look]
    return min(scored)[1] if scored else None


def _bounds(settings: dict[str, Any]) -> dict[str, Bounds]:
    """None for pretraining, and for a run of other settings than this version has."""
    known = {k: v for k, v in settings.items() if k in TrainConfig.model_fields}
    try:
        return bounds(TrainConfig(**known)) if "manifest" in settings else {}
    except ValidationError:
        return {}


def _settings(settings: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """Name, value, and whether it differs from the default; those that differ first."""
    fields = TrainConfig.model_fields
    rows = []
    for name, value in settings.items():
        if name in ("weights", "dry_run"):
            continue
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        differs = name in fields and value != fields[name].default
        rows.append((name, "none" if value is None else text, differs))
    return sorted(rows, key=lambda row: not row[2])
