"""DepthFM depth estimation (Gui et al., AAAI 2025) on diffusers' networks.

DepthFM carries an image's latent to its depth's latent along a learned velocity field: a Stable
Diffusion 2.1 UNet integrated by a few Euler steps, between the encoder and the decoder of Stable
Diffusion 1.5. Upstream is https://github.com/CompVis/depth-fm. Where its code has two behaviours
this follows the environment it asks for: with xformers, hence plain attention.
"""

import math
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from PIL import Image
from torch import Tensor

LATENT_SCALE = 0.18215  # Stable Diffusion 1.5's
CHECKPOINT_KEYS = ("noising_step", "ldm_hparams", "empty_text_embedding", "state_dict")

# Arguments of upstream's UNet: these shape our network,
USED = {"in_channels", "out_channels", "model_channels", "channel_mult", "num_res_blocks",
        "attention_resolutions", "num_heads", "num_head_channels", "transformer_depth",
        "context_dim", "use_linear_in_transformer"}  # fmt: skip
# these change nothing at inference,
IGNORED = {"image_size", "dropout", "legacy", "use_checkpoint", "num_heads_upsample",
           "use_new_attention_order", "load_from_ckpt", "use_fp16", "use_bf16"}  # fmt: skip
# and these are other networks, unless they have this value (upstream's default, but the first).
FIXED = {"use_spatial_transformer": True, "dims": 2, "conv_resample": True, "num_classes": None,
         "use_scale_shift_norm": False, "resblock_updown": False, "n_embed": None,
         "disable_self_attentions": None, "disable_middle_self_attn": False,
         "num_attention_blocks": None, "adm_in_channels": None}  # fmt: skip


@dataclass(frozen=True)
class DepthFM:
    """The networks, and what the checkpoint says about using them."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_embedding: Tensor  # 1×tokens×channels: the empty prompt's
    noising_step: int  # of 1000; 0 = none

    @torch.inference_mode()
    def depth(
        self,
        images: Tensor,
        num_steps: int = 2,
        ensemble_size: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """B×3×H×W in [-1, 1], sides multiples of 64 → B×1×H×W in [0, 1], larger = farther.

        Upstream's `predict_depth`; an ensemble is the mean over as many draws of the noise.
        """
        latent = self.vae.encode(images).latent_dist.mode().float() * LATENT_SCALE
        latent = latent.repeat_interleave(ensemble_size, dim=0)
        text = self.text_embedding.expand(len(latent), -1, -1)

        # The path starts at the image, blurred by some noise (the paper's noise augmentation).
        source = generator.device if generator else latent.device
        noise = torch.randn(latent.shape, generator=generator, device=source).to(latent.device)
        signal = cosine_signal(self.noising_step / 1000) if self.noising_step else 1.0
        z = math.sqrt(signal) * latent + math.sqrt(1 - signal) * noise

        for step in range(num_steps):
            t = torch.full((len(z),), step / num_steps, device=z.device)  # in [0, 1], as trained
            velocity = self.unet(torch.cat([z, latent], dim=1), t, text).sample
            z = z + velocity / num_steps

        log_depth = self.vae.decode(z / LATENT_SCALE).sample.float().mean(dim=1, keepdim=True)
        log_depth = log_depth.unflatten(0, (-1, ensemble_size)).mean(dim=1)
        return min_max(log_depth.exp())


@dataclass(frozen=True)
class DepthFMDistance:
    """Photographs → distance maps, each photograph on its own and with the same seed.

    DepthFM's depth grows with distance and is kept as it is: upstream's example (`inference.ipynb`)
    draws it without inversion and shows the grass in front at 0, the background near 1.
    """

    model: DepthFM
    seed: int = 0
    num_steps: int = 2
    ensemble_size: int = 1
    # The longer edge, `None` for the photograph's own. The network was trained at 384×512 and its
    # authors suggest a shorter edge of 384 to 512 (CompVis/depth-fm issue 7): 3:2 gives 768×512.
    max_side: int | None = 768
    name: str = "depthfm"

    def __call__(self, photographs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """H×W×3 uint8 RGB of any sizes → H×W float32, 0 = nearest, 1 = farthest of each."""
        return [self._distance(photograph) for photograph in photographs]

    def _distance(self, photograph: np.ndarray) -> np.ndarray:
        height, width = photograph.shape[:2]
        size = processing_size(width, height, self.max_side)
        resized = np.asarray(Image.fromarray(photograph).resize(size, Image.Resampling.BILINEAR))
        device = self.model.text_embedding.device
        images = torch.tensor(resized / 127.5 - 1, dtype=torch.float32, device=device)
        images = images.permute(2, 0, 1)[None]

        # On the CPU, whatever the device: the same noise everywhere.
        generator = torch.Generator().manual_seed(self.seed)
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            depth = self.model.depth(images, self.num_steps, self.ensemble_size, generator)
        if not depth.isfinite().all():
            raise ValueError(f"DepthFM gave values that are not numbers for a {width}×{height} "
                             "photograph: are its weights intact?")  # fmt: skip

        upright = Image.fromarray(depth[0, 0].cpu().numpy())
        upright = upright.resize((width, height), Image.Resampling.BILINEAR)
        return min_max(torch.from_numpy(np.array(upright))[None])[0].numpy()


def load_depthfm(checkpoint: Path, vae: Path, device: torch.device) -> DepthFM:
    """From upstream's `depthfm-v1.ckpt` and the `vae` folder of Stable Diffusion 1.5."""
    try:
        content = _read(checkpoint)
        hparams = content["ldm_hparams"]
        unet = _build_unet(hparams, content["state_dict"])
        text = torch.as_tensor(content["empty_text_embedding"], dtype=torch.float32)
        if text.shape[-1:] != (unet.config["cross_attention_dim"],):
            raise ValueError(f"empty_text_embedding of shape {tuple(text.shape)} does not go with "
                             f"context_dim {hparams['context_dim']}")  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{checkpoint}: {error}") from error

    try:
        autoencoder = _read_vae(vae)
        channels = autoencoder.config["latent_channels"]
        if (unet.config["in_channels"], unet.config["out_channels"]) != (2 * channels, channels):
            raise ValueError(f"{channels} latent channels do not go with the UNet of {checkpoint}")
    except ValueError as error:
        raise ValueError(f"{vae}: {error}") from error

    return DepthFM(
        unet=unet.to(device).eval().requires_grad_(False),
        vae=autoencoder.to(device).eval().requires_grad_(False),
        text_embedding=text.reshape(1, -1, text.shape[-1]).to(device),
        noising_step=int(content["noising_step"]),
    )


