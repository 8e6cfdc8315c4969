"""DepthFM (Gui et al., AAAI 2025), the paper's depth estimator, on diffusers' networks.

DepthFM moves the latent of an image to the latent of its depth along a learned velocity field: a
Stable Diffusion 2.1 UNet, a few Euler steps, between the encoder and the decoder of Stable
Diffusion 1.5. Its output grows with distance, so it is not inverted: upstream's `inference.ipynb`
plots it as it is, with the grass in front at 0 and the meadow in the background near 1.

Upstream is https://github.com/CompVis/depth-fm. Its self-attention has a rescaled form for
installations without xformers; this is the form with xformers, which its requirements install.
"""

import logging
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lasr.device import Precision, autocast
from lasr.errors import one_line
from lasr.weights.locate import Located, WeightsError, locate
from pipeline.stages.depth import DepthModel

if TYPE_CHECKING:
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from torch import Tensor

# diffusers imports bitsandbytes if it is installed, which warns of a kernel that nothing here uses.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

IS_NETWORK = True
DRAWS_NOISE = True
EULER_STEPS = 2
LATENT_SCALE = 0.18215  # Stable Diffusion 1.5's
# Longer side of the network's input. It was trained at 384 x 512, and its authors advise a shorter
# side of 384 to 512 (CompVis/depth-fm, issue 7): 3:2 becomes 768 x 512.
LONGER_SIDE = 768
_KEYS = ("noising_step", "ldm_hparams", "empty_text_embedding", "state_dict")


def recognises(path: Path) -> bool:
    """Whether a PyTorch file names the entries of upstream's checkpoint; reads its pickle only."""
    if not (path.is_file() and zipfile.is_zipfile(path)):
        return False
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        return any(b"ldm_hparams" in archive.read(name) for name in pickles)


def load(located: Located, device: "torch.device", seed: int, precision: Precision) -> DepthModel:
    """Load a checkpoint, and the autoencoder from `vae/` beside it or from `sd15-vae`.

    Raises WeightsError: missing or damaged files, or another layout.
    """
    assert located.path is not None
    folder = located.path.parent
    if not (folder / "vae").is_dir():
        folder = locate("sd15-vae", "depth").path or folder
    model = load_depthfm(located.path, folder / "vae", device)
    # One photograph per call: it fills a GPU, and each draws its own noise from the same seed.
    return DepthModel(
        located.identity,
        prepare,
        lambda prepared: [predict(model, one, seed, precision) for one in prepared],
        batch=1,
        is_network=IS_NETWORK,
    )


