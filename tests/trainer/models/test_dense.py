"""The backward pass of dense blocks by one product against autograd's."""

import torch
from torch import Tensor

from trainer.models.dense import dense_block
from trainer.models.rrdb import RESIDUAL, RRDB, gradients_together


def network() -> RRDB:
    torch.manual_seed(0)
    network = RRDB(16, 2, 8)
    for parameter in network.body.parameters():  # no bias at zero: each must find its place
        torch.nn.init.normal_(parameter, std=0.05)
    return network


def test_values_and_gradients_are_autograds() -> None:
    block = network().double().body[0].rdb1
    convolutions = [getattr(block, f"conv{n}") for n in range(1, 6)]
    weights, biases = ([getattr(c, name) for c in convolutions] for name in ("weight", "bias"))
    x = torch.randn(2, 16, 6, 7, dtype=torch.float64)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    expected, found = block(x), dense_block(x, weights, biases, RESIDUAL, torch.float64)
    torch.testing.assert_close(found, expected)
    toward = torch.randn_like(x)
    inputs = [x, *weights, *biases]
    for right, ours in zip(
        torch.autograd.grad(expected, inputs, toward),
        torch.autograd.grad(found, inputs, toward),
        strict=True,
    ):
        assert ours.dtype == right.dtype
        torch.testing.assert_close(ours, right, rtol=1e-6, atol=1e-5)  # biases: float32 sums


def test_bfloat16_is_as_near_to_float32() -> None:
    """Values and gradients of a network: its error is that of the blocks as written."""
    errors = {}
    x = torch.rand(2, 3, 12, 12)

    def found(net: RRDB, half: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half, cache_enabled=False):
            y = net(x)
        y.float().square().mean().backward()
        gradients = [p.grad.flatten() for p in net.body.parameters() if p.grad is not None]
        return torch.cat([y.detach().float().flatten(), 100 * torch.cat(gradients)])

    expected = found(network(), False)
    for together in (False, True):
        net = network()
        if together:
            gradients_together(net)
            assert torch.equal(found(net, False), expected)  # float32 is computed as before
            net.zero_grad()
        errors[together] = float((found(net, True) - expected).norm() / expected.norm())
    assert 0 < errors[True] < 1.5 * errors[False] < 0.1
    assert errors[True] != errors[False]
