"""Which patches of a photograph are far (LR) and which near (HR): section 3.1 and table 3."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from schemas.manifest import PATCH_SIZE, Role

# Raise it when the same map and parameters select other patches than before. 4: ties of the
# strategy `depth` are drawn; the other strategies select what they selected in version 3.
VERSION = 4
BOX = 29  # side of the paper's all-ones kernel
LEVELS = 65535  # scores are compared at the precision of cached maps (`depth.pack`)
TRIES = 8  # draws from a plateau for each patch that is there already (`Candidates.top_k`)
MIN_OVERLAP = 0.4  # of the LR patch's area, section 4.2
BLANK = 0.005  # texture of what noise and JPEG alone give, as in the question `no-content`

Strategy = Literal["depth", "random", "overlap", "inclusion"]


class SelectConfig(BaseModel):
    """The parameters of this stage."""

    model_config = ConfigDict(frozen=True)

    k: int = Field(8, ge=1, description="patches per role and photograph")
    min_separation: int | None = Field(
        None,
        ge=0,
        description="pixels between centres of one role; 0 = the paper's literal top-k"
        " (default: half the patch's side)",
    )
    strategy: Strategy = Field("depth", description="how patches are chosen (table 3)")
    min_texture: float | None = Field(
        None,
        ge=0,
        description="leave out patches of both roles with less texture: background filter (table 4;"
        " default: the profile's: 0.01 in offline, less for a photograph without such patches,"
        " else 0)",
    )
    far_texture: float | None = Field(
        None,
        ge=0,
        description="leave out far patches (LR) with less texture, such as blank sky (default: the"
        " profile's: 0.03 in offline, less for a photograph without such patches, else 0)",
    )
    seed: int = Field(
        0, ge=0, description="for equally far patches, the random strategies and DepthFM's noise"
    )

    def least_texture(self, role: Role) -> float:
        """The smallest texture that a patch of this role may have."""
        both = self.min_texture or 0.0
        return max(both, self.far_texture or 0.0) if role == "lr" else both

    def may_lower(self, role: Role) -> bool:
        """Whether that is a default, and a photograph without such a patch may have others."""
        return False

    def separation(self, role: Role) -> int:
        """Smallest distance between two centres of one role, in pixels."""
        half = PATCH_SIZE[role] // 2
        return half if self.min_separation is None else self.min_separation


def fingerprint_inputs(config: SelectConfig, maps: str) -> tuple[object, ...]:
    """What determines the patches of a photograph. maps: the fingerprint of the distance maps."""
    far, both = config.least_texture("lr"), config.least_texture("hr")
    return (
        VERSION if config.strategy == "depth" else 3,
        maps,
        config.k,
        config.strategy,
        [config.separation("lr"), config.separation("hr")],
        both,
        config.seed,
        PATCH_SIZE,
        *([far] if far > both else []),  # parts from before this parameter stay valid
        *(f"lowered {role}" for role in PATCH_SIZE if _is_lowered(config, role)),
    )


@dataclass(frozen=True)
class Patch:
    """A square of a photograph: top-left corner, side, and the measures that selected it."""

    role: Role
    x: int
    y: int
    size: int
    distance: float  # box mean at the centre
    rank: int
    texture: float


def select(
    pixels: np.ndarray, distance: np.ndarray, image_id: str, config: SelectConfig
) -> list[Patch]:
    """Select up to k patches of each role; lr before hr, best first.

    pixels: H x W x 3 uint8. distance: H x W float32 in 0..1 (0 near, 1 far), not yet filtered.
    The result depends on the photograph and the parameters alone, not on shard or worker.
    """
    least: dict[Role, float] = {role: config.least_texture(role) for role in PATCH_SIZE}
    candidates = Candidates(box_mean(distance), texture_map(pixels), least)
    for role in PATCH_SIZE:
        if _is_lowered(config, role):
            candidates.lower(role)
    rng = np.random.default_rng([config.seed, *bytes.fromhex(image_id)])
    return STRATEGIES[config.strategy](candidates, config, rng)


def _is_lowered(config: SelectConfig, role: Role) -> bool:
    return config.may_lower(role) and config.least_texture(role) > 0


def box_mean(distance: np.ndarray) -> np.ndarray:
    """29x29 mean of an H x W float32 map with reflected borders (the paper's kernel / 29^2)."""
    mean = cv2.blur(distance, (BOX, BOX), borderType=cv2.BORDER_REFLECT)
    # A running sum leaves rounding errors; 0..1 is the contract.
    return np.clip(mean, 0.0, 1.0, out=mean)


def texture_map(pixels: np.ndarray) -> np.ndarray:
    """How much detail there is: gradient magnitude of the luma, H x W float32.

    pixels: H x W x 3 uint8. Luma (Rec. 601) in 0..1, central differences; 0 for a flat area, about
    0.002 for clear sky, 0.05 and more for foliage. A patch's texture is its mean over the patch.
    """
    # In place: new arrays of this size cost more than the arithmetic, above all in many threads.
    luma = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    luma /= 255
    kernel = np.array([-0.5, 0, 0.5], np.float32)
    one = np.ones(1, np.float32)
    along_x = cv2.sepFilter2D(luma, cv2.CV_32F, kernel, one, borderType=cv2.BORDER_REPLICATE)
    along_y = cv2.sepFilter2D(luma, cv2.CV_32F, one, kernel, borderType=cv2.BORDER_REPLICATE)
    # Not cv2.magnitude: its last bits depend on the memory alignment of the result.
    np.multiply(along_x, along_x, out=along_x)
    np.multiply(along_y, along_y, out=along_y)
    np.add(along_x, along_y, out=along_x)
    magnitude: np.ndarray = np.sqrt(along_x, out=along_x)
    return magnitude


class Candidates:
    """All patches of one photograph, by top-left corner: texture, distance and what is allowed."""

    def __init__(self, distance: np.ndarray, gradient: np.ndarray, least: Mapping[Role, float]):
        """distance: from `box_mean`. gradient: from `texture_map`. Both H x W float32.

        least: the smallest texture that is allowed.
        """
        self.distance, self.gradient, self.least = distance, gradient, dict(least)
        self._texture: dict[Role, np.ndarray] = {}

    def texture(self, role: Role) -> np.ndarray:
        """Mean gradient over the patch at every corner, (H-size+1) x (W-size+1)."""
        if role not in self._texture:
            size = PATCH_SIZE[role]
            sums = cv2.boxFilter(self.gradient, cv2.CV_32F, (size, size), anchor=(0, 0))
            height, width = self.gradient.shape
            self._texture[role] = sums[: height - size + 1, : width - size + 1]
        return self._texture[role]

    def lower(self, role: Role) -> None:
        """Halve the bound until a patch reaches it, unless all are blank.

        A bound that suits most photographs must not take the few that somebody has.
        """
        most = float(self.texture(role).max())
        while BLANK <= most < self.least[role]:
            self.least[role] = max(self.least[role] / 2, BLANK)

    def allowed(self, role: Role) -> np.ndarray:
        """Whether the patch at each corner fits and has enough texture, bool."""
        return self.texture(role) >= self.least[role]

    def at_centres(self, role: Role) -> np.ndarray:
        """Distance at the centre of the patch at each corner."""
        size = PATCH_SIZE[role]
        height, width = self.distance.shape
        half = size // 2
        return self.distance[half : half + height - size + 1, half : half + width - size + 1]

    def patch(self, role: Role, x: int, y: int, rank: int) -> Patch:
        """The patch at a corner."""
        distance = float(self.at_centres(role)[y, x])
        return Patch(role, x, y, PATCH_SIZE[role], distance, rank, float(self.texture(role)[y, x]))

    def top_k(
        self, role: Role, score: np.ndarray, k: int, separation: int, rng: np.random.Generator
    ) -> list[Patch]:
        """The k allowed patches with the highest score, greedily in rank order.

        score: by corner. Two centres are at least `separation` pixels apart in x or in y
        (Chebyshev distance, the natural one for squares). 0 gives the paper's literal top-k.

        Scores that round to the same multiple of 1 / LEVELS are equal. Ties are the normal case:
        Depth Anything V2 gives every sky exactly the distance 1. Among equals, each patch is the
        best candidate of a few draws, the one farthest from the patches so far (Mitchell,
        "Spectrally optimal sampling for distribution ray tracing", SIGGRAPH 1991), so that they
        spread over a plateau of any shape.
        """
        score = score * np.float32(LEVELS)
        np.rint(score, out=score)
        score[~self.allowed(role)] = -np.inf
        flat, width = score.reshape(-1), score.shape[1]
        reach = max(separation, 1) - 1
        patches: list[Patch] = []
        while len(patches) < k and (best := score.max()) > -np.inf:
            ties = np.flatnonzero(flat == best)
            while len(patches) < k and len(ties):
                drawn = ties[rng.integers(len(ties), size=TRIES * len(patches) + 1)]
                free = drawn[flat[drawn] == best]  # not too close to a patch of this plateau
                if not len(free):
                    ties = ties[flat[ties] == best]
                    continue
                y, x = divmod(_farthest(free, width, patches), width)
                patches.append(self.patch(role, x, y, len(patches)))
                rows = slice(max(y - reach, 0), y + reach + 1)
                score[rows, max(x - reach, 0) : x + reach + 1] = -np.inf
        return patches

    def draw(self, role: Role, k: int, rng: np.random.Generator) -> list[Patch]:
        """k different allowed patches, drawn uniformly."""
        corners = np.flatnonzero(self.allowed(role))
        drawn = rng.choice(corners, min(k, len(corners)), replace=False).tolist()
        width = self.allowed(role).shape[1]
        return [self.patch(role, i % width, i // width, rank) for rank, i in enumerate(drawn)]

    def draw_overlapping(
        self, near: list[Patch], least: float, rng: np.random.Generator
    ) -> list[Patch]:
        """One LR patch for each HR patch, uniformly among those with enough overlap.

        least: the share of the LR patch's area that is inside the HR patch, 0..1. An HR patch
        without such an allowed LR patch gets none.
        """
        allowed, area = self.allowed("lr"), PATCH_SIZE["lr"] ** 2
        patches: list[Patch] = []
        for hr in near:
            shared_x = _shared(hr.x, hr.size, allowed.shape[1])[None, :]
            shared_y = _shared(hr.y, hr.size, allowed.shape[0])[:, None]
            corners = np.flatnonzero(allowed & (shared_x * shared_y >= least * area))
            if len(corners):
                y, x = divmod(int(rng.choice(corners)), allowed.shape[1])
                patches.append(self.patch("lr", x, y, len(patches)))
        return patches


def _farthest(corners: np.ndarray, width: int, patches: Sequence[Patch]) -> int:
    """The corner, flat in an array of that width, that is farthest from its nearest patch."""
    x, y = corners % width, corners // width
    gaps = [np.maximum(abs(x - patch.x), abs(y - patch.y)) for patch in patches]
    return int(corners[np.min(gaps, axis=0).argmax() if gaps else 0])


def _shared(start: int, size: int, corners: int) -> np.ndarray:
    """Pixels along one axis that the LR patch at each corner shares with [start, start + size)."""
    corner, lr = np.arange(corners), PATCH_SIZE["lr"]
    shared: np.ndarray = np.minimum(corner + lr, start + size) - np.maximum(corner, start)
    return shared.clip(0, lr)


def _depth(candidates: Candidates, config: SelectConfig, rng: np.random.Generator) -> list[Patch]:
    """The farthest patches as LR, the nearest as HR."""
    far, near = candidates.at_centres("lr"), -candidates.at_centres("hr")
    far_rng, near_rng = rng.spawn(2)  # so that one role's parameters do not move the other's
    return [
        *candidates.top_k("lr", far, config.k, config.separation("lr"), far_rng),
        *candidates.top_k("hr", near, config.k, config.separation("hr"), near_rng),
    ]


def _random(candidates: Candidates, config: SelectConfig, rng: np.random.Generator) -> list[Patch]:
    near = candidates.draw("hr", config.k, rng)
    return candidates.draw("lr", config.k, rng) + near


def _overlap(candidates: Candidates, config: SelectConfig, rng: np.random.Generator) -> list[Patch]:
    near = candidates.draw("hr", config.k, rng)
    return candidates.draw_overlapping(near, MIN_OVERLAP, rng) + near


def _inclusion(
    candidates: Candidates, config: SelectConfig, rng: np.random.Generator
) -> list[Patch]:
    near = candidates.draw("hr", config.k, rng)
    return candidates.draw_overlapping(near, 1.0, rng) + near


STRATEGIES: dict[
    Strategy, Callable[[Candidates, SelectConfig, np.random.Generator], list[Patch]]
] = {
    "depth": _depth,
    "random": _random,
    "overlap": _overlap,
    "inclusion": _inclusion,
}
