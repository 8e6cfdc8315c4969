"""Which bytes of a Parquet file in storage are fetched: its end with the footer, and columns."""

from collections.abc import Callable, Iterable

import pyarrow.parquet as pq

TAIL = 1 << 17  # bytes that are fetched from the end; a footer of 16 row groups has some 70 kB

Range = tuple[int, int]  # first byte, and the byte after the last


def fetch_tail(size: int, read: Callable[[int, int], bytes]) -> tuple[int, bytes]:
    """The end of a file with the whole footer, and the number of its first byte.

    size: of the file. read: given the first byte and the byte after the last.
    """
    start = max(size - TAIL, 0)
    end = read(start, size) if size else b""
    footer = 8 + int.from_bytes(end[-8:-4], "little")
    if end[-4:] == b"PAR1" and len(end) < footer <= size:
        end = read(size - footer, start) + end
        start = size - footer
    return start, end


def column_ranges(
    footer: pq.FileMetaData, names: Iterable[str] | None, groups: Iterable[int] | None = None
) -> list[Range]:
    """The range of each column in some row groups (default: all), in the order of the file.

    names: of columns, or of their leaves, such as `image.bytes`; None: of all.
    """
    paths = [footer.schema.column(i).path for i in range(footer.num_columns)]
    wanted = tuple(f"{name}." for name in (paths if names is None else names))
    columns = [i for i, path in enumerate(paths) if f"{path}.".startswith(wanted)]
    found = []
    for group in range(footer.num_row_groups) if groups is None else groups:
        row_group = footer.row_group(group)
        for i in columns:
            column = row_group.column(i)
            start = column.dictionary_page_offset or column.data_page_offset
            found.append((start, start + column.total_compressed_size))
    return sorted(found)


def joined(ranges: Iterable[Range], gap: int) -> list[Range]:
    """Ranges in order, as one where at most `gap` bytes are between them."""
    found: list[Range] = []
    for start, stop in ranges:
        if found and start - found[-1][1] <= gap:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return found
