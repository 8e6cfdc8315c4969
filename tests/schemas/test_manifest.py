"""The data contract: columns, ids, versions, and writing that is whole or absent."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lasr.files import atomic_path, replace_folder
from schemas.catalogue import IMAGES, images_path
from schemas.digest import Damaged, check_parquet, parquet_digest
from schemas.manifest import PATCHES, ManifestError, file_metadata, open_manifest, patch_id
from schemas.parquet import (
    METADATA_KEY,
    ROW_GROUP,
    decoded_metadata,
    encoded_metadata,
    table_writer,
)
from tests.support.parts import write_part


def row(**changes: Any) -> dict[str, Any]:
    plain = {
        "patch_id": "p", "image_id": "i", "image_path": "a.png", "image_width": 300,
        "image_height": 400, "role": "lr", "x": 1, "y": 2, "size": 56, "distance": 0.5, "rank": 0,
        "texture": 0.1, "strategy": "depth", "depth_model": "d", "caption_model": "c",
        "caption": "a, b", "words": ["a", "b"], "word_scores": [0.2, 0.1],
        "image": {"bytes": b"png", "path": "p.png"},
    }  # fmt: skip
    return plain | changes


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    with write_part(path, PATCHES, file_metadata({"k": 8}, "sha")) as append:
        append(rows)


def test_round_trip_keeps_rows_types_and_metadata(tmp_path: Path) -> None:
    rows = [row(patch_id=str(i)) for i in range(ROW_GROUP + 1)]
    write(tmp_path / "m" / "part-0.parquet", rows)
    manifest = open_manifest(tmp_path / "m")
    table = pq.read_table(manifest.files[0])
    assert table.schema.remove_metadata().equals(PATCHES.remove_metadata())
    assert table["patch_id"].to_pylist() == [r["patch_id"] for r in rows]
    assert table["image"][0].as_py() == {"bytes": b"png", "path": "p.png"}
    assert manifest.metadata == {
        "schema_version": 1, "parameters": {"k": 8}, "dictionary_sha256": "sha"
    }  # fmt: skip
    part = pq.ParquetFile(manifest.files[0]).metadata
    assert part.num_row_groups == 2
    codecs = {part.row_group(0).column(i).path_in_schema: part.row_group(0).column(i).compression
              for i in range(part.num_columns)}  # fmt: skip
    assert codecs["image.bytes"] == "UNCOMPRESSED"
    assert codecs["words.list.element"] == "ZSTD"


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), write_part(tmp_path / "p.parquet", PATCHES, {}) as append:
        append([row()] * 300)
        raise RuntimeError
    with (  # the last rows, written at the end, do not fit the columns
        pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)),
        write_part(tmp_path / "p.parquet", PATCHES, {}) as append,
    ):
        append([row(), row(x="one")])
    assert list(tmp_path.iterdir()) == []


def test_temporary_names_are_no_parquet_files(tmp_path: Path) -> None:
    # DuckDB and pyarrow read `.hidden.parquet` too.
    with atomic_path(tmp_path / "p.parquet") as temporary:
        temporary.touch()
        assert temporary.suffix != ".parquet"


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    metadata = file_metadata({}, "") | {"schema_version": 2}
    schema = PATCHES.with_metadata({METADATA_KEY: json.dumps(metadata).encode()})
    pq.write_table(schema.empty_table(), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match=r"schema version 2; this program reads version 1"):
        open_manifest(tmp_path / "m.parquet")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{", "Expecting property name"),
        (b"[1]", "a JSON object is expected, not list"),
        (b"\xff", "can't decode byte 0xff"),
        (b'{"parameters": 3}', "its parameters are no JSON object"),
    ],
)
def test_metadata_that_cannot_be_read_is_one_line(tmp_path: Path, text: bytes, reason: str) -> None:
    write(tmp_path / "m" / "a.parquet", [row()])
    schema = PATCHES.with_metadata({METADATA_KEY: text})
    pq.write_table(schema.empty_table(), tmp_path / "m" / "b.parquet")
    for path in (tmp_path / "m", tmp_path / "m" / "b.parquet"):  # as a later part, and alone
        with pytest.raises(ManifestError, match="metadata 'la-sr' cannot be read") as caught:
            open_manifest(path)
        assert reason in str(caught.value) and "\n" not in str(caught.value)
        assert caught.value.fix == "build the manifest again"


def test_metadata_is_decoded_as_it_was_encoded() -> None:
    about = file_metadata({"k": 8, "images": ["ü"]}, "sha")
    schema = PATCHES.with_metadata(encoded_metadata(PATCHES, about))
    assert decoded_metadata(schema) == about and b"huggingface" in schema.metadata
    assert decoded_metadata(PATCHES) == {}
    assert encoded_metadata(IMAGES, {}).keys() == {METADATA_KEY}


@pytest.mark.parametrize(
    ("path", "message"),
    [("missing", "no manifest there"), ("empty", "no .*part"), ("bad.parquet", "not a readable")],
)
def test_what_is_no_manifest_is_named(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ManifestError, match=message) as caught:
        open_manifest(tmp_path / path)
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_missing_and_mistyped_columns_are_named(tmp_path: Path) -> None:
    pq.write_table(
        PATCHES.remove(PATCHES.get_field_index("role")).empty_table(), tmp_path / "a.parquet"
    )
    with pytest.raises(ManifestError, match="'role' is missing"):
        open_manifest(tmp_path / "a.parquet")
    wrong = PATCHES.set(PATCHES.get_field_index("x"), pa.field("x", pa.string()))
    pq.write_table(wrong.empty_table(), tmp_path / "b.parquet")
    with pytest.raises(ManifestError, match="'x' is string, expected int32"):
        open_manifest(tmp_path / "b.parquet")


def test_types_as_other_libraries_write_them_are_accepted(tmp_path: Path) -> None:
    wide = {pa.string(): pa.large_string(), pa.int32(): pa.int64(), pa.float32(): pa.float64()}
    fields = [pa.field(f.name, wide.get(f.type, f.type)) for f in PATCHES]
    words = PATCHES.get_field_index("words")
    fields[words] = pa.field("words", pa.large_list(pa.large_string()))
    pq.write_table(pa.schema(fields).empty_table(), tmp_path / "m.parquet")
    open_manifest(tmp_path / "m.parquet")


def test_parts_that_disagree_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "m" / "a.parquet", [row()])
    pq.write_table(
        PATCHES.append(pa.field("more", pa.int8())).empty_table(), tmp_path / "m/b.parquet"
    )
    with pytest.raises(ManifestError, match=r"b\.parquet: its columns differ"):
        open_manifest(tmp_path / "m")


def test_patch_id_is_the_same_on_any_machine() -> None:
    assert patch_id("ab", "lr", 1, 2, 56) == "3238ab61b5fc46f1a74cbb30e7834784"
    assert len({patch_id("ab", r, x, 2, 56) for r in ("lr", "hr") for x in (1, 2)}) == 4


def test_catalogues_of_two_manifests_in_one_folder_differ() -> None:
    assert images_path(Path("data/patches.parquet")) == Path("data/images.parquet")
    assert images_path(Path("data/mine.parquet")) == Path("data/mine.images.parquet")


@pytest.mark.parametrize("exchange", [True, False])
def test_replace_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr("lasr.files._exchange", lambda first, second: False)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_folder(tmp_path / "new", tmp_path / "old", lambda folder: True)
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["old", "old/new"]


def test_the_identity_of_a_manifest_is_that_of_its_rows(tmp_path: Path) -> None:
    """Not of its name, and not of metadata that a copy in another program carries along."""
    one, same, other = (tmp_path / f"{name}.parquet" for name in ("one", "same", "other"))
    write(one, [row(), row(patch_id="q")])
    write(same, [row(), row(patch_id="q")])
    write(other, [row(), row(patch_id="q", caption="b, a")])
    assert open_manifest(one).identity == open_manifest(same).identity
    assert open_manifest(one).identity != open_manifest(other).identity
    table = pq.read_table(one)
    identities = set()
    for captions in (["a, b", "b, a"], ["b, a", "a, b"]):  # as many bytes, and no digest
        column = pa.array(captions)
        pq.write_table(table.set_column(15, "caption", column), same, compression="none")
        assert parquet_digest(io.BytesIO(same.read_bytes())) is None
        identities.add((open_manifest(same).identity, same.stat().st_size))
    assert len(identities) == 2 and len({size for _, size in identities}) == 1


@pytest.mark.parametrize("groups", [0, 1, 3])
def test_a_digest_covers_every_byte(tmp_path: Path, groups: int) -> None:
    path = tmp_path / "t.parquet"
    with table_writer(path, pa.schema([("a", pa.int64())])) as append:
        for number in range(groups):
            append(pa.table({"a": [number] * 3}))
    content = path.read_bytes()
    digest = parquet_digest(io.BytesIO(content))
    assert digest and digest.groups[0][0] == 0 and len(digest.groups) == (groups or 1)
    table = pq.read_table(path)
    assert check_parquet(path) == digest.content
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        try:
            assert check_parquet(path) is None, f"byte {at} does not count"
        except Damaged:
            continue
        # Only the place of the digest is damaged: a part's name says that there should be one.
        with contextlib.suppress(OSError):
            assert pq.read_table(path).equals(table)


@pytest.mark.parametrize("name", ["identity", "former_identity"])
def test_damage_after_a_manifest_was_opened_is_named(name: str, tmp_path: Path) -> None:
    one = tmp_path / "one.parquet"
    write(one, [row()])
    manifest = open_manifest(one)
    one.write_bytes(one.read_bytes()[:207])
    with pytest.raises(ManifestError, match=r"one\.parquet: damaged"):
        getattr(manifest, name)
