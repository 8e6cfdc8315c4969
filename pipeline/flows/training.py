"""The flow `train-and-evaluate`: a build if there are photographs, `lasr train`, `lasr evaluate`.

The trainer runs in processes of its own, as in a terminal: it knows nothing of Prefect, and this
module nothing of it but its flags, its lines and the files of a run.
"""

import base64
import csv
import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import artifacts as ui
from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from pydantic import BaseModel, ConfigDict, Field

from lasr.device import Device
from lasr.errors import UserError
from lasr.terminal.summary import counted, typed
from lasr.weights.locate import Profile
from pipeline.flows.artifacts import optional
from pipeline.flows.form import shaped, user_error
from pipeline.roots import check_paths

NAME = "train-and-evaluate"
ABOUT = (
    "A x4 network from a manifest, or from photographs; then scores of what it makes of pictures."
)
PATIENCE = 25  # seconds for a checkpoint; Prefect kills a cancelled run after 30
_PROGRESS = re.compile(r"^steps: (\d+)/(\d+) step")
_LEVELS = {"error": logging.ERROR, "WARNING": logging.WARNING}  # by the first word of a line


class TrainingConfig(BaseModel):
    """The parameters of `train-and-evaluate`; those of the same name are flags of `lasr train`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest: str = Field(
        "data/patches.parquet", description="the manifest to train on; built first from `images`"
    )
    images: list[str] = Field(
        [], description="photographs to build the manifest from before; none: it is there already"
    )
    out: str | None = Field(
        None, description="folder of the run (default: data/runs/ and the manifest's name)"
    )
    profile: Profile = Field("default", description="a named set of models")
    steps: int = Field(300_000, ge=1, description="training steps")
    batch_size: int = Field(16, ge=2, description="patches per step")
    lr: float = Field(5e-5, gt=0, description="learning rate of the SR network")
    seed: int = Field(0, ge=0, description="of patches, augmentation and degradations")
    device: Device = Field("auto", description="where the networks run")
    evaluate_on: list[str] = Field(
        [], description="LR pictures, or folders of them, to score the network on; none: no scores"
    )
    reference: list[str] = Field(
        [], description="their HR pictures, matched by name, for metrics that compare"
    )
    metrics: list[str] = Field(
        [], description="metrics of `lasr evaluate` (default: all that need no more than is given)"
    )

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        name = Path(self.manifest).name.removesuffix(".parquet")
        return Path(self.out) if self.out else Path("data/runs") / name

    def check(self) -> None:
        """Refuse paths outside of the folders that a deployment may use. Raises UserError."""
        paths = [("--manifest", self.manifest), ("--out", str(self.folder))]
        paths += [("--images", path) for path in self.images]
        paths += [("--images", path) for path in self.evaluate_on]
        paths += [("--reference", path) for path in self.reference]
        check_paths(paths)

    def training(self) -> list[str]:
        """The arguments of `trainer.run`."""
        names = ("manifest", "profile", "steps", "batch_size", "lr", "seed", "device")
        values = {f"--{name.replace('_', '-')}": str(getattr(self, name)) for name in names}
        return ["trainer.run", *_flags(values | {"--out": str(self.folder)})]

    def evaluation(self) -> list[str]:
        """The arguments of `trainer.evaluate`."""
        flags: dict[str, list[str]] = {
            "--images": self.evaluate_on, "--reference": self.reference, "--metrics": self.metrics,
            "--weights": ["bicubic", str(self.folder)],
        }  # fmt: skip
        lists = [word for flag, words in flags.items() if words for word in (flag, *words)]
        return ["trainer.evaluate", *lists, "--out", str(self.folder / "evaluation")]


def _flags(values: dict[str, str]) -> list[str]:
    return [word for pair in values.items() for word in pair]


class Ended(Exception):
    """A process of the trainer ended with another status than 0; its last line."""

    def __init__(self, status: int, line: str):
        super().__init__(line or f"exit status {status}")
        self.stopped = status in (130, 143, -2, -15)  # SIGINT, SIGTERM


def run_process(arguments: list[str], on_line: Callable[[str], object]) -> None:
    """Run a module of the trainer, each of its lines to `on_line`. Raises Ended.

    Where this process is told to end, so is that one: it finishes its step and writes a checkpoint.
    """
    command = [sys.executable, "-m", *arguments]
    last = ""
    with (
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, encoding="utf-8", errors="replace",
        ) as process,
        _ended_with_us(process),
    ):  # fmt: skip
        assert process.stdout
        for line in map(str.rstrip, process.stdout):
            if line:
                last = line
                on_line(line)
    if process.returncode:
        raise Ended(process.returncode, last.removeprefix("error: "))


@contextmanager
def _ended_with_us(process: "subprocess.Popen[str]") -> Iterator[None]:
    """End the process if the block is left by an exception, a signal's included."""
    try:
        yield
    except BaseException:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
        raise


