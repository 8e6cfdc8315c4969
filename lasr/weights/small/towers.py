"""`clip-small`: two trained towers out of installed packages, and the heads that join them.

The packages are not imported: their files are read as plain tensors.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from lasr.errors import UserError
from lasr.weights.tensors import read_tensors

NAME = "clip-small"
CONFIG = Path(__file__).with_name("open_clip_config.json")  # of the folder that is exported
TEXT = "sentence-transformers/all-MiniLM-L6-v2"  # hf_model_name of CONFIG, a folder in an export
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def lite0(path: Path) -> Any:  # a module of timm
    """EfficientNet-Lite0 with the weights of its package: 1,000 classes, on the CPU.

    The package's names are those of another library; the tensors and their order are timm's.
    Takes (RGB - 127) / 128 of 8-bit values. Raises WeightsError, UserError: not these weights.
    """
    import timm

    network = timm.create_model("tf_efficientnet_lite0")
    given = list(read_tensors(path).values())
    names, wanted = zip(*network.state_dict().items(), strict=True)
    if [x.shape for x in given] != [x.shape for x in wanted]:
        raise UserError(f"{path}: is not EfficientNet-Lite0", "reinstall its package")
    network.load_state_dict(dict(zip(names, given, strict=True)))
    return network.eval()


def tower_tensors(parts: dict[str, Path]) -> dict[str, Tensor]:
    """The tensors of both towers under open_clip's names, float32. parts: files by name."""
    trunk = lite0(parts["efficientnet-lite0-57934424.pth"]).state_dict()
    text = read_tensors(parts["model.safetensors"])
    left_out = ("pooler.", "embeddings.position_ids")
    images = {f"visual.trunk.{name}": x for name, x in trunk.items() if "classifier" not in name}
    texts = {f"text.transformer.{n}": x for n, x in text.items() if not n.startswith(left_out)}
    return images | texts


def assembled(parts: dict[str, Path]) -> dict[str, Tensor]:
    """The tensors of `clip-small` under open_clip's names, float32. parts: files by name."""
    head = read_tensors(parts["head.safetensors"])
    return tower_tensors(parts) | {name: tensor.float() for name, tensor in head.items()}


def by_name(parts: Iterable[Path]) -> dict[str, Path]:
    """Files by their names, which differ."""
    return {path.name: path for path in parts}


def write_folder(parts: dict[str, Path], folder: Path) -> None:
    """Write `clip-small` as an ordinary folder of open_clip.

    open_clip looks for the text tower's architecture on the hub, or below the current folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(assembled(parts), folder / "open_clip_model.safetensors")
    for source in (CONFIG, *(parts[name] for name in _TOKENIZER)):
        (folder / source.name).write_bytes(source.read_bytes())
    architecture = folder / TEXT / "config.json"
    architecture.parent.mkdir(parents=True, exist_ok=True)
    architecture.write_bytes(parts["config.json"].read_bytes())
