"""No command replaces, removes or adds to what it did not make: each command, each such thing.

Refusals come before any work, so the inputs here are mere names: a command that got as far as to
open one would say something else than it should.
"""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import pipeline.demo
from lasr.__main__ import main
from lasr.errors import UserError
from lasr.ownership import is_ours
from pipeline.build.plan import plan_build, prepare
from pipeline.build.publish import finish
from pipeline.build.shard import build_shard
from pipeline.config import BuildConfig
from schemas.current import POINTER
from schemas.manifest import PATCHES, open_manifest
from tests.conftest import run_stages
from tests.support.parts import write_part
from trainer.checkpoint import check_folder
from trainer.evaluate.scores import SCHEMA, Score, write
from trainer.run_log import RunLog

LIKE_OURS = "part-0123456789abcdef.parquet"


@dataclass(frozen=True)
class Writer:
    """A command that writes. In `words`, OUT is its output.

    kind: "file"; "folder" (adds files to it); "whole" (owns all that is in it). taken: files that
    it would write, below or beside OUT, which here belong to somebody else.
    """

    words: str
    kind: str
    suffix: str = ""
    taken: tuple[str, ...] = ()
    reads: str = "in/photos"

    def __call__(self, out: str) -> int:
        argv = [out if word == "OUT" else word for word in self.words.split()]
        if argv[0] == "demo":
            return pipeline.demo.main(argv[1:])
        return main(argv)


BUILD = "build --images in/photos --profile test --k 1 --out OUT"
TRAIN = "train --manifest in/m.parquet --profile test --batch-size 2 --out OUT"
BUILT = (LIKE_OURS, "part-0.parquet", "../o.images.parquet", "../o.duplicates.parquet",
         "../o.card.md", "../o.work/notes.txt", "../o.work/lock", "../o.work/lock.json",
         f"../o.work/{LIKE_OURS}", "../o.work/publishing/notes.txt")  # fmt: skip
