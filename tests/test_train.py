"""The loop: where gradients go, that it learns what it should, and that it carries on exactly."""

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import duckdb
import pytest
import torch
from torch import Tensor
from upstream import save_clip

from schemas.errors import UserError
from schemas.manifest import open_manifest
from trainer import checkpoint, loop, losses
from trainer.clip import load_encoders
from trainer.config import TrainConfig
from trainer.data import COLUMNS, Patches
from trainer.interpolation import interpolation_start
from trainer.rrdb import load_rrdb, save_rrdb
from trainer.vgg import small_vgg, vgg_term

CPU = torch.device("cpu")
WEIGHTS = losses.LossWeights()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP and a small SR network as files."""
    folder = tmp_path_factory.mktemp("models")
    save_clip(folder / "clip")
    save_rrdb(interpolation_start(8, 1, 8), folder, "sr")
    return folder


def config(manifest: Path, models: Path, out: Path, **changes: Any) -> TrainConfig:
    plain: dict[str, Any] = {
        "manifest": manifest, "out": out, "profile": "offline", "clip": str(models / "clip"),
        "sr_init": str(models / "sr.safetensors"), "batch_size": 2, "log_every": 1, "steps": 4,
        "sample_every": 2, "checkpoint_every": 2, "workers": 2,
    }  # fmt: skip
    return TrainConfig(**(plain | changes))


def one_step(
    manifest: Path, models: Path, tmp_path: Path
) -> tuple[dict[str, Tensor], torch.nn.Module, Any]:
    settings = config(manifest, models, tmp_path)
    batch = Patches(open_manifest(manifest, COLUMNS)).batch(0, 3)
    sr_network = load_rrdb(models / "sr.safetensors")
    encoders = load_encoders(settings.clip_name, CPU)
    _, terms = loop.compute_terms(
        batch, batch.lr, batch.hr, sr_network, encoders, small_vgg(), settings,
        contextlib.nullcontext(),  # type: ignore[arg-type]
    )  # fmt: skip
    return terms, sr_network, encoders


def test_each_term_moves_its_own_network_and_no_other(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    """`.grad` after the loop's backward equals autograd's derivative of the right terms alone."""
    terms, sr_network, encoders = one_step(manifest, models, tmp_path)
    sr_parameters = list(sr_network.parameters())
    encoder_parameters = [p for p in encoders.parameters() if p.requires_grad]
    sr_terms = 0.5 * terms["content_sr"] + 0.5 * terms["quality_sr"] + 0.1 * terms["vgg"]
    encoder_terms = 0.5 * terms["content_encoders"] + 0.5 * terms["quality_encoders"]
    expected_sr = torch.autograd.grad(sr_terms, sr_parameters, retain_graph=True)
    expected = torch.autograd.grad(encoder_terms, encoder_parameters, retain_graph=True)
    # The SR terms do reach the encoders, and the encoder terms do not reach the SR network:
    leak = torch.autograd.grad(sr_terms, encoder_parameters, allow_unused=True, retain_graph=True)
    assert any(g is not None and g.abs().max() > 0 for g in leak)

    total = loop.backward(terms, WEIGHTS, sr_parameters, encoder_parameters)
    torch.testing.assert_close(total, sr_terms + encoder_terms)
    for parameter, gradient in zip(sr_parameters, expected_sr, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    for parameter, gradient in zip(encoder_parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)  # …so nothing of the leak is in it
    assert all(g.abs().max() > 0 for g in expected_sr)


def test_terms_pair_what_belongs_together(manifest: Path, models: Path, tmp_path: Path) -> None:
    """Far pictures meet far captions and Q-, near ones near captions and Q+."""
    terms, sr_network, encoders = one_step(manifest, models, tmp_path)
    batch = Patches(open_manifest(manifest, COLUMNS)).batch(0, 3)
    with torch.no_grad():
        sr = sr_network(batch.lr)
        far, near, made = (encoders.images(x) for x in (batch.lr, batch.hr, sr))
        far_text, near_text = encoders.texts(batch.lr_captions), encoders.texts(batch.hr_captions)
        bad, good = encoders.texts(["bad"]), encoders.texts(["good"])
    assert not torch.equal(far_text, near_text)
    texts, qualities = (
        torch.cat([far_text, near_text]),
        torch.cat([bad.expand(3, -1), good.expand(3, -1)]),
    )
    expected = {
        "content_encoders": losses.cont(torch.cat([far, near]), texts),
        "content_sr": losses.cont(made, far_text),
        "quality_encoders": losses.cont(torch.cat([far, near]), qualities),
        "quality_sr": (losses.cosines(made, bad) - losses.cosines(made, good)).mean(),
        "vgg": vgg_term(small_vgg(), sr, batch.lr),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name].detach(), value, atol=1e-5, rtol=1e-5)


def test_bfloat16_reaches_the_networks_and_not_the_losses(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    plain, _, _ = one_step(manifest, models, tmp_path)
    sr_network = load_rrdb(models / "sr.safetensors")
    settings = config(manifest, models, tmp_path)
    batch = Patches(open_manifest(manifest, COLUMNS)).batch(0, 3)
    sr, terms = loop.compute_terms(
        batch, batch.lr, batch.hr, sr_network, load_encoders(settings.clip_name, CPU), small_vgg(),
        settings, torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
    )  # fmt: skip
    assert sr.dtype == torch.bfloat16
    for name, term in terms.items():
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, plain[name], atol=0.02, rtol=0.05)
    loop.backward(terms, WEIGHTS, list(sr_network.parameters()), [])
    assert all(p.grad.isfinite().all() for p in sr_network.parameters() if p.grad is not None)


def test_frozen_encoders_get_no_gradient(manifest: Path, models: Path, tmp_path: Path) -> None:
    terms, sr_network, encoders = one_step(manifest, models, tmp_path)
    loop.backward(terms, WEIGHTS, list(sr_network.parameters()), [])
    assert all(p.grad is None for p in encoders.parameters())
    assert all(p.grad is not None for p in sr_network.parameters())


def test_encoders_learn_far_from_near_and_the_sr_terms_then_fall(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    """Real patches. First the encoders alone learn; then, frozen, they teach the SR network."""
    torch.manual_seed(0)
    settings = config(manifest, models, tmp_path)
    data = Patches(open_manifest(manifest, COLUMNS))
    encoders = load_encoders(settings.clip_name, CPU)
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
    sr_network = load_rrdb(models / "sr.safetensors")
    optimizer = torch.optim.Adam(sr_network.parameters(), lr=5e-4)
    vgg, terms_history = small_vgg(), []
    for step in range(30):
        batch = data.batch(step, 4)
        _, terms = loop.compute_terms(
            batch, batch.lr, batch.hr, sr_network, encoders, vgg, settings,
            contextlib.nullcontext(),  # type: ignore[arg-type]
        )  # fmt: skip
        optimizer.zero_grad()
        loop.backward(terms, WEIGHTS, list(sr_network.parameters()), [])
        optimizer.step()
        terms_history.append((terms["content_sr"] + terms["quality_sr"]).item())
    assert sum(terms_history[-5:]) < sum(terms_history[:5]) - 0.1


def stats(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    timing = ("seconds_per_step", "waiting_for_data")
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


def test_a_run_that_was_stopped_equals_one_that_was_not(
    manifest: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = config(manifest, models, tmp_path / "whole")
    loop.train(whole)
    stopped = config(manifest, models, tmp_path / "stopped")
    real, calls = loop.compute_terms, []

    def dies(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # step 3 is logged, the last checkpoint is step 2's
            raise RuntimeError("killed")
        return real(*arguments)

    monkeypatch.setattr(loop, "compute_terms", dies)
    with pytest.raises(RuntimeError, match="killed"):
        loop.train(stopped)
    monkeypatch.setattr(loop, "compute_terms", real)
    loop.train(stopped)
    assert stats(whole.folder) == stats(stopped.folder)
    assert [line["step"] for line in stats(whole.folder)] == [1, 2, 3, 4]
    first, second = (load_rrdb(c.folder / "model.safetensors") for c in (whole, stopped))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_asked_to_stop_finishes_its_step_and_saves(
    manifest: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    settings = config(manifest, models, tmp_path / "run", checkpoint_every=100, log_every=2)
    real = loop.compute_terms

    def asks(*arguments: Any) -> Any:
        os.kill(os.getpid(), number)
        return real(*arguments)

    monkeypatch.setattr(loop, "compute_terms", asks)
    with pytest.raises(KeyboardInterrupt):
        loop.train(settings)
    monkeypatch.setattr(loop, "compute_terms", real)
    state = checkpoint.load(settings.folder)
    assert state is not None and state["step"] == 1
    loop.train(settings)
    assert [line["step"] for line in stats(settings.folder)] == [2, 4]  # as without the stop


def test_a_runs_folder_holds_what_the_contract_says(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    settings = config(manifest, models, tmp_path / "run")
    loop.train(settings)
    names = {path.relative_to(settings.folder).as_posix() for path in settings.folder.rglob("*")}
    assert {
        "config.json", "stats.jsonl", "checkpoint.pt", "model.safetensors", "model.pth",
        "samples/step0000000.png", "samples/step0000002.png", "samples/step0000004.png",
    } <= names  # fmt: skip
    assert any(name.startswith("events.out.tfevents") for name in names)
    written = json.loads((settings.folder / "config.json").read_text())
    assert written["batch_size"] == 2 and written["weights"]["clip"].startswith("clip@")
    repeated = {k: v for k, v in written.items() if k not in ("weights", "manifest_identity")}
    assert TrainConfig(**repeated) == settings
    before = load_rrdb(models / "sr.safetensors").state_dict()
    after = load_rrdb(settings.folder / "model.pth").state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before)


def test_a_folder_of_another_run_is_refused(manifest: Path, models: Path, tmp_path: Path) -> None:
    settings = config(manifest, models, tmp_path / "run", steps=1)
    loop.train(settings)
    with pytest.raises(UserError, match=r"run: holds a run with lr = 5e-05, now it is 0\.001"):
        loop.train(settings.model_copy(update={"lr": 1e-3}))
    loop.train(settings.model_copy(update={"steps": 2}))  # more steps carry it on
    rebuilt = tmp_path / "rebuilt.parquet"
    sql = f"SELECT * FROM '{manifest}/*.parquet' LIMIT 30"
    duckdb.sql(f"COPY ({sql}) TO '{rebuilt}' (FORMAT parquet)")
    path = settings.folder / "config.json"
    path.write_text(path.read_text().replace(str(manifest), str(rebuilt)))
    with pytest.raises(UserError, match="holds a run with manifest_identity"):
        loop.train(settings.model_copy(update={"manifest": rebuilt, "steps": 3}))
    assert [line["step"] for line in stats(settings.folder)] == [1, 2]


def test_damaged_checkpoints_and_broken_losses_are_said(
    manifest: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(manifest, models, tmp_path / "run", steps=2)
    loop.train(settings)
    good = (settings.folder / "checkpoint.pt").read_bytes()
    (settings.folder / "checkpoint.pt").write_bytes(good[:1000])
    with pytest.raises(UserError, match=r"checkpoint\.pt: the checkpoint cannot be read"):
        loop.train(settings)
    (settings.folder / "checkpoint.pt").write_bytes(good)
    monkeypatch.setattr(loop, "vgg_term", lambda *a: torch.tensor(float("nan")))
    with pytest.raises(UserError, match=r"step 3: the loss vgg is not finite \(manifest rows"):
        loop.train(settings.model_copy(update={"steps": 4}))
    assert (settings.folder / "checkpoint.pt").read_bytes() == good


def test_a_manifest_smaller_than_a_batch_is_said(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="lr patches are fewer than a batch of 500"):
        loop.train(config(manifest, models, tmp_path / "run", batch_size=500))
