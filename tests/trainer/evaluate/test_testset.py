"""Which file belongs to which picture: names as other programs write them."""

import os
from pathlib import Path

import pytest
from PIL import Image

from lasr.errors import UserError
from trainer.evaluate.testset import from_images, from_references, match


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("baby", "baby.png"),
        ("baby", "baby_out.png"),  # Real-ESRGAN
        ("baby", "baby_rlt.png"),  # ESRGAN
        ("0801x4", "0801.png"),  # DIV2K
        ("0801x4", "0801x4_SR.png"),
        ("Canon_001_LR4", "Canon_001_HR.png"),  # RealSR, DRealSR
        ("photo x4", "photo x4-x4_SR.jpg"),
        ("dog", "dog_BSRGAN.png"),  # the method's name
        ("img.v1", "img.v1_out.png"),
        ("x4", "x4.png"),
        ("out", "out_sr.png"),
    ],
)
def test_usual_suffixes(name: str, file: str) -> None:
    assert match([name], [Path("f", file), Path("f", "other.png")], "BSRGAN") == {
        name: Path("f", file)
    }


@pytest.mark.parametrize(
    ("name", "file"),
    [("baby", "babyx.png"), ("a", "b_out.png"), ("img_1", "img_2.png"), ("dog", "dog_mine.png")],
)
def test_what_is_another_picture(name: str, file: str) -> None:
    assert match([name], [Path(file)], "BSRGAN") == {}


def test_the_same_name_wins_and_doubt_is_an_error() -> None:
    files = [Path("f/a.png"), Path("f/a_out.png")]
    assert match(["a"], files) == {"a": files[0]}
    with pytest.raises(UserError, match=r"a_out\.png, a_sr\.png all match a; keep one"):
        match(["a"], [Path("f/a_out.png"), Path("f/a_sr.png")])
    with pytest.raises(UserError, match=r"a_out\.png: matches both a and a_x4; rename"):
        match(["a", "a_x4"], [Path("f/a_out.png")])


@pytest.mark.timeout(20)
def test_a_named_pipe_is_named_and_does_not_block(tmp_path: Path) -> None:
    """Its content is hashed before it is read as a picture."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    first, second = from_images([tmp_path], [], 4)
    assert len(first.identity) == 64
    with pytest.raises(UserError, match=r"b\.png: not a regular file"):
        _ = second.identity
    with pytest.raises(UserError, match=r"b\.png: not a regular file"):
        from_references([tmp_path], "rgb", tmp_path / "out", 4)
