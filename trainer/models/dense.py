"""The backward pass of dense blocks in half precision: all weights' gradients by one product.

The five convolutions of a dense block read the first channels of the same features, and four of
them give few channels, for which the product of a weight's gradient leaves tensor cores idle. Here
the gradients of all five outputs are put together, and one product with all features gives the
gradients of all weights; a third of it is thrown away. One sum gives those of the biases. What is
computed forward and for the inputs stays as it is.

What is stored for the backward pass: the features, 192 channels, and not 640.
"""

from itertools import accumulate, pairwise
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
        features = x
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            y = F.leaky_relu_(F.conv2d(features, weight, bias, padding=1), SLOPE)
            features = torch.cat((features, y), dim=1)
        ctx.residual = residual
        ctx.save_for_backward(features, *parameters[:half])
        ctx.of_biases = [bias.dtype for bias in parameters[half:]]
        return torch.add(x, F.conv2d(features, weights[-1], biases[-1], padding=1), alpha=residual)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        features, *parameters = ctx.saved_tensors
        weights = [weight.to(gradient.dtype) for weight in parameters]
        widths = [weight.shape[1] for weight in weights]
        of_outputs = [ctx.residual * gradient]
        of_inputs = _of_input(of_outputs[0], features, weights[-1])
        for number in range(len(weights) - 2, -1, -1):
            width, stop = widths[number], widths[number + 1]
            own = torch.ops.aten.leaky_relu_backward(
                of_inputs[:, width:], features[:, width:stop], SLOPE, True
            )
            of_outputs.insert(0, own)
            of_inputs = _of_input(own, features[:, :width], weights[number]).add_(
                of_inputs[:, :width]
            )
        together = torch.cat(of_outputs, dim=1)
        shape = (together.shape[1], features.shape[1], *weights[0].shape[2:])
        like = features.new_empty(shape).contiguous(memory_format=torch.channels_last)
        of_weights = _convolution_backward(together, features, like, (False, True, False))[1]
        of_biases = together.sum((0, 2, 3), dtype=torch.float32)
        tops = [0, *accumulate(part.shape[1] for part in of_outputs)]
        ranges = list(pairwise(tops))
        return (
            of_inputs.add_(gradient),
            None,
            *(
                of_weights[top:bottom, :width].to(weight.dtype, memory_format=torch.channels_last)
                for (top, bottom), width, weight in zip(ranges, widths, parameters, strict=True)
            ),
            *(
                of_biases[top:bottom].to(dtype)
                for (top, bottom), dtype in zip(ranges, ctx.of_biases, strict=True)
            ),
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
