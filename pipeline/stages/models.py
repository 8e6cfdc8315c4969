"""The networks of a build, loaded once per process and only when a photograph needs them."""

import functools
import threading

import torch

from lasr.device import pick_device
from lasr.weights.locate import Located, locate
from pipeline.config import DICTIONARY, BuildConfig
from pipeline.stages.captions import Captioner, read_dictionary
from pipeline.stages.depth import DepthModel, load_depth


class Models:
    """A depth estimator and a captioner, by name; for many threads.

    With kept maps and features a build may need neither, and does not wait for them then.
    """

    def __init__(self, depth: str, clip: str, words: tuple[str, ...], device: str, seed: int):
        self._names = depth, clip
        self._words, self._device, self._seed = words, torch.device(device), seed
        self.depth_located: Located = locate(depth, "depth")
        self.clip_located: Located = locate(clip, "clip")
        self._locks = threading.Lock(), threading.Lock()
        self._depth: DepthModel | None = None
        self._captioner: Captioner | None = None

    @property
    def has_depth_network(self) -> bool:
        """Whether distance costs more than reading a kept map."""
        return self.depth_located.path is not None

    @property
    def depth(self) -> DepthModel:
        """The depth estimator. Raises WeightsError."""
        with self._locks[0]:
            if self._depth is None:
                self._depth = load_depth(self._names[0], self._device, self._seed)
            return self._depth

    @property
    def captioner(self) -> Captioner:
        """CLIP and its embeddings of the dictionary. Raises WeightsError."""
        with self._locks[1]:
            if self._captioner is None:
                self._captioner = Captioner(self._names[1], self._words, self._device)
            return self._captioner


@functools.lru_cache(maxsize=1)
def _models(
    depth: str, clip: str, words: tuple[str, ...], device: str, seed: int, _: str
) -> Models:
    return Models(depth, clip, words, device, seed)


def load_models(config: BuildConfig) -> Models:
    """The networks that `config` names; the same ones again in the same process."""
    words = tuple(read_dictionary(config.dictionary or DICTIONARY))
    depth, clip = config.depth_name, config.clip_name
    # Names stay where files change: a process that serves for weeks must not keep old weights.
    identities = locate(depth, "depth").identity + locate(clip, "clip").identity
    return _models(depth, clip, words, pick_device(config.device).type, config.seed, identities)