RUN = ("README.md", "lock", "config.json", "model.safetensors", "checkpoint.pt", "stats.jsonl")
SCORED = ("scores.parquet", "scores.csv", "scores.jsonl", "means.parquet", "means.csv", "means.md")
MANIFEST = tuple(f"../o.{name}" for name in ("images.parquet", "duplicates.parquet", "card.md"))
WRITERS = {
    "build": Writer(BUILD, "whole", taken=BUILT),
    "build --dry-run": Writer(f"{BUILD} --dry-run", "whole", taken=BUILT),
    "train": Writer(TRAIN, "whole", taken=RUN, reads="in/m.parquet"),
    "train --dry-run": Writer(f"{TRAIN} --dry-run", "whole", taken=RUN, reads="in/m.parquet"),
    "pretrain": Writer("pretrain --images in/photos --out OUT", "whole", taken=RUN),
    "finetune-set": Writer(
        "finetune-set --lr-images in/photos --profile test --out OUT",
        "file", ".parquet", MANIFEST,
    ),
    "report": Writer(
        "report --manifest in/m.parquet --out OUT", "file", ".html", (), "in/m.parquet"
    ),
    "picture": Writer(
        "picture --images in/photos --manifest in/m.parquet --out OUT", "file", ".png"
    ),
    "query --out": Writer(
        "query SUMMARIZE --manifest in/m.parquet --format csv --out OUT",
        "file", ".csv", (), "in/m.parquet",
    ),
    "query --save": Writer(
        "query SUMMARIZE --manifest in/m.parquet --save OUT",
        "file", ".parquet", MANIFEST, "in/m.parquet",
    ),
    "degradations": Writer(
        "degradations --manifest in/m.parquet --out OUT", "file", ".png", (), "in/m.parquet"
    ),
    **{
        f"export {suffix}": Writer(
            "export --weights in/run --out OUT", "file", suffix, taken, "in/run"
        )
        for suffix, taken in (
            (".onnx", ()), (".pth", ()), (".safetensors", ()), (".param", ("../o.bin",)),
        )
    },
    "upscale": Writer("upscale in/photos --weights tiny-rrdb --out OUT", "folder", "", ("a.png",)),
    "upscale --dry-run": Writer(
        "upscale in/photos --weights tiny-rrdb --suffix _x4 --dry-run -o OUT",
        "folder", "", ("a_x4.png",),
    ),
    "depth": Writer(
        "depth in/photos --profile test --out OUT", "folder", "",
        ("a.distance.png", "a.colour.png"),
    ),
    "patches": Writer(
        "patches in/photos --profile test --out OUT", "folder", "", ("a.patches.jpg",)
    ),
    "caption": Writer(
        "caption in/photos --profile test --out OUT", "folder", "", ("captions.json", "a.txt")
    ),
    "evaluate": Writer(
        "evaluate --images in/photos --weights bicubic --metrics niqe --out OUT",
        "folder", "", (*SCORED, "sr/bicubic/a.png", "sr/bicubic/made.jsonl"),
    ),
    "evaluate --reference": Writer(
        "evaluate --reference in/photos --weights bicubic --metrics psnr --out OUT",
        "folder", "", ("reference/a.png", "lr/a.png"),
    ),
    "features": Writer(
        "features --weights in/run --manifest in/m.parquet --out OUT",
        "folder", "", ("features.png", "coordinates.parquet", "scores.json"), "in/m.parquet",
    ),
    "compare": Writer(
        "compare --weights bicubic --manifest in/m.parquet --out OUT",
        "file", ".png", (), "in/m.parquet",
    ),
    "sidebyside": Writer("sidebyside in/scores --out OUT", "folder", "", ("a.png",), "in/scores"),
    "sidebyside FILE": Writer("sidebyside in/scores --out OUT", "file", ".png", (), "in/scores"),
    "curve": Writer("curve in/scores --out OUT", "file", ".png", ("../o.csv",), "in/scores"),
    "weights export": Writer(
        "weights export OUT", "whole", "",
        ("vgg19/vgg19-dcbb9e9d.pth", "SHA256SUMS", ".lock"), "in/weights",
    ),
    "demo": Writer("demo OUT", "folder", "", ("china.jpg",), ""),
}  # fmt: skip
ALL = pytest.mark.parametrize("name", WRITERS)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each test gets a copy of."""
    here = tmp_path_factory.mktemp("original")
    for folder in ("in/photos/more", "in/m.parquet", "in/run", "in/weights/vgg19", "full"):
        (here / folder).mkdir(parents=True)
    Image.new("RGB", (20, 20), "green").save(here / "in/photos/a.png")
    with write_part(here / "in/m.parquet/part.parquet", PATCHES, {}):
        pass  # no rows
    for name in ("in/photos/thesis.odt", "full/thesis.odt", "notes"):
        (here / name).write_text("precious")
    (here / "in/weights/vgg19/vgg19-dcbb9e9d.pth").write_bytes(b"\x80\x02")
    evaluation(here / "in/scores")
    return here


@pytest.fixture
def world(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder. Only `in` is read."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LASR_WEIGHTS", "in/weights")
    return tmp_path


def evaluation(folder: Path) -> None:
    numbers = {"higher_is_better": True, "score": 1.0, "parameters": 1, "seconds": 1.0}
    texts = dict.fromkeys(SCHEMA.names, "a") | {"method": "m@1"}
    write(folder, [Score(**(texts | numbers))])  # type: ignore[arg-type]


def foreign(path: Path) -> None:
    """A file as another program writes it, of the kind that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pd.DataFrame({"a": [1, 2]}).to_parquet(path)
    elif path.suffix in (".png", ".jpg"):
        Image.new("RGB", (8, 8), "red").save(path)
    elif path.suffix == ".csv":
        path.write_text("method,score\nmine,1\n")
    elif path.suffix == ".json":
        path.write_text('{"manifest": "mine", "weights": [1]}')
    elif path.suffix == ".md":
        path.write_text("# LA-SR patches: mine\nLA-SR, la-sr <!-- la-sr -->\n")
    elif path.suffix == ".html":
        path.write_text("<!doctype html><title>Far and near: la-sr</title>\n")
    elif path.suffix in (".pth", ".pt"):
        import torch

        torch.save({"params_ema": {"a": torch.zeros(1)}}, path)
    elif path.suffix == ".safetensors":
        import safetensors.numpy

        safetensors.numpy.save_file({"a": np.zeros(1)}, path, {"format": "pt", "by": "la sr"})
    elif path.suffix == ".onnx":
        path.write_bytes(b"\x08\x08\x12\x07pytorch" + b"x" * 100)
    elif path.suffix == ".param":
        path.write_text("7767517\n2 2\nInput input 0 1 data\n")
    else:
        path.write_text("precious, of la-sr\n")


