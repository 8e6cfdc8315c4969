"""The loop: where gradients go, that it learns what it should, and that it carries on exactly."""

import copy
import itertools
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import duckdb
import pytest
import torch
import torch.nn.functional as F
from spandrel import ModelLoader
from spandrel.architectures.SwinIR import SwinIR
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from lasr.errors import UserError
from lasr.weights.locate import Located
from lasr.weights.tensors import read_tensors
from schemas.manifest import ManifestError, open_manifest
from tests.support.upstream import save_clip
from tests.support.weights import load_encoders, load_rrdb
from trainer import checkpoint, loop, losses
from trainer import step as step_module
from trainer.config import TrainConfig
from trainer.data.dataset import COLUMNS, Batch, Patches
from trainer.distributed import World
from trainer.models.rrdb import untrained_rrdb
from trainer.models.save import save_network
from trainer.models.vgg import untrained_vgg, vgg_term
from trainer.plan import check_compiler, open_patches
from trainer.run_log import trim_stats
from trainer.step import TrainStep

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP and a small SR network as files."""
    folder = tmp_path_factory.mktemp("models")
    save_clip(folder / "clip")
    save_network(untrained_rrdb(8, 1, 8), folder, "sr")
    return folder


def config(manifest: Path, models: Path, out: Path, **changes: Any) -> TrainConfig:
    plain: dict[str, Any] = {
        "manifest": manifest, "out": out, "profile": "offline", "clip": str(models / "clip"),
        "sr_init": str(models / "sr.safetensors"), "batch_size": 2, "log_every": 1, "steps": 4,
        "sample_every": 2, "checkpoint_every": 2, "workers": 2,
    }  # fmt: skip
    return TrainConfig(**(plain | changes))


def make_step(
    manifest: Path, models: Path, out: Path, world: World | None = None, **changes: Any
) -> TrainStep:
    settings = config(manifest, models, out, **changes)
    sr_network = load_rrdb(models / "sr.safetensors")
    return TrainStep(
        settings, sr_network, load_encoders(settings.clip_name, CPU), untrained_vgg(), world
    )


def terms_of(step: TrainStep, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    return step.terms(batch.lr, batch.hr, step.texts_of(batch))


def first_batch(manifest: Path, size: int = 3) -> Batch:
    return Patches(open_manifest(manifest, COLUMNS)).batch(0, size)


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
    _, terms = terms_of(step, batch)
    total = step.backward(terms)

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
    _, plain = terms_of(make_step(manifest, models, tmp_path), batch)
    step = make_step(manifest, models, tmp_path, precision="bfloat16")
    sr, terms = terms_of(step, batch)
    assert sr.dtype == torch.bfloat16
    for name, term in terms.items():
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, plain[name], atol=0.02, rtol=0.05)
    step.backward(terms)
    for gradient in gradients([*step.sr_parameters, *step.encoder_parameters]):
        assert gradient.dtype == torch.float32 and gradient.isfinite().all()


def test_frozen_encoders_stay_and_their_own_terms_are_not_computed(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    batch = first_batch(manifest)
    _, free = terms_of(make_step(manifest, models, tmp_path), batch)
    step = make_step(manifest, models, tmp_path, freeze_encoders=True, lr=1e-3)
    before = {k: v.clone() for k, v in step.encoders.state_dict().items()}
    _, terms = terms_of(step, batch)
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
    settings = config(manifest, models, tmp_path, freeze_encoders=True, lr=5e-4)
    update = TrainStep(settings, load_rrdb(models / "sr.safetensors"), encoders, untrained_vgg())
    terms_history = []
    for number in range(30):
        batch = data.batch(number, 4)
        numbers = update(batch, update.texts_of(batch)).tolist()
        values = dict(zip(update.names, numbers, strict=True))
        terms_history.append(values["content_sr"] + values["quality_sr"])
    assert sum(terms_history[-5:]) < sum(terms_history[:5]) - 0.1


def stats(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    timing = ("seconds_per_step", "waiting_for_data", "waiting_for_device")
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


def test_a_run_that_was_stopped_equals_one_that_was_not(
    manifest: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"steps": 8, "checkpoint_every": 4, "sample_every": 4, "ema": 0.9}
    whole = config(manifest, models, tmp_path / "whole", **changes)
    loop.train(whole)
    stopped = config(manifest, models, tmp_path / "stopped", **changes)
    real, calls = TrainStep.terms, []

    def dies(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 7:  # step 5 is logged, the last checkpoint is step 4's
            raise RuntimeError("killed")
        return real(*arguments)

    monkeypatch.setattr(TrainStep, "terms", dies)
    with pytest.raises(RuntimeError, match="killed"):
        loop.train(stopped)
    assert [line["step"] for line in stats(stopped.folder)] == [1, 2, 3, 4, 5]
    monkeypatch.setattr(TrainStep, "terms", real)
    loop.train(stopped)
    assert stats(whole.folder) == stats(stopped.folder)
    assert [line["step"] for line in stats(whole.folder)] == list(range(1, 9))
    for name in ("model", "model_ema"):
        first, second = (load_rrdb(c.folder / f"{name}.safetensors") for c in (whole, stopped))
        for a, b in zip(first.parameters(), second.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_asked_to_stop_finishes_its_step_and_saves(
    manifest: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    settings = config(manifest, models, tmp_path / "run", checkpoint_every=100, log_every=2)
    real = TrainStep.terms

    def asks(*arguments: Any) -> Any:
        monkeypatch.setattr(TrainStep, "terms", real)
        os.kill(os.getpid(), number)
        return real(*arguments)

    monkeypatch.setattr(TrainStep, "terms", asks)
    with pytest.raises(KeyboardInterrupt):
        loop.train(settings)
    state = checkpoint.load(settings.folder)
    assert state is not None and state["step"] == 2  # seen with the next step
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
    monkeypatch.setattr(step_module, "vgg_term", lambda *a: torch.tensor(float("nan")))
    said = r"step 3: vgg, total not finite \(manifest rows lr \[(\d+), (\d+)\], hr"
    with pytest.raises(UserError, match=said) as stopped:
        loop.train(settings.model_copy(update={"steps": 4}))
    assert (settings.folder / "checkpoint.pt").read_bytes() == good
    found = json.loads((settings.folder / "nonfinite.json").read_text())
    assert found["step"] == 3 and found["numbers"]["vgg"] == "nan"
    rows = [str(patch["row"]) for patch in found["patches"]["lr"]]
    assert rows == list(re.search(said, str(stopped.value)).groups())  # type: ignore[union-attr]
    sql = f"SELECT role FROM '{manifest}/*.parquet' WHERE patch_id = ?"
    for role, patches in found["patches"].items():
        for patch in patches:
            assert duckdb.execute(sql, [patch["patch_id"]]).fetchall() == [(role,)]


def test_a_manifest_smaller_than_a_batch_is_said(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    few = r"(\d+) lr patches are fewer than a batch of 500; pass --batch-size (\d+), or build"
    with pytest.raises(UserError, match=few) as refused:
        loop.train(config(manifest, models, tmp_path / "run", batch_size=500))
    found = re.search(few, str(refused.value))
    assert found and found[1] == found[2]
    with pytest.raises(UserError, match=rf"pass --batch-size {int(found[1]) // 5 * 5}, or"):
        open_patches(config(manifest, models, tmp_path / "run", batch_size=500), processes=5)
    one = tmp_path / "one.parquet"
    sql = f"(SELECT * FROM '{manifest}/*.parquet' WHERE role = 'lr' LIMIT 1)"
    sql += f" UNION ALL (SELECT * FROM '{manifest}/*.parquet' WHERE role = 'hr' LIMIT 3)"
    duckdb.sql(f"COPY ({sql}) TO '{one}' (FORMAT parquet)")
    with pytest.raises(
        UserError, match="1 lr patches are fewer than a batch of 2; build"
    ) as refused:
        loop.train(config(one, models, tmp_path / "run"))
    assert "--batch-size" not in str(refused.value)


def test_a_checkpoint_of_another_network_is_said_in_one_line(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    settings = config(manifest, models, tmp_path / "run", steps=1)
    loop.train(settings)
    for sr in (untrained_rrdb(8, 2, 8).state_dict(), {"other": torch.zeros(3)}, [1, 2]):
        state = checkpoint.load(settings.folder)
        assert state is not None
        torch.save(state | {"sr": sr}, settings.folder / "checkpoint.pt")
        with pytest.raises(UserError, match="the checkpoint is of another network") as refused:
            loop.train(settings.model_copy(update={"steps": 2}))
        assert "\n" not in str(refused.value)
    torch.save({"step": 1}, settings.folder / "checkpoint.pt")
    with pytest.raises(UserError, match="the checkpoint is of another network"):
        loop.train(settings.model_copy(update={"steps": 2}))


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing")],
)
def test_a_full_disk_leaves_the_last_checkpoint(
    manifest: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    settings = config(manifest, models, tmp_path / "run", checkpoint_every=1, steps=3)
    loop.train(settings.model_copy(update={"steps": 1}))
    before = (settings.folder / "checkpoint.pt").read_bytes()
    real = torch.save

    def full(state: Any, path: Path) -> None:
        real(state, path)
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"checkpoint of step 2 cannot be written .*free some disk"):
        loop.train(settings)
    monkeypatch.setattr(torch, "save", real)
    assert (settings.folder / "checkpoint.pt").read_bytes() == before
    assert not list(settings.folder.glob(".*.tmp"))
    loop.train(settings)
    assert [line["step"] for line in stats(settings.folder)] == [1, 2, 3]


def test_a_gpu_without_memory_is_said(
    manifest: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2.00 GiB")

    monkeypatch.setattr(TrainStep, "terms", out_of_memory)
    with pytest.raises(UserError, match=r"step 1: the GPU is out of memory .*lower --batch-size"):
        loop.train(config(manifest, models, tmp_path / "run"))


def test_damaged_lines_of_the_stats_leave_the_others(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\xfe\n[]\n"x"\n{"loss": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    trim_stats(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


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


def test_without_a_compiler_the_flag_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    check_compiler(CPU, "default")

    def no_compiler(*_: Any, **__: Any) -> Any:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nand much more")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(UserError, match=r"--compile default: torch.compile does not work here \(I"):
        check_compiler(CPU, "default")


def test_any_network_of_spandrel_is_trained_resumed_and_saved_so_that_spandrel_reads_it(
    manifest: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SwinIR: integer buffers that stay integers, and paths dropped at random, exactly resumed."""

    def swin(_: Located | None) -> torch.nn.Module:
        torch.manual_seed(0)
        return SwinIR(
            upscale=4, img_size=48, window_size=8, depths=[2], embed_dim=12, num_heads=[2],
            mlp_ratio=2, upsampler="pixelshuffledirect", resi_connection="1conv",
            drop_path_rate=0.5, patch_size=1, in_chans=3,
        )  # fmt: skip

    monkeypatch.setattr(loop, "load_sr", swin)
    changes = {"freeze_encoders": True, "weight_vgg": 0.0, "lr": 1e-3}
    whole, halves = (config(manifest, models, tmp_path / x, **changes) for x in ("whole", "halves"))
    weights = loop.train(whole)
    loop.train(halves.model_copy(update={"steps": 2}))
    assert loop.train(halves) == [halves.folder / "model.safetensors", halves.folder / "model.pth"]
    assert stats(whole.folder) == stats(halves.folder)
    state = checkpoint.load(whole.folder)
    assert state is not None
    trained, start = swin(None).eval(), swin(None).eval()
    trained.load_state_dict(state["sr"])
    pictures = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        expected = trained(pictures)
        assert not torch.equal(expected, start(pictures))
        for path in weights:
            read = ModelLoader().load_from_file(path)
            assert read.architecture.name == "SwinIR" and read.scale == 4
            torch.testing.assert_close(read.model.eval()(pictures), expected)
            kinds = {key: tensor.dtype for key, tensor in read_tensors(path).items()}
            assert kinds == {key: tensor.dtype for key, tensor in start.state_dict().items()}


