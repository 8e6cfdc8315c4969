"""The data card: what `datasets` and people read of a manifest."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard

from pipeline.query.__main__ import main
from schemas.manifest import OPTIONAL, PATCHES


@pytest.fixture
def text(manifest: Path) -> str:
    return (manifest.parent / "card.md").read_text()


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_its_front_matter_is_that_of_a_dataset_card(text: str) -> None:
    card = DatasetCard(text)
    assert card.data.license == "other" and card.data.license_name == "that-of-the-photographs"
    assert card.data.task_categories == ["image-to-image"]
    assert card.data.size_categories == ["n<1K"]
    assert card.data.configs == [
        {"config_name": "default", "data_files": "patches.parquet/*.parquet"}
    ]


def test_a_folder_with_it_as_readme_loads_as_a_dataset_repository(
    manifest: Path, text: str, tmp_path: Path
) -> None:
    from datasets import load_dataset  # takes seconds

    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "README.md").write_text(text)
    for name in (manifest.name, "images.parquet", "duplicates.parquet"):
        (folder / name).symlink_to(manifest.parent / name)
    rows = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 54 and rows[0]["image"].size == (56, 56)


def test_it_counts_what_is_there_and_names_models_with_licences(manifest: Path, text: str) -> None:
    assert "| `lr` | 56x56 | 28 |" in section(text, "Contents")
    assert "| `hr` | 224x224 | 26 |" in section(text, "Contents")
    assert "| `ok` | 7 |" in section(text, "Photographs")
    assert "`tiny-clip@built-in` | none needed |" in section(text, "Models")
    assert "`scene-layout@built-in` | none needed |" in section(text, "Models")
    assert "| `k` | `4` |" in section(text, "Parameters")
    assert all(f"`{name}`" in section(text, "Columns") for name in PATCHES.names)
    parameters = pq.read_schema(next(manifest.glob("*.parquet"))).metadata[b"la-sr"]
    assert section(text, "Sources").strip().strip("-` ") in parameters.decode()


def test_it_is_honest(text: str) -> None:
    assert "**Captions are noise.**" in text.split("\n## ")[0]
    assert "does not know their licence" in section(text, "Limits").replace("\n", " ")


def test_a_curated_manifest_says_how_it_was_selected(manifest: Path, tmp_path: Path) -> None:
    sql = "SELECT patch_id FROM patches WHERE rank < 2"
    mine = tmp_path / "mine.parquet"
    assert main([sql, "--manifest", str(manifest), "--save", str(mine)]) == 0
    text = (tmp_path / "mine.card.md").read_text()
    assert sql in section(text, "Selected by")
    assert "| `lr` | 56x56 | 14 |" in section(text, "Contents")
    assert DatasetCard(text).data.configs[0]["data_files"] == "mine.parquet"


def test_a_manifest_without_the_newer_columns_gets_a_card_too(
    manifest: Path, tmp_path: Path
) -> None:
    sql = f"SELECT * EXCLUDE ({', '.join(sorted(OPTIONAL))}) FROM patches"
    mine = tmp_path / "mine.parquet"
    assert main([sql, "--manifest", str(manifest), "--save", str(mine)]) == 0
    text = (tmp_path / "mine.card.md").read_text()
    assert "| role | pixels | patches |\n" in section(text, "Contents")
