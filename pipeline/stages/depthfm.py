"""DepthFM (Gui et al., AAAI 2025), a depth estimator, on diffusers' networks.

DepthFM carries the latent of an image to the latent of its depth along a learned velocity field: a
Stable Diffusion 2.1 UNet, a few Euler steps, between Stable Diffusion 1.5's encoder and decoder.
Upstream is https://github.com/CompVis/depth-fm. Its self-attention has a rescaled variant for want
of xformers; this is the one with xformers, which upstream's requirements install.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from torch import Tensor

from lasr.weights.tensors import read_content

LATENT_SCALE = 0.18215  # Stable Diffusion 1.5's


@dataclass(frozen=True)
class DepthFM:
    """The networks, and what the checkpoint says about using them."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_embedding: Tensor  # of the empty prompt: (1, tokens, channels)
    noising_step: int  # of 1000; 0 = no noise

    @torch.inference_mode()
    def depth(
        self,
        images: Tensor,
        num_steps: int = 2,
        ensemble_size: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(B, 3, H, W) in [-1, 1], sides multiples of 64 -> (B, 1, H, W) in [0, 1], 1 = farthest.

        Upstream's `predict_depth`. An ensemble is the mean over that many draws of the noise.
        """
        latent = self.vae.encode(images).latent_dist.mode().float() * LATENT_SCALE
        latent = latent.repeat_interleave(ensemble_size, dim=0)
        text = self.text_embedding.expand(len(latent), -1, -1)

        # The path starts at the image behind some noise. Not `randn_like`: what that draws depends
        # on the memory layout, which convolutions choose by batch size and device.
        source = generator.device if generator else latent.device
        noise = torch.randn(latent.shape, generator=generator, device=source).to(latent)
        signal = cosine_signal(self.noising_step / 1000) if self.noising_step else 1.0
        z = math.sqrt(signal) * latent + math.sqrt(1 - signal) * noise

        for step in range(num_steps):
            t = torch.full((len(z),), step / num_steps, device=z.device)  # stays in [0, 1]
            z = z + self.unet(torch.cat([z, latent], dim=1), t, text).sample / num_steps

        log_depth = self.vae.decode(z / LATENT_SCALE).sample.float().mean(dim=1, keepdim=True)
        return min_max(log_depth.unflatten(0, (-1, ensemble_size)).mean(dim=1).exp())


@dataclass(frozen=True)
class DepthFMDistance:
    """A photograph -> its distance map, each by itself and with the same seed.

    DepthFM's depth grows with distance, so it is kept: upstream's `inference.ipynb` plots it as it
    comes, and the grass in front is at 0, the dogs in the middle, the meadow behind them near 1.
    """

    model: DepthFM
    seed: int = 0
    num_steps: int = 2
    ensemble_size: int = 1  # upstream's command line takes 4, at four times the cost
    # Longer edge; None: the photograph's own. The network was trained at 384 x 512, and its authors
    # advise a shorter edge of 384 to 512 (CompVis/depth-fm, issue 7): 3:2 becomes 768 x 512.
    max_side: int | None = 768
    name: str = "depthfm"

    def prepare(self, photograph: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (3, h, w) float32 in [-1, 1] at the network's size."""
        height, width = photograph.shape[:2]
        size = processing_size(width, height, self.max_side)
        resized = np.asarray(Image.fromarray(photograph).resize(size, Image.Resampling.BILINEAR))
        return (resized / 127.5 - 1).astype(np.float32).transpose(2, 0, 1)

    def predict(self, prepared: np.ndarray) -> np.ndarray:
        """What `prepare` made -> (h, w) float32, 0 = nearest, 1 = farthest of it.

        Raises ValueError: not finite.
        """
        device = self.model.text_embedding.device
        images = torch.tensor(prepared, device=device)[None]
        generator = torch.Generator().manual_seed(self.seed)  # the CPU's: same noise on any device
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):  # upstream
            depth = self.model.depth(images, self.num_steps, self.ensemble_size, generator)
        if not depth.isfinite().all():
            raise ValueError(f"{self.name}: the depth of a photograph is not finite")
        return min_max(depth[:, 0].float())[0].cpu().numpy()


def load_depthfm(checkpoint: Path, vae: Path, device: torch.device) -> DepthFM:
    """From upstream's `depthfm-v1.ckpt` and the `vae` folder of Stable Diffusion 1.5.

    Raises WeightsError: the checkpoint cannot be read. ValueError: it, or the autoencoder, has not
    the layout of the published one.
    """
    content = read_content(checkpoint, _arrays())
    try:
        _check_layout(content)
        unet = _build_unet(content["ldm_hparams"], content["state_dict"])
        text = torch.as_tensor(content["empty_text_embedding"], dtype=torch.float32)
        if text.shape[-1] != unet.config["cross_attention_dim"]:
            raise ValueError(f"empty_text_embedding {tuple(text.shape)} does not fit context_dim")
    except ValueError as error:
        raise ValueError(f"{checkpoint}: {error}; give upstream's depthfm-v1.ckpt") from error
    return DepthFM(
        unet=_frozen(unet, device),
        vae=_frozen(_read_vae(vae), device),
        text_embedding=text.reshape(1, -1, text.shape[-1]).to(device),
        noising_step=int(content["noising_step"]),
    )


