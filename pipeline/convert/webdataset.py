"""Tar shards as WebDataset reads them: `KEY.png`, `KEY.txt` and `KEY.json` for each patch.

A shard holds patches of one split and one role, `train-hr-000000.tar`, and begins with a comment
that this project wrote it. A shard gets its name when it is finished.
"""

import contextlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import lasr
from lasr.files import atomic_path
from lasr.marks import TAR_COMMENT
from lasr.ownership import is_ours
from pipeline.convert.rows import PNG, Group, Patch, Rows


def shard_name(group: Group, number: int) -> str:
    """The name of a shard."""
    return f"{group[0]}-{group[1]}-{number:06}.tar"


def names(rows: Rows, shard_size: int) -> list[str]:
    """The shards of a conversion."""
    counts = {group: -(-rows.count(group) // shard_size) for group in rows.groups}
    return [shard_name(group, number) for group, count in counts.items() for number in range(count)]


def write_shards(rows: Rows, out: Path, shard_size: int, on_done: Callable[[int], object]) -> int:
    """Write the shards that are not there yet; returns the number of rows without a PNG.

    Memory holds a few rows. on_done: called with patches that are done, those of earlier runs too.
    """

    def wanted(group: Group, numbers: np.ndarray) -> np.ndarray:
        shards = -(-rows.count(group) // shard_size)
        missing = [not (out / shard_name(group, n)).exists() for n in range(shards)]
        chosen: np.ndarray = np.array([*missing, False])[numbers // shard_size]
        on_done(int(len(numbers) - chosen.sum()))
        return chosen

    without = 0
    shards: dict[Group, tuple[contextlib.ExitStack, tarfile.TarFile]] = {}
    with contextlib.ExitStack() as all_open:  # an error removes what is not finished
        for patch in rows.read(wanted):
            group = patch.group
            if group not in shards:
                own = all_open.enter_context(contextlib.ExitStack())
                path = out / shard_name(group, patch.number // shard_size)
                shards[group] = own, own.enter_context(open_shard(path))
            if patch.png.startswith(PNG):
                _add(shards[group][1], patch)
            else:
                without += 1
            last = patch.number + 1
            if last % shard_size == 0 or last == rows.count(group):
                shards.pop(group)[0].close()
            on_done(1)
    return without


@contextlib.contextmanager
def open_shard(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar to write, with our mark; it gets its name at the end of the context."""
    comment = {"comment": f"{TAR_COMMENT} {lasr.__version__}"}
    with (
        atomic_path(path, is_ours) as temporary,
        tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT, pax_headers=comment) as tar,
    ):
        yield tar


def _add(tar: tarfile.TarFile, patch: Patch) -> None:
    about = json.dumps(patch.about, ensure_ascii=False, sort_keys=True)
    files = {"png": patch.png, "txt": patch.caption.encode(), "json": about.encode()}
    for suffix, content in files.items():
        entry = tarfile.TarInfo(f"{patch.key}.{suffix}")  # no time, no owner: equal runs are equal
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
