"""Is a manifest worth learning from: planted manifests, whose answers are known by construction."""

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.blank import NOISES, QUALITIES, SLOPES, blank_area, measured
from pipeline.query.questions import QUESTIONS
from pipeline.query.views import connect
from pipeline.report.config import ReportConfig
from pipeline.report.data import ReportData
from pipeline.report.page import build_page
from pipeline.report.worth import Worth
from pipeline.stages.measure import measure
from pipeline.stages.select import texture_map
from schemas.manifest import METADATA_KEY, PATCH_SIZE, PATCHES, Row

PHOTOGRAPHS = 20
NEWER = ("sharpness_56", "colour_a", "colour_b")


def planted() -> list[Row]:
    """20 photographs with four far and four near patches each: nothing is wrong with them.

    The first two of each role show the sky, the others bark. Skies have little sharpness and bark
    much, but of either the far patches have half that of the near ones.
    """
    rng, rows = np.random.default_rng(0), []
    for photograph, role, rank in itertools.product(range(PHOTOGRAPHS), ("lr", "hr"), range(4)):
        sky, far = rank < 2, role == "lr"
        subject = ["sky", "blue", "cloud", "air"] if sky else ["bark", "brown", "tree", "wood"]
        size = PATCH_SIZE[role]  # type: ignore[index]
        rows.append({
            "patch_id": f"{photograph:02}{role}{rank}", "image_id": f"{photograph:064}",
            "image_path": f"{photograph}.jpg", "image_width": 2000, "image_height": 1000,
            "role": role, "x": size * rank, "y": 0, "size": size, "rank": rank,
            "distance": (0.9 if far else 0.1) - rank / 100, "texture": 0.004 if sky else 0.05,
            "strategy": "depth", "depth_model": "d@1", "caption_model": "c@1", "caption": "",
            "words": [*subject, *(f"{role}{photograph}word{rank}{i}" for i in range(20))],
            "word_scores": [0.5] * 24, "image": {"bytes": b"", "path": ""},
            "luma": 0.8 if sky else 0.3, "contrast": 0.1, "shadows": 0.0, "highlights": 0.0,
            "colour_a": 0.0 if sky else 10.0, "colour_b": -30.0 if sky else 20.0,
            "sharpness": 100.0, "sharpness_56": (50.0 if sky else 2000.0) * (1 if far else 2),
            "phash": f"{int(rng.integers(0, 2**63)):016x}", "split": "train",
        })  # fmt: skip
    return rows


def of(rows: list[Row], role: str, ranks: range = range(4)) -> list[Row]:
    """Rows of a role, photograph by photograph."""
    return [row for row in rows if row["role"] == role and row["rank"] in ranks]


def saved(rows: list[Row], folder: Path, leave_out: tuple[str, ...] = ()) -> Path:
    path = folder / "planted.parquet"
    pq.write_table(pa.Table.from_pylist(rows, PATCHES).drop_columns(list(leave_out)), path)
    return path


def answer(rows: list[Row], folder: Path, question: str) -> list[Row]:
    with connect(saved(rows, folder)) as connection:
        found = connection.sql(QUESTIONS[question].sql)
        return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def judged(rows: list[Row], folder: Path, noise: bool = False, **options: Any) -> Worth:
    with connect(saved(rows, folder, **options)) as connection:
        return ReportData(connection, 0).worth(noise)


def test_plateaus(tmp_path: Path) -> None:
    rows = planted()
    far = of(rows, "lr")
    for one in range(5):  # two are equally far, the other two are not
        far[4 * one]["distance"] = far[4 * one + 1]["distance"]
    far[4 * 7]["distance"] = 1.0  # alone, but as far as a map goes
    far[4 * 8]["distance"] = 1 - 0.4 / 65535
    far[4 * 9]["distance"] = 1 - 1.0 / 65535
    far[4 * 10]["distance"] = far[4 * 11]["distance"]  # of another photograph
    near = of(rows, "hr")
    near[0]["distance"] = near[1]["distance"]
    far[4 * 12]["distance"] = far[4 * 12 + 1]["distance"] = None
    assert answer(rows, tmp_path, "plateaus") == [
        {"plateau": 12, "far": 78, "per_cent": 15.4, "photographs": 7}
    ]