def cosine_signal(t: float) -> float:
    """Share of the variance that is still image at time t in [0, 1) of the cosine schedule.

    Upstream writes it as the sigmoid of the log signal-to-noise ratio −2·log(tan(πt/2) + 1e-5).
    """
    return 1 / (1 + (math.tan(math.pi * t / 2) + 1e-5) ** 2)


def processing_size(width: int, height: int, max_side: int | None) -> tuple[int, int]:
    """Upstream's: scaled, up or down, to the longer edge, then each to a multiple of 64."""
    longest = max_side or max(width, height)
    scale = min(longest / width, longest / height)

    def whole(side: int) -> int:
        return max(64, round(int(side * scale) / 64) * 64)  # upstream's 0 for thin ones: 64 here

    return whole(width), whole(height)


def min_max(values: Tensor) -> Tensor:
    """Each of B×… to [0, 1]; 0 throughout where all are equal."""
    flat = values.flatten(1)
    low, high = flat.amin(dim=1, keepdim=True), flat.amax(dim=1, keepdim=True)
    span = torch.where(high > low, high - low, 1.0)
    return ((flat - low) / span).reshape(values.shape)


def _read(checkpoint: Path) -> dict[str, Any]:
    # The published file keeps the empty prompt's embedding as a NumPy 1 array. Arrays of floats
    # are data: rebuilding one runs nothing that the file brings along.
    rebuild = np.empty(0).__reduce__()[0]
    arrays = [np.ndarray, np.dtype, *(type(np.dtype(name)) for name in ("f2", "f4", "f8"))]
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    named = [(rebuild, f"{module}._reconstruct") for module in modules]
    try:
        with torch.serialization.safe_globals([*arrays, *named]):
            content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        why = f"it holds {foreign[1]}, not weights alone" if foreign else "damaged or not PyTorch's"
        raise ValueError(f"refused as a checkpoint, {why}") from error
    missing = [key for key in CHECKPOINT_KEYS if key not in content]
    if missing:
        raise ValueError(f"no {missing[0]}: not laid out as depthfm-v1.ckpt")
    return content


def _unet_sizes(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of diffusers' UNet for those of upstream's."""
    for key, value in hparams.items():
        if key not in USED | IGNORED | FIXED.keys() or value != FIXED.get(key, value):
            raise ValueError(f"ldm_hparams has {key}={value!r}, which is not supported")
    hparams = {"use_spatial_transformer": False, "num_heads": -1, "num_head_channels": -1,
               "transformer_depth": 1, "use_linear_in_transformer": False, **hparams}  # fmt: skip
    missing = sorted(USED - hparams.keys())
    if missing or not hparams["use_spatial_transformer"]:
        raise ValueError(f"ldm_hparams lacks {(missing or ['use_spatial_transformer'])[0]}")

    channels = [hparams["model_channels"] * factor for factor in hparams["channel_mult"]]
    levels = len(channels)
    blocks = hparams["num_res_blocks"]
    if not isinstance(blocks, int) and len(set(blocks)) > 1:
        raise ValueError(f"ldm_hparams has num_res_blocks={blocks!r}, which is not supported")
    head = hparams["num_head_channels"]
    attention = [2**level in hparams["attention_resolutions"] for level in range(levels)]
    down = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in attention]
    up = ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(attention)]
    return {
        "in_channels": hparams["in_channels"],
        "out_channels": hparams["out_channels"],
        "block_out_channels": tuple(channels),
        "down_block_types": tuple(down),
        "up_block_types": tuple(up),
        "layers_per_block": blocks if isinstance(blocks, int) else blocks[0],
        # Despite its name, the *number* of heads. Stable Diffusion 2.1's own would load as well.
        "attention_head_dim": tuple(c // head if head != -1 else hparams["num_heads"] for c in channels),
        "transformer_layers_per_block": hparams["transformer_depth"],
        "cross_attention_dim": hparams["context_dim"],
        "use_linear_projection": hparams["use_linear_in_transformer"],
    }
