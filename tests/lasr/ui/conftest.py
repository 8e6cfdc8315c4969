"""A page over the manifest of the tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lasr.ui.config import UiConfig
from lasr.ui.server import Page
from tests.support.page import SECRET, Client, client


@pytest.fixture
def page(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """A page over the manifest of the tests, in a project with a secret beside everything."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    for folder in (tmp_path, tmp_path / "project"):
        (folder / "secret.txt").write_text(SECRET)
    (tmp_path / "dropped").mkdir()
    config = UiConfig(
        manifest=manifest, weights=["tiny-rrdb"], device="cpu", max_pixels=10**6, timeout=500
    )
    page = Page(config, tmp_path / "dropped")
    yield page
    page.close()


@pytest.fixture
def web(page: Page) -> Client:
    return client(page)
