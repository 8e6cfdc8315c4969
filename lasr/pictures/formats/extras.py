"""Formats that packages of extras read: HEIC and HEIF (pillow-heif), camera raw (rawpy, LibRaw)."""

import functools
import importlib.util

from lasr.pictures.formats.table import Format, Reader, by_suffix

_EXTRAS = {Reader.HEIF: ("heif", "pillow_heif"), Reader.RAW: ("raw", "rawpy")}


@functools.cache
def installed_extras() -> tuple[str, ...]:
    """The names of the installed extras that read further formats, sorted."""
    found = (extra for extra, module in _EXTRAS.values() if importlib.util.find_spec(module))
    return tuple(sorted(found))


def why_not_read(kind: Format, name: str = "") -> str:
    """Why a format is not read here; empty if it is.

    name: the file's; where its suffix promises another format, the text says so.
    """
    promised = by_suffix(name)
    differs = promised is not None and promised.is_picture and promised.name != kind.name
    other = f", though its name ends as that of {promised.name}" if promised and differs else ""
    if not kind.is_picture:
        return f"not a picture but {kind.name}{other}"
    if kind.reader is Reader.NONE:
        return f"{kind.name} is not read{other}"
    if kind.reader in _EXTRAS and (extra := _EXTRAS[kind.reader][0]) not in installed_extras():
        return f"{kind.name} needs `pip install 'la-sr[{extra}]'`{other}"
    return ""