def forwarder() -> Callable[[str], None]:
    """A function that logs a line of the trainer in the run, and shows the progress in it."""
    log = get_run_logger()
    bar: list[Any] = []

    def forward(line: str) -> None:
        word, colon, rest = line.partition(": ")
        level = _LEVELS.get(word, logging.INFO)
        log.log(level, "%s", rest if colon and (word in _LEVELS or word == "INFO") else line)
        if found := _PROGRESS.match(line):
            done, total = map(int, found.groups())
            with optional():
                if not bar:
                    about = "training steps done, per cent"
                    bar.append(ui.create_progress_artifact(0.0, f"{NAME}-progress", about))
                ui.update_progress_artifact(bar[0], 100 * done / total)

    return forward


def _train_and_evaluate(**parameters: Any) -> Any:
    from pipeline.flows.flow import build_patches

    try:
        config = TrainingConfig(**parameters)
        config.check()
        if config.images:
            built = {"images": config.images, "out": config.manifest, "profile": config.profile}
            state = build_patches(**built, device=config.device, return_state=True)
            if not state.is_completed():
                return state
        get_run_logger().info("%s", typed(["python", "-m", *config.training()]))
        run_process(config.training(), forwarder())
        show_curve(config.folder)
        if config.evaluate_on or config.reference:
            run_process(config.evaluation(), forwarder())
            show_scores(config.folder / "evaluation")
    except Ended as ended:
        return (Cancelled if ended.stopped else Failed)(message=str(ended))
    except Exception as error:
        failure = user_error(error)
        return Failed(message=str(failure), data=failure)
    weights = config.folder / "model.safetensors"
    return Completed(message=f"{weights} after {counted(config.steps, 'step')}", data=str(weights))


def show_curve(folder: Path) -> None:
    """Create an artifact with the losses of a run over its steps."""
    with optional():
        picture = base64.b64encode(draw_curve(folder / "stats.jsonl")).decode()
        text = f"![losses](data:image/png;base64,{picture})\n\n`{folder}`"
        ui.create_markdown_artifact(text, f"{NAME}-curve", f"losses of {folder.name}")


def draw_curve(stats: Path) -> bytes:
    """A PNG of the losses in a run's stats.jsonl. Raises UserError: it has none."""
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in stats.read_text("utf-8").splitlines() if line]
    lines = [line for line in lines if "kind" not in line and "total" in line]
    if not lines:
        raise UserError(f"{stats}: no losses")
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    steps = [line["step"] for line in lines]
    for name in ("total", "content_sr", "quality_sr", "vgg"):
        if name in lines[0]:
            values = [line.get(name) for line in lines]
            axes.plot(steps, values, label=name, marker="." if len(steps) < 50 else "")
    axes.set(xlabel="step")
    axes.legend()
    axes.grid(alpha=0.3)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def show_scores(evaluation: Path) -> None:
    """Create an artifact with the mean of each metric, a row for each method."""
    with optional():
        table: dict[str, dict[str, Any]] = {}
        with open(evaluation / "means.csv", encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                own = table.setdefault(row["method"], {"method": row["method"]})
                own[row["metric"]] = round(float(row["mean"]), 4) if row["mean"] else None
        ui.create_table_artifact(list(table.values()), f"{NAME}-scores", "means over the pictures")


def _run_name() -> str:
    """What a run does, in the list of runs: its manifest, its steps, its folder."""
    config = TrainingConfig.model_construct(**flow_run.get_parameters())
    start = "build and " if config.images else ""
    scores = ", evaluate" if config.evaluate_on or config.reference else ""
    return f"{start}train {config.folder.name}: {counted(config.steps, 'step')}{scores}"


train_and_evaluate = flow(
    name=NAME, description=ABOUT, flow_run_name=_run_name, validate_parameters=False
)(shaped(_train_and_evaluate, TrainingConfig, ABOUT))
