"""Whatever is found in place of weights or checkpoints: none of its code runs, one line says so.

Every way in for a file of weights, times everything that may be found there: pickles that run code
in each container that PyTorch has had, and what a download that went wrong leaves.
"""

import ast
import contextlib
import functools
import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from lasr.errors import UserError
from tests.support.upstream import (
    SMALL,
    save_clip,
    save_depth_anything,
    save_depthfm,
    save_vae,
    save_vgg19,
)
from tests.support.weights import load_clip, load_depth, load_model, load_vgg
from trainer import checkpoint
from trainer.models.rrdb import untrained_rrdb
from trainer.models.save import save_network

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
MODEL, VAE = "model.safetensors", "diffusion_pytorch_model.safetensors"


def save_all(folder: Path) -> None:
    """Something good for every way in."""
    save_network(untrained_rrdb(8, 1, 8), folder / "sr")
    (folder / "vgg").mkdir()
    save_vgg19(folder / "vgg" / "vgg19.pth", width=8)
    save_clip(folder / "clip")
    save_depth_anything(folder / "depth-anything")
    (folder / "depthfm").mkdir()
    save_depthfm(folder / "depthfm" / "depthfm.ckpt", SMALL)
    save_vae(folder / "depthfm" / "vae")
    checkpoint.save(folder / "run", 3, encoders={"weight": torch.zeros(1, 2)})


def load_encoders_of(run: Path) -> None:
    encoders = torch.nn.Linear(2, 1, bias=False)
    checkpoint.load_trained_encoders(run, encoders, "clip")


# Name: the file that is spoilt, what it is called then, and the function that is given its folder.
ENTRIES: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "SR safetensors": ("sr/model.safetensors", MODEL, lambda d: load_model(str(d / MODEL))),
    "SR .pth": ("sr/model.pth", "model.pth", lambda d: load_model(str(d / "model.pth"))),
    "SR .bin": ("sr/model.pth", "model.bin", lambda d: load_model(str(d / "model.bin"))),
    "VGG": ("vgg/vgg19.pth", "vgg.pth", lambda d: load_vgg(d / "vgg.pth")),
    "CLIP folder": (
        "clip/open_clip_model.safetensors",
        "open_clip_model.safetensors",
        lambda d: load_clip(str(d), CPU),
    ),
    "CLIP folder with .bin": (
        "clip/open_clip_model.safetensors",
        "open_clip_pytorch_model.bin",
        lambda d: load_clip(str(d), CPU),
    ),
    "CLIP file": (
        "clip/open_clip_model.safetensors",
        "ViT.pt",
        lambda d: load_clip(str(d / "ViT.pt"), CPU),
    ),
    "Depth Anything": (f"depth-anything/{MODEL}", MODEL, lambda d: load_depth(str(d), CPU)),
    "Depth Anything with .bin": (
        f"depth-anything/{MODEL}",
        "pytorch_model.bin",
        lambda d: load_depth(str(d), CPU),
    ),
    "DepthFM": ("depthfm/depthfm.ckpt", "a.ckpt", lambda d: load_depth(str(d / "a.ckpt"), CPU)),
    "VAE": (f"depthfm/vae/{VAE}", VAE, lambda d: load_depth(str(d.parent / "depthfm.ckpt"), CPU)),
    "VAE with .bin": (
        f"depthfm/vae/{VAE}",
        "diffusion_pytorch_model.bin",
        lambda d: load_depth(str(d.parent / "depthfm.ckpt"), CPU),
    ),
    "run to carry on": ("run/checkpoint.pt", "checkpoint.pt", checkpoint.load),
    "--encoders RUN": ("run/checkpoint.pt", "checkpoint.pt", load_encoders_of),
}
# Read by transformers and diffusers, or told from the checkpoint before it.
OWN_WORDS = ("depth-anything", "vae", "run")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    save_all(folder)
    return folder


@pytest.fixture(params=ENTRIES)
def entry(
    request: pytest.FixtureRequest, good: Path, tmp_path: Path
) -> tuple[Path, Callable[[], Any]]:
    """A file to spoil, and what reads it."""
    place, name, load = ENTRIES[request.param]
    top = place.split("/")[0]
    shutil.copytree(good / top, tmp_path / top)
    file = (tmp_path / place).with_name(name)
    (tmp_path / place).rename(file)
    return file, lambda: load(file.parent)


