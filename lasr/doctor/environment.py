"""What the doctor looks at in the installation: packages, PyTorch, its GPU, OpenCV, DuckDB."""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from lasr.doctor.finding import Finding, good, warning, wrong

NAME = "la-sr"


def python() -> Iterator[Finding]:
    """The interpreter."""
    yield good("Python", f"{platform.python_version()} at {sys.executable}")


def packages(extras: frozenset[str]) -> Iterator[Finding]:
    """What pyproject.toml asks for, of the base and of some extras, against what is installed."""
    names = sorted(extras)
    wanted = _requirements(extras)
    faults = []
    for requirement in wanted:
        found = version(requirement.name)
        if not found:
            faults.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(found, prereleases=True):
            faults.append(f"{requirement.name} is {found}, not {requirement.specifier}")
    fix = f"run `pip install --upgrade '.[{','.join(names)}]'` in the project's folder"
    for fault in faults:
        yield wrong("package", fault, fix)
    if not wanted:
        yield warning("packages", f"{NAME} is not installed, so nothing says what it needs", fix)
    elif not faults:
        yield good("packages", f"{len(wanted)} as needed by {', '.join(names)}")
    both = [n for n in ("opencv-python", "opencv-python-headless") if version(n)]
    if len(both) > 1:
        yield warning(
            "package",
            f"{' and '.join(both)} write over each other's files",
            f"run `pip uninstall {both[0]}`, then `pip install --force-reinstall {both[1]}`",
        )


def _requirements(extras: frozenset[str]) -> list[Requirement]:
    """From pyproject.toml in a checkout, whose metadata may be old, else from the metadata."""
    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    if pyproject.is_file():
        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
        lines = list(project["dependencies"])
        for extra in extras:
            lines += project["optional-dependencies"][extra]
        return [r for r in map(Requirement, lines) if r.name != NAME]
    try:
        given = map(Requirement, importlib.metadata.requires(NAME) or ())
    except importlib.metadata.PackageNotFoundError:
        return []
    asked = [{"extra": extra} for extra in ("", *extras)]
    return [
        r
        for r in given
        if r.name != NAME and (not r.marker or any(r.marker.evaluate(e) for e in asked))
    ]


def version(package: str) -> str:
    """Of an installed package; empty where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def torch() -> Iterator[Finding]:
    """PyTorch, its GPU, and torchvision's operators, each tried out."""
    try:
        import torch
    except Exception as error:  # a broken library can raise anything when it loads
        fix = "run `pip install --force-reinstall torch torchvision`"
        yield wrong("PyTorch", line(error), fix)
        return
    yield good("PyTorch", f"{torch.__version__}, {torch.get_num_threads()} CPU threads")
    yield from _gpu(torch)
    yield _torchvision(torch)


def _gpu(torch: Any) -> Iterator[Finding]:
    driver = _driver()
    if not torch.cuda.is_available():
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if not driver and not shutil.which("nvidia-smi"):
            fix = "look at the profile offline, or take a machine with an NVIDIA GPU"
            yield warning("GPU", "none: real networks are slow on a CPU", fix)
        elif hidden is not None and not hidden.replace("-1", "").strip():
            fix = "run `unset CUDA_VISIBLE_DEVICES`"
            yield warning("GPU", f"hidden by CUDA_VISIBLE_DEVICES={hidden!r}", fix)
        else:
            build = torch.version.cuda or "none: a CPU build"
            yield wrong(
                "GPU",
                f"driver {driver or 'unknown'}, but PyTorch cannot use it (its CUDA: {build})",
                "run `nvidia-smi`; install the PyTorch build of your driver's CUDA (pytorch.org)",
            )
        return
    for index in range(torch.cuda.device_count()):
        about = f"GPU {index}"
        try:
            major, minor = torch.cuda.get_device_capability(index)
            free, total = torch.cuda.mem_get_info(index)
            half = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
            torch.ones(8, device=f"cuda:{index}").sum().item()  # a kernel for this very GPU
        except Exception as error:  # an old driver, a GPU newer than the build, one that is full
            fix = "run `nvidia-smi`; install the PyTorch build that knows this GPU (pytorch.org)"
            yield wrong(about, line(error), fix)
            continue
        name = torch.cuda.get_device_name(index)
        yield good(
            about,
            f"{name}, capability {major}.{minor}, {half}, {free / 1e9:.1f} of {total / 1e9:.1f} GB"
            f" free, CUDA {torch.version.cuda}, driver {driver or 'unknown'}",
        )


def _driver() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return ""
    found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return found[1] if found else "unknown"


def _torchvision(torch: Any) -> Finding:
    try:
        import torchvision  # type: ignore[import-untyped]

        boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
        kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
        if kept != [0, 2]:
            raise RuntimeError(f"nms answers {kept}, not [0, 2]")
    except Exception as error:  # operators that do not fit this PyTorch fail in several ways
        found = version("torchvision")
        wants = importlib.metadata.requires("torchvision") or () if found else ()
        due = [r.replace(" ", "") for r in wants if r.startswith("torch")]
        pair = f"; it is made for {due[0]}" if due else ""
        return wrong(
            "torchvision",
            f"{found or 'missing'}: its operators do not run ({line(error)}){pair}",
            "install the two together: `pip install --upgrade torch torchvision`",
        )
    return good("torchvision", f"{torchvision.__version__}, its operators run")


def opencv() -> Iterator[Finding]:
    """OpenCV reads what it writes."""
    try:
        import cv2
        import numpy as np

        picture = np.arange(300, dtype=np.uint16).reshape(10, 10, 3)
        png = cv2.imencode(".png", picture)[1]
        again = np.asarray(cv2.imdecode(png, cv2.IMREAD_UNCHANGED))
        assert np.array_equal(again, picture), "a PNG came back changed"
        found = good("OpenCV", f"{cv2.__version__}, reads and writes PNG")
    except Exception as error:
        fix = "run `pip install --force-reinstall opencv-python-headless`"
        found = wrong("OpenCV", line(error), fix)
    yield found


def parquet(query: bool) -> Iterator[Finding]:
    """A small Parquet file written by pyarrow, and asked by DuckDB where `query`."""
    about = "DuckDB" if query else "pyarrow"
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/a.parquet"
            pq.write_table(pa.table({"words": [["sky", "sea"], ["sky"]]}), path)
            if not query:
                assert pq.read_table(path).num_rows == 2, "rows are missing"
                yield good(about, f"{pa.__version__}, reads and writes Parquet")
                return
            import duckdb

            sql = "SELECT word, count(*) FROM (SELECT unnest(words) word FROM read_parquet(?))"
            rows = duckdb.execute(f"{sql} GROUP BY 1 ORDER BY 1", [path]).fetchall()
            assert rows == [("sea", 1), ("sky", 2)], f"it counts {rows}"
        yield good(about, f"{duckdb.__version__} over pyarrow {pa.__version__}, counts words")
    except Exception as error:  # missing, or one built for another of its libraries
        fix = f"run `pip install --force-reinstall pyarrow{' duckdb' if query else ''}`"
        yield wrong(about, line(error), fix)


def line(error: BaseException) -> str:
    """An error of any library on one line, and not all of it."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__
