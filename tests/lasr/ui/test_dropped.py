"""Files dropped on the page: the same results as the commands, and one line if a file is bad."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageCms

from lasr.__main__ import main as lasr
from lasr.ui.photographs import FIELDS, Viewer
from lasr.ui.server import Page
from lasr.ui.uploads import NAME, clean
from schemas.manifest import open_manifest
from tests.support.page import Client, as_bytes, client, content_of, dropped, line, noise, upscaled


def test_a_picture_becomes_the_file_that_the_command_writes(web: Client, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "A camera"  # stored on its side
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = as_bytes(
        Image.fromarray(noise(40, 60, 3)), "JPEG", exif=exif, icc_profile=profile, dpi=(300, 300)
    )
    (tmp_path / "a photo.jpg").write_bytes(content)
    answer = upscaled(web, content, "a photo.jpg")
    assert answer["state"] == "done", answer
    assert (answer["from"], answer["to"], answer["name"]) == ([40, 60], [160, 240], "a photo.png")
    command = "lasr upscale --weights tiny-rrdb 'a photo.jpg' --out upscaled"
    assert answer["command"] == command
    got = web.get(answer["download"], params={"as": answer["name"]})
    assert "a%20photo.png" in got.headers["content-disposition"]
    out = tmp_path / "out"
    argv = ["--weights", "tiny-rrdb", "--out", str(out), "--device", "cpu"]
    assert lasr(["upscale", str(tmp_path / "a photo.jpg"), *argv]) == 0
    assert got.content == (out / "a photo.png").read_bytes()
    assert b"A camera" in got.content and Image.open(io.BytesIO(got.content)).info["icc_profile"]
    after = np.asarray(Image.open(io.BytesIO(web.get(answer["after"]).content)))
    assert (after == np.asarray(Image.open(out / "a photo.png"))).all()
    assert web.get(answer["before"]).headers["content-type"] == "image/png"


def bomb() -> bytes:
    """A PNG of a few hundred bytes whose header promises 10,000 megapixels."""
    content = bytearray(as_bytes(Image.new("L", (8, 8))))
    content[16:24] = (100_000).to_bytes(4, "big") * 2
    return bytes(content)


BAD = {
    "bomb.png": (bomb, "more than 1000000 pixels"),
    "large.png": (lambda: as_bytes(Image.new("L", (1001, 1000))), "more than 1000000 pixels"),
    "bytes.png": (lambda: bytes(8 * 10**6 + 1), "over 8000000 bytes"),
    "empty.png": (lambda: b"", "the file is empty"),
    "text.png": (lambda: b"this is text", "not a readable picture"),
    "cut.png": (lambda: as_bytes(Image.fromarray(noise(64, 64, 3)))[:5000], "not a readable"),
    "page.svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "page.svg: "),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("path", ["/api/upscale", "/api/photograph"])
def test_a_bad_file_is_one_line_without_a_path_of_the_server(
    web: Client, page: Page, tmp_path: Path, name: str, path: str
) -> None:
    make, said = BAD[name]
    query = {"weights": "tiny-rrdb"} if "upscale" in path else {"depth": "scene-layout"}
    text = line(dropped(web, path, make(), name, **query))
    if path == "/api/upscale" or "pixels" in said or "bytes" in said:
        assert said in text
    assert text.startswith(f"{name}: ") and str(tmp_path) not in text and "/in/" not in text
    assert not [file for file in (tmp_path / "dropped").rglob("*") if file.is_file()]


def test_what_is_missing_is_said(web: Client) -> None:
    content = as_bytes(Image.fromarray(noise(40, 60, 3)))
    answer = dropped(web, "/api/upscale", content, "a.png", weights="/etc/passwd")
    assert "'/etc/passwd': no such weights here" in line(answer)
    answer = dropped(web, "/api/photograph", content, "a.png", depth="/etc/passwd")
    assert "'/etc/passwd': no such estimator here" in line(answer)
    answer = dropped(web, "/api/photograph", content, "a.png", depth="scene-layout")
    assert "60x40: a patch needs 224 pixels each way" in line(answer)
    for body in (b"", b"[]", b"nothing", b'"a"', b" " * 2**17):
        assert line(web.post("/api/query", content=body).json())
    assert "forgotten" in line(web.get("/api/jobs/none").json())
    assert "not kept any more" in line(web.post("/api/patches", json={"photograph": "x"}).json())


@pytest.mark.parametrize(
    "name",
    ["../../secret.txt", "..\\..\\secret.txt", "/etc/passwd", "..", ".", "", "a\nb\x1b[2J.png",
     "x" * 400 + ".png", "ü" * 300 + ".png", "result.png", "nul\0.png", ".hidden", "\udce9.png"],
)  # fmt: skip
def test_names_stay_inside_their_folder(name: str, tmp_path: Path) -> None:
    cleaned = clean(name)
    assert cleaned and "/" not in cleaned and cleaned not in (".", "..") and cleaned.isprintable()
    assert len(os.fsencode(cleaned)) <= NAME
    (tmp_path / cleaned).write_bytes(b"x")
    assert [path.parent for path in tmp_path.iterdir()] == [tmp_path]


def test_a_dropped_file_may_be_called_as_the_result_is(web: Client) -> None:
    content = as_bytes(Image.fromarray(noise(16, 16, 3)))
    for name in ("result.png", "before.png", "../../../secret.txt"):
        answer = upscaled(web, content, name)
        assert answer["state"] == "done" and answer["to"] == [64, 64], answer


def test_runs_can_be_chosen_by_name_only(page: Page, tmp_path: Path) -> None:
    for name in ("data/runs/mine/model.safetensors", "data/runs/mine/best.safetensors"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"damaged")
    labels = [choice["label"] for choice in client(page).get("/api/about").json()["weights"]]
    assert {"mine (your run)", "mine (your run, best)", "rrdb-small"} <= set(labels)
    content = as_bytes(Image.fromarray(noise(16, 16, 3)))
    answer = dropped(client(page), "/api/upscale", content, "a.png", weights="mine (your run)")
    assert answer["state"] == "failed" and "data/runs/mine/model.safetensors: " in line(answer)


def test_patches_are_those_of_a_build(web: Client, manifest: Path, photographs: Path) -> None:
    """The rows of a build with the same parameters, which the manifest's metadata records."""
    name = "china.jpg"
    parameters = open_manifest(manifest, columns=()).metadata["parameters"]
    content = (photographs / name).read_bytes()
    opened = dropped(web, "/api/photograph", content, name, depth=parameters["depth"])
    assert opened["state"] == "done", opened
    chosen = {name: parameters[name] for name in FIELDS}
    asked = {"photograph": opened["photograph"], **chosen}
    got = web.post("/api/patches", json=asked).json()["patches"]
    columns = ["role", "x", "y", "rank", "distance", "image", "image_path"]
    rows = [row for row in pq.read_table(manifest, columns=columns).to_pylist()
            if row["image_path"] == name]  # fmt: skip
    key = lambda patch: (patch["role"], patch["rank"])  # noqa: E731
    assert len(got) == len(rows) == 8
    for patch, row in zip(sorted(got, key=key), sorted(rows, key=key), strict=True):
        assert (patch["x"], patch["y"]) == (row["x"], row["y"])
        assert patch["distance"] == pytest.approx(row["distance"], abs=1e-3)
        if patch["role"] == "lr":
            assert content_of(patch["pixels"]) == row["image"]["bytes"]
    assert opened["size"] == [640, 427]
    map_ = Image.open(io.BytesIO(web.get(opened["distance"]).content))
    assert map_.size == (640, 427)