def test_what_is_good_is_read(entry: tuple[Path, Callable[[], Any]]) -> None:
    """But for .bin where its library wants safetensors: nothing below is refused for its place."""
    file, load = entry
    if file.suffix == ".bin" and file.parent.name in OWN_WORDS:
        with pytest.raises(UserError, match="safetensors"):
            load()
    else:
        load()


class Runs:
    """What a pickle calls when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


def saved(content: object, **options: Any) -> bytes:
    torch.save(content, buffer := io.BytesIO(), **options)
    return buffer.getvalue()


def tar(content: object) -> bytes:
    """The container of PyTorch 0.1."""
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(content, protocol=2)
            (info := tarfile.TarInfo(name)).size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def script(content: object) -> bytes:
    """A TorchScript archive by its names."""
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version"):
            archive.writestr(f"archive/{name}", pickle.dumps(content, protocol=2))
    return buffer.getvalue()


def numpy_zip(content: object) -> bytes:
    np.savez(buffer := io.BytesIO(), weight=np.array([content], dtype=object))
    return buffer.getvalue()


def numpy_file(content: object) -> bytes:
    np.save(buffer := io.BytesIO(), np.array([content], dtype=object), allow_pickle=True)
    return buffer.getvalue()


# As a pickle may well call it: then the file beside is read without care.
CARELESS = functools.partial(torch.load, weights_only=False)


def beside(trace: Path) -> str:
    (other := trace.with_name("other.pth")).write_bytes(saved(Runs(os.mkdir, str(trace))))
    return str(other)


GOOD = {"conv_first.weight": torch.zeros(8, 3, 3, 3)}
CRAFTED: dict[str, Callable[[Path], bytes]] = {
    "zip": lambda t: saved({**GOOD, "x": Runs(os.mkdir, str(t))}),
    "shell": lambda t: saved({**GOOD, "x": Runs(os.system, f"mkdir '{t}'")}),
    "legacy": lambda t: saved(
        {**GOOD, "x": Runs(os.mkdir, str(t))}, _use_new_zipfile_serialization=False
    ),
    "tar": lambda t: tar({**GOOD, "x": Runs(os.mkdir, str(t))}),
    "pickle 0": lambda t: pickle.dumps(Runs(os.mkdir, str(t)), protocol=0),
    "pickle 5": lambda t: pickle.dumps(Runs(os.mkdir, str(t)), protocol=5),
    "eval": lambda t: saved({"x": Runs(eval, f"__import__('os').mkdir({str(t)!r})")}),
    "through torch.load": lambda t: saved({"x": Runs(CARELESS, beside(t))}),
    "callbacks of Lightning": lambda t: saved(
        {
            "state_dict": GOOD,
            "pytorch-lightning_version": "2.0",
            "callbacks": {"ModelCheckpoint": {"best": Runs(os.mkdir, str(t))}},
        }
    ),
    "TorchScript": lambda t: script(Runs(os.mkdir, str(t))),
    ".npy": lambda t: numpy_file(Runs(os.mkdir, str(t))),
    ".npz": lambda t: numpy_zip(Runs(os.mkdir, str(t))),
}  # fmt: skip


@pytest.mark.parametrize("craft", CRAFTED.values(), ids=CRAFTED)
def test_no_file_runs_code(
    entry: tuple[Path, Callable[[], Any]], craft: Callable[[Path], bytes], tmp_path: Path
) -> None:
    file, load = entry
    trace = tmp_path / "it ran"
    file.write_bytes(craft(trace))
    with pytest.raises(UserError) as refusal:
        load()
    assert not trace.exists()
    line = str(refusal.value)
    assert "\n" not in line and str(file.parent) in line and ";" in line


@pytest.mark.parametrize("craft", CRAFTED.values(), ids=CRAFTED)
def test_the_traps_work(craft: Callable[[Path], bytes], tmp_path: Path) -> None:
    """Read without care, each of the files above leaves its trace."""
    trace = tmp_path / "it ran"
    content = craft(trace)

    (path := tmp_path / "file").write_bytes(content)
    with contextlib.suppress(Exception):  # what is missing around a trap
        if trace_of(content) == "numpy":
            np.load(path, allow_pickle=True)["weight" if zipfile.is_zipfile(path) else 0]
        elif trace_of(content) == "script":
            with zipfile.ZipFile(path) as archive:
                pickle.loads(archive.read("archive/data.pkl"))
        elif content[:1] == b"c":
            pickle.loads(content)
        else:
            torch.load(path, weights_only=False)
    assert trace.exists()


def trace_of(content: bytes) -> str:
    """What reads such a file."""
    if content[:6] == b"\x93NUMPY" or b"weight.npy" in content:
        return "numpy"
    return "script" if b"archive/constants.pkl" in content else "torch"


REPLACED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda whole: b"", "empty"),
    "web page": (lambda whole: b"\n<!DOCTYPE html><html>404</html>", "web page"),
    "Git LFS": (
        lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n",
        "Git LFS",
    ),
    "half": (lambda whole: whole[: len(whole) // 2], "damaged"),
    "one byte short": (lambda whole: whole[:-1], "damaged"),
    "another network": (lambda whole: saved({"other.weight": torch.zeros(2)}), ""),
}


@pytest.mark.parametrize(("change", "word"), REPLACED.values(), ids=REPLACED)
def test_what_is_no_weights_is_named_in_one_line(
    entry: tuple[Path, Callable[[], Any]], change: Callable[[bytes], bytes], word: str
) -> None:
    file, load = entry
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UserError) as refusal:
        load()
    line = str(refusal.value)
    assert "\n" not in line and str(file.parent) in line and ";" in line, line
    if file.parent.name not in OWN_WORDS:
        assert word in line and str(file) in line


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_code_that_a_config_names_is_not_run(good: Path, tmp_path: Path, name: str) -> None:
    folder, trace = tmp_path / "depth", tmp_path / "it ran"
    shutil.copytree(good / "depth-anything", folder)
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(trace)!r})\nclass Own: pass\n")
    config = json.loads((folder / name).read_text())
    own = dict.fromkeys(("AutoConfig", "AutoModelForDepthEstimation"), "own.Own")
    config |= {"auto_map": {**own, "AutoImageProcessor": "own.Own"}, "trust_remote_code": True}
    for kind in ("depth_anything", "own"):
        config["model_type"] = config["image_processor_type"] = kind
        (folder / name).write_text(json.dumps(config))
        with pytest.raises(UserError, match=r"names code of its own \(auto_map\)"):
            load_depth(str(folder), CPU)
    assert not trace.exists()


def test_clip_follows_no_config_to_other_loaders(good: Path, tmp_path: Path) -> None:
    folder, trace = tmp_path / "clip", tmp_path / "it ran"
    shutil.copytree(good / "clip", folder)
    (folder / "pytorch_model.bin").write_bytes(CRAFTED["zip"](trace))
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = str(folder)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="no config of a plain CLIP"):
        load_clip(str(folder), CPU)
    assert not trace.exists()


def test_nothing_of_ours_reads_a_pickle_otherwise() -> None:
    """`torch.load` with weights_only alone; no other reader that can call what a file names."""
    readers = {"pickle.load", "pickle.loads", "torch.jit.load", "eval"}
    found = 0
    packages = ("schemas", "lasr", "pipeline", "trainer")
    for file in (file for package in packages for file in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            assert name not in {*readers, "exec", "joblib.load", "torch.hub.load"}, file
            if name in ("np.load", "numpy.load"):
                assert "allow_pickle=False" in ast.unparse(node), file
            if name == "torch.load":
                found += 1
                assert "weights_only=True" in ast.unparse(node), file
            assert "trust_remote_code=True" not in ast.unparse(node), file
    assert found >= 2


def test_a_safetensors_header_that_lies_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    content = bytearray(safetensors.torch.save(GOOD))
    for size in (2**63, len(content), 0):
        content[:8] = size.to_bytes(8, "little")
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as weights"):
            load_model(str(path))
