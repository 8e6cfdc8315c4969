"""The data card of a manifest: Markdown with the front matter of a Hugging Face dataset card.

As the README.md of a dataset repository it describes the data to people and to `load_dataset`.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
from huggingface_hub import DatasetCardData

from lasr.hub.card import page, table
from lasr.weights.locate import TABLE
from pipeline.storage import StoragePath
from schemas.manifest import PATCH_SIZE, PATCHES, VALIDATION

_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M")
_MODELS = {"depth": "distance", "clip": "captions"}  # parameter: what the model computed
# In other sections of the card, or without effect on the rows.
_HIDDEN = {"images", "lr_images", "hr_images", "depth_model", "caption_model", "out", "device"}

_UNTRAINED = """
> **Captions are noise.** They come from a small CLIP with random weights, which is for tests: they
> carry no information.
"""
_SMALL = """
> Captions come from {note}. For results build with another CLIP.
"""
_LIMITS = f"""
- Distance is estimated from a single photograph and relative to it: 0.9 in one photograph and 0.9
  in another need not be equally far. Fog, mirrors and pictures within pictures mislead.
- Far patches are taken to look worse than near ones. That holds on average;
  `lasr query --ask sharp-far` and `--ask blurred-near` list exceptions.
- Captions are words of a fixed list, ranked by CLIP. They carry its biases and do not
  describe the picture.
- Photographs may show people and private places. Nothing was blurred or checked.
- Near-duplicates are listed, not removed. Perceptual hashes miss crops and rotated copies, and
  plain patches have none.
- `split` depends on a photograph's bytes: about {VALIDATION:.0%} of the photographs are `val`. A
  near-duplicate may be in the other split; `lasr query --ask leaks` lists these.
- {{licence}}
"""
_LICENCE = (
    "The patches are parts of the photographs: the licence of the photographs applies. The pipeline"
    " does not know their licence; state it in the front matter before you publish this."
)


# Number of patches by role and split, and whether the rows have a column `split`.
Contents = tuple[Counter[tuple[str, str | None]], bool]


def data_card(
    manifest: StoragePath,
    is_folder: bool,
    metadata: dict[str, Any],
    catalogue: pa.Table,
    contents: Contents,
    duplicates: pa.Table,
) -> str:
    """Return the text of the card.

    manifest: its place, a folder of parts or one file; nothing is read there. metadata: that of the
    manifest. catalogue: columns of IMAGES. duplicates: columns of DUPLICATES.
    """
    files = f"{manifest.name}/*.parquet" if is_folder else manifest.name
    parameters = metadata.get("parameters", {})
    sections = {
        "Contents": _contents(*contents),
        "Photographs": _counted(catalogue, "status", "photographs"),
        "Near-duplicates": _counted(duplicates, "kind", "listed"),
        "Sources": _sources(parameters),
        "Models": _models(parameters),
        "Parameters": table(("parameter", "value"), _parameters(parameters)),
        "Columns": table(
            ("column", "type", "meaning"),
            ((f"`{c.name}`", f"`{c.type}`", c.metadata[b"description"].decode()) for c in PATCHES),
        ),
        "Limits": _LIMITS.format(licence=_LICENCE).strip(),
        "Use": _use(manifest, files),
    }
    if query := metadata.get("query"):
        sections = {"Selected by": f"```sql\n{query}\n```"} | sections
    about = (
        "Far (`lr`, 56x56) and near (`hr`, 224x224) patches of photographs, with captions, to train"
        " super-resolution of real pictures without pairs (LA-SR)."
    )
    front = _front_matter(manifest, files, contents[0].total())
    return page(front, _title(manifest), about, sections, _banner(parameters))


def _banner(parameters: dict[str, Any]) -> str:
    """What to know before the captions are used."""
    if parameters.get("untrained"):
        return _UNTRAINED
    known = TABLE.get(str(parameters.get("clip")))
    return _SMALL.format(note=known.note) if known and known.note else ""


def _title(manifest: StoragePath) -> str:
    return f"LA-SR training patches: {manifest.name.removesuffix('.parquet')}"


def _front_matter(manifest: StoragePath, files: str, rows: int) -> DatasetCardData:
    return DatasetCardData(
        license="other",
        license_name="that-of-the-photographs",
        pretty_name=_title(manifest),
        task_categories=["image-to-image"],
        tags=["super-resolution", "unpaired", "real-world"],
        size_categories=[_SIZES[min(max(len(str(rows)) - 3, 0), len(_SIZES) - 1)]],
        configs=[{"config_name": "default", "data_files": files}],
    )


def _contents(counts: Counter[tuple[str, str | None]], has_split: bool) -> str:
    splits = sorted({str(split) for _, split in counts}) if has_split else []

    def row(role: str) -> list[object]:
        own = Counter[str]()
        for (of, split), number in counts.items():
            own[str(split)] += number if of == role else 0
        size = PATCH_SIZE[role]  # type: ignore[index]
        return [f"`{role}`", f"{size}x{size}", own.total(), *(own[split] for split in splits)]

    return table(("role", "pixels", "patches", *splits), map(row, PATCH_SIZE))


def _counted(listed: pa.Table, column: str, what: str) -> str:
    counts = listed[column].value_counts().to_pylist()
    rows = sorted(((f"`{entry['values']}`", entry["counts"]) for entry in counts), key=str)
    return table((column, what), rows) if rows else "None."


def _sources(parameters: dict[str, Any]) -> str:
    names = ("images", "lr_images", "hr_images")
    paths = [path for name in names for path in parameters.get(name) or ()]
    return "\n".join(f"- `{path}`" for path in paths) or "Not recorded."


def _models(parameters: dict[str, Any]) -> str:
    rows = []
    for parameter, computes in _MODELS.items():
        if name := parameters.get(parameter):
            identity = parameters.get({"depth": "depth_model", "clip": "caption_model"}[parameter])
            known = TABLE.get(name)
            licence = known.licence if known else "unknown: the model was given as a path"
            rows.append((computes, known.about if known else name, f"`{identity}`", licence))
    return table(("computes", "model", "identity", "licence"), rows) if rows else "Not recorded."


def _parameters(parameters: dict[str, Any]) -> Iterable[tuple[str, str]]:
    shown = sorted(parameters.keys() - _HIDDEN - _MODELS.keys())
    return (
        (f"`{name}`", f"`{value}`") for name in shown if (value := parameters[name]) is not None
    )


def _use(manifest: StoragePath, files: str) -> str:
    return (
        "```python\n"
        "from datasets import load_dataset\n\n"
        f'patches = load_dataset("parquet", data_files="{files}", split="train")\n'
        'patches[0]["image"]  # a PIL image\n'
        "```\n\n"
        "The argument `split` is that of `datasets`; the column `split` holds train or val.\n"
        f"Training: `lasr train --manifest {manifest.name}`"
    )