def test_patches_without_content(tmp_path: Path) -> None:
    rows = planted()
    for row in of(rows, "lr", range(2))[:10]:
        row["contrast"] = 0.014
    for row in of(rows, "hr", range(2))[:6]:
        row["contrast"] = 0.05
    for row in of(rows, "hr", range(2, 4))[:6]:
        row["contrast"] = 0.001  # with texture: dark foliage, say
    for row in of(rows, "lr", range(2))[10:20]:
        row["contrast"] = 0.05  # a soft edge
    assert answer(rows, tmp_path, "no-content") == [
        {"role": "hr", "blank": 6, "total": 80, "per_cent": 7.5},
        {"role": "lr", "blank": 10, "total": 80, "per_cent": 12.5},
    ]


def test_near_copies_and_overlaps_within_a_photograph(tmp_path: Path) -> None:
    rows = planted()
    far, near = of(rows, "lr"), of(rows, "hr")

    def copy(one: Row, other: Row, bits: int) -> None:
        one["phash"] = f"{int(other['phash'], 16) ^ (2**bits - 1):016x}"

    copy(far[1], far[0], 4)
    copy(far[5], far[4], 5)  # no copy
    copy(far[9], far[8], 0)
    copy(far[10], far[8], 0)
    copy(far[12], far[16], 0)  # of another photograph
    copy(far[20], near[20], 0)  # of another role
    copy(near[3], near[0], 2)
    far[30]["phash"] = far[31]["phash"] = None
    near[31]["phash"] = "no hash"
    far[1]["x"] = far[0]["x"] + 33  # 41 % of its width
    far[5]["x"] = far[4]["x"] + 34  # 39 %
    near[1]["x"], near[1]["y"] = near[0]["x"] + 80, near[0]["y"] + 80  # 0.64 * 0.64 = 41 %
    assert answer(rows, tmp_path, "near-copies") == [
        {"role": "hr", "copies": 1, "overlapping": 1, "total": 80, "per_cent": 1.3},
        {"role": "lr", "copies": 3, "overlapping": 1, "total": 80, "per_cent": 3.8},
    ]


def test_sky_against_bark_does_not_decide(tmp_path: Path) -> None:
    """Far patches are all sky and near ones are bark but a few: only equal content is compared."""
    rows = [row for row in planted() if row["role"] == "hr" or row["rank"] < 2]
    rows = [r for r in rows if r["role"] == "lr" or r["rank"] >= 2 or r["image_path"] < "12"]
    skies = of(rows, "hr", range(2))
    assert 0 < len(skies) < len(of(rows, "hr", range(2, 4)))
    for sharp, less in ((200.0, 0), (50.0, 20)):  # near skies have 100, bark 4,000
        for row in of(rows, "lr"):
            row["sharpness_56"] = sharp
        for found in answer(rows, tmp_path, "equal-content"):
            assert (found["photographs"], found["less_sharp"]) == (20, less)
            assert found["far_by_near"] == pytest.approx((sharp + 1) / 101, abs=1e-3)
        assert judged(rows, tmp_path).verdict == ("yes" if less else "no")


def test_planted_pairs_of_equal_content_are_counted(tmp_path: Path) -> None:
    rows = planted()
    for photograph in range(14, 20):  # of these the far patches are the sharper ones
        for row in of(rows, "lr")[4 * photograph : 4 * photograph + 4]:
            row["sharpness_56"] *= 3
    words, colour = answer(rows, tmp_path, "equal-content")
    assert (words["content"], colour["content"]) == ("words", "colour")
    for found in (words, colour):
        assert (found["photographs"], found["less_sharp"], found["far_patches"]) == (20, 14, 80)
    for row in of(rows, "lr"):  # two shared words are too few, and the third is not among the best
        row["words"][2:4], row["words"][8:10] = ["x", "y"], row["words"][2:4]
        row["colour_b"] += 9
    assert answer(rows, tmp_path, "equal-content") == []


