"""What all tests on several machines need: machines that can be made, and small networks."""

from pathlib import Path

import pytest

from tests.cluster import hosts
from tests.support.upstream import save_clip
from trainer.models.rrdb import untrained_rrdb
from trainer.models.save import save_network


@pytest.fixture(autouse=True)
def possible() -> None:
    if reason := hosts.lacking():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP and a small SR network as files."""
    folder = tmp_path_factory.mktemp("models")
    save_clip(folder / "clip")
    save_network(untrained_rrdb(8, 1, 8), folder, "sr")
    return folder
