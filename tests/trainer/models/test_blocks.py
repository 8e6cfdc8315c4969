"""Lean blocks of CLIP against open_clip's own."""

import copy

import open_clip
import pytest
import torch
from torch import Tensor, nn

from trainer.models.blocks import lean_blocks


def clip(quick_gelu: bool) -> nn.Module:
    torch.manual_seed(0)
    vision = {"image_size": 28, "layers": 3, "width": 64, "head_width": 32, "patch_size": 14}
    text = {"context_length": 12, "vocab_size": 99, "width": 64, "heads": 2, "layers": 2}
    return open_clip.CLIP(32, vision, text, quick_gelu=quick_gelu).eval()


def found(network: nn.Module, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """Features of pictures and texts, and the gradients of all weights."""
    pictures = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    tokens = torch.arange(36).view(3, 12)
    with torch.autocast("cpu", dtype or torch.bfloat16, dtype is not None, cache_enabled=False):
        features = [network.encode_image(pictures), network.encode_text(tokens)]
    flat = torch.cat([feature.float().flatten() for feature in features])
    (flat * torch.linspace(-1, 1, len(flat))).sum().backward()
    gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    return flat.detach(), torch.cat(gradients)


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_blocks_compute_what_open_clips_do(quick_gelu: bool) -> None:
    theirs = clip(quick_gelu)
    ours = copy.deepcopy(theirs)
    lean_blocks(ours)
    changed = {type(m).__module__ for m in ours.modules() if type(m).__name__ == "_Block"}
    assert changed == {"trainer.models.blocks"}
    (right, slope), (features, gradients) = found(theirs, None), found(ours, None)
    assert torch.equal(features, right)
    torch.testing.assert_close(gradients, slope, atol=1e-6, rtol=1e-5)
    for expected, half in zip((right, slope), zip(found(theirs, torch.bfloat16),
                              found(ours, torch.bfloat16), strict=True), strict=True):  # fmt: skip
        by_them, by_us = (float((x - expected).norm() / expected.norm()) for x in half)
        assert 0 < by_us < 1.5 * by_them < 0.1


def test_other_blocks_stay_as_they_are() -> None:
    block = open_clip.transformer.ResidualAttentionBlock(64, 2, is_cross_attention=True)
    other = open_clip.transformer.ResidualAttentionBlock(64, 2, batch_first=False)
    network = nn.ModuleList([block, other])
    lean_blocks(network)
    assert {type(each) for each in network} == {open_clip.transformer.ResidualAttentionBlock}