def test_equal_content_against_plain_python(manifest: Path) -> None:
    columns = ["image_id", "role", "words", "luma", *NEWER]
    rows = pa.concat_tables(
        pq.read_table(file, columns=columns) for file in manifest.glob("*.parquet")
    ).to_pylist()
    far, near = of_role(rows, "lr"), of_role(rows, "hr")

    def same_words(one: Row, other: Row) -> bool:
        return len({*one["words"][:8]} & {*other["words"][:8]}) >= 3

    def same_colour(one: Row, other: Row) -> bool:
        a, b = (np.array([100 * r["luma"], r["colour_a"], r["colour_b"]]) for r in (one, other))
        return float(np.linalg.norm(a - b)) <= 8

    with connect(manifest) as connection:
        answers = connection.sql(QUESTIONS["equal-content"].sql).fetchall()
    alike: dict[str, Callable[[Row, Row], bool]] = {"words": same_words, "colour": same_colour}
    expected = []
    for content, is_same in alike.items():
        ratios: dict[str, list[float]] = {}
        for one in far:
            if same := [other["sharpness_56"] for other in near if is_same(one, other)]:
                ratio = np.log((one["sharpness_56"] + 1) / (np.median(same) + 1))
                ratios.setdefault(one["image_id"], []).append(float(ratio))
        means = [np.mean(values) for values in ratios.values()]
        if means:
            less = sum(mean < 0 for mean in means)
            patches, middle = sum(map(len, ratios.values())), np.exp(np.median(means))
            share = pytest.approx(100 * less / len(means), abs=0.06)
            ratio = pytest.approx(middle, abs=6e-4)
            expected.append((content, len(means), less, share, patches, ratio))
    assert answers == expected and expected


def of_role(rows: list[Row], role: str) -> list[Row]:
    return [row for row in rows if row["role"] == role]


def test_a_sample_of_a_large_manifest_says_the_same(tmp_path: Path) -> None:
    rows = []
    for again in range(30):
        for row in planted():
            names = {name: f"{again:03}{row[name]}" for name in ("patch_id", "image_id")}
            rows.append(row | names)
    words, colour = answer(rows, tmp_path, "equal-content")
    for found in (words, colour):
        assert found["far_patches"] == 1000 and 400 < found["photographs"] <= 600
        assert found["less_sharp"] == found["photographs"]
        assert found["far_by_near"] == pytest.approx(0.5, abs=0.01)


def test_a_good_set_and_what_to_change_in_others(tmp_path: Path) -> None:
    good = judged(planted(), tmp_path)
    assert good.verdict == "yes" and good.advice == []
    assert {check.state for check in good.checks} == {"good"} and len(good.checks) == 7

    def spoil(change: Callable[[Row], Row], role: str, share: float) -> Worth:
        rows = planted()
        for row in of(rows, role)[: round(80 * share)]:
            row.update(change(row))
        return judged(rows, tmp_path)

    def blank(row: Row) -> Row:
        return {"texture": 0.001, "contrast": 0.001}

    def one_hash(row: Row) -> Row:
        return {"phash": f"{row['image_id']}"[-16:]}

    def equal(row: Row) -> Row:
        return {"distance": 0.5}

    for change, role, share, words in [
        (blank, "lr", 0.1, ""), (blank, "lr", 0.125, "--far-texture"),
        (blank, "hr", 0.1, ""), (blank, "hr", 0.125, "--min-texture"),
        (one_hash, "lr", 0.05, ""), (one_hash, "lr", 0.1, "--min-separation 56"),
        (one_hash, "hr", 0.1, "--min-separation 224"),
        (equal, "lr", 0.5, ""), (equal, "lr", 0.55, "less sky"),
    ]:  # fmt: skip
        found = spoil(change, role, share)
        assert found.verdict == ("changes" if words else "yes"), (role, share, found)
        assert len(found.advice) == bool(words) and all(words in line for line in found.advice)


