"""DepthFM's networks (Stable Diffusion 2.1's UNet, 1.5's autoencoder) with random weights."""

import numpy as np
import torch

from benchmarks.device.networks import free, peak_gb, rate
from benchmarks.device.record import Part
from lasr.device import Precision, pick_device


def measure(part: Part) -> None:
    """Maps per second of photographs of 3:2. Skipped without diffusers."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from pipeline.stages import depthfm

    device = pick_device(part.device)  # type: ignore[arg-type]
    channels, context = ((32, 64), 24) if part.small else ((320, 640, 1280, 1280), 1024)
    deep = len(channels) - 1
    torch.manual_seed(0)
    with device:
        unet = UNet2DConditionModel(
            in_channels=8, out_channels=4, block_out_channels=channels,
            down_block_types=("CrossAttnDownBlock2D",) * deep + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * deep,
            attention_head_dim=8, cross_attention_dim=context, use_linear_projection=True,
        )  # fmt: skip
        wide = (8, 8, 8, 8) if part.small else (128, 256, 512, 512)
        vae = AutoencoderKL(
            block_out_channels=wide, down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=4 if part.small else 32,
            layers_per_block=2,
        )  # fmt: skip
        text = torch.randn(1, 77, context)
    networks = [network.eval().requires_grad_(False) for network in (unet, vae)]
    width = 64 if part.small else depthfm.LONGER_SIDE
    photograph = np.random.default_rng(0).integers(0, 256, (width * 2 // 3, width, 3), np.uint8)
    prepared = depthfm.prepare(photograph)

    def network(precision: Precision, channels_last: bool) -> None:
        free(device)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        for one in networks:
            one.to(memory_format=layout)
        model = depthfm.DepthFM(networks[0], networks[1], text, 400)
        milliseconds = rate(
            lambda: depthfm.predict(model, prepared, 0, precision), device, 2.0, most=20
        )
        what = f"{precision}{', channels last' if channels_last else ''}"
        size = "x".join(map(str, prepared.shape[1:]))
        part.row(f"DepthFM, {what}, {size}", 1e3 / milliseconds, "maps/s", peak_GB=peak_gb(device))

    for precision, last in (("float16", False), ("float16", True), ("float32", False)):
        if precision == "float16" and device.type == "cpu":
            precision = "bfloat16" if not last else "float32"
        part.attempt(f"{precision} {last}", lambda p=precision, c=last: network(p, c))  # type: ignore[misc]
