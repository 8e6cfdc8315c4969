"""A small network, which interpolates until it is trained."""

from pathlib import Path

import pytest

from trainer.models.rrdb import untrained_rrdb
from trainer.models.save import save_network


@pytest.fixture(scope="package")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(untrained_rrdb(8, 1, 32), tmp_path_factory.mktemp("sr"))[0]
