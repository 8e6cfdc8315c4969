"""What published networks look like: another one under their name is refused.

Weights that were asked for by name may have been copied to their folder by hand, and an anime
network of six blocks, a ViT-B or the Large depth estimator (not free for commercial use) load as
well as the right ones. Weights given by path are taken for what they are.
"""

from collections.abc import Mapping

from lasr.weights.locate import Located, WeightsError

_RRDB = {"features": 64, "blocks": 23, "growth": 32}
VARIANTS: dict[str, dict[str, object]] = {
    # What distinguishes a CLIP: no tensor says that its activation is QuickGELU, only the config.
    "clip-vit-l-14": {"quick_gelu": True, "patch_size": 14, "width": 1024, "layers": 24},
    "clip-vit-b-16": {"quick_gelu": True, "patch_size": 16, "width": 768, "layers": 12},
    "clip-vit-b-32": {"quick_gelu": True, "patch_size": 32, "width": 768, "layers": 12},
    # The width of the ViT.
    "depth-anything-v2-small": {"hidden_size": 384},
    "depth-anything-v2-base": {"hidden_size": 768},
    "depth-anything-v2-large": {"hidden_size": 1024},
    "rrdb-psnr-x4": {**_RRDB},
    "realesrgan-x4plus": {**_RRDB},
    "esrgan-x4": {**_RRDB},
}


def check_variant(located: Located, found: Mapping[str, object]) -> None:
    """Compare a network that was asked for by name with what is published under that name.

    Raises WeightsError naming the first difference.
    """
    for what, due in VARIANTS.get(located.name, {}).items():
        if found.get(what) != due:
            raise WeightsError(
                f"{located.path}: is not {located.name}: its {what} is {found.get(what)}, not"
                f" {due}; fetch {located.name} again, or give these weights by their path"
            )
