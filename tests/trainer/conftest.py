"""Small networks for the tests of the trainer."""

from pathlib import Path

import pytest

from tests.support.upstream import save_clip
from trainer.models.rrdb import untrained_rrdb
from trainer.models.save import save_network


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP and a small SR network as files."""
    folder = tmp_path_factory.mktemp("models")
    save_clip(folder / "clip")
    save_network(untrained_rrdb(8, 1, 8), folder, "sr")
    return folder
