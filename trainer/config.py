"""The settings of a training run: one model for the command's flags and the run's config.json."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from lasr.device import Device
from lasr.flags import Sections
from lasr.storage.config import ManifestAddress, StorageConfig, base_name
from lasr.weights.locate import PROFILES, Profile

Pairing = Literal["photograph", "random"]
Degradation = Literal["none", "realesrgan"]
Augmentation = Literal["none", "flips", "all"]
Schedule = Literal["constant", "cosine"]
Split = Literal["train", "all"]
EncoderView = Literal["paper", "equal-size"]
Precision = Literal["auto", "float32", "tf32", "bfloat16", "float16"]
CompileMode = Literal["off", "default", "reduce-overhead", "max-autotune"]
VGGDistance = Literal["l1", "l2"]

# A resumed run may have other values of these. They do not change a result, or they name something
# that is compared by content (the manifest, the weights).
MAY_CHANGE = {
    "out", "steps", "log_every", "sample_every", "checkpoint_every", "weights_every", "workers",
    "dry_run", "max_skipped", "cuda_graph", "accumulate", "validate_every", "validate_on",
    "reference", "wandb",
    "manifest", "profile", "sr_init", "clip", "vgg", "cache", "cache_size", "storage_timeout",
}  # fmt: skip


class TrainConfig(StorageConfig):
    """What `lasr train` takes. The defaults are the paper's (section 4)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    DATA: ClassVar[str] = "manifest"  # what config.json records the identity of
    # What `--help-all` shows; `--help` shows the other fields.
    SECTIONS: ClassVar[Sections] = {
        "Models": ("sr_init", "clip", "vgg", "encoders", "freeze_encoders"),
        "Losses": (
            "weight_content", "weight_quality", "weight_vgg", "weight_consistency", "good", "bad",
            "vgg_layers", "vgg_distance", "encoder_view", "sr_as_low_quality",
        ),
        "Optimizer": ("lr_encoders", "warmup", "schedule", "clip_gradient", "ema"),
        "Data": ("split", "pairing", "augment", "shards", "workers", "max_skipped"),
        "Object storage": ("cache", "cache_size", "storage_timeout"),
        "Speed": ("precision", "compile", "cuda_graph", "accumulate"),
        "Validation": ("validate_every", "validate_on", "reference"),
        "Output": ("log_every", "sample_every", "checkpoint_every", "weights_every", "wandb"),
    }  # fmt: skip

    manifest: ManifestAddress = Field(
        description="folder of Parquet parts, or one Parquet file, as SQL writes it; also in object"
        " storage (s3://, gs://, hf://)"
    )
    out: Path | None = Field(
        None, description="folder of the run (default: data/runs/ and the manifest's name)"
    )
    profile: Profile = Field(
        "default",
        description="a named set of models; offline: small ones out of packages, for a first look",
    )
    sr_init: str | None = Field(
        None,
        description="initial weights of the SR network: name or file (default: the profile's)",
    )
    clip: str | None = Field(
        None, description="CLIP whose encoders are trained: name or folder (default: the profile's)"
    )
    vgg: str | None = Field(
        None, description="weights of the VGG loss: a name or a file (default: the profile's)"
    )
    steps: int = Field(300_000, ge=1, description="training steps")
    batch_size: int = Field(
        16,
        ge=2,
        description="LR patches per step, and as many HR patches, over all processes; equation (1)"
        " needs 2 or more",
    )
    lr: float = Field(5e-5, gt=0, description="learning rate of Adam")
    lr_encoders: float | None = Field(
        None, gt=0, description="learning rate of the encoders (default: the one of --lr)"
    )
    warmup: int = Field(
        0, ge=0, description="first steps, in which the learning rates grow linearly from 0"
    )
    schedule: Schedule = Field(
        "constant", description="of the learning rates: constant, or half a cosine down to 0"
    )
    clip_gradient: float = Field(
        0, ge=0, description="largest norm of each network's gradient; 0 = as it is"
    )
    weight_content: float = Field(0.5, ge=0, description="linguistic-content loss; 0 = off")
    weight_quality: float = Field(0.5, ge=0, description="linguistic-quality loss; 0 = off")
    weight_vgg: float = Field(0.1, ge=0, description="modified VGG loss; 0 = off")
    weight_consistency: float = Field(
        0,
        ge=0,
        description="mean absolute difference between SR pictures, shrunk bicubically, and their LR"
        " patches, which holds colours and whatever else LR shows; 0 = off, as in the paper",
    )
    good: list[str] = Field(["good"], min_length=1, description="texts for high quality, Q+")
    bad: list[str] = Field(["bad"], min_length=1, description="texts for low quality, Q-")
    vgg_layers: list[str] | None = Field(
        None,
        min_length=1,
        description="VGG19 layers to compare, before (conv…) or after ReLU (default: conv5_4 as in"
        " SRGAN and ESRGAN); stem and expansion of lite0-features (default: both)",
    )
    vgg_distance: VGGDistance = Field("l1", description="distance between VGG features")
    encoder_view: EncoderView = Field(
        "paper",
        description="size at which the encoders see LR patches while they learn: their own (paper),"
        " or enlarged bicubically to that of HR and SR, so that size says nothing of quality",
    )
    sr_as_low_quality: float = Field(
        0,
        ge=0,
        le=1,
        description="share of a batch's SR pictures that join equation (3) as low quality, so that"
        " the encoders learn to tell artefacts from detail; 0 = none, as in the paper",
    )
    freeze_encoders: bool = Field(
        False,
        description="train the SR network alone (appendix E.1, with --lr 1e-7); HR patches are then"
        " not read, and a manifest may lack them",
    )
    encoders: Path | None = Field(
        None,
        description="run whose trained encoders to start from, its folder or its"
        " encoders.safetensors; E.1 freezes those (default: the CLIP's own)",
    )
    degrade: Degradation = Field(
        "none", description="degradation of LR patches: Real-ESRGAN's two-stage model (table 5)"
    )
    split: Split = Field(
        "train",
        description="rows to train on: those of the split `train`, so that the others are held out"
        " for validation, or all",
    )
    pairing: Pairing = Field(
        "photograph", description="pair HR patches with LR patches of their photograph, or any"
    )
    augment: Augmentation = Field(
        "all", description="of patches: none, mirrored along both axes, or turned as well"
    )
    precision: Precision = Field(
        "auto",
        description="of the networks; losses are always float32 (auto: bfloat16 on a GPU that has"
        " it, float16 with scaled losses on another, float32 on a CPU)",
    )
    compile: CompileMode = Field(
        "off",
        description="torch.compile of the networks' blocks, by its mode: half a minute to start,"
        " then, with `default` on a GPU, steps that take a quarter less",
    )
    cuda_graph: Literal["auto", "off"] = Field(
        "auto",
        description="auto: on one GPU, launch a step as one CUDA graph, if the networks allow it",
    )
    accumulate: int = Field(
        1,
        ge=1,
        description="cut the batch into so many parts, one after the other in memory; the losses"
        " are those of the whole batch (GradCache), and each part runs forward twice",
    )
    ema: float = Field(
        0,
        ge=0,
        lt=1,
        description="decay of a moving average of the SR network's weights, such as 0.999, saved as"
        " model_ema; 0 = none",
    )
    seed: int = Field(0, ge=0, description="seed of shuffling and augmentation")
    log_every: int = Field(100, ge=1, description="steps between lines of stats.jsonl")
    sample_every: int = Field(5000, ge=1, description="steps between sample pictures")
    checkpoint_every: int = Field(5000, ge=1, description="steps between checkpoints")
    weights_every: int = Field(
        0,
        ge=0,
        description="steps between snapshots weights/stepNNNNNNN.safetensors, for a curve over"
        " training (figure 8); 0 = none",
    )
    validate_every: int | None = Field(
        None,
        ge=0,
        description="steps between validations, on held-out patches and the pictures of"
        " --validate-on; 0 = never (default: as --sample-every)",
    )
    validate_on: Path | None = Field(
        None, description="folder of pictures to enlarge at each validation, as they are"
    )
    reference: Path | None = Field(
        None, description="folder of their true enlargements, of the same names, to compare with"
    )
    wandb: bool = Field(
        False, description="log to Weights & Biases as well, which has to be installed"
    )
    shards: int = Field(
        1,
        ge=1,
        description="divide the row groups into so many parts, of which each batch takes equal"
        " shares: then as many machines read disjoint row groups. It changes the order of training",
    )
    workers: int = Field(4, ge=1, description="threads that read and decode patches")
    max_skipped: float = Field(
        0.001,
        ge=0,
        le=1,
        description="share of the manifest's rows that may be unusable; more of them, and more than"
        " four, stop the run; 0 = stop at the first",
    )
    device: Device = Field("auto", description="where the networks run")
    dry_run: bool = Field(
        False,
        description="check everything, measure a few steps, print what would be done and what it"
        " takes, and stop",
    )

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.out or Path("data/runs") / base_name(self.manifest).removesuffix(".parquet")

    @property
    def sr_name(self) -> str:
        """Name or path of the SR network's initial weights."""
        return self.sr_init or PROFILES[self.profile]["sr"]

    @property
    def clip_name(self) -> str:
        """Name or path of the CLIP."""
        return self.clip or PROFILES[self.profile]["clip"]

    @property
    def vgg_name(self) -> str:
        """Name or path of the VGG19."""
        return self.vgg or PROFILES[self.profile]["vgg"]

    @property
    def inputs(self) -> list[object]:
        """What a run reads. Names of weights in the table are no paths, and do no harm here."""
        models = [self.encoders, self.sr_init, self.clip, self.vgg]
        return [self.manifest, *models, self.validate_on, self.reference]

    @property
    def cadence(self) -> int:
        """Steps between validations; 0: there is none."""
        return self.sample_every if self.validate_every is None else self.validate_every

    @model_validator(mode="after")
    def _check_shards(self) -> "TrainConfig":
        if self.batch_size % self.shards:
            raise ValueError(
                f"--shards {self.shards}: a batch of {self.batch_size} cannot be shared evenly"
            )
        return self

    @model_validator(mode="after")
    def _check_reference(self) -> "TrainConfig":
        if self.reference is not None and self.validate_on is None:
            raise ValueError("--reference needs the pictures of --validate-on to compare with")
        return self

    @property
    def may_change(self) -> set[str]:
        """The settings that a resumed run may have other values of."""
        # A cosine that ends elsewhere has other rates from the start.
        return MAY_CHANGE - ({"steps"} if self.schedule == "cosine" else set())