def _frozen(network: Any, device: torch.device) -> Any:
    return network.to(device).eval().requires_grad_(False)


def cosine_signal(t: float) -> float:
    """Share of the image's variance left at time t in [0, 1) of the cosine schedule.

    Upstream's sigmoid of the log signal-to-noise ratio, -2 log(tan(pi t / 2) + 1e-5).
    """
    return 1 / (1 + (math.tan(math.pi * t / 2) + 1e-5) ** 2)


def processing_size(width: int, height: int, max_side: int | None) -> tuple[int, int]:
    """Upstream's: scaled, up or down, to the longer edge, then each to a multiple of 64."""
    longest = max_side or max(width, height)
    scale = min(longest / width, longest / height)
    # At least 64, where upstream would round the short edge of a panorama to 0.
    wide, high = (max(64, round(int(side * scale) / 64) * 64) for side in (width, height))
    return wide, high


def min_max(values: Tensor) -> Tensor:
    """Each of (B, ...) to [0, 1]; all 0 where it is constant."""
    flat = values.flatten(1)
    low, high = flat.amin(dim=1, keepdim=True), flat.amax(dim=1, keepdim=True)
    return ((flat - low) / torch.where(high > low, high - low, 1)).reshape(values.shape)


def _arrays() -> list[Any]:
    """What the pickle may call besides PyTorch's: what makes an array of floats."""
    # Arrays of floats are data as tensors are, and the published file has its text embedding as
    # one. NumPy 1 and 2 write different names for the function that rebuilds them.
    rebuild: Any = np.empty(0).__reduce__()[0]
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    arrays: list[Any] = [
        np.ndarray,
        np.dtype,
        *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8")),
    ]
    return [*arrays, *((rebuild, f"{module}._reconstruct") for module in modules)]


def _check_layout(content: Any) -> None:
    for key in ("noising_step", "ldm_hparams", "empty_text_embedding", "state_dict"):
        if not isinstance(content, dict) or key not in content:
            raise ValueError(f"no {key}: not laid out as depthfm-v1.ckpt")


def _unet_config(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Upstream's arguments as diffusers'. Any option not read here would change the weights' names
    or shapes, which `_build_unet` compares, or matters only in training."""
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
            # Despite its name the *number* of heads. No weight's shape tells: Stable Diffusion
            # 2.1's (5, 10, 20, 20) would load as well, and compute something else.
            "attention_head_dim": heads,
            "cross_attention_dim": hparams["context_dim"],
            "use_linear_projection": hparams.get("use_linear_in_transformer", False),
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"ldm_hparams lacks or has an unknown form of {error}") from error


def _build_unet(hparams: Mapping[str, Any], weights: Mapping[str, Tensor]) -> UNet2DConditionModel:
    config = _unet_config(hparams)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    # The converter passes over, silently, what lacks the prefix and what it does not know.
    prefixed = {f"model.diffusion_model.{name}": tensor for name, tensor in weights.items()}
    converted = convert_ldm_unet_checkpoint(prefixed, config)

    unused = {id(tensor): name for name, tensor in weights.items()}
    wanted = {name: tensor.shape for name, tensor in unet.state_dict().items()}
    for name, tensor in converted.items():
        if tensor is None:  # the converter's answer for a bias that is not there
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


_WANTED = (
    "the autoencoder of Stable Diffusion 1.5; `python -m lasr.weights fetch sd15-vae` brings it"
)


def _read_vae(folder: Path) -> AutoencoderKL:
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        if not (folder / name).is_file():  # diffusers would take the folder for a repository
            raise ValueError(f"{folder}: no {name}: not {_WANTED}")
    try:
        vae, report = AutoencoderKL.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # diffusers, its configs and safetensors raise many kinds
        why = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder}: not a whole AutoencoderKL: {why}; fetch it again") from error
    for problem in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if report[problem]:  # diffusers warns only, and leaves random numbers in their place
            what = f"{problem.replace('_', ' ')}: {min(map(str, report[problem]))}"
            raise ValueError(f"{folder}: {what}: not {_WANTED}")
    if (scale := vae.config["scaling_factor"]) != LATENT_SCALE:
        raise ValueError(f"{folder}: scaling_factor {scale}: not {_WANTED}")
    return vae
