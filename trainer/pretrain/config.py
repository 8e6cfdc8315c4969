"""The settings of `lasr pretrain`: one model for its flags and the run's config.json."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lasr.device import Device
from lasr.flags import Sections
from trainer.config import CompileMode

Precision = Literal["auto", "float32", "tf32", "bfloat16"]
SIZE = {"features": 64, "blocks": 23, "growth": 32}  # the published RRDB
# A resumed run may have other values of these. --steps is not among them: the schedule of the
# learning rate depends on it.
MAY_CHANGE = {
    "images", "out", "sr_init", "log_every", "sample_every", "checkpoint_every", "weights_every",
    "validate_every", "validate_on", "validate_lr", "workers", "dry_run",
}  # fmt: skip


class PretrainConfig(BaseModel):
    """What `lasr pretrain` takes. The defaults are those of BasicSR for PSNR-oriented RRDB x4."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    DATA: ClassVar[str] = "images"  # what config.json records the identity of
    # What `--help-all` shows; `--help` shows the other fields.
    SECTIONS: ClassVar[Sections] = {
        "Network": ("sr_init", "features", "blocks", "growth"),
        "Schedule": ("warmup", "ema"),
        "Data": ("patch", "candidates", "longest_side", "memory_mb", "workers"),
        "Validation": ("held_out", "validate_on", "validate_lr", "validate_every"),
        "Speed": ("precision", "compile"),
        "Output": ("log_every", "sample_every", "checkpoint_every", "weights_every"),
    }  # fmt: skip

    images: list[Path] = Field(
        min_length=1, description="photographs: folders, files, globs, .txt lists of paths"
    )
    out: Path = Field(description="folder of the run")
    sr_init: str | None = Field(
        None,
        description="initial weights: name or file (default: a network of the size below that"
        " interpolates)",
    )
    features: int | None = Field(
        None, ge=4, le=1024, description="channels of the trunk (default: 64)"
    )
    blocks: int | None = Field(
        None, ge=1, le=1024, description="residual-in-residual dense blocks (default: 23)"
    )
    growth: int | None = Field(
        None, ge=1, le=1024, description="channels that each dense convolution adds (default: 32)"
    )
    steps: int = Field(500_000, ge=1, description="training steps")
    batch_size: int = Field(16, ge=1, le=65_536, description="patches per step")
    lr: float = Field(2e-4, gt=0, description="highest learning rate of Adam")
    warmup: int = Field(
        500, ge=0, description="steps in which the learning rate rises; then a cosine takes it to 0"
    )
    ema: float = Field(
        0.999,
        ge=0,
        lt=1,
        description="decay of a moving average of the weights, which is validated and saved as"
        " model_ema; 0 = none",
    )
    patch: int = Field(32, ge=8, description="side of LR patches in pixels; HR is four times that")
    candidates: int = Field(
        1,
        ge=1,
        le=1000,
        description="places that are drawn for each patch; the one with the most texture is taken,"
        " because flat ones teach little",
    )
    longest_side: int = Field(
        2048,
        ge=0,
        description="larger photographs are shrunk to this: at full size many are soft; 0 = never",
    )
    memory_mb: int = Field(
        4096,
        ge=1,
        description="memory for pixels; where photographs need more, each keeps an equal share of"
        " it, cut out at random",
    )
    held_out: float = Field(
        0.05, ge=0, lt=1, description="share of the photographs for validation, never trained on"
    )
    validate_on: Path | None = Field(
        None, description="folder of further pictures to validate on, such as Set5"
    )
    validate_lr: Path | None = Field(
        None,
        description="their LR pictures, matched by name (default: made by MATLAB's bicubic)",
    )
    validate_every: int = Field(5000, ge=1, description="steps between validations")
    precision: Precision = Field(
        "auto",
        description="of the network; the loss is always float32 (auto: bfloat16 on a GPU that has"
        " it, otherwise float32)",
    )
    compile: CompileMode = Field("off", description="torch.compile of the network, by its mode")
    seed: int = Field(0, ge=0, description="seed of crops, augmentation and the initial weights")
    log_every: int = Field(100, ge=1, description="steps between lines of stats.jsonl")
    sample_every: int = Field(5000, ge=1, description="steps between sample pictures")
    checkpoint_every: int = Field(5000, ge=1, description="steps between checkpoints")
    weights_every: int = Field(
        0,
        ge=0,
        description="steps between snapshots weights/stepNNNNNNN.safetensors, for `lasr curve`;"
        " 0 = none",
    )
    workers: int = Field(4, ge=1, description="threads that read photographs and cut patches")
    device: Device = Field("auto", description="where the network runs")
    dry_run: bool = Field(False, description="check everything, print what would be done, and stop")

    @model_validator(mode="after")
    def _check(self) -> "PretrainConfig":
        sizes = [name for name in SIZE if getattr(self, name) is not None]
        if self.sr_init and sizes:
            raise ValueError(f"--sr-init has a size of its own: leave --{sizes[0]} out")
        if self.validate_lr and not self.validate_on:
            raise ValueError("--validate-lr needs --validate-on, the folder of HR pictures")
        return self

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.out

    @property
    def size(self) -> dict[str, int]:
        """Features, blocks and growth of a network that starts untrained."""
        return {name: getattr(self, name) or default for name, default in SIZE.items()}

    @property
    def inputs(self) -> list[object]:
        """What a run reads. Names of weights in the table are no paths, and do no harm here."""
        return [*self.images, self.validate_on, self.validate_lr, self.sr_init]

    @property
    def may_change(self) -> set[str]:
        """The settings that a resumed run may have other values of."""
        return MAY_CHANGE
