"""An SR network from weights that were located: an RRDB, or any that spandrel builds."""

from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from lasr.errors import one_line
from lasr.weights.locate import TABLE, Located, WeightsError, check_expected
from lasr.weights.tensors import read_tensors
from schemas.manifest import SCALE
from trainer.models.ncnn import is_ncnn, load_ncnn
from trainer.models.rrdb import rrdb_from, untrained_rrdb

TINY = {"features": 8, "blocks": 1, "growth": 8}  # the network of the profile `test`


@dataclass(frozen=True)
class SRModel:
    """An SR network and what its use requires.

    network: pictures (n, 3, h, w) in [0, 1] to (n, 3, scale h, scale w), not clamped.
    minimum, multiple_of: requirements on h and w, in pixels. half: whether float16 is precise
    enough for it.
    """

    network: nn.Module
    scale: int = SCALE
    minimum: int = 1
    multiple_of: int = 1
    half: bool = True

    def fitted(self) -> nn.Module:
        """The network for pictures of any size: padded to what it takes, and cut afterwards."""
        return self.network if self.minimum == self.multiple_of == 1 else _Padded(self)


class _Padded(nn.Module):
    def __init__(self, model: SRModel) -> None:
        super().__init__()
        self.network, self.scale = model.network, model.scale
        self.minimum, self.multiple_of = model.minimum, model.multiple_of

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        bottom, right = (
            -(-max(n, self.minimum) // self.multiple_of) * self.multiple_of - n
            for n in (height, width)
        )
        padded = F.pad(x, (0, right, 0, bottom), mode="replicate")
        y: Tensor = self.network(padded)[..., : self.scale * height, : self.scale * width]
        return y


def load_sr(located: Located) -> nn.Module:
    """The x4 SR network with these weights, on the CPU.

    An `RRDB` if the weights are one, else the module that spandrel builds, which does not clamp.
    Raises WeightsError as `load_model`, or for another scale.
    """
    model = load_model(located)
    if model.scale != SCALE:
        raise WeightsError(
            f"{located.path}: enlarges x{model.scale}, training takes x{SCALE} networks",
            f"give weights of a x{SCALE} network",
        )
    return model.network


def load_model(located: Located) -> SRModel:
    """The SR network with these weights, of any scale: an RRDB, or whatever spandrel builds.

    Raises WeightsError: not readable, not a network that spandrel knows, or not the network that is
    published under this name.
    """
    path = located.path
    if path is None:
        return SRModel(untrained_rrdb(**TINY))
    if is_ncnn(path):
        network = load_ncnn(path)
    else:
        tensors = read_tensors(path)
        try:
            network = rrdb_from(tensors, path)
        except WeightsError as error:
            if located.name in TABLE:
                raise
            return _from_spandrel(tensors, path, error)
    sizes = {name: getattr(network, name) for name in ("features", "blocks", "growth")}
    check_expected(located, sizes)
    return SRModel(network)


def _from_spandrel(tensors: dict[str, Tensor], path: Path, not_rrdb: WeightsError) -> SRModel:
    try:
        import spandrel
    except ImportError as error:
        raise WeightsError(
            not_rrdb.problem, f"{not_rrdb.fix}; other networks need `pip install 'la-sr[spandrel]'`"
        ) from error
    try:
        # Tensors and not the file, so that spandrel never unpickles anything.
        found = spandrel.ModelLoader(device="cpu").load_from_state_dict(dict(tensors))
    except spandrel.UnsupportedModelError:
        raise not_rrdb from None
    except Exception as error:  # shapes that do not fit: each architecture raises its own
        raise WeightsError(
            f"{path}: spandrel cannot build it ({one_line(error)})", "check the file"
        ) from error
    name = found.architecture.name
    another = "give weights of another network"
    if not isinstance(found, spandrel.ImageModelDescriptor) or found.input_channels != 3:
        raise WeightsError(f"{path}: {name} does not enlarge RGB pictures", another)
    size = found.size_requirements
    if size.square:
        raise WeightsError(f"{path}: {name} takes square pictures only", another)
    return SRModel(
        found.model.float(),
        found.scale,
        max(size.minimum, 1),
        size.multiple_of,
        found.supports_half,
    )
