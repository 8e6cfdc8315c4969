"""Captions: patches per second in each precision, agreement with float32, beside one at a time."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.device.networks import clip_folder, free, peak_gb, rate, wait
from benchmarks.device.profiling import profiled
from benchmarks.device.record import Part
from lasr.device import Precision, autocast, pick_device
from lasr.weights.locate import locate
from pipeline.stages.captions import DICTIONARY, Captioner, read_dictionary


def measure(part: Part) -> None:
    """The network alone, then what the host does for it, then clip-interrogator's own way."""
    device = pick_device(part.device)  # type: ignore[arg-type]
    located = locate(str(clip_folder(part.folder, part.small, device)), "clip")
    words = read_dictionary(DICTIONARY)[: 40 if part.small else None]
    rng = np.random.default_rng(0)
    patches = [_patch(rng, side) for side in (56, 224) * (4 if part.small else 64)]
    reference: dict[str, Any] = {}
    captioner = Captioner(located, words, device)

    def network(precision: Precision, profile: bool = False) -> None:
        free(device)
        captioner._autocast = lambda: autocast(device, precision)  # one load serves all
        some = [captioner.prepare(patch) for patch in patches[: captioner.batch]]
        milliseconds = rate(lambda: captioner.features(some), device, 1.0)
        features = captioner.features(some)
        words_of = [set(caption.words) for caption in captioner.rank(features)]
        more: dict[str, Any] = {"peak_GB": peak_gb(device), "batch": captioner.batch}
        if precision == "float32":
            reference.update(features=features, words=words_of)
        elif reference:
            same = [len(a & b) for a, b in zip(reference["words"], words_of, strict=True)]
            more["same_words_of_24_mean"] = float(np.mean(same))
            more["same_words_least"] = min(same)
            more["cosine_least"] = float((reference["features"] * features).sum(1).min())
        part.row(f"network, {precision}", 1e3 * len(some) / milliseconds, "patches/s", **more)
        if device.type == "cuda":
            pictures = torch.stack(some).to(device).permute(0, 3, 1, 2).float() / 128 - 1

            @torch.inference_mode()
            def on_device() -> None:
                with captioner._autocast():
                    captioner.clip.model.encode_image(pictures)

            alone = rate(on_device, device, 0.7)
            part.row(f"network on the device, {precision}", 1e3 * len(some) / alone, "patches/s")
        if profile:
            what = f"features of {len(some)} patches, {precision}"
            part.text(what, profiled(lambda: captioner.features(some), device))

    def host() -> None:
        cores = os.cpu_count() or 1
        for threads in {1, cores}:
            with ThreadPoolExecutor(threads) as pool:
                many = patches * (1 if part.small else 4)
                started = time.perf_counter()
                list(pool.map(captioner.prepare, many))
                seconds = time.perf_counter() - started
            part.row(f"prepare, {threads} threads", len(many) / seconds, "patches/s")
        features = rng.standard_normal((16, captioner._embeddings.shape[1])).astype(np.float32)
        part.row("rank", 16e3 / rate(lambda: captioner.rank(features), device, 0.3), "patches/s")

    def one_by_one() -> None:
        from types import SimpleNamespace

        from clip_interrogator import Config, LabelTable

        clip = captioner.clip
        config = Config(caption_model_name=None, quiet=True, device=str(device))
        config.cache_path, config.download_cache = None, False
        upstream = SimpleNamespace(clip_model=clip.model, config=config, tokenize=clip.tokenize)
        table = LabelTable(words, None, upstream)

        @torch.no_grad()
        def rank(patch: np.ndarray) -> None:
            picture = clip.preprocess(Image.fromarray(patch))[None].to(device)
            table.rank(clip.model.encode_image(picture, normalize=True), top_count=24)

        rank(patches[0])
        wait(device)
        some = patches[: 4 if part.small else 24]
        started = time.perf_counter()
        for patch in some:
            rank(patch)
        wait(device)
        seconds = time.perf_counter() - started
        part.row("clip-interrogator, one by one", len(some) / seconds, "patches/s")

    precisions: list[Precision] = ["float32", "bfloat16", "float16"]
    if device.type == "cuda":
        precisions.insert(1, "tf32")
    for precision in precisions:
        what = f"network, {precision}"
        part.attempt(what, lambda p=precision: network(p, p == "bfloat16"))  # type: ignore[misc]
    part.attempt("host", host)
    part.attempt("one by one", one_by_one)


def _patch(rng: np.random.Generator, side: int) -> np.ndarray:
    """A patch that is neither noise nor flat, side x side x 3 uint8."""
    coarse = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
