"""A run: its folder, checkpoints, resuming, and what goes wrong in it."""

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
from spandrel import ModelLoader
from spandrel.architectures.SwinIR import SwinIR
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lasr.errors import UserError
from lasr.weights.locate import Located
from lasr.weights.tensors import read_tensors
from schemas.manifest import ManifestError
from tests.support.training import config
from tests.support.upstream import save_clip
from tests.support.weights import load_encoders, load_rrdb
from trainer import checkpoint, loop, plan
from trainer import step as step_module
from trainer.config import TrainConfig
from trainer.data.skipped import trim_lines
from trainer.models.rrdb import untrained_rrdb
from trainer.plan import check_compiler, open_patches
from trainer.step import TrainStep

CPU = torch.device("cpu")


def stats(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    timing = ("seconds_per_step", "waiting_for_data", "waiting_for_device")
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


def test_a_run_that_was_stopped_equals_one_that_was_not(
    manifest: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {
        "steps": 8, "checkpoint_every": 4, "sample_every": 4, "ema": 0.9, "lr_encoders": 1e-4,
        "warmup": 2, "schedule": "cosine", "clip_gradient": 0.5, "augment": "flips",
        "accumulate": 2, "encoder_view": "equal-size", "sr_as_low_quality": 0.5,
    }  # fmt: skip
    whole = config(manifest, models, tmp_path / "whole", **changes)
    loop.train(whole)
    stopped = config(manifest, models, tmp_path / "stopped", **changes)
    real, calls = TrainStep.__call__, []

    def dies(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 7:  # step 5 is logged, the last checkpoint is step 4's
            raise RuntimeError("killed")
        return real(*arguments)

    monkeypatch.setattr(TrainStep, "__call__", dies)
    with pytest.raises(RuntimeError, match="killed"):
        loop.train(stopped)
    assert [line["step"] for line in stats(stopped.folder)] == [1, 2, 3, 4, 5]
    monkeypatch.setattr(TrainStep, "__call__", real)
    loop.train(stopped)
    assert stats(whole.folder) == stats(stopped.folder)
    assert [line["step"] for line in stats(whole.folder)] == list(range(1, 9))
    assert [line["rate"] for line in stats(whole.folder)][:3] == [0.5, 1, 1]
    longer = stopped.model_copy(update={"steps": 9})
    with pytest.raises(UserError, match="holds a run with steps = 8"):  # another cosine
        loop.train(longer)
    for name in ("model", "model_ema"):
        first, second = (load_rrdb(c.folder / f"{name}.safetensors") for c in (whole, stopped))
        for a, b in zip(first.parameters(), second.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_asked_to_stop_finishes_its_step_and_saves(
    manifest: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    settings = config(manifest, models, tmp_path / "run", checkpoint_every=100, log_every=2)
    real = TrainStep.__call__

    def asks(*arguments: Any) -> Any:
        monkeypatch.setattr(TrainStep, "__call__", real)
        os.kill(os.getpid(), number)
        return real(*arguments)

    monkeypatch.setattr(TrainStep, "__call__", asks)
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
    assert written["precision"] == "float32"  # what `auto` meant on the machine
    assert TrainConfig(**repeated) == settings.model_copy(update={"precision": "float32"})
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
    with pytest.raises(UserError, match=r"checkpoint\b.* cannot be written .*free some"):
        loop.train(settings)
    monkeypatch.setattr(torch, "save", real)
    assert (settings.folder / "checkpoint.pt").read_bytes() == before
    assert not list(settings.folder.glob(".*.tmp"))
    loop.train(settings)
    assert [line["step"] for line in stats(settings.folder)] == [1, 2, 3]


def test_damaged_lines_of_the_stats_leave_the_others(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    kept = b'{"step": 1}\n\xff\xfe\n[]\n"x"\n{"loss": 1}\n{"step": 2}\n'
    path.write_bytes(kept + b'{"step": 3}\n{"st')
    assert trim_lines(path, 2) == [{"step": 1}, {"step": 2}]
    assert path.read_bytes() == kept


def test_without_a_compiler_the_flag_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = torch.compile, []

    def captured(network: Any, mode: str) -> Any:  # but for the C++, which takes 20 s to build
        calls.append(mode)
        return real(network, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", captured)
    check_compiler(CPU, "default")
    assert calls == ["default"]

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
    with pytest.raises(ManifestError, match=r"allows 4; row \d+ has no caption; leave such"):
        loop.train(config(broken, models, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_going_back_is_refused_and_paths_may_change(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    settings = config(manifest, models, tmp_path / "run", steps=2)
    loop.train(settings)
    for attempt in (loop.train, plan.describe):  # --dry-run checks the same
        with pytest.raises(UserError, match=r"holds a run of 2 steps, more than --steps 1; pass"):
            attempt(settings.model_copy(update={"steps": 1}))
        with pytest.raises(UserError, match="holds a run with seed = 0, now it is 1; choose"):
            attempt(settings.model_copy(update={"seed": 1}))
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


def test_a_run_keeps_the_weights_that_its_profile_had_when_it_started(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    """`offline` meant random networks once; `test` does now, so it plays the old `offline`."""
    plain = {"clip": None, "sr_init": None, "steps": 2}
    old = config(manifest, models, tmp_path / "run", **plain)
    loop.train(old)
    path = old.folder / "config.json"
    written = json.loads(path.read_text())
    assert written["clip"] is None and written["weights"]["clip"] == "tiny-clip@built-in"
    path.write_text(json.dumps(written | {"profile": "offline"}))
    typed = old.model_copy(update={"profile": "offline", "steps": 3})
    named = {"clip": "tiny-clip", "vgg": "tiny-vgg", "sr_init": "tiny-rrdb"}
    random = [named["sr_init"], named["clip"], named["vgg"]]
    assert plan.weight_names(typed) == random
    loop.train(typed)  # as it was typed then
    assert json.loads(path.read_text())["clip"] is None  # so that it also resumes next time
    # With the names in full, as the change log of that version says.
    loop.train(typed.model_copy(update=named | {"steps": 4}))
    assert [line["step"] for line in stats(old.folder)] == [1, 2, 3, 4]
    other = typed.model_copy(update={"out": tmp_path / "new"})
    trained = ["rrdb-small", "clip-small", "lite0-features"]
    assert plan.weight_names(other) == trained
    path.write_text(json.dumps(written | {"profile": "offline"}))
    changed = typed.model_copy(update={"profile": "default"})
    assert plan.weight_names(changed)[1] == "clip-vit-l-14"  # another profile is another wish
    with pytest.raises(UserError, match=r"holds a run with weights = .*tiny-clip.*now it is"):
        loop.train(typed.model_copy(update={"clip": str(models / "clip")}))


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


def test_a_float16_run_scales_its_losses_and_resumes(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    """The norms are those of float32 within its rounding, so the scale is gone from them."""
    # Without VGG, whose backward pass takes a CPU a second in float16.
    settings = {"steps": 2, "sample_every": 9, "weight_vgg": 0}
    runs = {
        name: config(manifest, models, tmp_path / name, precision=precision, **settings)
        for name, precision in (("half", "float16"), ("parts", "float16"), ("full", "float32"))
    }
    for name in ("half", "full"):
        loop.train(runs[name])
    loop.train(runs["parts"].model_copy(update={"steps": 1}))
    loop.train(runs["parts"])
    half, full = (stats(runs[name].folder) for name in ("half", "full"))
    assert half == stats(runs["parts"].folder)
    for ours, theirs in zip(half, full, strict=True):
        assert (ours["loss_scale"], ours["skipped_update"]) == (2**16, 0)
        for norm in ("gradient_norm_sr", "gradient_norm_encoders", "total"):
            assert ours[norm] == pytest.approx(theirs[norm], rel=0.05)
    assert "loss_scale" not in full[0]
    state = checkpoint.load(runs["half"].folder)
    assert state and state["optimizer"]["loss_scale"][1] == 2  # updates in a row
