"""The 24 words of pictures, or of their patches, as a build finds them, with their scores.

    lasr caption photo.jpg folder/
    lasr caption photo.jpg --patches --format json
    lasr caption folder/ --out captions

A score is the cosine similarity of CLIP's features. CLIP sees the middle square of a picture, as
large as its shorter side. With --out, NAME.txt in that folder holds the caption, as trainers of
text-to-image networks read it, and captions.json all words and scores.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from lasr.cli import Command
from lasr.device import pick_device
from lasr.files import atomic_path
from lasr.marks import KEY
from lasr.ownership import check_folder, is_ours, refused, write_own
from lasr.pictures.search import expand_lists
from lasr.pictures.write import result_paths
from lasr.terminal.output import say
from lasr.weights.locate import locate_all, notes
from pipeline.build.plan import resolved_precision
from pipeline.build.workers import cut_out
from pipeline.stages.captions import (
    DICTIONARY,
    Caption,
    CaptionConfig,
    Captioner,
    read_dictionary,
)
from pipeline.stages.depth import DepthConfig
from pipeline.stages.images import Photograph
from pipeline.stages.select import SelectConfig
from pipeline.steps.config import StepConfig
from pipeline.steps.patches import chooser
from pipeline.steps.photographs import find, for_each
from schemas.manifest import PATCH_SIZE

RECORD = "captions.json"  # knows the sidecars beside it, in which there is no place for a mark
_COLUMNS = 4  # of the table
Entry = dict[str, Any]


class StepCaptionConfig(CaptionConfig, DepthConfig, StepConfig):
    """The flags of `lasr caption`."""

    patches: bool = Field(
        False, description="the words of the patches that a build would choose, for each of them"
    )
    k: int = Field(SelectConfig().k, ge=1, description="with --patches: patches per role")
    format: Literal["table", "json"] = Field("table", description="of what is printed")
    out: Path | None = Field(
        None, description="folder for text files with the captions, beside captions.json"
    )

    @model_validator(mode="after")
    def _check(self) -> "StepCaptionConfig":
        if self.patches and self.out:
            raise ValueError("--out writes the captions of whole pictures: leave out --patches")
        return self


class _Printer:
    """Prints entries one by one, as a table or as one JSON array."""

    def __init__(self, format: Literal["table", "json"]):
        self.is_json, self.count = format == "json", 0

    def __call__(self, entry: Entry) -> None:
        if self.is_json:
            print("," if self.count else "[", json.dumps(entry, ensure_ascii=False), flush=True)
        else:
            for line in _lines(entry):
                say(line)
        self.count += 1

    def close(self) -> None:
        if self.is_json:
            print("]" if self.count else "[]")


def caption(config: StepCaptionConfig) -> None:
    """Print the words of each picture, and write them where --out says.

    Raises UserError; see `for_each`.
    """
    build, found = config.build, find(config)
    sidecars = _check_out(config, {one: Path(one.name) for one in found})
    words = read_dictionary(build.dictionary or DICTIONARY)
    wanted = [(build.clip_name, "clip"), *[(build.depth_name, "depth")] * config.patches]
    clip = locate_all(*wanted)[0]  # type: ignore[arg-type]
    for note in notes(build.clip_name):
        print(note, file=sys.stderr)
    choose = chooser(build) if config.patches else None
    captioner = Captioner(clip, words, pick_device(build.device), resolved_precision(build))
    show, entries, waiting = _Printer(config.format), list[Entry](), list[tuple[Entry, Any]]()

    def finish() -> None:
        """Caption the pictures that wait: together, as CLIP is fastest."""
        if not waiting:
            return
        captions = captioner.rank(captioner.features([prepared for _, prepared in waiting]))
        for (entry, _), each in zip(waiting, captions, strict=True):
            entries.append(entry | _words(each))
            show(entries[-1])
        waiting.clear()

    def read(photograph: Photograph) -> None:
        entry = _entry(photograph)
        if choose:
            patches = choose(photograph)
            captions = captioner.caption([cut_out(photograph.pixels, patch) for patch in patches])
            words_of = zip(patches, captions, strict=True)
            show(entry | {"patches": [vars(patch) | _words(each) for patch, each in words_of]})
            return
        waiting.append((entry, captioner.prepare(photograph.pixels)))
        if len(waiting) == captioner.batch:
            finish()

    # The table itself shows the progress on a terminal.
    least, quiet = PATCH_SIZE["hr"] if choose else 1, sys.stdout is not None and sys.stdout.isatty()
    failures = for_each(found, config, least, read, quiet)
    finish()
    show.close()
    if config.out and entries:
        _write(config.out, sidecars, entries, clip.identity)
    failures.report()


def _entry(photograph: Photograph) -> Entry:
    height, width = photograph.pixels.shape[:2]
    name, image_id = photograph.found.name, photograph.image_id
    return {"image_path": name, "image_id": image_id, "width": width, "height": height}


def _words(found: Caption) -> Entry:
    return {"caption": found.text, "words": found.words, "word_scores": found.scores}


def _lines(entry: Entry) -> Iterator[str]:
    """The entry as a table: words and scores in columns, the best ones on top."""
    yield entry["image_path"]
    for one in entry.get("patches", [entry]):
        if one is not entry:
            place = f"{one['role']} {one['size']}x{one['size']} at {one['x']},{one['y']}"
            yield f" {place}, distance {one['distance']:.3f}"
        yield from _table(one["words"], one["word_scores"])


def _table(words: Sequence[str], scores: Sequence[float]) -> Iterator[str]:
    cells = [f"{word:<18} {score:6.3f}" for word, score in zip(words, scores, strict=True)]
    rows = -(-len(cells) // _COLUMNS)
    for row in range(rows):
        yield "  " + "   ".join(cells[row::rows])


def _check_out(config: StepCaptionConfig, names: dict[Any, Path]) -> dict[str, Path]:
    """Where the sidecar of each name goes. Raises UserError: one that is not ours is there.

    A sidecar is ours if captions.json records the text that it holds.
    """
    if config.out is None:
        return {}
    inputs, record = list(expand_lists(config.pictures)), config.out / RECORD
    check_folder(config.out, inputs, [record])
    known = {}
    if is_ours(record):
        pictures = json.loads(record.read_text(encoding="utf-8"))["pictures"]
        known = {one["sidecar"]: one["caption"] for one in pictures}
    paths = result_paths(names, config.out, "txt")
    for path in paths.values():
        if path.exists() or path.is_symlink():
            recorded = known.get(path.relative_to(config.out).as_posix())
            if (
                path.is_symlink()
                or not path.is_file()
                or path.read_bytes() != f"{recorded}\n".encode()
            ):
                raise refused(path, "was not written by LA-SR, or edited since")
    return {one.name: path for one, path in paths.items()}


def _write(out: Path, sidecars: dict[str, Path], entries: list[Entry], model: str) -> None:
    """Write the record first: what it names is ours if the process ends in between."""
    pictures = [
        entry | {"sidecar": sidecars[entry["image_path"]].relative_to(out).as_posix()}
        for entry in entries
    ]
    content = {KEY: {"caption_model": model}, "pictures": pictures}
    write_own(out / RECORD, json.dumps(content, ensure_ascii=False, indent=1).encode())
    for entry in entries:
        with atomic_path(sidecars[entry["image_path"]]) as temporary:
            temporary.write_bytes(f"{entry['caption']}\n".encode())
    say(f"captions: {len(entries)}, in {out}")


main = Command(
    StepCaptionConfig, caption, name="lasr caption", about=__doc__, positional="pictures",
    weights=True,
    following=lambda config: config.typed_as("build", "--images") if config.out else [],
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
