"""What workers share: the job, and its networks, loaded once per process and only if needed."""

import functools
import threading
from dataclasses import dataclass
from typing import Any

from lasr.device import Precision, pick_device
from lasr.weights.locate import Located
from pipeline.build.fingerprint import Identities
from pipeline.config import BuildConfig
from pipeline.stages.captions import Captioner
from pipeline.stages.depth import DepthModel, estimator, load_depth


@dataclass(frozen=True)
class Job:
    """What a worker needs to make any shard of a build; small, and can be pickled."""

    config: BuildConfig
    depth: Located
    clip: Located
    words: tuple[str, ...]  # of the dictionary
    identities: Identities
    metadata: dict[str, Any]  # of every part


class Models:
    """A depth estimator and a captioner, loaded on first use; safe for many threads.

    A build that finds all maps and features in the cache needs neither, and does not load them.
    """

    def __init__(
        self,
        depth: Located,
        clip: Located,
        words: tuple[str, ...],
        device: str,
        seed: int,
        precision: Precision,
    ):
        import torch

        self.depth_weights, self.clip_weights = depth, clip
        self._words, self._device = words, torch.device(device)
        self._seed, self._precision = seed, precision
        self._depth_lock, self._captioner_lock = threading.Lock(), threading.Lock()
        self._depth: DepthModel | None = None
        self._captioner: Captioner | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether the networks run on a GPU."""
        return self._device.type == "cuda"

    @property
    def caches_maps(self) -> bool:
        """Whether computing a distance map costs more than reading one from the cache."""
        return estimator(self.depth_weights).IS_NETWORK

    @property
    def depth(self) -> DepthModel:
        """The depth estimator. Raises WeightsError."""
        with self._depth_lock:
            if self._depth is None:
                self._depth = load_depth(
                    self.depth_weights, self._device, self._seed, self._precision
                )
            return self._depth

    @property
    def captioner(self) -> Captioner:
        """CLIP and its embeddings of the dictionary. Raises WeightsError."""
        with self._captioner_lock:
            if self._captioner is None:
                self._captioner = Captioner(
                    self.clip_weights, self._words, self._device, self._precision
                )
            return self._captioner


# Weights are compared by identity: a process that serves for weeks notices replaced files.
_models = functools.lru_cache(maxsize=1)(Models)


def load_models(job: "Job") -> Models:
    """The networks of a job; a process keeps those of its last one."""
    config = job.config
    device = str(pick_device(config.device))
    return _models(job.depth, job.clip, job.words, device, config.seed, config.precision)
