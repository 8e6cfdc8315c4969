"""Which patches of a photograph are far (LR) and which near (HR): section 3.1 and table 3."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.config import BuildConfig, Strategy
from schemas.manifest import PATCH_SIZE, Role

BOX = 29  # the paper's all-ones kernel
MIN_OVERLAP = 0.4  # of the LR patch's area, section 4.2


@dataclass(frozen=True)
class Patch:
    """A square of a photograph: top-left corner, side, and what was measured at it."""

    role: Role
    x: int
    y: int
    size: int
    distance: float  # box mean at the centre
    rank: int
    texture: float


def box_mean(distance: np.ndarray) -> np.ndarray:
    """29x29 mean of an H x W float32 map with reflected borders (the paper's kernel / 29^2)."""
    mean = cv2.blur(distance, (BOX, BOX), borderType=cv2.BORDER_REFLECT)
    # A running sum leaves rounding behind; 0..1 is the contract.
    return np.clip(mean, 0.0, 1.0)


def texture_map(pixels: np.ndarray) -> np.ndarray:
    """How much detail there is: gradient magnitude of the luma, H x W float32.

    pixels: H x W x 3 uint8. Luma (Rec. 601) in 0..1, central differences; 0 for a flat area, about
    0.002 for clear sky, 0.05 and more for foliage. A patch's texture is its mean over the patch.
    """
    luma = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    kernel = np.array([-0.5, 0, 0.5], np.float32)
    one = np.ones(1, np.float32)
    along_x = cv2.sepFilter2D(luma, cv2.CV_32F, kernel, one, borderType=cv2.BORDER_REPLICATE)
    along_y = cv2.sepFilter2D(luma, cv2.CV_32F, one, kernel, borderType=cv2.BORDER_REPLICATE)
    # Not cv2.magnitude: its last bits hang on where in memory the result happens to lie.
    magnitude: np.ndarray = np.sqrt(along_x**2 + along_y**2)
    return magnitude


def select(
    pixels: np.ndarray, distance: np.ndarray, image_id: str, config: BuildConfig
) -> list[Patch]:
    """Choose up to k patches of each role; lr before hr, best first.

    pixels: H x W x 3 uint8. distance: H x W float32 in 0..1 (0 near, 1 far), not yet filtered.
    A choice depends on the photograph and the parameters alone, never on shard or worker.
    """
    field = _Field(box_mean(distance), texture_map(pixels), config.min_texture)
    if config.strategy == "depth":
        return [
            patch
            for role in ("lr", "hr")
            for patch in field.top_k(role, config.k, config.separation(role))
        ]
    rng = np.random.default_rng([config.seed, *bytes.fromhex(image_id)])
    near = field.draw("hr", config.k, rng)
    far = _LR_DRAWS[config.strategy](field, near, config.k, rng)
    return far + near


class _Field:
    """The maps of one photograph, seen as 'what would a patch centred here be'."""

    def __init__(self, distance: np.ndarray, gradient: np.ndarray, min_texture: float):
        self.distance, self.gradient, self.min_texture = distance, gradient, min_texture
        self._texture: dict[Role, np.ndarray] = {}

    def texture(self, role: Role) -> np.ndarray:
        """Mean gradient over the patch at every top-left corner, (H-size+1) x (W-size+1)."""
        if role not in self._texture:
            size = PATCH_SIZE[role]
            sums = cv2.boxFilter(self.gradient, cv2.CV_32F, (size, size), anchor=(0, 0))
            height, width = self.gradient.shape
            self._texture[role] = sums[: height - size + 1, : width - size + 1]
        return self._texture[role]

    def allowed(self, role: Role) -> np.ndarray:
        """Top-left corners whose patch fits and has enough texture, bool."""
        return self.texture(role) >= self.min_texture

    def at_centres(self, role: Role) -> np.ndarray:
        """Box-filtered distance at the centre of the patch, by top-left corner."""
        size = PATCH_SIZE[role]
        height, width = self.distance.shape
        half = size // 2
        return self.distance[half : half + height - size + 1, half : half + width - size + 1]

    def patch(self, role: Role, x: int, y: int, rank: int) -> Patch:
        distance = float(self.at_centres(role)[y, x])
        return Patch(role, x, y, PATCH_SIZE[role], distance, rank, float(self.texture(role)[y, x]))

    def top_k(self, role: Role, k: int, separation: int) -> list[Patch]:
        """The k farthest (lr) or nearest (hr) centres, greedily in rank order.

        Two centres are at least `separation` pixels apart in x or in y (Chebyshev: what counts for
        squares). With 0 it is the paper's literal top-k. Ties go to the first in reading order.
        """
        score = self.at_centres(role) if role == "lr" else -self.at_centres(role)
        score = np.where(self.allowed(role), score, -np.inf)
        reach = max(separation, 1) - 1
        patches: list[Patch] = []
        while len(patches) < k:
            y, x = np.unravel_index(int(score.argmax()), score.shape)
            if score[y, x] == -np.inf:
                break
            patches.append(self.patch(role, int(x), int(y), len(patches)))
            rows = slice(max(y - reach, 0), y + reach + 1)
            score[rows, max(x - reach, 0) : x + reach + 1] = -np.inf
        return patches

    def draw(self, role: Role, k: int, rng: np.random.Generator) -> list[Patch]:
        """k different places, uniformly among the allowed ones."""
        places = np.flatnonzero(self.allowed(role))
        chosen = rng.choice(places, min(k, len(places)), replace=False).tolist()
        width = self.allowed(role).shape[1]
        return [self.patch(role, i % width, i // width, rank) for rank, i in enumerate(chosen)]


def _draw_beside(
    accept: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Callable[[_Field, list[Patch], int, np.random.Generator], list[Patch]]:
    """One LR place per HR patch, uniformly where `accept(overlap_x, overlap_y)` holds.

    The overlaps are pixels shared along x and along y, by top-left corner of the LR patch.
    """

    def draw(field: _Field, near: list[Patch], k: int, rng: np.random.Generator) -> list[Patch]:
        allowed = field.allowed("lr")
        patches: list[Patch] = []
        for hr in near:
            shared_x = _shared(hr.x, hr.size, allowed.shape[1])
            shared_y = _shared(hr.y, hr.size, allowed.shape[0])
            places = np.flatnonzero(allowed & accept(shared_x[None, :], shared_y[:, None]))
            if len(places):
                y, x = divmod(int(rng.choice(places)), allowed.shape[1])
                patches.append(field.patch("lr", x, y, len(patches)))
        return patches

    return draw


def _shared(start: int, size: int, places: int) -> np.ndarray:
    corner, lr = np.arange(places), PATCH_SIZE["lr"]
    shared: np.ndarray = np.minimum(corner + lr, start + size) - np.maximum(corner, start)
    return shared.clip(0, lr)


_LR_AREA = PATCH_SIZE["lr"] ** 2
_LR_DRAWS: dict[
    Strategy, Callable[[_Field, list[Patch], int, np.random.Generator], list[Patch]]
] = {
    "random": lambda field, near, k, rng: field.draw("lr", k, rng),
    "overlap": _draw_beside(lambda x, y: x * y >= MIN_OVERLAP * _LR_AREA),
    "inclusion": _draw_beside(lambda x, y: x * y == _LR_AREA),
}