def test_far_patches_that_look_no_worse_are_not_worth_learning_from(tmp_path: Path) -> None:
    rows = planted()
    for row in of(rows, "lr"):
        row["sharpness_56"] *= 3
    found = judged(rows, tmp_path)
    assert found.verdict == "no" and any("other photographs" in line for line in found.advice)
    for row in of(rows, "lr")[:40]:
        row["sharpness_56"] /= 3
    assert judged(rows, tmp_path).verdict == "open"  # ten of twenty photographs


def test_words_of_an_untrained_clip_do_not_count(tmp_path: Path) -> None:
    rows = planted()
    for row in rows:
        row["words"] = [f"{row['patch_id']}{i}" for i in range(24)]
    assert judged(rows, tmp_path).verdict == "open"
    found = judged(rows, tmp_path, noise=True)
    assert found.verdict == "yes" and not any("words" in check.title for check in found.checks)


@pytest.mark.parametrize(
    ("gone", "unmeasured"),
    [
        (NEWER, {"equal-content"}),
        (("sharpness_56",), {"equal-content"}),
        ((*NEWER, "luma", "contrast", "phash"), {"no-content", "near-copies", "equal-content"}),
    ],
)
def test_earlier_manifests_say_what_was_not_measured(
    gone: tuple[str, ...], unmeasured: set[str], tmp_path: Path
) -> None:
    found = judged(planted(), tmp_path, leave_out=gone)
    states = {check.question: check.state for check in found.checks}
    assert {name for name, state in states.items() if state == "not measured"} == unmeasured
    assert found.verdict == "open" and "Not measured" in found.sentence
    page, _ = build_page(ReportConfig(manifest=tmp_path / "planted.parquet"))
    assert page.count("Not measured: the manifest has no column") == len(unmeasured)
    assert page.count("build it again") == len(unmeasured)


def test_texture_alone_gives_no_answer_where_it_was_a_filter(tmp_path: Path) -> None:
    """An earlier build with --far-texture: of course its far patches have more texture."""
    rows = planted()
    for row in rows:
        row["texture"] = 0.05 if row["role"] == "lr" else 0.01
    path = saved(rows, tmp_path, leave_out=NEWER)
    answers = []
    for filters in ({"far_texture": 0.03, "min_texture": 0.0}, {"far_texture": 0.0}):
        metadata = {METADATA_KEY: json.dumps({"parameters": filters})}
        pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
        page, _ = build_page(ReportConfig(manifest=path, pairs=0, photographs=0))
        answers.append(re.findall(r'<p class="verdict"><strong>([^.:]*)', page)[0])
    assert answers == ["Not measured", "No"]


def test_the_page_says_it(tmp_path: Path) -> None:
    page, _ = build_page(ReportConfig(manifest=saved(planted(), tmp_path), pairs=0, photographs=0))
    assert "Yes: far patches look worse than near ones of the same content" in page
    assert "in 100% of photographs (20 of 20;" in page
    # The limits on the page are those of the questions.
    sql = QUESTIONS["no-content"].sql
    for limit in ("0.005", "0.015", "0.055"):
        assert limit in sql and limit in page


@pytest.mark.parametrize("role", ["lr", "hr"])
def test_noise_and_jpeg_alone_are_no_content(role: str, tmp_path: Path) -> None:
    """The measurement behind the limits, and that a little detail is above them."""
    rows, size = [], PATCH_SIZE[role]  # type: ignore[index]
    template = next(row for row in planted() if row["role"] == role)
    for i, (slope, noise, quality) in enumerate(itertools.product(SLOPES, NOISES, QUALITIES)):
        texture, contrast = measured(size, slope, noise, quality, patches=3)
        rows.append(template | {"patch_id": str(i), "texture": texture, "contrast": contrast})
    (found,) = answer(rows, tmp_path, "no-content")
    assert found["blank"] == found["total"] == len(rows)
    area = blank_area(size, 0.1, 1.0, np.random.default_rng(0))
    area[::4, ::4] += 30  # a texture of dots
    detail = {"texture": float(texture_map(area).mean()), "contrast": measure(area).contrast}
    (found,) = answer([template | detail], tmp_path, "no-content")
    assert found["blank"] == 0
