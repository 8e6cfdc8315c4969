"""A cache on disk: JSON lines, appended to, found by key."""

import json
import os
from pathlib import Path
from typing import Any

from lasr.errors import UserError


class Cache:
    """Maps a key to plain values. A value is on disk when `add` returns, so a kill loses one."""

    def __init__(self, path: Path):
        """Read the file at `path`, if there is one. Raises UserError: a line is damaged."""
        self._path = path
        self._values: dict[str, dict[str, Any]] = {}
        if not path.exists():
            return
        complete = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break  # cut short by a kill
                complete += len(line)
                try:
                    value = json.loads(line)
                    self._values[value.pop("key")] = value
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise UserError(
                        f"{path}: line {number} is damaged",
                        "remove the file; its contents are computed again",
                    ) from error
        os.truncate(path, complete)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the value added last under `key`, or None."""
        return self._values.get(key)

    def add(self, key: str, value: dict[str, Any]) -> None:
        """Append one line and flush it to disk."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write(json.dumps({"key": key, **value}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._values[key] = value
