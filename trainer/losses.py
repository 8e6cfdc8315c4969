"""The losses of LA-SR: equations (1) to (5) of the paper, sections 3.3 to 3.5.

All are pure functions of feature tensors (rows = samples, columns = channels), so rows gathered
from several processes give the loss of the global batch. Each returns a differentiable scalar.
Cosines and logarithms are computed in float32 under any autocast; float64 features stay float64.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """`x` in float32, or unchanged if it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of every row of `a` (n, c) with every row of `b` (m, c): (n, m)."""
    # bfloat16, with 8 bits of mantissa, cannot tell apart cosines that differ by 0.004. Without a
    # temperature, equation (1) consists of such differences.
    with torch.autocast(a.device.type, enabled=False):
        a, b = F.normalize(full_precision(a), dim=1), F.normalize(full_precision(b), dim=1)
        if a.is_cuda:  # where a float32 product may be TF32, whose mantissa has 10 bits
            return (a.double() @ b.double().T).to(a.dtype)
        return a @ b.T


def cont(a: Tensor, b: Tensor) -> Tensor:
    """Cont(A, B) of equation (1): row i of `a` against row i of `b`, contrasted with the others.

    There is no temperature, and the denominator excludes the positive pair; so unlike InfoNCE the
    value may be negative.

    Args:
        a, b: features (n, c), n at least 2, of any norm: only directions count.

    Raises:
        ValueError: the shapes differ, or there is a single row.
    """
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(
            f"contrastive loss: features are {tuple(a.shape)} and {tuple(b.shape)}; "
            "give two matrices (n, c) of the same shape"
        )
    if len(a) < 2:
        raise ValueError(
            "contrastive loss: a batch of 1 has no negatives, the sum in equation (1) is empty; "
            "use a batch size of 2 or more"
        )
    cos = cosines(a, b)
    positive = torch.eye(len(a), dtype=torch.bool, device=a.device)
    others = cos.masked_fill(positive, -torch.inf).logsumexp(dim=1)
    return (others - cos.diagonal()).mean()


def content_encoders(f_lr: Tensor, f_hr: Tensor, c_lr: Tensor, c_hr: Tensor) -> Tensor:
    """Equation (1), content loss of the encoders: Cont(F_LR || F_HR, C_LR || C_HR).

    Args:
        f_lr, f_hr: image features of the LR and HR patches, (n, c) each.
        c_lr, c_hr: text features of their captions, (n, c) each.
    """
    return cont(torch.cat((f_lr, f_hr)), torch.cat((c_lr, c_hr)))


def content_sr(f_sr: Tensor, c_lr: Tensor) -> Tensor:
    """Equation (2), content loss of the SR network: Cont(F_SR, C_LR).

    Args:
        f_sr: image features of the super-resolved patches, (n, c), n at least 2.
        c_lr: text features of the LR patches' captions, (n, c). Treated as a constant: no gradient
            reaches the text encoder.
    """
    return cont(f_sr, c_lr.detach())


def quality_encoders(f_lr: Tensor, f_hr: Tensor, q_minus: Tensor, q_plus: Tensor) -> Tensor:
    """Equation (3), quality loss of the encoders: Cont(F_LR || F_HR, Q- x N || Q+ x N).

    As printed: for N > 1 the copies of a row's own quality text are among the negatives.

    Args:
        f_lr, f_hr: image features of the LR and HR patches, (n, c) each.
        q_minus, q_plus: text features of the low- and high-quality words, (m, c) each, see
            `direction`.
    """
    low, high = direction(q_minus).expand(len(f_lr), -1), direction(q_plus).expand(len(f_hr), -1)
    return cont(torch.cat((f_lr, f_hr)), torch.cat((low, high)))


def quality_sr(f_sr: Tensor, q_minus: Tensor, q_plus: Tensor) -> Tensor:
    """Equation (4), quality loss of the SR network: the mean of cos(F_SR, Q-) - cos(F_SR, Q+).

    Args:
        f_sr: image features of the super-resolved patches, (n, c), n at least 1.
        q_minus, q_plus: text features of the quality words, (m, c) each, see `direction`.
            Treated as constants: no gradient reaches the text encoder.
    """
    # log(e^x / e^y) = x - y
    texts = torch.cat((direction(q_minus.detach()), direction(q_plus.detach())))
    low, high = cosines(f_sr, texts).unbind(dim=1)
    return (low - high).mean()


def direction(q: Tensor) -> Tensor:
    """The mean of the unit vectors along the rows of `q` (m, c): (1, c).

    The paper has one word per quality. Several are averaged as CLIP averages the prompts of a
    class (Radford et al. 2021, 3.1.4), so that each has the same weight whatever its norm. For a
    single word this changes the norm only, which cosines ignore.
    """
    return F.normalize(full_precision(q), dim=1).mean(dim=0, keepdim=True)


def consistency(sr: Tensor, lr: Tensor) -> Tensor:
    """Mean absolute difference between SR pictures, shrunk to the size of LR, and LR.

    Not a term of the paper. It is the downscaling loss of Menon et al. 2020, "PULSE", with p = 1:
    whatever LR shows, its colours above all, stays as it is, and only finer detail is free.

    Args:
        sr: pictures (n, 3, s·h, s·w) in about [0, 1], s an integer; need not be clamped.
        lr: their inputs (n, 3, h, w) in [0, 1].

    Raises:
        ValueError: sr is no whole multiple of lr.
    """
    scale = max(sr.shape[-1] // lr.shape[-1], 1)
    if sr.shape != (*lr.shape[:-2], scale * lr.shape[-2], scale * lr.shape[-1]):
        raise ValueError(
            f"consistency: {tuple(sr.shape)} is not a whole multiple of {tuple(lr.shape)} in height"
            " and width; give the network's output and its input"
        )
    return (shrink(sr, scale) - full_precision(lr)).abs().mean()


def shrink(pictures: Tensor, scale: int) -> Tensor:
    """MATLAB's antialiased bicubic: (n, c, scale h, scale w) to (n, c, h, w), not clamped.

    Two matrix products, because PyTorch's interpolation sums its gradient on a GPU in an order that
    changes, and a resumed run would not repeat the bits of one that was never stopped.
    """
    rows, columns = (
        _shrinking(side // scale, scale, pictures.device) for side in pictures.shape[-2:]
    )
    with torch.autocast(pictures.device.type, enabled=False):
        pictures = full_precision(pictures)
        return rows.to(pictures.dtype) @ pictures @ columns.to(pictures.dtype).T


@functools.cache
def _shrinking(side: int, scale: int, device: torch.device) -> Tensor:
    """The matrix (side, scale side) by which `shrink` multiplies columns of pixels."""
    margin = min(4 * scale, side * scale)  # MATLAB mirrors pixels beyond the border
    unit = torch.eye(side * scale, dtype=torch.float64)
    mirrored = torch.cat([unit[:margin].flip(0), unit, unit[-margin:].flip(0)])
    size = len(mirrored) // scale, side * scale
    shrunk = F.interpolate(mirrored[None, None], size, mode="bicubic", antialias=True)[0, 0]
    cut = margin // scale
    return shrunk[cut : cut + side].float().to(device)


@dataclass(frozen=True)
class LossWeights:
    """The weights of equation (5), with the paper's values (section 3.5), and of `consistency`."""

    content: float = 0.5
    quality: float = 0.5
    vgg: float = 0.1
    consistency: float = 0

    def total(
        self, content: Tensor, quality: Tensor, vgg: Tensor, consistency: Tensor | float = 0.0
    ) -> Tensor:
        """Equation (5): the weighted sum of three scalars, (1)+(2), (3)+(4) and the VGG term.

        To it comes the weighted `consistency`, which the paper does not have.
        """
        paper = self.content * content + self.quality * quality + self.vgg * vgg
        return paper + self.consistency * consistency if self.consistency else paper
