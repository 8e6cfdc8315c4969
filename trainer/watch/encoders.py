"""What the encoders have learned, on patches of photographs that they were not trained on.

They may tell LR from HR by size alone: 56x56 is far, 224x224 is near. Equation (4) then says little
about detail. So quality is asked twice, of patches as they are and at equal size.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from schemas.manifest import SCALE
from trainer.losses import cosines, direction, full_precision
from trainer.sheets import bicubic
from trainer.watch.pictures import HeldOut

if TYPE_CHECKING:
    from trainer.models.encoders import Encoders

BATCH = 8  # pictures that are encoded together


class EncoderProbe:
    """Measures encoders on held-out patches, and compares them with those of its creation.

    bad, good: the quality words. context: entered around the networks, for their precision.
    """

    def __init__(
        self,
        encoders: "Encoders",
        lr: HeldOut,
        hr: HeldOut,
        words: tuple[list[str], list[str]],
        context: Callable[[], torch.autocast],
    ):
        self.encoders, self.lr, self.hr, self.words = encoders, lr, hr, words
        self.context = context
        self.start = self._images(lr.pictures), self._images(hr.pictures), self._captions()

    def __call__(self, sr: Sequence[Tensor] = ()) -> dict[str, float]:
        """The numbers by name. sr: pictures of the SR network.

        Call it inside `undisturbed`.
        """
        f_lr, f_hr = self._images(self.lr.pictures), self._images(self.hr.pictures)
        f_large = self._images(bicubic(self.lr.pictures, SCALE))
        captions = self._captions()
        q_minus, q_plus = (direction(self._texts(words)) for words in self.words)
        drift = [_drift(*pair) for pair in zip(self.start, (f_lr, f_hr, captions), strict=True)]
        images, texts = torch.cat([f_lr, f_hr]), [*self.lr.captions, *self.hr.captions]

        def called_good(features: Tensor) -> Tensor:
            low, high = cosines(features, torch.cat([q_minus, q_plus])).unbind(dim=1)
            return (high > low).float()

        numbers = {
            "retrieval_top1": retrieval_top1(images, captions, texts),
            "bicubic_called_good": called_good(f_large).mean().item(),
            "cos_quality_words": cosines(q_minus, q_plus).item(),
            "drift_images": torch.cat(drift[:2]).mean().item(),
            "drift_texts": drift[2].mean().item(),
        }  # fmt: skip
        if len(f_hr):
            near = called_good(f_hr)
            numbers["quality_as_is"] = _balanced(1 - called_good(f_lr), near)
            numbers["quality_equal_size"] = _balanced(1 - called_good(f_large), near)
        if sr:
            numbers["sr_called_good"] = called_good(self._images(torch.stack([*sr]))).mean().item()
        return numbers

    def _images(self, pictures: Tensor) -> Tensor:
        """Features (n, c) on the CPU; none for no pictures."""
        device = self.encoders.mean.device
        with torch.no_grad(), self.context():
            found = [self.encoders.images(part.to(device)) for part in pictures.split(BATCH)
                     if len(part)]  # fmt: skip
        return full_precision(torch.cat(found)).cpu() if found else torch.empty(0)

    def _texts(self, texts: list[str]) -> Tensor:
        with torch.no_grad(), self.context():
            found = [self.encoders.texts(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)]
        return full_precision(torch.cat(found)).cpu()

    def _captions(self) -> Tensor:
        return self._texts([*self.lr.captions, *self.hr.captions])


def retrieval_top1(images: Tensor, texts: Tensor, captions: Sequence[str]) -> float:
    """The share of pictures whose nearest caption is their own, or one of the same words.

    images, texts: features (n, c) of the pictures and of their `captions`.
    """
    nearest = cosines(images, texts).argmax(dim=1).tolist()
    return float(np.mean([captions[j] == captions[i] for i, j in enumerate(nearest)]))


def _balanced(far: Tensor, near: Tensor) -> float:
    """The mean of two shares, so that 0.5 is chance whatever the numbers of patches."""
    return float(far.mean() + near.mean()) / 2


def _drift(before: Tensor, now: Tensor) -> Tensor:
    """For each feature, 1 - its cosine to what it was."""
    if not len(now):
        return torch.empty(0)
    return (1 - torch.nn.functional.cosine_similarity(before, now, dim=1)).clamp(min=0)
