"""Which modules of a network are compiled."""

import open_clip
import pytest
from torch import nn

from trainer.models.compiled import compile_blocks
from trainer.models.rrdb import RRDB


def test_the_smallest_repeated_blocks_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: found.append(type(self).__name__))
    compile_blocks(RRDB(8, 2, 4), "default")
    assert found == ["_DenseBlock"] * 6
    vision = {"image_size": 28, "layers": 3, "width": 64, "head_width": 32, "patch_size": 14}
    text = {"context_length": 12, "vocab_size": 99, "width": 64, "heads": 2, "layers": 2}
    found.clear()
    compile_blocks(open_clip.CLIP(32, vision, text).visual, "default")
    assert found == ["ResidualAttentionBlock"] * 3
    found.clear()
    compile_blocks(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), "default")
    assert found == ["Sequential"]  # as a whole: it repeats nothing
