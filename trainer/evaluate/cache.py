"""Answers kept from one run to the next: a file of JSON lines, appended to, found by key."""

import json
import os
from pathlib import Path
from typing import Any

from lasr.errors import UserError


class Cache:
    """`key` -> plain values; each is on the disk when `add` returns: a kill loses one at most."""

    def __init__(self, path: Path):
        self._path = path
        self._known: dict[str, dict[str, Any]] = {}
        if not path.exists():
            return
        whole = 0
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break  # cut short by a kill
                whole += len(line)
                try:
                    record = json.loads(line)
                    self._known[record.pop("key")] = record
                except (ValueError, KeyError) as error:
                    raise UserError(
                        f"{path}: line {len(self._known) + 1} is damaged; remove the file, and its"
                        " answers will be computed anew"
                    ) from error
        os.truncate(path, whole)

    def get(self, key: str) -> dict[str, Any] | None:
        """What was added under `key`, or None."""
        return self._known.get(key)

    def add(self, key: str, record: dict[str, Any]) -> None:
        """Append one line and see it to the disk."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write(json.dumps({"key": key, **record}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._known[key] = record
