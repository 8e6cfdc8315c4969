"""The interface of depth estimators: how one is found, and what is common to their maps."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lasr.weights.locate import TABLE, Located, WeightsError, locate
from pipeline.stages.depth import (
    at_size,
    estimator,
    normalise,
    pack,
    unpack,
    with_family,
)
from tests.support.upstream import SMALL, save_depth_anything, save_depthfm
from tests.support.weights import load_depth

CPU = torch.device("cpu")


def test_weights_by_path_are_recognised_by_content(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    save_depth_anything(tmp_path / "model")
    save_depthfm(tmp_path / "named-anyhow.bin", SMALL)
    families = {
        str(tmp_path / "model"): "depth_anything",
        str(tmp_path / "named-anyhow.bin"): "depthfm",
    }
    for path, family in families.items():
        located = locate(path, "depth")
        assert located.family == "" and with_family(located).family == family
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "other.ckpt")
    save_depth_anything(tmp_path / "cut")
    (tmp_path / "cut" / "preprocessor_config.json").unlink()
    for name, why in (
        ("vae", "not a depth estimator; give"),
        ("other.ckpt", "not a depth estimator; give"),
        ("cut", "preprocessor_config.json cannot be read"),
    ):
        with pytest.raises(WeightsError, match=f"^{tmp_path / name}: {why}"):
            load_depth(str(tmp_path / name), CPU)


def test_weights_of_the_registry_that_are_no_estimator_are_refused() -> None:
    vae = Located("sd15-vae", Path("data"), "sd15-vae@0123456789ab", TABLE["sd15-vae"].family)
    with pytest.raises(WeightsError, match=r"^sd15-vae: not a depth estimator by itself"):
        with_family(vae)
    named = {w.name: w.family for w in TABLE.values() if w.kind == "depth" and w.name != vae.name}
    for name, family in named.items():  # each has a module
        located = Located(name, Path("data"), f"{name}@0123456789ab", family)
        assert estimator(located).load.__module__ == f"pipeline.stages.{family}"


def test_a_packed_map_is_the_map() -> None:
    distance = np.random.default_rng(0).random((20, 30), np.float32)
    assert pack(distance).dtype == np.uint16
    np.testing.assert_allclose(unpack(pack(distance)), distance, atol=0.51 / 65535)
    assert at_size(distance, (20, 30, 3)) is distance
    assert at_size(distance, (41, 77, 3)).shape == (41, 77)


def test_normalise() -> None:
    np.testing.assert_array_equal(normalise(np.full((2, 2), 7.0)), np.zeros((2, 2)))
    np.testing.assert_array_equal(normalise(np.array([[2.0, 4.0, 3.0]])), [[0, 1, 0.5]])
    with pytest.raises(ValueError, match="not finite"):
        normalise(np.array([[np.nan, 1.0]]))
