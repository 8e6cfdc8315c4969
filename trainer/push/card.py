"""The model card of a run: Markdown with the front matter of a Hugging Face model card."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lasr.errors import UserError
from lasr.hub.card import page, table
from lasr.storage.config import StorageConfig, address, base_name
from lasr.storage.manifest import open_manifest
from lasr.weights.registry import TABLE
from schemas.manifest import SCALE, Manifest
from trainer.data.skipped import read_lines
from trainer.models.save import terms
from trainer.run_log import VALIDATION

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

MODELS = {  # in the `weights` of a run: what the model does there
    "sr_init": "the start of the network",
    "clip": "judges content and quality",
    "vgg": "perceptual term",
}
_HIDDEN = {"weights", "manifest", "images", "out", "manifest_identity", "images_identity"}
_LIMITS = """
- It invents detail. Do not use it where a picture is evidence: medicine, law, measurement.
- The captions that it learned from are words ranked by CLIP, with CLIP's biases.
- The terms of the photographs and of every model above apply besides the licence of this file.
"""


def model_card(folder: Path, settings: dict[str, Any], repository: str, licence: str | None) -> str:
    """Return the text of the card.

    settings: the run's config.json. licence: a name the Hub knows; None: the start's, in words.
    """
    sections = {
        "Use": _use(repository),
        "Training data": _data(settings),
        "Models that took part": _models(settings),
        "Measures": _measures(folder),
        "Settings": table(("setting", "value"), _settings(settings)),
        "Limits": _LIMITS.strip(),
    }
    about = (
        f"A x{SCALE} super-resolution network for real photographs, trained without LR/HR pairs by"
        " LA-SR: far regions of photographs are its low-resolution pictures, and CLIP tells it to"
        " keep the content and gain quality."
        if "manifest" in settings
        else f"A x{SCALE} super-resolution network, trained on pairs made of photographs (L1)."
    )
    name = repository.rsplit("/", 1)[-1]
    return page(_front_matter(settings, licence), name, about, sections)


def _front_matter(settings: dict[str, Any], licence: str | None) -> "ModelCardData":
    from huggingface_hub import ModelCardData

    start = str(settings.get("weights", {}).get("sr_init"))
    return ModelCardData(
        license=licence or "other",
        license_name=None if licence else f"that-of-{start.split('@')[0]}",
        pipeline_tag="image-to-image",
        tags=["super-resolution", "image-restoration", "unpaired", f"x{SCALE}", "la-sr"],
    )


def _use(repository: str) -> str:
    return (
        "```python\n"
        "from huggingface_hub import hf_hub_download\n"
        "from spandrel import ModelLoader\n\n"
        f'path = hf_hub_download("{repository}", "model.safetensors")\n'
        "network = ModelLoader().load_from_file(path)  # RGB, 0..1, N x 3 x H x W\n"
        "```\n\n"
        "`model.pth` has the key layout that Real-ESRGAN's scripts and chaiNNer load. With LA-SR:"
        " `lasr upscale --weights model.safetensors PICTURES --out FOLDER`, or `lasr.Upscaler`."
    )


def _data(settings: dict[str, Any]) -> str:
    """What the run was trained on, and from the manifest, if it is here, how that was made."""
    if "manifest" not in settings:
        paths = settings.get("images") or []
        lines = [f"- photographs of `{Path(str(path)).name}`" for path in paths]
        return "\n".join([*lines, f"- identity `{settings.get('images_identity')}`"])
    manifest = address(str(settings["manifest"]))
    lines = [f"- manifest `{base_name(manifest)}`, identity `{settings['manifest_identity']}`"]
    try:
        opened = _opened(settings)
    except UserError:
        return "\n".join([*lines, "- not on the machine that wrote this card"])
    parameters = opened.metadata.get("parameters", {})
    if opened.identity != settings["manifest_identity"]:
        return "\n".join([*lines, "- changed since the run: its parameters are not known"])
    if query := opened.metadata.get("query"):
        lines.append(f"- selected by `{' '.join(str(query).split())}`")
    for title, name in (
        ("distance", "depth_model"), ("captions", "caption_model"), ("profile", "profile"),
        ("patches per photograph and role", "k"), ("strategy", "strategy"),
    ):  # fmt: skip
        if parameters.get(name) is not None:
            lines.append(f"- {title}: {parameters[name]}")
    return "\n".join([*lines, "- licence: that of the photographs"])


def _opened(settings: dict[str, Any]) -> Manifest:
    """The manifest of a run. Raises UserError: it is not here, or its storage does not answer."""
    config = StorageConfig(cache=settings.get("cache"), storage_timeout=10)
    return open_manifest(address(str(settings["manifest"])), config=config)


def _models(settings: dict[str, Any]) -> str:
    """Every model of the run and of its manifest, with its licence."""
    weights = settings.get("weights", {})
    rows = [(what, str(weights[key])) for key, what in MODELS.items() if weights.get(key)]
    if "manifest" in settings:
        try:
            parameters = _opened(settings).metadata["parameters"]
            of_data = {"depth_model": "distances of the data", "caption_model": "captions of it"}
            rows += [(what, str(parameters[k])) for k, what in of_data.items() if parameters.get(k)]
        except (UserError, KeyError):
            rows.append(("distances and captions of the data", "not known: the data is not here"))

    def row(what: str, identity: str) -> tuple[str, ...]:
        known = TABLE.get(identity.split("@")[0])
        return what, known.about if known else "given as a path", f"`{identity}`", terms(identity)

    head = ("does", "model", "identity", "licence")
    return table(head, (row(*each) for each in rows))


def _measures(folder: Path) -> str:
    """The last losses, and the last and best validation; as they are in stats.jsonl."""
    lines = [line for _, line in read_lines(folder / "stats.jsonl", 2**62) if line]
    looks = [line for line in lines if line.get("kind") == VALIDATION]
    losses = [line for line in lines if line.get("kind") is None]
    text = []
    if losses:
        text.append(f"Training, step {losses[-1]['step']}:\n\n{_numbers(losses[-1:])}")
    if looks:
        shown = list({line["step"]: line for line in (looks[0], _best(looks), looks[-1])}.values())
        text.append(
            "Validation on held-out patches and pictures; NIQE, BRISQUE and PIQE fall with quality,"
            f" consistency and PSNR are in dB:\n\n{_numbers(shown)}"
        )
    return "\n\n".join(text) or "None: nothing was validated in this run."


def _best(looks: list[dict[str, Any]]) -> dict[str, Any]:
    scored = [line for line in looks if "score" in line]
    return min(scored, key=lambda line: line["score"]) if scored else looks[-1]


def _numbers(lines: list[dict[str, Any]]) -> str:
    names = [
        name
        for name in dict.fromkeys(name for line in lines for name in line)
        if name not in ("step", "kind") and all(_is_number(line.get(name, 0)) for line in lines)
    ]
    rows = ([name, *(_number(line.get(name)) for line in lines)] for name in names)
    return table(("measure", *(f"step {line['step']}" for line in lines)), rows)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4g}"


def _settings(settings: dict[str, Any]) -> Iterable[tuple[str, str]]:
    for name in sorted(settings.keys() - _HIDDEN):
        if settings[name] is not None and not _is_path(settings[name]):
            yield f"`{name}`", f"`{json.dumps(settings[name])}`"


def _is_path(value: Any) -> bool:
    """Paths tell others how a machine is set up, and nothing about the network."""
    values = value if isinstance(value, list) else [value]
    return any(isinstance(one, str) and "/" in one for one in values)