def tree(folder: Path) -> dict[str, object]:
    """Everything below a folder: bytes of files, targets of links, and folders."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def refuses(
    writer: Writer, out: str, capsys: pytest.CaptureFixture[str], why: str = "nothing was changed"
) -> None:
    before = tree(Path.cwd())
    status = writer(out)
    said = capsys.readouterr()
    assert status != 0 and tree(Path.cwd()) == before, said
    assert said.out == "" and said.err.count("\n") == 1, said
    assert re.match(f"error: .*({why})", said.err), said.err


@ALL
@pytest.mark.parametrize(
    "out", ["", ".", "./", "/", "//", "~", "~/x", "..", "in/..", "in/photos/../.."]
)
def test_names_that_are_no_names(
    name: str, out: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A format is asked for where the name has none, which is as good an answer.
    refuses(WRITERS[name], out, capsys, "")


@ALL
def test_something_else_has_the_name(
    name: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = WRITERS[name]
    end = writer.suffix
    if writer.kind == "file":
        Path(f"folder{end}").mkdir()
        refuses(writer, f"folder{end}", capsys)
        foreign(Path(f"mine{end}"))
        refuses(writer, f"mine{end}", capsys)
        Path(f"link{end}").symlink_to(f"mine{end}")
        refuses(writer, f"link{end}", capsys)
        Path(f"empty{end}").touch()
        refuses(writer, f"empty{end}", capsys)
        os.link("in/photos/a.png", f"hard{end}")
        refuses(writer, f"hard{end}", capsys)
    else:
        refuses(writer, "notes", capsys)
        Path("link").symlink_to("notes")
        refuses(writer, "link", capsys)
    if writer.kind == "whole":
        refuses(writer, "full", capsys, "nothing was changed|holds no exported weights")
        Path("linked").symlink_to("full")
        refuses(writer, "linked", capsys, "nothing was changed|holds no exported weights")
    Path(f"dangling{end}").symlink_to("nothing")
    refuses(writer, f"dangling{end}", capsys)
    Path(f"circle{end}").symlink_to(f"circle{end}")
    refuses(writer, f"circle{end}", capsys)
    refuses(writer, f"notes/below{end}", capsys)
    os.mkfifo(f"pipe{end}")
    with pytest.MonkeyPatch.context() as patch:  # the tree cannot read it
        patch.setattr(Path, "read_bytes", lambda path: b"" if path.is_fifo() else _read(path))
        refuses(writer, f"pipe{end}", capsys)


def _read(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read()


@pytest.mark.parametrize(
    ("name", "taken"), [(name, each) for name, writer in WRITERS.items() for each in writer.taken]
)
def test_a_name_like_ours_is_not_ours(
    name: str, taken: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = WRITERS[name]
    out = Path(f"data/o{writer.suffix}")
    out.parent.mkdir()
    foreign(Path(os.path.normpath(out / taken)))
    why = "nothing was changed|holds no exported weights|no run"
    refuses(writer, str(out), capsys, why)
    if writer.kind != "file" and not taken.startswith("../"):  # a link in its place
        path = out / taken
        shutil.move(path, "elsewhere")
        path.symlink_to(Path("elsewhere").resolve())
        refuses(writer, str(out), capsys, why)


@pytest.mark.parametrize("name", [name for name, writer in WRITERS.items() if writer.reads])
def test_outputs_and_inputs_are_apart(
    name: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = WRITERS[name]
    end, reads = writer.suffix, writer.reads
    Path("door").symlink_to(reads)
    Path("deep/er").mkdir(parents=True)
    Path("deep/er/in").symlink_to(Path("in").resolve())
    inside = [
        f"{reads}/new{end}",
        f"{reads}/a/b{end}",
        f"door/new{end}",
        f"./in/../{reads}/new{end}",
        f"{world}/{reads}/new{end}",
        f"deep/er/in/{Path(reads).name}/new{end}",
    ]
    # `upscale` may write inside, and searches elsewhere.
    for out in inside if not name.startswith("upscale") else ():
        refuses(writer, out, capsys, "is inside the input")
    if writer.kind == "file":
        return
    around = "is or contains|holds the inputs|is the folder that"
    for out in (reads, f"{reads}/", "in", "in/", str(world / "in"), f"deep/../{reads}"):
        refuses(writer, out, capsys, around)
    if os.name == "posix":
        for out in ("door", "deep/er/in"):
            refuses(writer, out, capsys, f"{around}|is a link")


@ALL
def test_nothing_is_put_where_another_build_writes(
    name: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = WRITERS[name]
    Path("other.work").mkdir()
    with write_part(Path("other.parquet") / POINTER, PATCHES, {}):
        pass
    Path("door").symlink_to("other.parquet")
    for folder in ("other.parquet", "other.work", "other.parquet/a/b", "door"):
        refuses(writer, f"{folder}/new{writer.suffix}", capsys, "where only builds write")
    if writer.kind == "folder":
        refuses(writer, "other.parquet", capsys, "where only builds write")


@pytest.mark.parametrize("out", ["in/photos/new", "in/photos"])
@pytest.mark.parametrize("images", ["in/phot*", "in/*", "*/photos", "list.txt", "in/**"])
def test_globs_and_lists_are_inputs(
    out: str, images: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("list.txt").write_text("in/photos\n")
    build = f"build --profile test --k 1 --images {images} --out OUT"
    refuses(Writer(build, "whole"), out, capsys)
    if out == "in/photos":
        refuses(Writer(f"upscale --weights tiny-rrdb {images} --out OUT", "whole"), out, capsys)


@pytest.mark.parametrize("images", ["in", "in/photos", "in/phot*"])
def test_pictures_may_be_enlarged_into_a_folder_inside_theirs(images: str, world: Path) -> None:
    command = Writer(f"upscale --weights tiny-rrdb {images} --out OUT", "folder")
    for _ in range(2):  # a second run does not enlarge what the first has written
        assert command("in/photos/new") == 0
        assert [path.name for path in Path("in/photos/new").rglob("*.*")] == ["a.png"]


def test_a_folder_of_this_machine_is_given_as_a_path(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out in (f"file://{world}/in/photos", f"file://{world}/new", f"local://{world}/new"):
        refuses(WRITERS["build"], out, capsys)


def test_an_output_that_a_glob_would_find_is_refused(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "build --profile test --k 1 --images in/* --out OUT"
    refuses(Writer(command, "whole"), "in/new", capsys, "would be one of the inputs")


@ALL
def test_a_folder_that_cannot_be_written(
    name: str, world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = Path("closed").resolve()
    closed.mkdir()
    asked = os.access

    def access(path: os.PathLike[str], mode: int, **options: bool) -> bool:  # root may do all
        return asked(path, mode, **options) and not (mode & os.W_OK and Path(path) == closed)

    monkeypatch.setattr(os, "access", access)
    refuses(WRITERS[name], f"closed/new{WRITERS[name].suffix}", capsys, "cannot be written")


def test_an_input_linked_into_the_output(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`photos/link` leads to the folder in which the build writes."""
    build = Writer("build --images in/photos --profile test --k 1 --out OUT", "whole")
    kept = Path("data/o.work/kept/distance/0123456789abcdef/ab")
    kept.mkdir(parents=True)
    Image.new("L", (9, 9)).save(kept / f"{'ab' * 32}.png")
    Path("in/photos/link").symlink_to(Path("data").resolve())
    refuses(build, "data/o", capsys, "contains the photographs")


