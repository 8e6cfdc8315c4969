"""Zip archives of weights: nothing is inflated before its size is known."""

import resource
import zipfile
from pathlib import Path

import pytest
import torch

from lasr.errors import UserError
from lasr.weights.locate import WeightsError
from lasr.weights.tensors import add_digest, check_digest, check_sizes, read_tensors
from schemas.digest import Damaged
from trainer import checkpoint


def bomb(path: Path, size: int) -> Path:
    """A .pth of zeros, deflated to a thousandth of `size`."""
    torch.save({"w": torch.zeros(size // 4)}, path)
    with zipfile.ZipFile(path) as stored:
        entries = [(entry.filename, stored.read(entry)) for entry in stored.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as deflated:
        for name, content in entries:
            deflated.writestr(name, content)
    return path


def test_an_archive_that_inflates_beyond_measure_is_refused_by_its_directory(
    tmp_path: Path,
) -> None:
    path = bomb(tmp_path / "checkpoint.pt", 60_000_000)
    assert path.stat().st_size < 200_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match=r"checkpoint\.pt: .*would inflate to 60"):
        read_tensors(path)
    with pytest.raises(UserError, match=r"checkpoint\.pt: .*would inflate to 60"):
        checkpoint.load(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000  # kB


def test_weights_that_another_program_deflated_are_read(tmp_path: Path) -> None:
    path = tmp_path / "sr.pth"
    weights = torch.randn(300, 100)
    torch.save({"w": weights}, path)
    with zipfile.ZipFile(path) as stored:
        entries = [(entry.filename, stored.read(entry)) for entry in stored.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as deflated:
        for name, content in entries:
            deflated.writestr(name, content)
    check_sizes(path)
    assert torch.equal(read_tensors(path)["w"], weights)


def test_the_digest_of_an_archive_is_in_its_comment(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    torch.save({"w": torch.arange(10)}, path)
    add_digest(path)
    check_digest(path)
    with zipfile.ZipFile(path) as archive:  # readers of zip do not mind
        assert archive.testzip() is None and archive.comment.startswith(b"la-sr sha256 ")
    assert torch.load(path, weights_only=True)["w"].tolist() == list(range(10))
    path.write_bytes(path.read_bytes().replace(b"PK\x05\x06", b"PK\x05\x07"))
    with pytest.raises(Damaged):
        check_digest(path)
