"""Rows of an earlier part, by photograph: what is chosen already is not chosen, or read, again."""

import threading
from collections import OrderedDict
from collections.abc import Mapping

import pyarrow.parquet as pq

from pipeline.build.parts import part_files
from pipeline.storage import StoragePath, read_table
from schemas.manifest import Row

GROUPS = 4  # row groups in memory, about 15 MB each


class EarlierRows:
    """Random access to the parts of a work folder; for many threads."""

    def __init__(self, work: StoragePath, parts: Mapping[str, str]):
        """parts: photograph's name -> the part that holds its rows."""
        self._parts = parts
        self._open = {name: _EarlierPart(work, name) for name in set(parts.values())}
        self._lock = threading.Lock()

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def rows(self, name: str) -> tuple[Row, list[Row]]:
        """The catalogue row and the manifest rows of a photograph."""
        with self._lock:
            return self._open[self._parts[name]].rows(name)


class _EarlierPart:
    def __init__(self, work: StoragePath, name: str):
        patches, catalogue = part_files(work, name)
        self._catalogue = {row["path"]: row for row in read_table(catalogue).to_pylist()}
        self._file = pq.ParquetFile(patches.key, filesystem=patches.fs)
        names = self._file.read(columns=["image_path"])["image_path"].to_pylist()
        self._places: dict[str, list[int]] = {}
        for place, owner in enumerate(names):
            self._places.setdefault(owner, []).append(place)
        self._first = [0]  # row that each group begins with
        for number in range(self._file.num_row_groups):
            self._first.append(self._first[-1] + self._file.metadata.row_group(number).num_rows)
        self._groups: OrderedDict[int, list[Row]] = OrderedDict()

    def rows(self, name: str) -> tuple[Row, list[Row]]:
        return self._catalogue[name], [self._row(place) for place in self._places.get(name, [])]

    def _row(self, place: int) -> Row:
        number = next(i for i, first in enumerate(self._first[1:]) if place < first)
        if number not in self._groups:
            self._groups[number] = self._file.read_row_group(number).to_pylist()
            if len(self._groups) > GROUPS:
                self._groups.popitem(last=False)
        return self._groups[number][place - self._first[number]]
