"""A manifest that holds photographs out, and a cheap metric."""

import random
from pathlib import Path

import duckdb
import numpy as np
import pytest
import torch

from trainer.evaluate.metrics import Metric
from trainer.watch import validation


@pytest.fixture(scope="module")
def split_manifest(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared manifest with two of its seven photographs held out."""
    path = tmp_path_factory.mktemp("split") / "split.parquet"
    split = "CASE WHEN image_path IN ('coffee.png', 'china.jpg') THEN 'val' ELSE 'train' END"
    sql = f"SELECT * REPLACE ({split} AS split) FROM '{manifest}/*.parquet'"
    duckdb.sql(f"COPY ({sql}) TO '{path}' (FORMAT parquet, ROW_GROUP_SIZE 16)")
    return path


@pytest.fixture
def cheap_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contrast under the name of NIQE, by a function that draws from every random stream."""

    def contrast(picture: torch.Tensor) -> torch.Tensor:
        torch.rand(3), np.random.rand(3), random.random()
        return 10 * picture.std()

    metric = Metric("niqe", "NIQE", False, False, "", "", "", "CPU", contrast)
    monkeypatch.setattr(validation, "load_metrics", lambda: [metric])
