from pathlib import Path

import pytest

from schemas.address import address_of


@pytest.mark.parametrize(
    ("where", "address"),
    [
        ("s3://bucket/name", "s3://bucket/name"), ("S3://Bucket/Name", "s3://Bucket/Name"),
        (Path("s3://bucket/name"), "s3://bucket/name"), ("hf://datasets/a/b", "hf://datasets/a/b"),
        ("file:///data/x", "file:///data/x"), ("s3:///x", "s3:///x"),
        ("data/x.parquet", None), ("/data", None), ("a:b/c", None), ("a/s3://b", None),
        ("c:/data", None), ("C:/data", None), (r"C:\data", None), ("", None),
    ],
)  # fmt: skip
def test_an_address_begins_with_a_scheme(where: str | Path, address: str | None) -> None:
    assert address_of(where) == address