def test_sliders_select_and_do_not_compute_the_map_again(
    web: Client, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    real = Viewer._estimator

    def counted(self: Viewer, name: str) -> Any:
        loaded.append(name)
        return real(self, name)

    monkeypatch.setattr(Viewer, "_estimator", counted)
    content = (photographs / "chelsea.png").read_bytes()
    opened = dropped(web, "/api/photograph", content, "chelsea.png", depth="scene-layout")
    plain = {"min_separation": None, "min_texture": 0, "far_texture": 0}
    base = {"photograph": opened["photograph"], "k": 6, **plain}

    def roles(**changed: Any) -> list[str]:
        patches = web.post("/api/patches", json=base | changed).json()["patches"]
        return [patch["role"] for patch in patches]

    assert roles().count("lr") == 6 and roles(k=2).count("lr") == 2
    assert roles(min_separation=250).count("lr") < 6
    assert roles(far_texture=1).count("lr") == 0 and roles(far_texture=1).count("hr") > 0
    assert roles(min_texture=1) == []
    for wrong in ({"k": 0}, {"k": 65}, {"k": "x"}, {"min_texture": -1}, {"far_texture": "nan"}):
        answer = web.post("/api/patches", json=base | wrong).json()
        assert answer.get("patches") == [] or line(answer), wrong
    assert len(roles(min_separation=10**9)) == 2
    assert loaded == ["scene-layout"]
