"""A start for the SR network where no weights can be had: it interpolates."""

from __future__ import annotations

import torch

from trainer.models.rrdb import RESIDUAL, RRDB


def interpolation_start(
    features: int = 64, blocks: int = 23, growth: int = 32, seed: int = 0
) -> RRDB:
    """An UNTRAINED RRDB x4 that interpolates smoothly: where training starts without weights.

    The paper starts from PSNR-oriented weights (section 4), which need a download. This network
    has learnt nothing: four channels are wired by hand so that a picture in [0, 1] comes out as if
    enlarged bilinearly by 2, twice, but for a grey tint in the outermost 3 pixels (zero padding);
    all else is random from `seed` and enters at about 1/255. Every weight receives a gradient.

    Raises:
        ValueError: fewer than 4 features.
    """
    if features < 4:
        raise ValueError(f"interpolation_start: {features} features; give 4 or more")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = RRDB(features, blocks, growth)
    delta = torch.tensor([0.0, 1.0, 0.0])
    smooth = torch.tensor([0.25, 0.5, 0.25])  # after a nearest x2: the weights 3/4, 1/4 of bilinear
    with torch.no_grad():
        # A fresh block gives 1.2 x and more, so 23 of them amplify 66 times, and the first steps of
        # Adam throw the picture away. Its last convolution takes back most of that: 1.04 x.
        for key, weight in network.body.named_parameters():
            if key.endswith("rdb3.conv5.weight"):
                weight[:, :features, 1, 1] -= torch.eye(features) * 0.8 / RESIDUAL
        for parameter in network.conv_body.parameters():
            parameter.mul_(0.01)  # the body whispers; muted, nothing would reach its weights
        for conv, taps, grey in (
            (network.conv_first, delta, 0.0),
            (network.conv_up1, smooth, 0.5),
            (network.conv_up2, smooth, 0.5),
            (network.conv_hr, delta, 0.0),
            (network.conv_last, delta, 0.0),
        ):
            kernel = torch.outer(taps, taps)
            conv.weight[:4] *= 0.01
            bias = conv.get_parameter("bias")[:4]
            bias.copy_(torch.tensor([grey, grey, grey, 1.0])[: len(bias)])
            # Red, green and blue stay non-negative, so leaky ReLUs pass them unchanged. Channel 3
            # is 1 everywhere; with its help x - 1/2 is what the zero padding meets: a grey border
            # and not a black one.
            for colour in range(3):
                conv.weight[colour, colour] += kernel
                if grey:
                    conv.weight[colour, 3] -= grey * kernel
    return network
