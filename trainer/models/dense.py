"""Dense blocks on a GPU in half precision: the same function by other convolutions.

As written in `rrdb`, a dense block concatenates before each convolution, and four of its five
convolutions give few channels, which leaves tensor cores idle. A convolution of concatenated inputs
is the sum of convolutions of each input. So here every input is read once, by one convolution for
all that depend on it (64 channels to 192, then 32 to 160, 128, 96 and 64), and nothing is
concatenated on the way. The backward pass gives the gradient of all inputs of a convolution at
once, as usual, and computes the gradients of all weights by one product, a third of which is thrown
away.

What is stored for the backward pass: the input and the four outputs, 192 channels and not 832.
Partial sums are rounded to the half precision once more.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SLOPE = 0.2  # of leaky ReLUs


def dense_block(
    x: Tensor, weights: list[Tensor], biases: list[Tensor], residual: float, dtype: torch.dtype
) -> Tensor:
    """x + residual · conv5(cat(x, y1, …, y4)), where yi = leaky(convi(cat(x, y1, …))), in `dtype`.

    weights, biases: of the five 3x3 convolutions.
    """
    y: Tensor = _DenseBlock.apply(x.to(dtype), residual, *weights, *biases)
    return y


class _DenseBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: float, *parameters: Tensor) -> Tensor:
        half = len(parameters) // 2
        weights, biases = ([p.to(x.dtype) for p in part] for part in _halves(parameters))
        start, source, outputs = 0, x, []
        sums = x.new_zeros(())
        for number, bias in enumerate(biases):
            stop = start + source.shape[1]
            stacked = torch.cat([weight[:, start:stop] for weight in weights[number:]])
            stacked = stacked.contiguous(memory_format=torch.channels_last)
            sums = sums + F.conv2d(source, stacked, padding=1)
            own = sums[:, : len(bias)] + bias[:, None, None]
            start, sums = stop, sums[:, len(bias) :]
            if number < half - 1:
                source = F.leaky_relu(own, SLOPE)
                outputs.append(source)
        ctx.residual = residual
        ctx.save_for_backward(x, *outputs, *parameters)
        return x + residual * own

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        saved = ctx.saved_tensors
        number = (len(saved) + 2) // 3  # of convolutions: x and one output less, weights, biases
        features, parameters = saved[:number], saved[number:]
        weights = [weight.to(gradient.dtype) for weight in _halves(parameters)[0]]
        widths = [weight.shape[1] for weight in weights]
        inputs = torch.cat(features, dim=1)
        of_outputs = [ctx.residual * gradient]
        of_inputs = _of_input(of_outputs[0], inputs, weights[-1])
        for y, weight, width in zip(features[:0:-1], weights[-2::-1], widths[-2::-1], strict=True):
            own, rest = of_inputs[:, width:], of_inputs[:, :width]
            of_outputs.insert(0, torch.where(y > 0, own, SLOPE * own))
            of_inputs = rest + _of_input(of_outputs[0], rest, weight)
        together = torch.cat(of_outputs, dim=1)
        shape = (together.shape[1], inputs.shape[1], *weights[0].shape[2:])
        like = inputs.new_empty(shape).contiguous(memory_format=torch.channels_last)
        of_weights = _convolution_backward(together, inputs, like, (False, True, False))[1]
        of_biases = together.sum((0, 2, 3), dtype=torch.float32)
        tops = [0]
        for part in of_outputs:
            tops.append(tops[-1] + part.shape[1])
        ranges = list(pairwise(tops))
        return (
            gradient + of_inputs,
            None,
            *(
                of_weights[top:bottom, :width].to(parameters[0].dtype)
                for (top, bottom), width in zip(ranges, widths, strict=True)
            ),
            *(of_biases[top:bottom].to(parameters[0].dtype) for top, bottom in ranges),
        )


def _halves(parameters: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    half = len(parameters) // 2
    return parameters[:half], parameters[half:]


def _of_input(gradient: Tensor, like: Tensor, weight: Tensor) -> Tensor:
    """The gradient of a convolution's input, which has the shape of `like`."""
    return _convolution_backward(gradient, like, weight, (True, False, False))[0]


def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, wanted
    )
    return found
