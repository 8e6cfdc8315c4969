"""Upscaling files beside spandrel, with the same weights: from a PNG on disk to a PNG on disk."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.device.networks import free, peak_gb, rate, sr_file, wait
from benchmarks.device.record import Part
from lasr.device import pick_device
from lasr.pictures.write import save_picture
from lasr.weights.locate import locate
from trainer.models.load import load_model
from trainer.upscale.config import OVERLAP, UpscaleConfig
from trainer.upscale.engines import make_engine
from trainer.upscale.run import upscale_files
from trainer.upscale.tiles import Tiling, upscale_strips


def measure(part: Part) -> None:
    """Each size: spandrel as its README shows it, in float32 and half; LA-SR's own command."""
    device = pick_device(part.device)  # type: ignore[arg-type]
    cuda = device.type == "cuda"
    torch.backends.cuda.matmul.allow_tf32 = False  # PyTorch's defaults
    torch.backends.cudnn.allow_tf32 = True
    located = locate(str(sr_file(part.folder, part.small)), "sr")
    sizes = (16, 24, 40) if part.small else (256, 720, 2040)
    for side in sizes:
        large = side == sizes[-1]  # takes spandrel a quarter of a minute, and is measured once
        number = 1 if large else 2
        inputs = [_picture(part.folder / f"in-{side}-{n}.png", side, n) for n in range(number)]
        needed = cuda * side // 100
        part.attempt(f"ours {side}", partial(ours, part, device, located, inputs, side, large),
                     needed)  # fmt: skip
        for half in (False, True) if cuda and not large else (False,):
            measured = partial(theirs, part, device, located, inputs, side, half, large)
            part.attempt(f"spandrel {side}", measured, needed)


def ours(
    part: Part, device: torch.device, located: Any, inputs: list[Path], side: int, large: bool
) -> None:
    """`lasr upscale` of files, loading included; and its parts: loading, network, writing."""
    free(device)
    if not large:
        by_parts(part, device, located, inputs[0], side)
    out = part.folder / f"ours-{side}"
    config = UpscaleConfig(inputs=["-"], weights="-", out=out, device=part.device)  # type: ignore[arg-type]
    results = {path: out / path.name for path in inputs}
    if not large:  # once before
        upscale_files(results, located, config)
        for path in results.values():
            path.unlink()
    started = time.perf_counter()
    upscale_files(results, located, config)
    seconds = time.perf_counter() - started
    part.row(f"LA-SR files, {side}x{side}", 1e3 * seconds / len(inputs), "ms a picture",
             peak_GB=peak_gb(device))  # fmt: skip


def by_parts(part: Part, device: torch.device, located: Any, path: Path, side: int) -> None:
    """Loading, network and writing of one picture."""
    pixels = np.asarray(Image.open(path))
    for precision in ("auto", "float32"):
        started = time.perf_counter()
        model = load_model(located)
        engine = make_engine(model.fitted(), device, precision=precision)  # type: ignore[arg-type]
        wait(device)
        part.row(f"LA-SR {precision}, loading", 1e3 * (time.perf_counter() - started), "ms")

        def network(engine: Any = engine) -> None:
            for _ in upscale_strips(engine, pixels, 4, Tiling.on(device, None, OVERLAP), np.uint8):
                pass

        milliseconds = rate(network, device, 0.8, most=10)
        part.row(f"LA-SR {precision}, {side}x{side}, array to array", milliseconds, "ms",
                 peak_GB=peak_gb(device))  # fmt: skip
    large = np.asarray(Image.fromarray(pixels).resize((4 * side, 4 * side)))
    target = part.folder / "written.png"
    strips = [large[: 2 * side], large[2 * side :]]

    def write() -> None:
        save_picture(target, strips, large.shape, large.dtype, "LA-SR benchmark")

    part.row(f"LA-SR writing, {4 * side}x{4 * side}", rate(write, device, 0.5, most=5), "ms")


def theirs(
    part: Part,
    device: torch.device,
    located: Any,
    inputs: list[Path],
    side: int,
    half: bool,
    large: bool,
) -> None:
    """Read, run, clamp, round, write with Pillow, as its users do; large: with writing only."""
    import spandrel

    free(device)
    model = spandrel.ModelLoader(device=device).load_from_file(located.path).eval()
    assert isinstance(model, spandrel.ImageModelDescriptor)
    if half:
        model = model.half()
    dtype = torch.float16 if half else torch.float32

    @torch.inference_mode()
    def upscale(path: Path, out: Path | None) -> None:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device).to(dtype) / 255
        y = model(x)
        array = (y[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        if out:
            Image.fromarray(array).save(out)

    more = {}
    if not large:
        upscale(inputs[0], None)
        wait(device)
        started = time.perf_counter()
        for path in inputs:
            upscale(path, None)
        more["without_writing_ms"] = 1e3 * (time.perf_counter() - started) / len(inputs)
    started = time.perf_counter()
    for path in inputs:
        upscale(path, part.folder / f"theirs-{path.name}")
    seconds = time.perf_counter() - started
    what = f"spandrel {'float16' if half else 'float32'}"
    part.row(f"{what} files, {side}x{side}", 1e3 * seconds / len(inputs), "ms a picture",
             peak_GB=peak_gb(device), **more)  # fmt: skip


def _picture(path: Path, side: int, seed: int) -> Path:
    from pipeline.demo import copy_photographs

    folder = path.parent / "photographs-of-demo"
    copy_photographs(folder)
    source = Image.open(folder / "astronaut.png").convert("RGB").rotate(90 * seed)
    source.resize((side, side), Image.Resampling.BICUBIC).save(path)
    return path
