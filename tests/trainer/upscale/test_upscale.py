"""Pictures out: tiles without a trace, spandrel's own network as the judge, and the command."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import spandrel
import torch
from PIL import Image
from torch import Tensor, nn

from lasr.errors import UserError
from lasr.pictures.find import find_pictures, targets
from lasr.pictures.read import read_picture, read_rgb
from tests.support.weights import load_sr
from trainer.models.rrdb import RRDB, untrained_rrdb
from trainer.models.save import save_network
from trainer.sheets import bicubic
from trainer.upscale.__main__ import main
from trainer.upscale.engines import make_engine, onnx_engine
from trainer.upscale.tiles import Tiling, enlarge, upscale


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(untrained_rrdb(8, 1, 32), tmp_path_factory.mktemp("sr"))[0]


@pytest.fixture
def small(photographs: Path) -> Image.Image:
    with Image.open(photographs / "coffee.png") as image:
        return image.convert("RGB").resize((40, 30))


def engine_of(network: nn.Module) -> object:
    return make_engine(network, torch.device("cpu"), "torch")


def whole(answer: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(answer).astype(np.float32) / np.iinfo(answer[0].dtype).max


def linear(x: Tensor) -> Tensor:
    """An engine that enlarges smoothly: what tiles, alpha and depth do shows exactly."""
    return nn.functional.interpolate(x, scale_factor=4, mode="bilinear")


# --- Tiles


def test_output_equals_spandrels_whatever_the_tiles(weights: Path, photographs: Path) -> None:
    network = spandrel.ModelLoader().load_from_file(weights).model.eval()
    picture = read_rgb(photographs / "china.jpg")[:, 150:230, 200:301]
    with torch.no_grad():
        expected = network(picture[None])[0].clamp(0, 1)
    ours = load_sr(str(weights))
    # 1e-5 is what 16 bit round to; one block sees 22 pixels around, so that nothing is missing.
    torch.testing.assert_close(upscale(ours, picture, 1024), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(upscale(ours, picture, 48), expected, atol=1e-5, rtol=0)


def test_the_seam_of_the_trained_network_is_bounded(photographs: Path) -> None:
    """Weights of Real-ESRGAN: the column where two tiles meet, against the untiled answer."""
    network = load_sr("realesrgan-x4plus").eval()
    picture = read_rgb(photographs / "chelsea.png")[:, 80:112, 60:236]  # fur
    one = upscale(network, picture, 176)
    # Three tiles of 64, 64 and 48 columns, each of which sees 160 of the 176.
    difference = (upscale(network, picture, 64) - one).abs()
    print(f"seam: largest {difference.max() * 255:.1f}/255, mean {difference.mean() * 255:.3f}/255")
    assert 0 < difference.max() < 4 / 255 and difference.mean() < 0.1 / 255


def test_tiles_without_surroundings_show(photographs: Path) -> None:
    picture = np.asarray(Image.open(photographs / "china.jpg"))[150:214, 200:281]
    network = RRDB(8, 1, 8)
    expected = whole(list(enlarge(engine_of(network), picture, 4, np.uint8, Tiling(512))))
    for overlap, equal in ((32, True), (0, False)):
        tiling = Tiling(16, overlap)
        got = whole(list(enlarge(engine_of(network), picture, 4, np.uint8, tiling)))
        assert (np.abs(got - expected).max() <= 1 / 255) == equal


def test_strips_and_progress_cover_the_picture(photographs: Path) -> None:
    picture = np.asarray(Image.open(photographs / "china.jpg"))[:50, :70]
    told: list[int] = []
    strips = list(enlarge(linear, picture, 4, np.uint8, Tiling(16, 4), told.append))
    assert [len(s) for s in strips] == [64, 64, 64, 8] and {s.shape[1] for s in strips} == {280}
    assert told == sorted(told) and len(told) == 4 * 5 and told[-1] == 50 * 70


def test_tiles_shrink_when_memory_runs_out(
    photographs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture = np.asarray(Image.open(photographs / "china.jpg"))[:60, :70]
    sizes = []

    def narrow(x: Tensor) -> Tensor:
        sizes.append(x.shape[-1])
        if x.shape[-1] > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return linear(x)

    tiling = Tiling(64, 4)
    got = np.concatenate(list(enlarge(narrow, picture, 4, np.uint8, tiling)))
    assert tiling.tile == 32 and max(sizes) == 70 and "going on with --tile 32" in caplog.text
    expected = np.concatenate(list(enlarge(linear, picture, 4, np.uint8, Tiling(64))))
    assert np.abs(got.astype(int) - expected).max() <= 1

    def never(x: Tensor) -> Tensor:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(UserError, match="even with the smallest tiles"):
        list(enlarge(never, picture, 4, np.uint8, Tiling(64)))
    with pytest.raises(RuntimeError, match="shape"):  # another fault is no lack of memory
        list(enlarge(lambda x: x.view(7), picture, 4, np.uint8, Tiling(64)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_no_black_or_broken_picture(value: float) -> None:
    grey = np.full((20, 20, 1), 128, np.uint8)

    def broken(x: Tensor) -> Tensor:
        return torch.full((1, 3, 80, 80), value)

    with pytest.raises(UserError, match="float16"):
        list(enlarge(broken, grey, 4, np.uint8, Tiling()))
    black = np.zeros((20, 20, 1), np.uint8)  # black may come out black
    if np.isfinite(value):
        assert not next(enlarge(broken, black, 4, np.uint8, Tiling())).any()


def test_engines_answer_alike() -> None:
    torch.manual_seed(0)
    network = RRDB(8, 1, 8)
    x = torch.rand(1, 3, 131, 34)  # more than two strips of `reconstruct`
    with torch.no_grad():
        expected = network(x)
    onnx = onnx_engine(network)
    torch.testing.assert_close(onnx(x), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(onnx(x[..., :9]), network(x[..., :9]).detach(), atol=1e-4, rtol=0)
    with torch.inference_mode():
        torch.testing.assert_close(engine_of(network)(x), expected, atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="needs a GPU"):
        make_engine(network, torch.device("cpu"), precision="float16")


# --- Alpha, grey, depth


def test_a_sprite_has_no_dark_fringe() -> None:
    """Orange on transparent black: every visible pixel of the result is orange."""
    y, x = np.mgrid[0:48, 0:48]
    inside = np.clip(16.5 - np.hypot(x - 24, y - 24), 0, 1)
    sprite = np.zeros((48, 48, 4), np.uint8)
    sprite[inside > 0] = [255, 128, 0, 0]
    sprite[:, :, 3] = (255 * inside).round()
    for tile in (64, 16):
        got = np.concatenate(list(enlarge(linear, sprite, 4, np.uint8, Tiling(tile))))
        seen = got[:, :, 3] > 8
        assert seen.mean() > 0.3 and (got[~seen][:, 3] <= 8).all()
        assert np.abs(got[seen][:, :3].astype(int) - [255, 128, 0]).max() <= 8
    assert got[0, 0].tolist() == [0, 0, 0, 0] and got[96, 96].tolist() == [255, 128, 0, 255]


def test_alpha_goes_through_the_network() -> None:
    ramp = np.zeros((16, 64, 2), np.uint8)
    ramp[:, :, 0], ramp[:, :, 1] = 200, np.arange(64) * 4
    seen = []
    list(enlarge(lambda x: (seen.append(x.clone()), linear(x))[1], ramp, 4, np.uint8, Tiling(64)))
    assert len(seen) == 2 and torch.allclose(seen[0][0, 0] * 255, torch.arange(64.0) * 4)
    opaque = np.full((16, 16, 4), 255, np.uint8)
    seen.clear()
    got = list(enlarge(lambda x: (seen.append(x), linear(x))[1], opaque, 4, np.uint8, Tiling()))
    assert len(seen) == 1 and (got[0] == 255).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_and_channels_stay(channels: int) -> None:
    ramp = np.linspace(0, 65_535, 32 * 32 * channels).reshape(32, 32, channels).astype(np.uint16)
    got = next(enlarge(linear, ramp, 4, np.uint16, Tiling()))
    assert got.shape == (128, 128, channels) and len(np.unique(got)) > 5000


# --- The command


def arguments(weights: Path, out: Path, *inputs: object, **flags: object) -> list[str]:
    pairs = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return [*map(str, inputs), "--weights", str(weights), "--out", str(out), *pairs]


def test_the_command_enlarges_files_folders_and_globs(
    weights: Path, small: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = tmp_path / "in" / "größe 2" / "tief"
    deep.mkdir(parents=True)
    small.save(tmp_path / "in" / "small one.png")
    small.save(deep / "small one.png")
    small.save(tmp_path / "in" / "größe 2" / "日本.webp")
    small.convert("L").save(tmp_path / "grau.jpg")
    out = tmp_path / "in" / "out"  # inside what is searched: results are no inputs
    argv = arguments(weights, out, tmp_path / "in", tmp_path / "gr*.jpg")
    assert main(argv) == 0
    assert "enlarged: 4 of 4, x4" in capsys.readouterr().out
    names = ["grau.png", "größe 2/tief/small one.png", "größe 2/日本.png", "small one.png"]
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.*")) == names
    assert read_picture(out / "grau.png").pixels.shape == (120, 160, 1)
    enlarged = read_rgb(out / "small one.png")
    smooth = bicubic(read_rgb(tmp_path / "in" / "small one.png")[None], 4)[0]
    inner = (enlarged - smooth)[:, 16:-16, 16:-16]
    assert inner.abs().mean() < 0.03  # an untrained start interpolates
    assert main(argv) == 0
    assert "enlarged: 0 of 4, 4 were there already" in capsys.readouterr().out


def test_two_passes_give_sixteen_times(weights: Path, small: Image.Image, tmp_path: Path) -> None:
    small.save(tmp_path / "a.png")
    assert main(arguments(weights, tmp_path / "x4", tmp_path / "a.png", tile=16)) == 0
    assert main(arguments(weights, tmp_path / "x16", tmp_path / "a.png", passes=2)) == 0
    once, twice = (read_rgb(tmp_path / x / "a.png") for x in ("x4", "x16"))
    assert twice.shape == (3, 480, 640)
    again = upscale(load_sr(str(weights)), once)
    assert (twice - again).abs().max() < 0.02  # but for the rounding to 8 bit in between


@pytest.mark.parametrize(("kind", "dtype"), [("jpg", np.uint8), ("webp", np.uint8),
                                             ("tiff", np.uint16)])  # fmt: skip
def test_other_formats(weights: Path, tmp_path: Path, kind: str, dtype: type) -> None:
    ramp = np.linspace(0, 65_535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert main(arguments(weights, tmp_path / "out", tmp_path / "a.png", format=kind)) == 0
    got = read_picture(tmp_path / "out" / f"a.{kind}").pixels
    assert got.shape[:2] == (128, 128) and got.dtype == dtype
    assert main(arguments(weights, tmp_path / "out", tmp_path / "a.png", format=kind)) == 0


def test_same_names_are_told_apart_or_refused(tmp_path: Path, small: Image.Image) -> None:
    for name in ("a/x.png", "a/x.jpg", "b/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        small.save(tmp_path / name)
    names = targets(find_pictures([tmp_path / "a"]), Path("out"), "png").values()
    assert sorted(map(str, names)) == ["out/x.jpg.png", "out/x.png.png"]
    both = find_pictures([tmp_path])
    assert len(set(targets(both, Path("out"), "png").values())) == 3
    files = find_pictures([tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"])
    with pytest.raises(UserError, match="would both become"):
        targets(files, Path("out"), "png")
    listed = tmp_path / "list.txt"
    listed.write_text(f"{tmp_path / 'a' / 'x.png'}\n\n{tmp_path / 'a' / 'x.png'}\n")
    assert len(find_pictures([listed])) == 1


def test_nothing_is_overwritten_unless_asked(
    weights: Path, small: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small.save(tmp_path / "a.png")
    own = arguments(weights, tmp_path, tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    assert main(own) == 1 and main([*own, "--overwrite"]) == 1
    assert "would overwrite an input" in capsys.readouterr().err
    assert (tmp_path / "a.png").read_bytes() == before
    assert main(arguments(weights, tmp_path, tmp_path)) == 1  # its results would be inputs
    assert "holds the inputs" in capsys.readouterr().err
    argv = arguments(weights, tmp_path / "out", tmp_path / "a.png")
    assert main(argv) == 0
    other = save_network(untrained_rrdb(8, 1, 32, seed=1), tmp_path / "other")[0]
    changed = arguments(other, tmp_path / "out", tmp_path / "a.png")
    assert main(changed) == 1 and "from other weights, passes" in capsys.readouterr().err
    assert main([*changed, "--overwrite"]) == 0
    small.rotate(90).save(tmp_path / "a.png")  # another picture under the same name
    assert main(changed) == 1


def test_mistakes_get_one_line_and_stop_no_other_picture(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (20, 20), "green").save(tmp_path / "fine.png")
    Image.new("RGBA", (20, 20)).save(tmp_path / "alpha.png")
    (tmp_path / "broken.png").write_bytes(b"no")
    assert main(arguments(weights, tmp_path / "out", tmp_path, format="jpg")) == 1
    text = capsys.readouterr()
    assert "broken.png: not a readable picture" in text.err and "1 of 3" in text.out
    assert "alpha.png: it has transparency" in text.err and text.err.count("error:") == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["fine.jpg"]
    assert main(arguments(weights, tmp_path / "out", tmp_path / "missing.png")) == 1
    assert main(arguments(Path("nonsense"), tmp_path / "x", tmp_path / "fine.png")) == 1
    assert "known sr weights; known: tiny-rrdb" in capsys.readouterr().err
    network = RRDB(8, 1, 8)
    with torch.no_grad():
        network.conv_last.get_parameter("bias").fill_(float("nan"))
    nan = save_network(network, tmp_path / "nan")[0]
    assert main(arguments(nan, tmp_path / "out2", tmp_path / "fine.png")) == 1
    assert "fine.png: the network's answer is not finite" in capsys.readouterr().err
    assert not list((tmp_path / "out2").glob("*"))


def test_killed_halfway_nothing_half_written_is_left(
    weights: Path, small: Image.Image, tmp_path: Path
) -> None:
    small.resize((700, 700)).save(tmp_path / "a.png")
    argv = arguments(weights, tmp_path / "out", tmp_path / "a.png", tile=32)
    process = multiprocessing.get_context("spawn").Process(target=main, args=(argv,))
    process.start()
    deadline = time.monotonic() + 120
    half = tmp_path / "out" / ".a.png.tmp"
    while not (half.exists() and half.stat().st_size > 1000) and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.pid is not None and process.is_alive()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".a.png.tmp"]
