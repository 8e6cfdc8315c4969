"""One step: where gradients go, and that it learns what it should."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from schemas.manifest import open_manifest
from tests.support.training import config, first_batch, make_step
from tests.support.weights import load_encoders, load_rrdb
from trainer import losses
from trainer.data.dataset import COLUMNS, Batch, Patches
from trainer.evaluate.resize import reduce
from trainer.models.vgg import untrained_vgg, vgg_term
from trainer.step import TrainStep

CPU = torch.device("cpu")


def gradients_of(step: TrainStep, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    return step.gradients(batch.lr, batch.hr, step.texts_of(batch))


def gradients(parameters: list[torch.nn.Parameter]) -> list[Tensor]:
    assert all(p.grad is not None for p in parameters)
    return [p.grad.clone() for p in parameters if p.grad is not None]


@pytest.mark.parametrize("words", [1, 3])
def test_a_step_equals_the_paper_written_plainly(
    manifest: Path, models: Path, tmp_path: Path, words: int
) -> None:
    """Every text by itself, one view of the encoders, gradients asked from autograd by name."""
    bad, good = ["bad", "blurry", "noisy"][:words], ["good", "sharp", "clean"][:words]
    step = make_step(manifest, models, tmp_path, bad=bad, good=good)
    batch = first_batch(manifest)
    _, terms, total = gradients_of(step, batch)

    encoders, n = load_encoders(str(models / "clip"), CPU), 3
    sr_network = load_rrdb(models / "sr.safetensors")
    made = sr_network(batch.lr)
    far, near, f_sr = (encoders.images(x) for x in (batch.lr, batch.hr, made))
    far_text, near_text = encoders.texts(batch.lr_captions), encoders.texts(batch.hr_captions)
    minus, plus = (
        torch.stack([F.normalize(encoders.texts([word])[0], dim=0) for word in of_quality]).mean(0)
        for of_quality in (bad, good)
    )
    assert not torch.equal(far_text, near_text)
    qualities = torch.stack([minus] * n + [plus] * n)
    expected = {
        "content_encoders": losses.cont(torch.cat([far, near]), torch.cat([far_text, near_text])),
        "content_sr": losses.cont(f_sr, far_text),
        "quality_encoders": losses.cont(torch.cat([far, near]), qualities),
        "quality_sr": (F.cosine_similarity(f_sr, minus) - F.cosine_similarity(f_sr, plus)).mean(),
        "vgg": vgg_term(untrained_vgg(), made, batch.lr),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, atol=1e-5, rtol=1e-5)
    of_sr = 0.5 * expected["content_sr"] + 0.5 * expected["quality_sr"] + 0.1 * expected["vgg"]
    of_encoders = 0.5 * expected["content_encoders"] + 0.5 * expected["quality_encoders"]
    torch.testing.assert_close(total, (of_sr + of_encoders).detach())

    trained = [p for p in encoders.parameters() if p.requires_grad]
    for ours, loss, parameters in (
        (step.sr_parameters, of_sr, list(sr_network.parameters())),
        (step.encoder_parameters, of_encoders, trained),
    ):
        wanted = torch.autograd.grad(loss, parameters, retain_graph=True)
        for gradient, right in zip(gradients(ours), wanted, strict=True):
            torch.testing.assert_close(gradient, right, atol=1e-6, rtol=1e-4)
            assert right.abs().max() > 0
    # The SR terms do depend on the encoders, so what was compared above holds nothing of that:
    leak = torch.autograd.grad(of_sr, trained, allow_unused=True)
    assert any(g is not None and g.abs().max() > 0 for g in leak)


def test_consistency_joins_the_loss_of_the_sr_network(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    batch = first_batch(manifest)
    plain, tied = (
        make_step(manifest, models, tmp_path, weight_consistency=weight) for weight in (0, 3)
    )
    (_, terms, total), (_, terms_tied, total_tied) = (
        gradients_of(step, batch) for step in (plain, tied)
    )
    assert terms_tied.keys() - terms.keys() == {"consistency"}
    made = load_rrdb(models / "sr.safetensors")(batch.lr)
    shrunk = torch.stack([reduce(picture, 4) for picture in made.detach()])
    expected = (shrunk - batch.lr).abs().mean()
    torch.testing.assert_close(terms_tied["consistency"].double(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(total_tied, total + 3 * expected.float())
    term = losses.consistency(tied.enlarge(batch.lr), batch.lr)
    alone = torch.autograd.grad(term, tied.sr_parameters)
    pairs = zip(gradients(tied.sr_parameters), gradients(plain.sr_parameters), strict=True)
    for (ours, without), gradient in zip(pairs, alone, strict=True):
        expected = without + 3 * gradient
        # Of L1: where SR and LR differ by a rounding, one pixel's sign is chance.
        atol = 1e-3 * float(expected.abs().max())
        torch.testing.assert_close(ours, expected, atol=atol, rtol=0)
        assert (3 * gradient).abs().max() > 10 * atol
    for ours, without in zip(
        gradients(tied.encoder_parameters), gradients(plain.encoder_parameters), strict=True
    ):
        torch.testing.assert_close(ours, without)


PARTLY = {"accumulate": 2, "encoder_view": "equal-size", "sr_as_low_quality": 0.7}


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulate": 2},
        {"accumulate": 3, "weight_vgg": 0, "weight_consistency": 3},
        {"accumulate": 3, "freeze_encoders": True},
        PARTLY,
    ],
    ids=str,
)
def test_a_batch_in_parts_has_the_gradients_of_the_whole(
    manifest: Path, models: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    batch = first_batch(manifest)  # of three pairs: the parts are of unequal sizes
    whole = make_step(manifest, models, tmp_path, **(changes | {"accumulate": 1}))
    parts = make_step(manifest, models, tmp_path, **changes)
    (sr, terms, total), (sr_parts, terms_parts, total_parts) = (
        gradients_of(step, batch) for step in (whole, parts)
    )
    torch.testing.assert_close(sr_parts, sr, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(terms_parts, terms, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(total_parts, total, atol=1e-6, rtol=1e-5)
    ours, expected = (gradients([*x.sr_parameters, *x.encoder_parameters]) for x in (parts, whole))
    for gradient, right in zip(ours, expected, strict=True):
        # Sums in another order: what cancels has the rounding of what is large.
        atol = max(1e-6, 5e-5 * float(right.abs().max()))
        torch.testing.assert_close(gradient, right, atol=atol, rtol=1e-4)


def test_encoders_that_see_one_size_and_sr_pictures_as_low_quality(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    """Equation (3) written plainly: all pictures of 224 pixels, and SR ones among the bad."""
    options = {"encoder_view": "equal-size", "sr_as_low_quality": 0.7}
    step, batch = make_step(manifest, models, tmp_path, **options), first_batch(manifest)
    _, terms, _ = gradients_of(step, batch)
    encoders = load_encoders(str(models / "clip"), CPU)
    sr_network = load_rrdb(models / "sr.safetensors")
    enlarged = F.interpolate(batch.lr, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    with torch.no_grad():
        made = sr_network(batch.lr)[:2]
    minus, plus = encoders.texts(["bad"]), encoders.texts(["good"])
    pictures = torch.cat([encoders.images(x) for x in (enlarged, made, batch.hr)])
    expected = losses.cont(pictures, torch.cat([minus.expand(5, -1), plus.expand(3, -1)]))
    torch.testing.assert_close(terms["quality_encoders"], expected, atol=1e-5, rtol=1e-5)
    trained = [p for p in encoders.parameters() if p.requires_grad]
    far, near = encoders.images(enlarged), encoders.images(batch.hr)
    texts = encoders.texts(batch.lr_captions), encoders.texts(batch.hr_captions)
    content = losses.cont(torch.cat([far, near]), torch.cat(texts))
    wanted = torch.autograd.grad(0.5 * expected + 0.5 * content, trained)
    for gradient, right in zip(gradients(step.encoder_parameters), wanted, strict=True):
        torch.testing.assert_close(gradient, right, atol=1e-6, rtol=1e-4)


def test_nothing_is_computed_for_the_encoders_weights_in_the_sr_terms(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    """The graphs have no weight in common, and the second view sees every update of the first."""
    step = make_step(manifest, models, tmp_path)
    assert not any(p.requires_grad for p in step.frozen_images.parameters())
    pictures = torch.rand(2, 3, 56, 56, requires_grad=True)
    before = step.frozen_images(pictures)
    # Which kernels run depends on what needs a gradient, and their last bits on the processor.
    torch.testing.assert_close(before, step.encoders.images(pictures), rtol=0, atol=1e-5)
    step(first_batch(manifest), step.texts_of(first_batch(manifest)))
    after = step.frozen_images(pictures)
    assert (before - after).abs().max() > 1e-4
    torch.testing.assert_close(after, step.encoders.images(pictures), rtol=0, atol=1e-5)


def test_bfloat16_reaches_the_networks_and_not_the_losses(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    batch = first_batch(manifest)
    _, plain, _ = gradients_of(make_step(manifest, models, tmp_path), batch)
    step = make_step(manifest, models, tmp_path, precision="bfloat16")
    sr, terms, _ = gradients_of(step, batch)
    assert sr.dtype == torch.bfloat16
    for name, term in terms.items():
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, plain[name], atol=0.02, rtol=0.05)
    for gradient in gradients([*step.sr_parameters, *step.encoder_parameters]):
        assert gradient.dtype == torch.float32 and gradient.isfinite().all()


def test_frozen_encoders_stay_and_their_own_terms_are_not_computed(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    batch = first_batch(manifest)
    _, free, _ = gradients_of(make_step(manifest, models, tmp_path), batch)
    step = make_step(manifest, models, tmp_path, freeze_encoders=True, lr=1e-3)
    before = {k: v.clone() for k, v in step.encoders.state_dict().items()}
    _, terms, _ = gradients_of(step, batch)
    assert terms.keys() == {"content_sr", "quality_sr", "vgg"}
    for name, term in terms.items():
        torch.testing.assert_close(term, free[name])
    sr = [p.clone() for p in step.sr_parameters]
    step(batch, step.texts_of(batch))
    assert all(torch.equal(v, before[k]) for k, v in step.encoders.state_dict().items())
    assert all(not torch.equal(a, b) for a, b in zip(sr, step.sr_parameters, strict=True))


def test_a_step_with_a_broken_number_changes_no_weight(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    step, batch = make_step(manifest, models, tmp_path, ema=0.5), first_batch(manifest)
    step(batch, step.texts_of(batch))
    before = copy.deepcopy(step.state())
    value, weight = batch.lr[1, 0, 0, 0].item(), step.sr_network.conv_last.weight
    spoil = weight.register_hook(lambda gradient: gradient * torch.inf)
    broken = step(batch, step.texts_of(batch)).isfinite()
    assert [n for n, fine in zip(step.names, broken, strict=True) if not fine] == [
        "gradient_norm_sr"
    ]
    assert unchanged(before, step)
    spoil.remove()
    batch.lr[1, 0, 0, 0] = float("nan")
    broken = step(batch, step.texts_of(batch)).isfinite()
    assert [n for n, fine in zip(step.names, broken, strict=True) if fine] == ["stop"]
    assert unchanged(before, step)
    batch.lr[1, 0, 0, 0] = value
    assert step(batch, step.texts_of(batch)).isfinite().all()
    assert not unchanged(before, step)


def unchanged(before: dict[str, Any], step: TrainStep) -> bool:
    """Whether weights, moments and step counts are what they were."""
    now = step.state()
    moments = zip(
        before["optimizer"]["state"].values(), now["optimizer"]["state"].values(), strict=True
    )
    return all(
        torch.equal(before[name][k], now[name][k]) for name in ("sr", "encoders") for k in now[name]
    ) and all(torch.equal(a[k], b[k]) for a, b in moments for k in a)


def test_fused_adam_and_the_moving_average_are_what_the_textbook_says(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    step, batch = make_step(manifest, models, tmp_path, ema=0.9, lr=1e-3), first_batch(manifest)
    assert step.average is not None
    weights = [p.detach().double() for p in step.sr_parameters]
    first = [torch.zeros_like(w) for w in weights]
    second, average = [torch.zeros_like(w) for w in weights], weights[:]
    for t in range(1, 4):
        step(batch, step.texts_of(batch))
        for i, p in enumerate(step.sr_parameters):
            g = p.grad.double()  # type: ignore[union-attr]
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g * g
            root = (second[i] / (1 - 0.999**t)).sqrt() + 1e-8
            weights[i] = weights[i] - 1e-3 * first[i] / (1 - 0.9**t) / root
        average = [0.9 * a + 0.1 * w for a, w in zip(average, weights, strict=True)]
    for mine, p in zip(weights, step.sr_parameters, strict=True):
        torch.testing.assert_close(p.double(), mine, atol=2e-6, rtol=1e-5)
    for mine, p in zip(average, step.average.parameters(), strict=True):
        torch.testing.assert_close(p.double(), mine, atol=2e-6, rtol=1e-5)


def test_encoders_learn_far_from_near_and_the_sr_terms_then_fall(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    """Real patches. First the encoders alone learn; then, frozen, they teach the SR network."""
    torch.manual_seed(0)
    data = Patches(open_manifest(manifest, COLUMNS))
    encoders = load_encoders(str(models / "clip"), CPU)
    optimizer = torch.optim.Adam(encoders.parameters(), lr=2e-3)

    @torch.no_grad()
    def accuracy(step: int) -> float:
        """Share of 32 patches whose feature lies closer to the text of its own role."""
        batch = data.batch(step, 16)
        texts = encoders.texts(["bad", "good"])
        far, near = (losses.cosines(encoders.images(x), texts) for x in (batch.lr, batch.hr))
        right = torch.cat([far[:, 0] > far[:, 1], near[:, 1] > near[:, 0]])
        return right.float().mean().item()

    first = accuracy(1000)
    history = []
    for step in range(60):
        batch = data.batch(step, 8)
        f_lr, f_hr = encoders.images(batch.lr), encoders.images(batch.hr)
        c_lr, c_hr = encoders.texts(batch.lr_captions), encoders.texts(batch.hr_captions)
        q_minus, q_plus = encoders.texts(["bad"]), encoders.texts(["good"])
        quality = losses.quality_encoders(f_lr, f_hr, q_minus, q_plus)
        optimizer.zero_grad()
        (0.5 * losses.content_encoders(f_lr, f_hr, c_lr, c_hr) + 0.5 * quality).backward()
        optimizer.step()
        history.append(quality.item())
    assert history[-1] < history[0] - 0.1
    assert accuracy(1000) > max(0.85, first)

    encoders.requires_grad_(False)
    settings = config(manifest, models, tmp_path, freeze_encoders=True, lr=2e-4, weight_vgg=0)
    update = TrainStep(settings, load_rrdb(models / "sr.safetensors"), encoders, untrained_vgg())

    def sr_terms() -> float:
        """Of the same patches each time, those that it learns from."""
        found = [gradients_of(update, data.batch(number, 4))[1] for number in range(4)]
        return sum((terms["content_sr"] + terms["quality_sr"]).item() for terms in found) / 4

    before = sr_terms()
    for number in range(40):
        batch = data.batch(number % 4, 4)
        update(batch, update.texts_of(batch))
    assert sr_terms() < before - 0.1


def test_a_compiled_step_is_the_same_step(
    manifest: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch.compile captures it, forward and backward. (Its C++ takes a minute to build: that
    is compared by `python -m benchmarks.train_step --compile default`.)"""
    real = torch.nn.Module.compile

    def captured(module: torch.nn.Module, mode: str, dynamic: bool) -> None:
        assert mode == "default"
        real(module, backend="aot_eager", dynamic=dynamic)

    monkeypatch.setattr(torch.nn.Module, "compile", captured)
    plain, compiled = (
        make_step(manifest, models, tmp_path, compile=mode) for mode in ("off", "default")
    )
    batch = first_batch(manifest, 2)
    for _ in range(2):
        expected, found = (step(batch, step.texts_of(batch)) for step in (plain, compiled))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)
    for a, b in zip(gradients(plain.sr_parameters), gradients(compiled.sr_parameters), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-2)
    assert plain.state()["sr"].keys() == compiled.state()["sr"].keys()
    assert plain.state()["encoders"].keys() == compiled.state()["encoders"].keys()
