"""What is measured: against values that are known, and against an optimisation."""

import math
import random
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from trainer import losses
from trainer.config import TrainConfig
from trainer.models.vgg import untrained_vgg
from trainer.watch.bounds import bounds
from trainer.watch.encoders import EncoderProbe, retrieval_top1
from trainer.watch.pictures import HeldOut, Look
from trainer.watch.validation import Validation, consistency, undisturbed
from trainer.watch.watcher import score

CPU = torch.device("cpu")


def no_context() -> torch.autocast:
    return torch.autocast("cpu", enabled=False)


class BySize:
    """Encoders that call a picture good if it is large, and know captions by colour."""

    mean = torch.zeros(1)
    turned = 0.0

    def images(self, pictures: Tensor) -> Tensor:
        quality = 1.0 if pictures.shape[-1] > 100 else -1.0
        colour = pictures.mean((-2, -1))
        return torch.cat([torch.full((len(colour), 1), quality), colour + self.turned], dim=1)

    def texts(self, texts: list[str]) -> Tensor:
        known = {"bad": (-1, 0, 0, 0), "good": (1, 0, 0, 0), "red": (0, 1, 0, 0),
                 "blue": (0, 0, 0, 1)}  # fmt: skip
        return torch.tensor([known[text] for text in texts], dtype=torch.float32)


def patches(size: int) -> HeldOut:
    pictures = torch.zeros(2, 3, size, size)
    pictures[0, 0] = pictures[1, 2] = 1
    return HeldOut(pictures, ["red", "blue"])


def test_encoders_that_judge_by_size_are_found_out() -> None:
    encoders = BySize()
    probe = EncoderProbe(
        cast(Any, encoders), patches(56), patches(224), (["bad"], ["good"]), no_context
    )
    numbers = probe([torch.zeros(3, 224, 224)])
    assert numbers["quality_as_is"] == 1 and numbers["quality_equal_size"] == 0.5
    assert numbers["bicubic_called_good"] == numbers["sr_called_good"] == 1
    assert numbers["retrieval_top1"] == 1 and numbers["cos_quality_words"] == -1
    assert (numbers["drift_images"], numbers["drift_texts"]) == pytest.approx((0, 0), abs=1e-6)
    encoders.turned = 1.0
    # (1, 1, 0, 0) becomes (1, 2, 1, 1), and (-1, 1, 0, 0) becomes (-1, 2, 1, 1).
    assert probe()["drift_images"] == pytest.approx(1 - 3 / math.sqrt(2 * 7), abs=1e-6)
    none = HeldOut(torch.empty(0, 3, 224, 224), [])
    lonely = EncoderProbe(cast(Any, BySize()), patches(56), none, (["bad"], ["good"]), no_context)
    assert "quality_as_is" not in lonely() and lonely()["retrieval_top1"] == 1


def test_a_caption_of_the_same_words_counts_as_found() -> None:
    images, texts = torch.eye(3), torch.eye(3)[[1, 0, 2]]
    assert retrieval_top1(images, texts, ["a", "b", "c"]) == pytest.approx(1 / 3)
    assert retrieval_top1(images, texts, ["a", "a", "c"]) == 1


@pytest.mark.parametrize("offset", [0.1, 0.01])
def test_consistency_is_the_psnr_of_the_shrunk_picture(offset: float) -> None:
    lr = torch.full((3, 56, 56), 0.5)
    assert consistency(torch.full((3, 224, 224), 0.5 + offset), lr) == pytest.approx(
        -20 * math.log10(offset), abs=1e-3
    )
    assert consistency(torch.full((3, 224, 224), 0.5), lr) == 100


def test_pictures_with_a_reference_are_compared_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.watch.validation.load_metrics", list)
    generator = np.random.default_rng(0)
    lr = torch.from_numpy(generator.random((3, 56, 56), np.float32))
    true = lr.repeat_interleave(4, 1).repeat_interleave(4, 2)
    true = (true * 255).round() / 255
    look = Look("a", lr, true)
    measured = Validation({"given": [look]}, untrained_vgg(), CPU, no_context)

    class Repeat(torch.nn.Module):
        error = 0.0

        def forward(self, x: Tensor) -> Tensor:
            return x.repeat_interleave(4, -1).repeat_interleave(4, -2) * (1 - self.error)

    network = Repeat()
    with undisturbed(network):
        right, _ = measured(network)
        network.error = 0.2
        wrong, made = measured(network)
    assert right["psnr_y_given"] == 100 and right["perceptual_given"] == pytest.approx(0, abs=1e-6)
    assert wrong["psnr_y_given"] < 25 and wrong["perceptual_given"] > 0.01
    assert made["given"][0].shape == (3, 224, 224)


def test_the_score_is_a_relative_change_and_none_where_pictures_differ_from_their_inputs() -> None:
    start = {"niqe_held_out": 10.0, "brisque_held_out": 50.0, "consistency_held_out": 50.0}
    now = {"niqe_held_out": 8.0, "brisque_held_out": 55.0, "consistency_held_out": 40.0}
    assert score(start, start) == 0
    assert score(now, start) == pytest.approx((-0.2 + 0.1) / 2)
    assert score(now | {"consistency_given": 29.0}, start) is None
    assert score(now | {"perceptual_given": 0.3}, start) == 0.3
    assert score({"consistency_held_out": 50.0}, start) is None  # pyiqa is not installed


@pytest.mark.parametrize("share", [0, 0.5])
def test_losses_collapse_and_end_where_the_page_says(share: float) -> None:
    n = 4
    settings = TrainConfig(manifest=Path("m"), batch_size=n, sr_as_low_quality=share)
    limits = bounds(settings)
    same, extra = torch.ones(n, 6), round(share * n)
    low, word = torch.ones(n + extra, 6), torch.ones(1, 6)
    for name, value in {
        "content_encoders": losses.content_encoders(same, same, same, same),
        "content_sr": losses.content_sr(same, same),
        "quality_encoders": losses.quality_encoders(low, same, word, word),
        "quality_sr": losses.quality_sr(same, word, word),
    }.items():
        assert limits[name].collapse == pytest.approx(value.item(), abs=1e-6)
    if not share:
        assert limits["content_encoders"].collapse == pytest.approx(math.log(2 * n - 1))
    opposite = torch.cat([-word, word])
    best = losses.quality_encoders(-low, same, opposite[:1], opposite[1:])
    assert limits["quality_encoders"].optimum == pytest.approx(best.item(), abs=1e-6)

    torch.manual_seed(0)
    features = [torch.randn(2 * n, 12, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    adam = torch.optim.Adam(features, lr=0.05)
    for _ in range(600):
        adam.zero_grad()
        loss = losses.cont(*features)
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    assert limits["content_encoders"].optimum == pytest.approx(loss.item(), abs=1e-3)
    assert limits["content_encoders"].optimum <= loss.item() + 1e-9


def test_streams_and_modes_are_as_before_after_a_look() -> None:
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Dropout(0.5))
    network[1].eval()  # a module that somebody set apart

    def draw() -> tuple[float, float, float]:
        return torch.rand(1).item(), float(np.random.rand()), random.random()

    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = draw()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    statistics = network[0].running_mean.clone()  # type: ignore[union-attr, operator]
    with pytest.raises(RuntimeError, match="inside"), undisturbed(network):
        draw()
        torch.manual_seed(0)
        network(torch.rand(2, 3, 4, 4))
        raise RuntimeError("inside")
    assert draw() == expected
    assert network.training and network[0].training and not network[1].training
    assert torch.equal(network[0].running_mean, statistics)  # type: ignore[arg-type]
    assert torch.is_grad_enabled()
