"""SQL on a manifest: the README's statements, as printed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.query.__main__ import main
from pipeline.query.views import with_views
from schemas.manifest import OPTIONAL, ManifestError, open_manifest
from tests.support.damage import flip
from trainer.data.dataset import COLUMNS, Patches

ROOT = Path(__file__).parents[3]


@pytest.fixture
def project(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose data/ holds the manifest."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "patches.parquet").symlink_to(manifest)
    for name in ("images.parquet", "duplicates.parquet"):
        (tmp_path / "data" / name).symlink_to(manifest.parent / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answer(capfd: pytest.CaptureFixture[str], *argv: str) -> list[dict[str, object]]:
    assert main([*argv, "--format", "json"]) == 0
    found: list[dict[str, object]] = json.loads(capfd.readouterr().out)
    return found


@pytest.mark.parametrize("table", ["'data/patches.parquet/*.parquet'", "patches"])
def test_the_questions_of_the_contract(
    project: Path, capfd: pytest.CaptureFixture[str], table: str
) -> None:
    sql = f"SELECT role, count(*) AS n, avg(distance) AS d FROM {table} GROUP BY role ORDER BY role"
    near, far = answer(capfd, sql)
    assert (near["role"], far["role"]) == ("hr", "lr") and near["d"] < far["d"]  # type: ignore[operator]
    words = answer(
        capfd,
        f"SELECT word, count(*) AS n FROM (SELECT unnest(words) AS word FROM {table}) GROUP BY 1",
    )
    assert sum(w["n"] for w in words) == 24 * (near["n"] + far["n"])  # type: ignore[operator,misc]
    (counts,) = answer(capfd, "SELECT sum(n_lr) AS lr, sum(n_hr) AS hr FROM images")
    assert (counts["lr"], counts["hr"]) == (far["n"], near["n"])


def test_formats(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sql = "SELECT role, rank FROM patches ORDER BY ALL LIMIT 2"
    assert main([sql, "--format", "csv"]) == 0
    assert capfd.readouterr().out.splitlines() == ["role,rank", "hr,0", "hr,0"]
    assert main([sql]) == 0
    assert "│ hr" in capfd.readouterr().out
    assert main([sql, "--format", "parquet", "--out", "data/answer.parquet"]) == 0
    assert duckdb.sql("FROM 'data/answer.parquet'").fetchall() == [("hr", 0), ("hr", 0)]


def test_the_name_of_an_answer_tells_its_format(project: Path) -> None:
    sql = "SELECT role, rank FROM patches ORDER BY ALL LIMIT 1"
    for name in ("a.json", "b.PARQUET", "c.csv", "d.txt"):
        assert main([sql, "--out", name]) == 0
    assert json.loads(Path("a.json").read_text()) == [{"role": "hr", "rank": 0}]
    assert pq.read_table("b.PARQUET").to_pylist() == [{"role": "hr", "rank": 0}]
    assert Path("c.csv").read_text() == "role,rank\nhr,0\n"
    assert main([sql, "--format", "csv", "--out", "e.json"]) == 0  # said is said
    assert Path("e.json").read_text() == "role,rank\nhr,0\n"


@pytest.mark.parametrize("name", ["my score", "select", "Größe", 'a"b', "a-b", "", "1", "Role2"])
def test_columns_of_any_name_may_be_added(
    name: str, manifest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (part, *_) = manifest.glob("part-*.parquet")
    table = pq.read_table(part)
    pq.write_table(table.append_column(name, pa.array(range(len(table)))), tmp_path / "m.parquet")
    argv = ["--manifest", str(tmp_path / "m.parquet")]
    (row,) = answer(capfd, "SELECT count(*) AS n FROM words", *argv)
    assert row["n"] == 24 * len(table)
    assert answer(capfd, "SELECT * FROM pairs LIMIT 1", *argv)
    if name:
        (row,) = answer(capfd, "FROM words ORDER BY patch_id LIMIT 1", *argv)
        assert name in row


def test_answers_can_be_appended_to_a_file(project: Path) -> None:
    log = project / "log.csv"
    log.write_text("kept\n")
    with open(log, "a") as out:
        command = [sys.executable, "-m", "pipeline.query", "SELECT 1 AS one", "--format", "csv"]
        subprocess.run(command, stdout=out, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    assert log.read_text() == "kept\none\n1\n"


def test_every_word_of_a_patch_is_a_row(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (patch,) = answer(capfd, "SELECT patch_id, words, word_scores FROM patches LIMIT 1")
    sql = f"FROM words WHERE patch_id = '{patch['patch_id']}' ORDER BY word_rank"
    rows = answer(capfd, sql)
    assert [row["word"] for row in rows] == patch["words"]
    assert [row["score"] for row in rows] == patch["word_scores"]
    assert [row["word_rank"] for row in rows] == list(range(24))
    assert rows[0].keys() >= {"role", "distance", "image_id", "split"}
    assert not rows[0].keys() & {"image", "words", "caption"}


def test_pairs_are_those_that_training_draws_from(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (counts,) = answer(capfd, "SELECT sum(n_lr * n_hr) AS pairs FROM images")
    rows = answer(capfd, "SELECT image_id, lr_patch_id, hr_patch_id FROM pairs")
    assert len(rows) == counts["pairs"]
    data = Patches(open_manifest(project / "data" / "patches.parquet", COLUMNS))
    ids = [row["patch_id"] for row in answer(capfd, "SELECT patch_id FROM patches")]
    drawn = {(ids[far], ids[near]) for epoch in range(20) for far, near in data.epoch(epoch)}
    assert drawn == {(row["lr_patch_id"], row["hr_patch_id"]) for row in rows}


def test_a_picture_is_shown_by_its_name(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["SELECT patch_id, image, image AS again FROM patches LIMIT 1"]) == 0
    shown = capfd.readouterr().out
    assert shown.count(".png") == 2 and "PNG" not in shown


@pytest.mark.parametrize("width", [80, 120, 200])
def test_tables_fit_the_terminal(
    project: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["FROM patches"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert width / 2 < max(map(len, lines)) <= width


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT patch_id FROM patches WHERE texture > 0.01", "texture > 0.01"),
        ("SELECT * FROM patches WHERE texture > 0.01", "texture > 0.01"),
        ("FROM 'data/patches.parquet/*.parquet' WHERE texture > 0.01", "texture > 0.01"),
        ("SELECT DISTINCT patch_id, role FROM words WHERE word_rank < 3", "true"),
        ("SELECT lr_patch_id AS patch_id FROM pairs UNION SELECT hr_patch_id FROM pairs", "true"),
        ("SELECT image_id, role, size, caption, image FROM patches WHERE rank = 0", "rank = 0"),
        ("SELECT *, 1 AS mine FROM patches ORDER BY distance", "true"),
    ],
)
def test_a_saved_answer_is_a_manifest_to_train_on(
    project: Path, capfd: pytest.CaptureFixture[str], sql: str, expected: str
) -> None:
    assert main([sql, "--save", "data/mine.parquet"]) == 0
    said = capfd.readouterr().out
    counts = answer(
        capfd, f"SELECT role, count(*) AS n FROM patches WHERE {expected} GROUP BY role ORDER BY 1"
    )
    hr, lr = (row["n"] for row in counts)
    assert f"data/mine.parquet: {lr} lr and {hr} hr patches" in said
    mine = open_manifest(Path("data/mine.parquet"), COLUMNS)
    assert mine.metadata["query"] == sql and mine.metadata["parameters"]["k"] == 4
    data = Patches(mine)
    assert (len(data), len(data.rows["hr"])) == (lr, hr)
    wanted = duckdb.sql(f"FROM 'data/patches.parquet/*.parquet' WHERE {expected}")
    pictures = duckdb.sql("SELECT image.bytes FROM 'data/mine.parquet'").fetchall()
    assert sorted(pictures) == sorted(wanted.query("w", "SELECT image.bytes FROM w").fetchall())


def test_whole_rows_keep_their_order_types_and_row_groups(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.query.save.ROW_GROUP", 16)
    assert main(["SELECT patch_id FROM words ORDER BY score", "--save", "data/mine.parquet"]) == 0
    parts = [pq.read_table(file) for file in open_manifest(Path("data/patches.parquet")).files]
    saved = pq.ParquetFile("data/mine.parquet")
    assert saved.read().equals(pa.concat_tables(parts))
    groups = [saved.metadata.row_group(i).num_rows for i in range(saved.num_row_groups)]
    assert groups[:-1] == [16] * (len(groups) - 1) and 0 < groups[-1] <= 16
    assert saved.metadata.row_group(0).column(18).path_in_schema == "image.bytes"
    assert saved.metadata.row_group(0).column(18).compression == "UNCOMPRESSED"


def test_the_catalogue_and_the_card_go_along(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sql = "SELECT patch_id FROM patches WHERE image_path <> 'china.jpg' AND rank < 2"
    assert main([sql, "--save", "data/mine.parquet"]) == 0
    capfd.readouterr()
    mine = ["--manifest", "data/mine.parquet"]
    found = answer(capfd, "SELECT path, status, error, n_lr, n_hr FROM images ORDER BY path", *mine)
    assert len(found) == 7
    for row in found:
        assert (row["n_lr"], row["n_hr"]) == ((0, 0) if row["path"] == "china.jpg" else (2, 2))
        assert row["status"] == ("left_out" if row["path"] == "china.jpg" else "ok")
    assert answer(capfd, "SELECT count(*) AS n FROM duplicates", *mine)
    assert sql in Path("data/mine.card.md").read_text()


def test_what_is_no_manifest_is_not_saved(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("data/folder.parquet").mkdir()
    before = sorted(project.rglob("*"))
    for sql, target, message in [
        ("SELECT role, image_id FROM patches", "m", "lacks patch_id, or size, caption, image; SEL"),
        ("SELECT patch_id FROM patches WHERE false", "m", "has no 'lr' patch; training needs both"),
        ("SELECT patch_id FROM patches WHERE role = 'lr'", "m", "has no 'hr' patch"),
        (
            "SELECT * REPLACE (1 AS caption) FROM patches",
            "m",
            "column 'caption' is int32, expected",
        ),
        ("SELECT 1 AS patch_id", "m", "has no 'lr' patch"),
        (
            "SELECT patch_id FROM patches",
            "patches",
            "is or contains the input",
        ),
        ("SELECT patch_id FROM patches", "patches.parquet/mine", "is inside the input"),
        ("SELECT patch_id FROM patches", "images", "is or contains the input"),
        ("SELECT patch_id FROM patches", "folder", "is a folder, and a file is to be written"),
    ]:
        assert main([sql, "--save", f"data/{target}.parquet"]) == 1
        error = capfd.readouterr().err
        assert message in error and error.count("\n") == 1 and error.startswith("error: ")
    assert main(["SELECT patch_id FROM patches", "--save", "data/mine"]) == 1
    assert "ends in .parquet" in capfd.readouterr().err
    assert sorted(project.rglob("*")) == before
    one = ["SELECT patch_id FROM patches", "--save", "data/mine.parquet"]
    assert main(one) == 0 and main([*one, "--manifest", "data/mine.parquet"]) == 1
    assert "is or contains the input" in capfd.readouterr().err
    assert main(["SELECT 1", "--format", "csv", "--out", "data/images.parquet"]) == 1
    assert "is or contains the input" in capfd.readouterr().err


def test_a_manifest_from_before_the_newer_columns_can_be_asked_and_curated(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    newer = ", ".join(sorted(OPTIONAL))
    duckdb.sql(
        f"COPY (SELECT * EXCLUDE ({newer}) FROM 'data/patches.parquet/*.parquet') TO 'old.parquet'"
    )
    old = ["--manifest", "old.parquet"]
    assert (
        main(["SELECT patch_id FROM words WHERE word_rank = 0", "--save", "m.parquet", *old]) == 0
    )
    assert len(Patches(open_manifest(Path("m.parquet")))) == 28
    capfd.readouterr()
    assert main(["--ask", "sharp-far", *old]) == 1
    error = capfd.readouterr().err
    assert "no column 'sharpness': not measured in this manifest" in error
    assert error.endswith("build it again\n")
    assert main(["--ask", "equal-content", *old]) == 1
    assert "not measured in this manifest" in capfd.readouterr().err
    assert main(["FROM duplicates", *old]) == 1
    assert "columns behind 'duplicates' are missing; build it again" in capfd.readouterr().err


def test_mistakes_get_one_line(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    long = "SELECT " + ", ".join(f"{i} AS number{i}" for i in range(50)) + " FROM WHERE patches"
    for argv, message in [
        (["SELECT distanc FROM patches"], "no column 'distanc'; nearest: distance"),
        (["SELECT p.pathc_id FROM patches p"], "no column 'pathc_id'; nearest: patch_id"),
        (["SELECT xyz FROM patches"], "no column 'xyz'; there are: caption, caption_model"),
        (["SELECT 1 FROM patche"], "no table 'patche'; nearest: patches"),
        (["SELECT 1 FROM photos"], "no table 'photos'; there are: duplicates, images, pairs, pat"),
        (["SELEC 1"], 'syntax error at or near "SELEC" (line 1, column 1)'),
        (["SELECT role\nFROM patches WHERE GROUP"], '"GROUP" (line 2, column 20)'),
        ([long], 'at or near "WHERE" (line 1: ...'),
        (["PIVOT patches ON role"], "PIVOT without a list of values; write it, as in PIVOT … ON"),
        (["SELECT cout(*) FROM patches"], 'name cout does not exist! Did you mean "count"'),
        (["SELECT 1; SELECT 2"], "2 statements; give one statement at a time"),
        (
            ["--ask", "nothing"],
            "--ask nothing: no ready question has this name; there are: far-or-near, sharp-far",
        ),
        (["SELECT 1", "--manifest", "nowhere.parquet"], "nowhere.parquet: no manifest there"),
    ]:
        assert main(argv) == 1
        error = capfd.readouterr().err
        assert message in error and error.count("\n") == 1 and error.startswith("error: ")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give an SQL statement, or --ask NAME, or --list"),
        (["SELECT 1", "--list"], "give an SQL statement, or --ask NAME, or --list"),
        (["SELECT 1", "--format", "parquet"], "name the file with --out FILE"),
        (["SELECT 1", "--save", "a.parquet", "--out", "b"], "--out an answer: give one of them"),
    ],
)
def test_flags_that_do_not_go_together(
    argv: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2 and message in capfd.readouterr().err


def test_an_answer_that_repeats_patches_is_not_saved(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = len(pq.read_table(project / "data" / "patches.parquet", columns=["role"]))
    twice = (
        "SELECT * FROM patches UNION ALL SELECT * FROM patches",
        "SELECT p.* FROM patches p JOIN words w ON p.patch_id = w.patch_id AND w.word_rank < 2",
    )
    for sql in twice:
        assert main([sql, "--save", "data/mine.parquet"]) == 1
        error = capfd.readouterr().err
        assert f"repeats patches: {rows} of its {2 * rows} rows" in error and "DISTINCT" in error
        assert error.count("\n") == 1 and not Path("data/mine.parquet").exists()
    assert main([twice[1].replace("p.*", "p.patch_id"), "--save", "data/mine.parquet"]) == 0
    assert main([f"SELECT DISTINCT ON (patch_id) * FROM ({twice[0]})", "--save", "o.parquet"]) == 0
    for saved in ("data/mine.parquet", "o.parquet"):
        ids = pq.read_table(saved, columns=["patch_id"])["patch_id"].to_pylist()
        assert len(ids) == len(set(ids)) == rows


@pytest.mark.parametrize("content", [b"", b"PAR1 cut", b"x" * 900])
def test_a_damaged_catalogue_costs_its_view_alone(
    content: bytes, project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    catalogue = project / "data/images.parquet"
    catalogue.unlink()
    catalogue.write_bytes(content)
    assert main(["SELECT count(*) AS n FROM patches", "--format", "csv"]) == 0
    out, error = capfd.readouterr()
    assert out.startswith("n\n") and "data/images.parquet: damaged" in error
    assert error.count("\n") == 1
    assert main(["SELECT * FROM images"]) == 1
    assert "behind 'images' are missing; build it again" in capfd.readouterr().err


def test_damage_after_a_manifest_was_opened_is_one_line(project: Path) -> None:
    copy = project / "copy.parquet"
    shutil.copytree(project / "data/patches.parquet", copy)
    manifest = open_manifest(copy)
    part = sorted(copy.iterdir())[0]
    part.write_bytes(part.read_bytes()[:300])
    with pytest.raises(ManifestError, match="damaged"):
        with_views(manifest)


def test_a_damaged_part_is_not_saved(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = project / "data" / "patches.parquet"
    copy = project / "copy.parquet"
    shutil.copytree(folder, copy)
    part = sorted(copy.iterdir())[0]
    part.write_bytes(flip(part.read_bytes(), 8 * 3000))
    for sql in ("SELECT * FROM patches", "SELECT patch_id FROM patches"):
        assert main([sql, "--manifest", "copy.parquet", "--save", "mine.parquet"]) == 1
        error = capfd.readouterr().err
        assert part.name in error and "--verify" in error and error.count("\n") == 1
        assert not Path("mine.parquet").exists()
