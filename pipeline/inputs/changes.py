"""Compare the photographs of a build with the parts of earlier builds.

A photograph is the same as before if its state is: address, size, times, inode. Otherwise its bytes
are hashed, and equal bytes are the same photograph, under its old name or another.
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from lasr.cli import progress
from lasr.terminal.summary import counted
from pipeline.build.parts import Part
from pipeline.inputs.photographs import Found, State
from pipeline.storage import StoragePath

log = logging.getLogger(__name__)

Origin = tuple[str, str]  # a part, and the name of a photograph in it
_SHOWN = 200  # photographs to hash, from which on progress is shown
_THREADS = 8


@dataclass
class Changes:
    """What a comparison found; names are those of this build unless said otherwise."""

    same: set[Origin] = field(default_factory=set)  # the photograph of that name is unchanged
    # Name -> the same bytes in a part under another name.
    renamed: dict[str, list[Origin]] = field(default_factory=dict)
    # Part -> name -> state of a photograph whose bytes are the same and whose state is not.
    states: dict[str, dict[str, State]] = field(default_factory=lambda: defaultdict(dict))
    gone: set[str] = field(default_factory=set)  # names of earlier builds that are not found


def compare(
    photographs: Sequence[Found],
    parts: Sequence[Part],
    verify: bool = False,
    trusted: Collection[str] = (),
) -> Changes:
    """Compare photographs with those of finished parts, reading only what states leave open.

    verify: hash all that a part knows. trusted: names that count as unchanged without a look.
    """
    changes = Changes()
    known: dict[str, list[Part]] = defaultdict(list)  # by name
    origins: dict[str, list[Origin]] = defaultdict(list)  # by image_id
    sizes = set[object]()
    for part in parts:
        for name, state in part.done().items():
            known[name].append(part)
            if image_id := part.image_ids.get(name):
                origins[image_id].append((part.name, name))
                sizes.add(state[0])
    doubtful = []
    for photograph in photographs:
        name, is_settled = photograph.name, False
        for part in known.get(name, ()):
            equal = part.states[name] == photograph.state
            unread = part.image_ids.get(name) is None  # such as one of a format that is not read
            if name in trusted or (equal and (not verify or unread)):
                changes.same.add((part.name, name))
                is_settled = True
        # The size of a picture in a Parquet file is unknown: new rows are not read for this.
        same_size = photograph.size in sizes and (photograph.size or name in known)
        if not is_settled and same_size:
            doubtful.append(photograph)
    _settle(doubtful, known, origins, changes)
    found = {photograph.name for photograph in photographs}
    moved = {origin for several in changes.renamed.values() for _, origin in several}
    changes.gone = {name for part in parts for name in part.states} - found - moved
    return changes


def _settle(
    doubtful: Sequence[Found],
    known: dict[str, list[Part]],
    origins: dict[str, list[Origin]],
    changes: Changes,
) -> None:
    """Hash the photographs that states leave open, and note where their bytes are known."""
    old = {
        p.name for p in doubtful for part in known.get(p.name, ()) if len(part.states[p.name]) == 2
    }
    if old:
        log.info(
            "compared by their bytes, once: %s of a build by an earlier version",
            counted(len(old), "photograph"),
        )
    for photograph, digest in zip(doubtful, _hash(doubtful), strict=True):
        name = photograph.name
        for part in known.get(name, ()):
            if digest and part.image_ids.get(name) == digest:
                changes.same.add((part.name, name))
                if part.states[name] != photograph.state:
                    changes.states[part.name][name] = photograph.state
        others = [origin for origin in origins.get(digest or "", ()) if origin[1] != name]
        if others and not any((part.name, name) in changes.same for part in known.get(name, ())):
            changes.renamed[name] = others


def _hash(photographs: Sequence[Found]) -> list[str | None]:
    """The sha256 of each photograph's bytes, hex; None if it cannot be read."""
    with (
        ThreadPoolExecutor(_THREADS) as executor,
        progress(len(photographs), "compared", "img", quiet=len(photographs) < _SHOWN) as bar,
    ):

        def digest(photograph: Found) -> str | None:
            result = _sha256(photograph)
            bar.update()
            return result

        return list(executor.map(digest, photographs))


def _sha256(photograph: Found) -> str | None:
    if photograph.size < 0:
        return None
    try:
        if photograph.member or not photograph.path.is_local:
            return hashlib.sha256(photograph.read_bytes()).hexdigest()
        with open(photograph.path.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def names_below(folder: str, parts: Sequence[Part]) -> set[str]:
    """The names in parts of photographs inside a folder, an absolute path or an address.

    If the path was that of a photograph, its name.
    """
    prefix = folder.rstrip("/") + "/"
    return {
        name
        for part in parts
        for name, state in part.states.items()
        if (f"{state[3]}/".startswith(prefix) if len(state) > 3 else _may_be_below(prefix, name))
    }


def _may_be_below(prefix: str, name: str) -> bool:
    """Whether a photograph of version 0.1.0, which recorded no addresses, may be below a folder.

    Names were relative to a folder that contains all photographs: the folder's path may end with
    the first components of a name.
    """
    parents = name.split("/")[:-1]
    starts = ("/".join(parents[:count]) for count in range(1, len(parents) + 1))
    return any(prefix.endswith(f"/{start}/") for start in starts)


def kept(folders: Sequence[str], parts: Sequence[Part], found: Collection[str]) -> list[Found]:
    """Photographs of earlier builds below folders that cannot be reached, by what parts record."""
    names = {name for folder in folders for name in names_below(folder, parts)}
    if not found:  # version 0.1.0 recorded no addresses
        names |= {name for part in parts for name, state in part.states.items() if len(state) < 4}
    names -= set(found)
    photographs = {}
    for part in parts:
        for name in names & part.states.keys():
            size, modified, *more = part.states[name]
            identity, uri = more or ("", f"{folders[0]}/{name}")
            path = StoragePath(str(uri))
            photographs[name] = Found(name, path, int(size), int(modified), str(identity))
    return sorted(photographs.values())