@pytest.mark.parametrize("caption", ["''", "'  '", "NULL"])
def test_patches_without_a_caption_are_named_before_the_first_step(
    manifest: Path, models: Path, tmp_path: Path, caption: str
) -> None:
    broken = tmp_path / "broken.parquet"
    sql = f"SELECT * REPLACE (CASE WHEN rank = 1 THEN {caption} ELSE caption END AS caption)"
    duckdb.sql(f"COPY ({sql} FROM '{manifest}/*.parquet') TO '{broken}' (FORMAT parquet)")
    with pytest.raises(ManifestError, match=r"row \d+ has no caption; leave such rows out"):
        loop.train(config(broken, models, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_going_back_is_refused_and_paths_may_change(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    settings = config(manifest, models, tmp_path / "run", steps=2)
    loop.train(settings)
    with pytest.raises(UserError, match=r"holds a run of 2 steps, more than --steps 1; pass more"):
        loop.train(settings.model_copy(update={"steps": 1}))
    moved = tmp_path / "moved.parquet"
    shutil.copytree(manifest, moved)
    loop.train(settings.model_copy(update={"steps": 3, "manifest": moved}))
    assert [line["step"] for line in stats(settings.folder)] == [1, 2, 3]
    path = settings.folder / "config.json"  # of a version that had no --ema yet
    old = {k: v for k, v in json.loads(path.read_text()).items() if k != "ema"}
    path.write_text(json.dumps(old))
    loop.train(settings.model_copy(update={"steps": 4}))
    with pytest.raises(UserError, match=r"holds a run with ema = 0\.0, now it is 0\.9"):
        loop.train(settings.model_copy(update={"steps": 5, "ema": 0.9}))


def test_the_folder_explains_itself_and_tensorboard_has_scalars_and_pictures(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    settings = config(manifest, models, tmp_path / "run", steps=2)
    loop.train(settings, "python -m trainer.run --manifest x")
    text = (settings.folder / "README.md").read_text()
    assert "`python -m trainer.run --manifest x` resumes this run" in text
    for path in settings.folder.iterdir():
        named = "events.out.tfevents.*" if path.name.startswith("events") else path.name
        assert path.name == "README.md" or f"`{named}" in text, path
    events = EventAccumulator(str(settings.folder)).Reload()
    for name in ("total", "vgg", "gradient_norm_sr", "colour_shift", "waiting_for_data"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [json.loads(x) for x in (settings.folder / "stats.jsonl").open()]
        assert found == [(x["step"], pytest.approx(x[name])) for x in expected]
    assert [event.step for event in events.Images("samples")] == [0, 2]
    assert (events.Images("samples")[0].width, events.Images("samples")[0].height) == (696, 946)


def test_fine_tuning_with_the_encoders_of_another_run(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    """Appendix E.1 and figure 8: trained encoders, fixed, and the network at intervals."""
    first = config(manifest, models, tmp_path / "first", lr=1e-3)
    loop.train(first)
    trained = torch.load(tmp_path / "first" / "checkpoint.pt", weights_only=True)["encoders"]
    tuned = config(
        manifest, models, tmp_path / "tuned", encoders=first.folder, freeze_encoders=True,
        sr_init=str(tmp_path / "first" / "model.safetensors"), lr=1e-5, weights_every=2, steps=5,
    )  # fmt: skip
    loop.train(tuned)
    after = torch.load(tmp_path / "tuned" / "checkpoint.pt", weights_only=True)["encoders"]
    untouched = load_encoders(str(models / "clip"), CPU).state_dict()
    assert all(torch.equal(after[name], trained[name]) for name in trained)
    assert any(not torch.equal(after[name], untouched[name]) for name in trained)

    kept = sorted((tmp_path / "tuned" / "weights").iterdir())
    assert [path.name for path in kept] == ["step0000002.safetensors", "step0000004.safetensors"]
    networks = [read_tensors(path) for path in (*kept, tmp_path / "tuned" / "model.safetensors")]
    for one, other in itertools.pairwise(networks):
        assert any(not torch.equal(one[name], other[name]) for name in one)

    with pytest.raises(
        UserError, match=r"--encoders .*nowhere: no checkpoint there; pass the folder"
    ):
        loop.train(tuned.model_copy(update={"encoders": tmp_path / "nowhere"}))
    save_clip(tmp_path / "other", embed_dim=32)
    with pytest.raises(UserError, match=r"run trained another CLIP than .*other; pass the same"):
        loop.train(tuned.model_copy(update={"clip": str(tmp_path / "other")}))
