"""What a run trains on and is validated on: crops of photographs, held-out ones, PSNR on Y."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio

from tests.support import matlab
from tests.trainer.pretrain.conftest import Settings
from trainer.pretrain.photographs import Photographs, texture
from trainer.pretrain.validation import Validation, psnr_y, read_pairs

SYMMETRIES = [(turns, mirrored) for turns in range(4) for mirrored in (False, True)]


def test_lr_pictures_are_matlabs(settings: Settings, pictures: Path) -> None:
    photographs = Photographs(settings(held_out=0))
    assert len(photographs.training) == 6
    for photograph in photographs.training:
        hr = np.asarray(Image.open(pictures / photograph.name)).astype(np.float64)
        assert np.array_equal(photograph.hr, hr)
        expected = matlab.uint8(matlab.imresize(hr, 1 / 4))
        difference = np.abs(photograph.lr - expected)
        # Halves are rounded up by MATLAB and to even by PyTorch.
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_a_batch_is_crops_of_the_photographs_in_any_symmetry(settings: Settings) -> None:
    photographs = Photographs(settings(held_out=0))
    by_name = {photograph.name: photograph for photograph in photographs.training}
    found = set()
    for step in range(30):
        batch = photographs.batch(step, 4)
        for lr, hr, (name, x, y) in zip(batch.lr, batch.hr, batch.places, strict=True):
            part = by_name[name].cut(y, x, 10, 10)
            symmetry = [
                (turns, mirrored)
                for turns, mirrored in SYMMETRIES
                if np.array_equal(_moved(part.lr, turns, mirrored), _pixels(lr))
                and np.array_equal(_moved(part.hr, turns, mirrored), _pixels(hr))
            ]
            assert len(symmetry) == 1
            found.add(symmetry[0])
    assert len(found) == 8


def _moved(pixels: np.ndarray, turns: int, mirrored: bool) -> np.ndarray:
    turned = np.rot90(pixels, turns)
    return turned[:, ::-1] if mirrored else turned


def _pixels(picture: torch.Tensor) -> np.ndarray:
    return (picture.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


def test_batches_depend_on_seed_and_step_alone(settings: Settings) -> None:
    one, three = (list(Photographs(settings()).batches(2, 12, 3, workers)) for workers in (1, 3))
    for step, (a, b) in enumerate(zip(one, three, strict=True), start=2):
        again = Photographs(settings()).batch(step, 3) if step == 7 else a
        assert a.places == b.places == again.places and torch.equal(a.hr, b.hr)
    other = Photographs(settings(seed=1)).batch(2, 3)
    assert other.places != one[0].places
    slices = [Photographs(settings()).batch(4, 4, rank, 2).places for rank in range(2)]
    assert slices[0] + slices[1] == Photographs(settings()).batch(4, 4).places


def test_of_several_places_the_one_with_most_texture_is_taken(settings: Settings) -> None:
    many, one = (Photographs(settings(held_out=0, candidates=n)) for n in (8, 1))

    def mean(photographs: Photographs) -> float:
        lr = torch.cat([photographs.batch(step, 8).lr for step in range(6)])
        return float(np.mean([texture(_pixels(picture)) for picture in lr]))

    assert mean(many) > 1.2 * mean(one)
    assert texture(np.full((4, 4, 3), 9, np.uint8)) == 0
    ramp = np.repeat(np.arange(0, 40, 10, dtype=np.uint8)[:, None], 4, 1)
    assert texture(np.stack([ramp] * 3, axis=2)) == 10


def test_held_out_photographs_are_never_trained_on(
    settings: Settings, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "several"
    shutil.copytree(pictures, folder)
    for path in sorted(pictures.iterdir()):  # each is there twice
        shutil.copy(path, folder / f"copy-of-{path.name}")
    photographs = Photographs(settings(images=[folder], held_out=0.4))
    held = {photograph.digest for photograph in photographs.held_out}
    assert len(held) == 2 and len(photographs.training) == 4
    assert not held & {photograph.digest for photograph in photographs.training}
    pixels = [photograph.hr for photograph in photographs.held_out]
    assert not any(
        a.shape == p.hr.shape and np.array_equal(a, p.hr)
        for a in pixels
        for p in photographs.training
    )
    assert "6 files left out, the same as others" in caplog.text
    names = {name for step in range(30) for name, _, _ in photographs.batch(step, 4).places}
    assert names == {photograph.name for photograph in photographs.training}
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for number, path in enumerate(sorted(pictures.iterdir(), reverse=True)):
        shutil.copy(path, renamed / f"{number}.png")
    again = Photographs(settings(images=[renamed], held_out=0.4))
    assert {photograph.digest for photograph in again.held_out} == held
    other_seed = Photographs(settings(images=[renamed], held_out=0.4, seed=1))
    assert {photograph.digest for photograph in other_seed.held_out} == held
    assert again.identity == photographs.identity


def test_photographs_are_shrunk_and_cut_to_their_share_of_memory(
    settings: Settings, photographs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = [photographs / name for name in ("china.jpg", "coffee.png", "rocket.jpg")]
    shrunk = Photographs(settings(images=images, longest_side=128))
    assert shrunk.shrunk == 3 and not shrunk.cut
    assert {max(p.hr.shape) for p in [*shrunk.training, *shrunk.held_out]} == {128}
    small = Photographs(settings(images=images, memory_mb=1))
    taken = [p.hr.nbytes + p.lr.nbytes for p in small.training]
    assert len(taken) == 2 and 0.9 * 2**20 < sum(taken) <= 2**20
    assert "2 photographs cut to" in caplog.text
    for photograph in small.training:  # a part of the same shape, LR in step with HR
        whole = np.asarray(Image.open(photographs / photograph.name).convert("RGB"))
        height, width = photograph.hr.shape[:2]
        assert height / width == pytest.approx(whole.shape[0] / whole.shape[1], rel=0.05)
        reduced = matlab.uint8(matlab.imresize(photograph.hr.astype(np.float64), 1 / 4))
        assert np.abs(reduced - photograph.lr)[2:-2, 2:-2].max() <= 1


def test_what_cannot_be_used_is_named_and_left_out(
    settings: Settings, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(pictures, folder)
    (folder / "damaged.png").write_bytes((pictures / "coffee.png").read_bytes()[:300])
    Image.new("RGB", (100, 30)).save(folder / "flat.png")
    Image.new("I;16", (80, 80), 40_000).save(folder / "sixteen.png")
    with caplog.at_level(logging.WARNING):
        found = Photographs(settings(images=[folder]))
    assert len(found.training) + len(found.held_out) == 7
    assert "damaged.png" in caplog.text and "flat.png: 100x30 is less than" in caplog.text
    everything = {p.name: p for p in [*found.training, *found.held_out]}
    assert (everything["sixteen.png"].hr == 156).all()  # 40000 / 257


def test_psnr_on_y_is_that_of_scikit_image() -> None:
    rng = np.random.default_rng(0)
    hr = rng.integers(0, 256, (40, 52, 3), dtype=np.uint8)
    sr = np.clip(hr + rng.normal(0, 6, hr.shape), 0, 255).round().astype(np.uint8)
    first, second = (rgb2ycbcr(picture)[4:-4, 4:-4, 0] for picture in (hr, sr))
    expected = peak_signal_noise_ratio(first, second, data_range=255)
    a, b = (torch.from_numpy(p).permute(2, 0, 1) / 255 for p in (hr, sr))
    assert psnr_y(b, a) == pytest.approx(expected, abs=1e-9)
    assert psnr_y(b + 0.4 / 255, a) == psnr_y(b, a)  # rounded to 8 bits first
    assert psnr_y(a, a) == float("inf")
    with pytest.raises(ValueError, match="border"):
        psnr_y(a[:, :8], a[:, :8])


def test_bicubic_of_the_validation_is_matlabs(settings: Settings, pictures: Path) -> None:
    config = settings(validate_on=pictures)
    validation = Validation(Photographs(config).held_out, read_pairs(config))
    scores = []
    for path in pictures.iterdir():
        hr = np.asarray(Image.open(path)).astype(np.float64)
        lr = matlab.uint8(matlab.imresize(hr, 1 / 4))
        sr = matlab.uint8(matlab.imresize(lr, 4))
        y, y_sr = (rgb2ycbcr(p.astype(np.uint8))[4:-4, 4:-4, 0] for p in (hr, sr))
        scores.append(peak_signal_noise_ratio(y, y_sr, data_range=255))
    assert validation.bicubic["given"] == pytest.approx(np.mean(scores), abs=2e-3)
    assert len(validation.sets["held_out"]) == 1


def test_given_lr_pictures_are_taken_by_name(
    settings: Settings, pictures: Path, tmp_path: Path
) -> None:
    lr = tmp_path / "lr"
    lr.mkdir()
    for path in pictures.iterdir():
        Image.new("RGB", (21, 23), (9, 9, 9)).save(lr / f"{path.stem}x4.png")
    pairs = read_pairs(settings(validate_on=pictures, validate_lr=lr))
    assert len(pairs) == 6 and all((pair.lr == pairs[0].lr).all() for pair in pairs)
    assert pairs[0].lr.max() == pytest.approx(9 / 255)