@pytest.mark.parametrize("cache", ["notes", "data/o/cache", "in/photos/cache", "in/photos", ""])
def test_caches_are_outputs(cache: str, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["build", "--images", "in/photos", "--profile", "test", "--out", "data/o"]
    before = tree(world)
    assert main([*argv, "--cache", cache]) == 1
    error = capsys.readouterr().err
    assert "--cache" in error and error.count("\n") == 1 and tree(world) == before


def test_local_commands_do_not_make_a_folder_called_s3(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, writer in WRITERS.items():
        if not name.startswith(("build", "weights", "demo")):
            refuses(writer, f"s3://bucket/new{writer.suffix}", capsys, "local disks only")


def test_what_comes_while_a_build_runs_stays(photographs: Path, tmp_path: Path) -> None:
    out, work = tmp_path / "o.parquet", tmp_path / "o.work"

    def config(k: int) -> BuildConfig:
        return BuildConfig(images=[f"{photographs}/coffee.png"], out=out, profile="test", k=k)

    run_stages(config(2))
    planned = plan_build(prepare(config(1)))
    made = [build_shard(planned.job, shard) for shard in planned.plan.to_do]
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    late = [out / "notes.txt", *(work / name for name in
            ("notes.txt", "kept/notes.txt", "kept/features/notes.txt", ".notes.tmp"))]  # fmt: skip
    model = next((work / "kept" / "features").iterdir())
    late += [model / "notes.txt", next(model.iterdir()) / "notes.txt"]
    for path in late:
        path.write_text("precious")
    with pytest.raises(UserError, match="not ours to replace"):
        finish(planned, made)
    assert all(path.read_text() == "precious" for path in late)
    assert before.items() < {path.name: path.read_bytes() for path in out.iterdir()}.items()
    late.pop(0).unlink()
    card = tmp_path / "o.card.md"
    card.write_text(card.read_text() + "mine")
    with pytest.raises(UserError, match="not ours to replace"):
        finish(planned, made)
    card.unlink()
    finish(planned, made)
    assert all(path.read_text() == "precious" for path in late)
    assert {path.name for path in out.iterdir()} == {f"{made[0]}.parquet", POINTER}


def test_a_damaged_part_of_ours_is_replaced(photographs: Path, tmp_path: Path) -> None:
    config = BuildConfig(
        images=[f"{photographs}/coffee.png"], out=tmp_path / "o.parquet", profile="test", k=1
    )
    run_stages(config)
    (part,) = open_manifest(tmp_path / "o.parquet").files
    content = part.read_bytes()
    mark_at_its_end = b"xxxx" + content[4:]
    for damaged in (b"", content[:100], b"x" * 100, mark_at_its_end):
        for place in (part, tmp_path / "o.work" / part.name):
            place.unlink()  # they share their bytes
            place.write_bytes(damaged)
            run_stages(config)
            assert part.read_bytes() == content
    # Beside nothing of ours, such a name alone proves nothing.
    shutil.rmtree(tmp_path / "o.work")
    part.unlink()
    part.with_name(POINTER).unlink()
    part.write_bytes(b"precious")
    with pytest.raises(UserError, match="which no build wrote"):
        run_stages(config)
    assert part.read_bytes() == b"precious"


def test_a_run_keeps_what_others_put_into_its_folder(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = WRITERS["train --dry-run"]
    settings = {"manifest_identity": "0", "weights": {"la-sr": "marked"}}
    for name in ("model.safetensors", "model.pth", "model_ema.safetensors", "nonfinite.json"):
        folder = Path(f"run-{name}")
        foreign(folder / name)
        (folder / "config.json").write_text(json.dumps(settings))
        refuses(writer, str(folder), capsys)
    assert check_folder(Path("run-model.pth").rename("new") / "nothing", []) == {}
    # Version 0.1.0 put no mark into weights: there the folder's config.json speaks for them.
    settings["weights"] = {}
    Path("new/config.json").write_text(json.dumps(settings))
    assert check_folder(Path("new"), []) == settings


def test_what_is_written_into_the_readme_of_a_run_stays(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    RunLog(tmp_path, 0, "lasr train").close()
    RunLog(tmp_path, 0, "lasr train --steps 9").close()
    assert "--steps 9" in readme.read_text() and is_ours(readme)
    readme.write_text(readme.read_text() + "\nseed 3 was better\n")
    before = readme.read_text()
    RunLog(tmp_path, 0, "lasr train --steps 10").close()
    assert readme.read_text() == before


@pytest.mark.parametrize("taken", ["SHA256SUMS", ".lock", "vgg19/vgg19-dcbb9e9d.pth", "vgg19"])
def test_weights_are_not_fetched_over_something_else(
    taken: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LASR_WEIGHTS", "mine")
    if taken.endswith(".pth"):
        Path("mine", taken).mkdir(parents=True)
    else:
        foreign(Path("mine") / taken)
    refuses(Writer("weights fetch vgg19 OUT", "whole"), "vgg19", capsys)
    monkeypatch.setenv("LASR_WEIGHTS", "notes")
    refuses(Writer("weights fetch vgg19 OUT", "whole"), "vgg19", capsys)
