"""What a served deployment may read and write."""

from pathlib import Path
from typing import Any

import pytest

from lasr.errors import UserError
from pipeline.config import BuildConfig
from pipeline.roots import check_parameters, check_photographs, roots
from pipeline.storage import StoragePath


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`here` is where the deployment is served; `photos` and `secret` are beside it."""
    for name in ("here/photos", "photos", "secret", "photos-2"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "here" / "link").symlink_to(tmp_path / "secret")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("LASR_ROOTS", raising=False)
    return tmp_path


def config(**parameters: Any) -> BuildConfig:
    return BuildConfig(**({"images": ["photos"], "out": "data/o.parquet"} | parameters))


def test_by_default_it_is_the_folder_in_which_it_is_served(project: Path) -> None:
    assert roots() == [str(project / "here")]
    check_parameters(config())
    check_parameters(config(images=["photos/*.jpg", "./photos/../photos"], cache="kept"))
    check_parameters(config(depth="colour-attenuation", clip="tiny-clip"))


@pytest.mark.parametrize(
    "parameters",
    [
        {"images": ["../photos"]},
        {"images": ["photos", "/etc"]},
        {"images": ["../photos/*.jpg"]},
        {"images": ["link"]},
        {"images": ["s3://bucket/photos"]},
        {"images": ["file:///etc"]},
        {"out": "../o.parquet"},
        {"out": "/somewhere-else"},
        {"out": "link/o.parquet"},
        {"out": "."},  # the files beside it would be outside
        {"out": "s3://bucket/o.parquet"},
        {"cache": "../cache"},
        {"cache": "link"},
        {"dictionary": "/etc/passwd"},
        {"depth": "../model"},
        {"clip": "link/clip"},
        {"ray_address": "ray://elsewhere:10001"},
    ],
)
def test_everything_else_is_refused(project: Path, parameters: dict[str, Any]) -> None:
    (flag,) = parameters
    with pytest.raises(UserError, match=f"--{flag.replace('_', '-')}"):
        check_parameters(config(**parameters))


def test_folders_and_addresses_can_be_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = f"{project / 'photos'}:{project / 'here'}:s3://bucket/a:gs://other"
    monkeypatch.setenv("LASR_ROOTS", named)
    check_parameters(config(images=[str(project / "photos" / "more")]))
    check_parameters(config(images=["s3://bucket/a/b"], out="gs://other/x/o.parquet"))
    for wrong in (
        "s3://bucket/ab",
        "s3://bucket/a/../b",
        "gs://another/x",
        str(project / "photos-2"),
    ):
        with pytest.raises(UserError, match="outside of what this deployment may use"):
            check_parameters(config(images=[wrong]))
    monkeypatch.setenv("LASR_ROOTS", str(project / "nowhere"))
    with pytest.raises(UserError, match="nowhere is not a folder"):
        roots()


def test_photographs_that_a_list_or_a_link_finds(project: Path) -> None:
    here, secret = project / "here" / "photos", project / "secret"
    (secret / "a.jpg").touch()
    (here / "b.jpg").symlink_to(secret / "a.jpg")
    check_photographs([StoragePath(str(here / "a.jpg"))])
    for path in (here / "b.jpg", secret / "a.jpg", project / "here" / "link" / "a.jpg"):
        with pytest.raises(UserError, match="outside of what"):
            check_photographs([StoragePath(str(here / "a.jpg")), StoragePath(str(path))])