def prepare(photograph: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (3, h, w) float32 in [-1, 1] at the network's size."""
    height, width = photograph.shape[:2]
    size = processing_size(width, height)
    resized = np.asarray(Image.fromarray(photograph).resize(size, Image.Resampling.BILINEAR))
    return (resized / 127.5 - 1).astype(np.float32).transpose(2, 0, 1)


def predict(
    model: "DepthFM", prepared: np.ndarray, seed: int, precision: Precision = "float32"
) -> np.ndarray:
    """A result of `prepare` -> (h, w) float32, 0 = nearest, 1 = farthest.

    The noise depends on the seed alone. float16 stands for both half precisions: it is upstream's,
    and has three more bits. Raises ValueError: the result is not finite.
    """
    import torch

    device = model.text_embedding.device
    images = torch.tensor(prepared, device=device)[None]
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same noise on any device
    with autocast(device, "float16" if precision == "bfloat16" else precision):
        depth = model.depth(images, generator)
    if not depth.isfinite().all():
        raise ValueError("the depth estimate is not finite")
    return min_max(depth[:, 0].float())[0].cpu().numpy()


@dataclass(frozen=True)
class DepthFM:
    """The networks, and the checkpoint's settings for their use."""

    unet: "UNet2DConditionModel"
    vae: "AutoencoderKL"
    text_embedding: "Tensor"  # of the empty prompt: (1, tokens, channels)
    noising_step: int  # of 1000; 0 = no noise

    def depth(self, images: "Tensor", generator: "torch.Generator") -> "Tensor":
        """(B, 3, H, W) in [-1, 1], sides multiples of 64 -> (B, 1, H, W) in [0, 1], 1 = farthest.

        Upstream's `predict_depth` with one draw of the noise.
        """
        import torch

        with torch.inference_mode():
            latent = self.vae.encode(images).latent_dist.mode().float() * LATENT_SCALE
            text = self.text_embedding.expand(len(latent), -1, -1)

            # The path starts at the image plus some noise. Not `randn_like`: its numbers depend on
            # the memory layout, which convolutions choose by batch size and device.
            noise = torch.randn(latent.shape, generator=generator, device=generator.device)
            signal = cosine_signal(self.noising_step / 1000) if self.noising_step else 1.0
            z = math.sqrt(signal) * latent + math.sqrt(1 - signal) * noise.to(latent)

            for step in range(EULER_STEPS):
                t = torch.full((len(z),), step / EULER_STEPS, device=z.device)  # stays in [0, 1]
                velocity = self.unet(torch.cat([z, latent], dim=1), t, text).sample
                z = z + velocity / EULER_STEPS

            log_depth = self.vae.decode(z / LATENT_SCALE).sample.float().mean(dim=1, keepdim=True)
            return min_max(log_depth.exp())


def load_depthfm(checkpoint: Path, vae: Path, device: "torch.device") -> DepthFM:
    """From upstream's `depthfm-v1.ckpt` and the `vae` folder of Stable Diffusion 1.5.

    Raises WeightsError: a file cannot be read or has another layout than the published one.
    """
    import torch

    from lasr.weights.tensors import read_content

    content = read_content(checkpoint, _array_types())
    try:
        _check_layout(content)
        unet = _build_unet(content["ldm_hparams"], content["state_dict"])
        text = torch.as_tensor(content["empty_text_embedding"], dtype=torch.float32)
        if text.shape[-1] != unet.config["cross_attention_dim"]:
            raise ValueError(f"empty_text_embedding {tuple(text.shape)} does not fit context_dim")
    except ValueError as error:
        raise WeightsError(f"{checkpoint}: {error}", "give upstream's depthfm-v1.ckpt") from error
    return DepthFM(
        unet=_frozen(unet, device),
        vae=_frozen(_read_vae(vae), device),
        text_embedding=text.reshape(1, -1, text.shape[-1]).to(device),
        noising_step=int(content["noising_step"]),
    )


def _frozen(network: Any, device: "torch.device") -> Any:
    return network.to(device).eval().requires_grad_(False)


def cosine_signal(t: float) -> float:
    """Share of the image's variance left at time t in [0, 1) of the cosine schedule.

    As upstream: the sigmoid of the log signal-to-noise ratio, -2 log(tan(pi t / 2) + 1e-5).
    """
    return 1 / (1 + (math.tan(math.pi * t / 2) + 1e-5) ** 2)


def processing_size(width: int, height: int) -> tuple[int, int]:
    """Scale the longer side to LONGER_SIDE, up or down, and round both to multiples of 64."""
    scale = min(LONGER_SIDE / width, LONGER_SIDE / height)
    # At least 64; upstream rounds the short side of a panorama to 0.
    wide, high = (max(64, round(int(side * scale) / 64) * 64) for side in (width, height))
    return wide, high


def min_max(values: "Tensor") -> "Tensor":
    """Stretch each of (B, ...) to [0, 1]; a constant one becomes 0."""
    import torch

    flat = values.flatten(1)
    low, high = flat.amin(dim=1, keepdim=True), flat.amax(dim=1, keepdim=True)
    return ((flat - low) / torch.where(high > low, high - low, 1)).reshape(values.shape)


def _array_types() -> list[Any]:
    """What the pickle may call besides PyTorch's list: the constructors of arrays of floats.

    The published file holds its text embedding as a NumPy array. NumPy 1 and 2 write different
    names for the function that rebuilds one.
    """
    rebuild: Any = np.empty(0).__reduce__()[0]
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    types: list[Any] = [
        np.ndarray,
        np.dtype,
        *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8")),
    ]
    return [*types, *((rebuild, f"{module}._reconstruct") for module in modules)]


def _check_layout(content: Any) -> None:
    for key in _KEYS:
        if not isinstance(content, dict) or key not in content:
            raise ValueError(f"no {key}: not the layout of depthfm-v1.ckpt")


def _unet_config(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Translate upstream's arguments to diffusers'.

    An option that is not read here changes the names or shapes of the weights, which `_build_unet`
    compares, or matters only in training.
    """
    try:
        channels = [hparams["model_channels"] * factor for factor in hparams["channel_mult"]]
        attends = [2**level in hparams["attention_resolutions"] for level in range(len(channels))]
        if (head := hparams.get("num_head_channels", -1)) != -1:
            heads = [wide // head for wide in channels]
        else:
            heads = [hparams["num_heads"]] * len(channels)
        return {
            "in_channels": hparams["in_channels"],
            "out_channels": hparams["out_channels"],
            "block_out_channels": channels,
            "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
            "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
            "layers_per_block": int(hparams["num_res_blocks"]),
            # Despite its name the *number* of heads. No shape depends on it: Stable Diffusion
            # 2.1's (5, 10, 20, 20) would load, and compute something else.
            "attention_head_dim": heads,
            "cross_attention_dim": hparams["context_dim"],
            "use_linear_projection": hparams.get("use_linear_in_transformer", False),
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"ldm_hparams lacks or has an unknown form of {error}") from error


def _build_unet(
    hparams: Mapping[str, Any], weights: "Mapping[str, Tensor]"
) -> "UNet2DConditionModel":
    """The UNet with all of its weights. Raises ValueError: a weight is missing, extra or another
    shape."""
    import torch
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    config = _unet_config(hparams)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    # The converter silently skips weights without the prefix and those it does not know.
    prefixed = {f"model.diffusion_model.{name}": tensor for name, tensor in weights.items()}
    converted = convert_ldm_unet_checkpoint(prefixed, config)

    unused = {id(tensor): name for name, tensor in weights.items()}
    wanted = {name: tensor.shape for name, tensor in unet.state_dict().items()}
    for name, tensor in converted.items():
        if tensor is None:  # the converter's value for a missing bias
            continue
        ours, shape = unused.pop(id(tensor)), wanted.pop(name, None)
        if tensor.shape != shape:
            right = f"not {tuple(shape)} as ldm_hparams has it" if shape else "not in ldm_hparams"
            raise ValueError(f"state_dict: {ours} is {tuple(tensor.shape)}, {right}")
    if wanted:
        raise ValueError(f"state_dict lacks {len(wanted)} tensors, first (diffusers) {min(wanted)}")
    if unused:
        raise ValueError(f"state_dict has {len(unused)} too many, first {min(unused.values())}")
    floats = {name: tensor.float() for name, tensor in converted.items()}
    unet.load_state_dict(floats, assign=True)
    return unet


def _read_vae(folder: Path) -> "AutoencoderKL":
    """The autoencoder of Stable Diffusion 1.5. Raises WeightsError."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    fix = (
        "it must be the autoencoder of Stable Diffusion 1.5: run `lasr weights fetch sd15-vae`,"
        " or put its folder `vae` beside the checkpoint"
    )
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        if not (folder / name).is_file():  # diffusers would take the folder for a repository
            raise WeightsError(f"{folder}: no {name}", fix)
    try:
        vae, report = AutoencoderKL.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # diffusers and safetensors raise many types
        raise WeightsError(
            f"{folder}: not a complete AutoencoderKL: {one_line(error)}", fix
        ) from error
    for problem in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if report[problem]:  # diffusers only warns, and fills in random numbers
            keys = f"{problem.replace('_', ' ')}: {min(map(str, report[problem]))}"
            raise WeightsError(f"{folder}: {keys}", fix)
    if (scale := vae.config["scaling_factor"]) != LATENT_SCALE:
        raise WeightsError(f"{folder}: scaling_factor {scale}, not {LATENT_SCALE}", fix)
    return vae
