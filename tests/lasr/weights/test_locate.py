"""Weights by name and by path; one table of sources, and the page generated from it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lasr.weights.__main__ import main, markdown
from lasr.weights.locate import PROFILES, TABLE, WeightsError, locate, locate_all, notes
from tests.support.upstream import any_content

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LASR_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


def place(folder: Path, name: str, content: bytes = b"weights") -> None:
    for file in TABLE[name].files:
        path = folder / name / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_every_profile_names_weights_of_the_right_kind() -> None:
    for profile in PROFILES.values():
        for kind, name in profile.items():
            assert TABLE[name].kind == kind and TABLE[name].commercial
    assert all(TABLE[name].built_in for name in PROFILES["test"].values())
    offline = [TABLE[name] for name in PROFILES["offline"].values()]
    assert all(entry.built_in or entry.packaged for entry in offline)


def test_every_network_of_the_profile_offline_has_a_note() -> None:
    names = [PROFILES["offline"][kind] for kind in ("sr", "clip", "vgg")]
    assert [line.partition(":")[0] for line in notes(*names)] == names
    assert "perceptual term" in notes(*names)[2]


def test_every_entry_is_complete() -> None:
    for name, entry in TABLE.items():
        assert name == entry.name and entry.licence and entry.about
        sources = entry.repository, entry.url, entry.packaged
        assert entry.built_in != (entry.megabytes > 0 and list(map(bool, sources)).count(True) == 1)
        assert entry.packaged <= bool(entry.wheel or entry.parts)
        assert entry.commercial == ("NC" not in entry.licence)
        assert re.fullmatch("main|[0-9a-f]{40}", entry.revision)
        assert all(re.fullmatch("[0-9a-f]{0,8}|[0-9a-f]{64}", f.sha256) for f in entry.files)
        if entry.url:  # the file keeps its published name, and digests in names and paths agree
            assert entry.url.endswith("/" + entry.files[0].name) and len(entry.files) == 1
            for digits in re.findall(r"(?<=[-/])(?:[0-9a-f]{64}|[0-9a-f]{8})(?=[./])", entry.url):
                assert entry.files[0].sha256.startswith(digits)
        assert bool(entry.read_in) == bool(entry.repository or entry.url)
        assert entry.verified != entry.read_in.startswith("no digest found")
        for file in entry.files:
            for size in (file.size, *(copy.size for copy in file.copies)):
                assert size == 0 or round(size / 1e6) == entry.megabytes
            for copy in file.copies:  # a digest decides whether it is the right file
                assert re.fullmatch("[0-9a-f]{8}|[0-9a-f]{64}", copy.sha256)
                assert copy.url.startswith("https://")
                assert not file.sha256 or file.sha256 == copy.sha256


def test_what_no_digest_verifies_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    marked = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[-1:] == "?"]
    assert marked == ["depth-anything-v2-base", "depthfm-v1", "rrdb-psnr-x4"]
    rows = [row for row in markdown().splitlines() if "**unverified**" in row]
    assert [row.split("`")[1] for row in rows] == marked


def test_open_clips_table_agrees() -> None:
    import open_clip

    for name, model in [
        ("vit-l-14", "ViT-L-14"),
        ("vit-b-16", "ViT-B-16"),
        ("vit-b-32", "ViT-B-32"),
    ]:
        known = open_clip.get_pretrained_cfg(model, "openai")
        assert known["quick_gelu"] and known["hf_hub"] == TABLE[f"clip-{name}"].repository + "/"


def test_torchvisions_table_agrees() -> None:
    import torchvision

    assert torchvision.models.VGG19_Weights.IMAGENET1K_V1.url == TABLE["vgg19"].url


def test_no_other_file_names_a_source() -> None:
    download = re.compile(r"https?://\S+\.(pth|pt|ckpt|safetensors|bin|onnx)\b")
    by_name = re.compile(
        r"snapshot_download|hf_hub_download|load_state_dict_from_url|download_url_to_file|hf-hub:"
        r"|pretrained=[\"']openai|from_pretrained\(\s*[\"']"
    )
    repositories = [weights.repository for weights in TABLE.values() if weights.repository]
    for package in ("lasr", "schemas", "pipeline", "trainer", "benchmarks", "docker"):
        for file in (ROOT / package).rglob("*"):
            if (
                file.suffix in (".pyc", ".txt", ".npz", ".xz", ".safetensors")
                or file.is_dir()
                or file.name == "registry.py"
                or file.parent.name in ("hub", "push")  # `lasr push` reads what it wrote
            ):
                continue
            text = file.read_text("utf-8")
            for pattern in (download, by_name):
                assert not pattern.search(text), file
            assert not any(repository in text for repository in repositories), file


def test_all_that_is_missing_is_named_together(folder: Path) -> None:
    wanted = [("depthfm-v1", "depth"), ("clip-vit-l-14", "clip"), ("tiny-vgg", "vgg")]
    with pytest.raises(WeightsError) as missing:
        locate_all(*wanted)
    line = str(missing.value)
    command = "lasr weights fetch depthfm-v1 clip-vit-l-14 sd15-vae --weights-dir"
    for part in (
        "'depthfm-v1' (3464 MB, licence MIT), 'clip-vit-l-14' (1711 MB, licence MIT),"
        " 'sd15-vae' (335 MB, licence CreativeML OpenRAIL-M); run",
        f"`{command} {folder}`",
        "--profile offline",
    ):
        assert part in line
    assert "tiny-vgg" not in line and "\n" not in line


def test_needed_weights_may_be_in_the_same_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    any_content(monkeypatch, "sd15-vae")
    place(folder, "depthfm-v1")
    with pytest.raises(WeightsError, match="fetch sd15-vae --weights"):
        locate("depthfm-v1", "depth")
    place(folder, "sd15-vae")
    (folder / "sd15-vae" / "vae").rename(folder / "depthfm-v1" / "vae")
    assert locate("depthfm-v1", "depth").path == folder / "depthfm-v1" / "depthfm-v1.ckpt"


def test_terms_are_logged_once_when_such_weights_are_located(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    any_content(monkeypatch, "depth-anything-v2-large")
    place(folder, "depth-anything-v2-large")
    locate("depth-anything-v2-large", "depth")
    locate("depth-anything-v2-large", "depth")
    text = "depth-anything-v2-large: licence CC-BY-NC-4.0: not for commercial use"
    assert [record.getMessage() for record in caplog.records] == [text]


def test_other_files_in_the_folder_change_no_identity(folder: Path) -> None:
    place(folder, "depth-anything-v2-base")
    identity = locate("depth-anything-v2-base", "depth").identity
    (folder / "depth-anything-v2-base" / "README.md").write_text("mine")
    assert locate("depth-anything-v2-base", "depth").identity == identity
    (folder / "depth-anything-v2-base" / "config.json").write_text("{}")
    assert locate("depth-anything-v2-base", "depth").identity != identity


def test_own_files_are_known_by_their_content(tmp_path: Path) -> None:
    for name, content in (("a.pth", b"1"), ("b.pth", b"2")):
        (tmp_path / name).write_bytes(content)
    first, second = (locate(str(tmp_path / n), "sr").identity for n in ("a.pth", "b.pth"))
    assert first.startswith("a@") and first[2:] != second[2:]


def test_the_page_contains_the_generated_tables() -> None:
    """To update: put the output of `lasr weights list --markdown` between the markers."""
    page = (ROOT / "docs" / "weights.md").read_text("utf-8")
    _, begin, rest = page.partition("<!-- begin: lasr weights list --markdown -->\n")
    tables, end, _ = rest.partition("\n<!-- end -->")
    assert begin and end and tables == markdown()


def test_the_generated_table_has_a_row_for_every_model() -> None:
    rows = {row.split("`")[1]: row for row in markdown().splitlines() if row.startswith("| `")}
    shown = {name: weights for name, weights in TABLE.items() if weights.trained}
    assert rows.keys() == {*shown, "offline", "default", "paper"}
    for name, weights in shown.items():
        row = rows[name]
        assert weights.licence in row
        assert weights.commercial == ("not for commercial use" not in row)
        if not weights.built_in:
            assert f"{weights.megabytes:,} MB" in row
            assert weights.url in row and weights.repository in row
            assert weights.revision == "main" or weights.revision[:7] in row
            assert weights.files[-1].sha256[:8] in row
    for profile in ("offline", "default", "paper"):
        names = PROFILES[profile]  # type: ignore[index]
        assert all(f"`{name}`" in rows[profile] for name in names.values())


def test_finding_weights_loads_no_heavy_library() -> None:
    code = """
import sys
import lasr.weights.__main__, lasr.weights.locate, lasr.weights.registry, lasr.doctor.__main__
heavy = {"torch", "open_clip", "huggingface_hub", "httpx", "numpy", "prefect", "duckdb", "cv2"}
assert not heavy & {*sys.modules}, heavy & {*sys.modules}
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
