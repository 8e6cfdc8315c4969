"""Learning rates, clipping and groups, against PyTorch's own schedulers and functions."""

import copy

import pytest
import torch
from torch import Tensor, nn

from trainer.optimizer import Optimizer, backward_in_parts, rate_factor


@pytest.mark.parametrize(("warmup", "schedule"), [(0, "cosine"), (4, "cosine"), (4, "constant")])
def test_rates_are_those_of_pytorchs_schedulers(warmup: int, schedule: str) -> None:
    steps, lr = 12, torch.optim.lr_scheduler
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    growing = lr.LambdaLR(sgd, lambda number: (number + 1) / max(warmup, 1))
    then: lr.LRScheduler = lr.ConstantLR(sgd, factor=1)
    if schedule == "cosine":
        then = lr.CosineAnnealingLR(sgd, T_max=steps - warmup)
    scheduler = lr.SequentialLR(sgd, [growing, then], [warmup]) if warmup else then
    for step in range(1, steps + 1):
        expected = sgd.param_groups[0]["lr"]
        assert rate_factor(step, steps, warmup, schedule) == pytest.approx(expected)  # type: ignore[arg-type]
        sgd.step()
        scheduler.step()
    assert rate_factor(1, steps) == rate_factor(steps, steps) == 1


def networks() -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(4, 3), nn.Linear(3, 2)]


@pytest.mark.parametrize("clip", [0, 0.01])
@pytest.mark.parametrize("rates", [(1e-2, 1e-2), (1e-2, 1e-3)])
def test_updates_are_adams(clip: float, rates: tuple[float, float]) -> None:
    ours = networks()
    plain = copy.deepcopy(ours)
    optimizer = Optimizer(
        [(list(n.parameters()), r) for n, r in zip(ours, rates, strict=True)], clip
    )
    adams = [torch.optim.Adam(n.parameters(), lr=r) for n, r in zip(plain, rates, strict=True)]
    assert len(optimizer.adam.param_groups) == len(set(rates))
    for number in range(3):
        inputs = torch.randn(5, 4)
        for first, second in (ours, plain):
            second(first(inputs)).square().sum().backward()
        expected = [nn.utils.get_total_norm([p.grad for p in n.parameters()]) for n in plain]
        for network, adam in zip(plain, adams, strict=True):
            if clip:
                nn.utils.clip_grad_norm_(network.parameters(), clip)
            for group in adam.param_groups:
                group["lr"] = rates[plain.index(network)] / (number + 1)
            adam.step()
            adam.zero_grad()
        norms = optimizer.norms()
        torch.testing.assert_close(norms, expected)  # as they were, not as they are clipped
        optimizer.update(torch.stack(norms), torch.tensor(1 / (number + 1)))
        optimizer.zero_grad()
    for mine, theirs in zip(ours, plain, strict=True):
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_a_state_of_before_there_were_rates_loads() -> None:
    """One group for both networks, as earlier versions wrote it."""
    first, second = networks()
    parameters = [*first.parameters(), *second.parameters()]
    before = torch.optim.Adam(parameters, lr=1e-2, fused=True)
    second(first(torch.ones(1, 4))).sum().backward()
    before.step()
    optimizer = Optimizer([(list(first.parameters()), 1e-2), (list(second.parameters()), 1e-2)])
    optimizer.load_state_dict(before.state_dict())
    moments = [optimizer.adam.state[p]["exp_avg"] for p in parameters]
    assert all(
        torch.equal(m, before.state[p]["exp_avg"]) for m, p in zip(moments, parameters, strict=True)
    )
    wrong = Optimizer([(list(nn.Linear(4, 2).parameters()), 1e-2)])
    with pytest.raises(ValueError):
        wrong.load_state_dict(before.state_dict())


def test_parts_that_draw_random_numbers_draw_the_same_twice() -> None:
    network = nn.Sequential(nn.Linear(6, 6, dtype=torch.float64), nn.Dropout(0.5))
    batch, calls = torch.randn(6, 6, dtype=torch.float64), list[Tensor]()

    def encode(part: Tensor, name: str) -> tuple[Tensor, ...]:
        calls.append(network(part))
        return (calls[-1],)

    parts = [(part, "") for part in batch.chunk(3)]
    backward_in_parts(
        encode, parts, lambda outputs: torch.cat([x for (x,) in outputs]).logsumexp(0).sum(), True
    )
    assert torch.equal(torch.cat(calls[:3]), torch.cat(calls[3:]))
    assert not torch.equal(calls[0], network(parts[0][0]))


def test_the_loss_scale_is_that_of_pytorchs_grad_scaler() -> None:
    """Through overflows and growth; both skip the same updates and end at the same weights."""
    (ours, _), (plain, _) = networks(), networks()
    optimizer = Optimizer([(list(ours.parameters()), 1e-2)], clip=0.5, half=True)
    assert optimizer.loss_scale is not None
    optimizer.loss_scale.patience = 3
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=3)
    adam = torch.optim.Adam(plain.parameters(), lr=1e-2)
    inputs = torch.randn(12, 5, 4)
    for number in range(12):
        overflows = number in (1, 6, 7)

        def loss_of(network: nn.Linear, x: Tensor = inputs[number]) -> Tensor:
            loss: Tensor = network(x).square().mean()
            return loss

        for network in (ours, plain):
            network.zero_grad()
        optimizer.scaled(lambda _: loss_of(ours))([]).backward()
        scaler.scale(loss_of(plain)).backward()
        if overflows:
            for network in (ours, plain):
                assert network.weight.grad is not None
                network.weight.grad[0, 0] = torch.inf
        scaler.unscale_(adam)
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        scaler.step(adam)
        scaler.update()
        (found,) = optimizer.norms()
        torch.testing.assert_close(found, torch.tensor(0.0) if overflows else norm)
        assert optimizer.numbers()["skipped_update"] == float(overflows)
        optimizer.update(found[None])
        assert optimizer.loss_scale.scale == scaler.get_scale(), number
        torch.testing.assert_close(ours.weight, plain.weight, atol=1e-6, rtol=1e-5)
    again = Optimizer([(list(ours.parameters()), 1e-2)], half=True)
    again.load_state_dict(optimizer.state_dict())
    assert again.loss_scale is not None
    assert again.loss_scale.scale == optimizer.loss_scale.scale
    assert again.loss_scale.updates == optimizer.loss_scale.updates


def test_gradients_that_overflow_at_any_scale_are_no_matter_of_the_scale() -> None:
    (network, _) = networks()
    optimizer = Optimizer([(list(network.parameters()), 1e-2)], half=True)
    before = network.weight.clone()
    for _ in range(16):
        network(torch.full((1, 4), torch.inf)).sum().backward()
        (norm,) = optimizer.norms()
        assert norm == 0  # so that the run goes on
        optimizer.update(norm[None])
    network(torch.full((1, 4), torch.inf)).sum().backward()
    (norm,) = optimizer.norms()
    assert not norm.isfinite()  # the run ends and names the step
    optimizer.update(norm[None])
    assert torch.equal(network.weight, before)
