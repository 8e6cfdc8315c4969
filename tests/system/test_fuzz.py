"""Hundreds of damaged, disguised and hostile files: none stops a build, each is accounted for."""

import io
import os
import random
import resource
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config import BuildConfig
from pipeline.stages.images import MAX_BYTES, MAX_PIXELS
from schemas.manifest import open_manifest
from tests.support import killed, processes
from tests.support.files import mutated
from tests.support.words import WORDS

pytestmark = pytest.mark.slow

MUTANTS = 400
EXPECTED = {"ok", "no_patches", "too_small", "too_large", "unreadable", "unsupported", "duplicate"}


def encoded(photographs: Path) -> Iterator[tuple[str, bytes]]:
    """Crops of real photographs in every format that Pillow writes."""
    writers = {
        "jpg": {"quality": 90}, "png": {}, "webp": {"quality": 80}, "tif": {"compression": "jpeg"},
        "bmp": {}, "gif": {}, "jp2": {}, "avif": {}, "ppm": {},
    }  # fmt: skip
    for path in sorted(photographs.iterdir()):
        with Image.open(path) as image:
            crop = image.convert("RGB").crop((0, 0, 256, 240))
        for suffix, options in writers.items():
            file = io.BytesIO()
            crop.save(file, format=Image.registered_extensions()[f".{suffix}"], **options)
            yield suffix, file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG of one grey value a row that claims any size; its data is a bomb if it is believed."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(name + data)
        return len(data).to_bytes(4, "big") + name + data + checksum.to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x01\0\0\0\0"
    rows = zlib.compress(bytes(min((width // 8 + 1) * height, 2**27)), 9)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", rows), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def specials(folder: Path, good: bytes) -> dict[str, str | None]:
    """Files with a fault each; name -> the status it must have (None: any of EXPECTED)."""
    contents: dict[str, tuple[bytes, str | None]] = {
        "zero.jpg": (b"", "unreadable"),
        "one byte.png": (b"\x89", "unreadable"),
        "text.webp": (b"no picture", "unreadable"),
        "wrong ending.gif": (good, "ok"),
        "bomb.png": (png_header(60_000, 60_000), "too_large"),
        "largest.png": (png_header(2**31 - 1, 2**31 - 1), "too_large"),
        "wide.png": (png_header(2**20, 100), "too_small"),
        "no width.png": (png_header(0, 500), "unreadable"),
        "a name with\na newline.jpg": (good + b"1", "ok"),
        "spaces   and 'quotes\" \\ % # ?.jpg": (good + b"2", "ok"),
        "山と海 été ☀.jpg": (good + b"3", "ok"),
        "UPPER.JPG": (good + b"4", "ok"),
        "-rf.jpg": (good + b"5", "ok"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    latin1 = os.path.join(os.fsencode(folder), b"latin1-\xe9.jpg")
    with open(latin1, "wb") as file:
        file.write(good + b"6")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "nowhere.jpg").symlink_to("gone.jpg")
    (folder / "up").symlink_to("..")  # a folder that holds itself is not walked
    os.mkfifo(folder / "pipe.jpg")  # reading it would wait for ever
    (folder / "closed.jpg").write_bytes(good + b"7")
    (folder / "closed.jpg").chmod(0)
    with open(folder / "huge.jpg", "wb") as file:
        file.truncate(MAX_BYTES + 1)  # takes no space on the disk
    (folder / "a folder.jpg").mkdir()
    (folder / ".hidden.jpg").write_bytes(good)
    (folder / "notes.md").write_text("not a photograph")
    return {name: status for name, (_, status) in contents.items()} | {
        "latin1-\\xe9.jpg": "ok",
        "loop.jpg": "unreadable",
        "nowhere.jpg": "unreadable",
        "pipe.jpg": "unreadable",
        "closed.jpg": "unreadable",
        "huge.jpg": "too_large",
    }


def build_in_a_box(config: BuildConfig, peak: Path) -> None:
    """In a process of its own, without the rights of root; writes how much memory it took."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    killed.build(config)
    peak.write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield Path(place)


@pytest.mark.timeout(400)
def test_hundreds_of_hostile_files(photographs: Path, open_folder: Path) -> None:
    rng, folder = random.Random(7), open_folder / "photographs"
    folder.mkdir()
    originals = list(encoded(photographs))
    assert len({suffix for suffix, _ in originals}) == 9
    status = specials(folder, originals[0][1])
    for number in range(MUTANTS):
        suffix, content = rng.choice(originals)
        if rng.random() < 0.1:  # a disguise
            suffix = rng.choice([other for other, _ in originals])
        (folder / f"mutant{number:03}.{suffix}").write_bytes(mutated(content, rng))
    words = killed.words(folder)
    words.write_text("\n".join(WORDS[:30]))
    out, peak = open_folder / "data" / "patches.parquet", open_folder / "data" / "peak.txt"
    out.parent.mkdir()
    out.parent.chmod(0o777)

    config = BuildConfig(
        images=[str(folder)], out=out, profile="test", k=1, dictionary=words, shard_size=64
    )
    process = processes.context().Process(target=build_in_a_box, args=(config, peak))
    process.start()
    process.join()
    assert process.exitcode == 0

    found = {row["path"]: row for row in pq.read_table(out.with_name("images.parquet")).to_pylist()}
    assert len(found) == MUTANTS + len(status)
    for name, wanted in status.items():
        assert found[name]["status"] == wanted, found[name]
    counts = Counter(row["status"] for row in found.values())
    assert counts.keys() <= EXPECTED and counts["ok"] > 50 and counts["unreadable"] > 100, counts
    assert all((row["status"] == "ok") == (row["error"] is None) for row in found.values())
    files = [pq.read_table(file, columns=["image_path"]) for file in open_manifest(out).files]
    used = {path for table in files for path in table["image_path"].to_pylist()}
    assert used == {name for name, row in found.items() if row["status"] == "ok"}
    # A picture at the limit takes 3 bytes a pixel decoded; no claimed size was believed.
    assert int(peak.read_text()) * 1024 < 3 * MAX_PIXELS
