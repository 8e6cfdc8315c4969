"""The SR network a run or a command asks for, by name or file."""

from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from lasr.weights.locate import TABLE, WeightsError, check_expected, locate
from lasr.weights.tensors import read_tensors
from schemas.manifest import SCALE
from trainer.models.interpolation import interpolation_start
from trainer.models.ncnn import is_ncnn, load_ncnn
from trainer.models.rrdb import rrdb_from

TINY = {"features": 32, "blocks": 3, "growth": 32}  # the offline profile's
_MISSING = "other networks than RRDB need `pip install 'la-sr[spandrel]'`"


@dataclass(frozen=True)
class SRModel:
    """A network and what must be known to use it.

    network: pictures (n, 3, h, w) in [0, 1] to (n, 3, scale h, scale w), not clamped.
    minimum, multiple_of: what h and w must be, in pixels. half: whether float16 is enough for it.
    """

    network: nn.Module
    scale: int = SCALE
    minimum: int = 1
    multiple_of: int = 1
    half: bool = True

    def fitted(self) -> nn.Module:
        """The network for pictures of any size."""
        return self.network if self.minimum == self.multiple_of == 1 else _Fitted(self)


class _Fitted(nn.Module):
    """Pads a picture to a size that the network takes, and cuts its answer."""

    def __init__(self, model: SRModel) -> None:
        super().__init__()
        self.network, self.scale = model.network, model.scale
        self.minimum, self.multiple_of = model.minimum, model.multiple_of

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        more = [-(-max(n, self.minimum) // self.multiple_of) * self.multiple_of - n
                for n in (height, width)]  # fmt: skip
        padded = F.pad(x, (0, more[1], 0, more[0]), mode="replicate")
        y: Tensor = self.network(padded)[..., : self.scale * height, : self.scale * width]
        return y


def load_sr(name_or_path: str) -> nn.Module:
    """The x4 SR network by name (see lasr.weights.locate) or from a file, to be trained or used.

    An `RRDB` where the weights are one, else the module that spandrel builds, which does not clamp.
    Raises WeightsError: not there, not readable, of another scale.
    """
    model = load_model(name_or_path)
    if model.scale != SCALE:
        raise WeightsError(f"{name_or_path}: enlarges x{model.scale}; training takes x4 networks")
    return model.network


def load_model(name_or_path: str) -> SRModel:
    """Any SR network of any scale: our own RRDB first, then whatever spandrel reads.

    Raises WeightsError: not there, not readable, or no network that spandrel knows.
    """
    located = locate(name_or_path, "sr")
    path = located.path
    if path is None:
        return SRModel(interpolation_start(**TINY))
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


def _from_spandrel(tensors: dict[str, Tensor], path: Path, no_rrdb: WeightsError) -> SRModel:
    try:
        import spandrel
    except ImportError as error:
        raise WeightsError(f"{no_rrdb} ({_MISSING})") from error
    try:
        # Tensors and not the file: spandrel's own reader of pickles never sees it.
        found = spandrel.ModelLoader(device="cpu").load_from_state_dict(dict(tensors))
    except spandrel.UnsupportedModelError:
        raise no_rrdb from None
    except Exception as error:  # shapes that do not fit: each architecture raises its own
        raise WeightsError(f"{path}: spandrel cannot build it ({error}); check the file") from error
    if not isinstance(found, spandrel.ImageModelDescriptor) or found.input_channels != 3:
        raise WeightsError(f"{path}: {found.architecture.name} does not enlarge RGB pictures")
    size = found.size_requirements
    if size.square:
        raise WeightsError(f"{path}: {found.architecture.name} takes square pictures only")
    return SRModel(
        found.model.float(),
        found.scale,
        max(size.minimum, 1),
        size.multiple_of,
        found.supports_half,
    )
