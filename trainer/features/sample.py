"""Which patches a map shows, and by which caption words they are coloured."""

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lasr.errors import UserError
from lasr.pictures.png import decode_patch
from lasr.terminal.summary import counted
from schemas.columns import convert
from schemas.manifest import PATCH_SIZE, PATCHES, Manifest, ManifestError, Role
from schemas.parts import PartFile
from trainer.data.index import READ_ERRORS, opened, read_footer

log = logging.getLogger(__name__)

COLUMNS = ("patch_id", "image_id", "role", "words", "image")
WORDS = 6  # colours of the map by word, unless words are named
FEWEST = 8  # patches per role; fewer make no map
_SPREAD = 16  # patches of a role from one row group (some 16 photographs), at least


def choose(manifest: Manifest, per_role: int, seed: int) -> pa.Table:
    """Draw patches by seed: as many LR as HR, up to `per_role` of each, LR first.

    manifest: opened with COLUMNS. Row groups are read in random order until there are enough
    patches; each gives at least _SPREAD. Of a thousand row groups (a million patches) some 60 are
    read, not all. Rows that cannot be used are left out, with a warning that counts them. Raises
    ManifestError: fewer than FEWEST patches of a role, or a file is gone.
    """
    footers = {file: read_footer(file) for file in manifest.parts}
    groups = [(file, n) for file, footer in footers.items() for n in range(footer.num_row_groups)]
    rng = np.random.default_rng(seed)
    quota = max(-(-per_role // max(len(groups), 1)), _SPREAD)
    chosen: dict[Role, list[pa.Table]] = {role: [] for role in PATCH_SIZE}
    missing = dict.fromkeys(PATCH_SIZE, per_role)
    bad = 0
    for number in rng.permutation(len(groups)).tolist():
        file, group = groups[number]
        rows = _read(file, footers[file], group)
        if rows is None:
            bad += footers[file].row_group(group).num_rows
            continue
        for role in PATCH_SIZE:
            own = rng.permutation(np.flatnonzero(pc.fill_null(pc.equal(rows["role"], role), False)))
            drawn = own[: min(quota, missing[role])]
            usable = [row for row in drawn.tolist() if _is_usable(rows, row, PATCH_SIZE[role])]
            bad += len(drawn) - len(usable)
            chosen[role].append(rows.take(np.array(usable, np.int64)))
            missing[role] -= len(usable)
        if not any(missing.values()):
            break
    if bad:
        rows = counted(bad, "row")
        log.warning("%s: %s cannot be used, left out", manifest.where, rows)
    for role, count in missing.items():
        if per_role - count < FEWEST:
            raise ManifestError(
                f"{manifest.where}: only {per_role - count} '{role}' patches",
                f"give a manifest with {FEWEST} or more of each role",
            )
    both = min(per_role - count for count in missing.values())
    return pa.concat_tables(pa.concat_tables(tables)[:both] for tables in chosen.values())


def _read(file: PartFile, footer: pq.FileMetaData, group: int) -> pa.Table | None:
    """A row group in the types of the schema; None: it is damaged."""
    with opened(file, footer, COLUMNS, [group]) as part:
        try:
            return convert(part.read_row_group(group, columns=list(COLUMNS)), PATCHES)
        except READ_ERRORS as error:
            if isinstance(error, MemoryError):
                raise
            return None


def _is_usable(rows: pa.Table, row: int, side: int) -> bool:
    try:
        decode_patch((rows["image"][row].as_py() or {}).get("bytes"), side)
    except ValueError:
        return False
    return all(bool(rows[name][row].is_valid) for name in ("image_id", "patch_id"))


def word_labels(table: pa.Table, words: Sequence[str] | None) -> np.ndarray:
    """Label each HR patch with the first of `words` in its caption, or None.

    words None: the WORDS words that most HR captions begin with. LR patches have the label None.
    Raises UserError: a word that no caption has.
    """
    captions = [
        [word for word in row["words"] or [] if word] if row["role"] == "hr" else []
        for row in table.select(["role", "words"]).to_pylist()
    ]
    if words is None:
        firsts = Counter(sorted(caption[0] for caption in captions if caption))
        words = [word for word, _ in firsts.most_common(WORDS)]
    for word in words:
        if not any(word in caption for caption in captions):
            raise UserError(
                f"--words {word}: in no caption of the HR patches drawn",
                "choose other words, or draw more with --patches",
            )
    first = [next((word for word in caption if word in words), None) for caption in captions]
    return np.array(first, dtype=object)
