"""Weights & Biases, where it is installed and `--wandb` asks for it."""

import hashlib
import importlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lasr.errors import UserError, one_line

log = logging.getLogger(__name__)


def find_wandb() -> Any:
    """The module wandb. Raises UserError: it is not installed."""
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise UserError(
            f"--wandb: it is not installed ({one_line(error, 100)})",
            "run `pip install wandb`, or omit --wandb: TensorBoard shows the same",
        ) from error


class Tracker:
    """Sends a run's numbers and samples to Weights & Biases. A resumed run continues its page.

    What fails later is said once and does not stop the training. Raises UserError: it does not
    start, for example because nobody is logged in.
    """

    def __init__(self, folder: Path):
        self.wandb = find_wandb()
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        where = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]
        try:
            self.run = self.wandb.init(
                project="la-sr", name=folder.name, id=where, resume="allow", dir=str(folder),
                config=settings,
            )  # fmt: skip
        except Exception as error:  # it raises classes of its own
            raise UserError(
                f"--wandb: it does not start ({one_line(error, 150)})",
                "run `wandb login`, set WANDB_MODE=offline, or omit --wandb",
            ) from error
        self._failed = False

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Add numbers by name."""
        self._try(lambda: self.run.log(values, step=step))

    def picture(self, step: int, name: str, path: Path) -> None:
        """Add a picture."""
        self._try(lambda: self.run.log({name: self.wandb.Image(str(path))}, step=step))

    def close(self) -> None:
        """Send what is left."""
        self._try(self.run.finish)

    def _try(self, send: Callable[[], object]) -> None:
        try:
            send()
        except Exception as error:  # as above
            if not self._failed:
                log.warning("--wandb: some numbers are not sent (%s)", one_line(error, 150))
            self._failed = True
