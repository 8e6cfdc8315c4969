"""Find the picture files that a command's inputs name, and account for all other files.

An input is a folder, a file, a glob, or a `.txt` list with one input per line. No picture is
decoded. Of files without a known suffix the first bytes are read.
"""

import errno
import logging
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from lasr.errors import UserError
from lasr.pictures.formats import by_suffix, is_hidden, readable_suffixes, why_not_read
from lasr.pictures.recognise import recognise
from lasr.pictures.search import (
    BY_NAME,
    DANGLING,
    HIDDEN,
    LINKS,
    NOWHERE,
    SPECIAL,
    File,
    Input,
    Listing,
    Passed,
    entries,
    expand,
    file_id,
    is_folder,
    is_link,
    match_glob,
    split_glob,
)

log = logging.getLogger(__name__)


def find_pictures(inputs: Iterable[str | Path], exclude: Path | None = None) -> dict[Path, Path]:
    """Map the absolute path of each picture file to its name relative to the folder given.

    Searches as `search` does. Pictures in formats that are not read are named in a warning.
    Raises UserError: as `search`, a list or folder that cannot be read, or no picture is found.
    """
    named = [str(given) for given in inputs]
    listing = search(expand(named), exclude)
    listing.check_complete()
    found: dict[Path, Path] = {}
    not_read = Passed()
    for file in listing.files:
        kind = None if file.is_named else by_suffix(file.path.name)
        if kind and (why := why_not_read(kind)):
            not_read.add(why, file.path)
        else:
            found.setdefault(Path(os.path.abspath(file.path)), file.path.relative_to(file.base))
    for reason, count in not_read.counts.items():
        log.warning("%d passed over: %s: %s", count, reason, not_read.named(reason))
    for reason in set(BY_NAME) & listing.passed.counts.keys():
        log.warning("%s are passed over: %s", reason, listing.passed.named(reason))
    if not found:
        raise UserError(
            f"no picture in {', '.join(named)}",
            f"give a file, or a folder with files that end in {' '.join(readable_suffixes())}",
        )
    return found


def search(inputs: Iterable[Input], exclude: Path | None = None) -> Listing:
    """Find all files that may be pictures, each once.

    Folders are searched recursively. A file there is found by its suffix; with an unknown suffix,
    or none, by its first bytes. Hidden files and folders, and those of operating systems, are
    passed over and counted, as are files that are no picture by their suffix. A file that the user
    names, directly, in a list or by a glob with a suffix, is taken whatever its suffix.

    No folder is searched twice, whatever links lead to it, and no file is found twice through a
    link. Linked folders come last, so that a folder that is also reached without a link keeps its
    own path. A link to a folder around an input is a loop and is not followed.

    Named pipes, devices and dangling links whose name is a picture's are among the files:
    `check_regular` tells them apart.

    Args:
        inputs: of `expand`.
        exclude: a folder of results; it is not searched.

    Raises UserError: `exclude` is an input. Inputs that do not exist and
    folders that cannot be listed are in `Listing.unreachable`.
    """
    searched = _Search(exclude)
    for one in inputs:
        searched.input(one)
    searched.follow_links()
    return searched.listing


def check_regular(path: Path) -> None:
    """Raise UserError if `path` is a named pipe, a socket or a device: reading it may block.

    A path that does not exist passes; opening it reports the error.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: not a regular file", "leave it out of the inputs")


class _Search:
    """The state of a search: the listing so far, and the links still to follow."""

    def __init__(self, exclude: Path | None) -> None:
        self.listing = Listing()
        self._excluded = {file_id(exclude)} if exclude and exclude.exists() else set[object]()
        self._seen = set(self._excluded)
        self._around = set[object]()  # folders that contain an input
        self._folder_links: list[File] = []
        self._file_links: list[File] = []
        self._paths = set[str]()  # of files that are accounted for

    def input(self, one: Input) -> None:
        path = Path(one.given)
        if is_folder(path):
            if file_id(path) in self._excluded:
                raise UserError(f"{path} holds the inputs", "choose another folder for results")
            self._folder(path, path)
        elif is_link(path) and _why_missing(path) and not _is_named_as_picture(path):
            # It may have led to a folder.
            self.listing.unreachable[path] = _why_missing(path)
        elif os.path.lexists(path):
            inside = one.list_folder is not None and is_below(path, one.list_folder)
            root = one.list_folder if one.list_folder and inside else path.parent
            self._named(File(path, path.parent, root, is_named=True))
        else:
            failures = len(self.listing.unreachable)
            if matches := match_glob(one.given, self._cannot_list):
                self._glob(one.given, matches)
            elif len(self.listing.unreachable) == failures:
                self.listing.unreachable[path] = _why_missing(path) or NOWHERE

    def _glob(self, pattern: str, matches: list[Path]) -> None:
        root = split_glob(pattern)[0]
        takes_all = "." in Path(pattern).name  # the user named a suffix
        # Files first: the folders around them may match, too, and names stay short.
        for match in matches:
            if not is_folder(match):
                file = File(match, match.parent, root, is_named=takes_all)
                self._named(file) if takes_all else self._classify(file)
        for match in matches:
            if is_folder(match) and is_link(match):
                self._folder_links.append(File(match, match, root))
            elif is_folder(match):
                self._folder(match, root)

    def _named(self, file: File) -> None:
        """A file that the user names is taken, whatever it is."""
        if is_link(file.path) and os.path.isfile(file.path):
            self._file_links.append(file)
        else:
            self._add(file)

    def _folder(self, folder: Path, root: Path) -> None:
        self.listing.roots.append(root)
        self._around |= {file_id(parent) for parent in folder.resolve().parents}
        self._walk(folder, folder, root)

    def follow_links(self) -> None:
        """Search linked folders, then add linked files: those not found without their link."""
        while self._folder_links:
            link = self._folder_links.pop(0)
            key = file_id(link.path)
            if key in self._around or key in self._seen:
                self._pass(LINKS, link.path)
            else:
                self._walk(link.path, link.base, link.root)
        seen = {file_id(file.path) for file in self.listing.files} if self._file_links else set()
        for file in self._file_links:
            if (key := file_id(file.path)) in seen:
                self._pass(LINKS, file.path)
            else:
                seen.add(key)
                self._add(file)

    def _walk(self, top: Path, base: Path, root: Path) -> None:
        pending = [top]
        while pending:
            folder = pending.pop()
            if (key := file_id(folder)) in self._seen:
                continue
            self._seen.add(key)
            failures = len(self.listing.unreachable)
            inside = entries(folder, self._cannot_list)
            is_empty = all(is_hidden(entry.name) for entry in inside)
            if is_empty and len(self.listing.unreachable) == failures:
                self.listing.empty.append(folder)
            folders = [path for entry in inside if (path := self._entry(entry, folder, base, root))]
            pending += folders[::-1]

    def _entry(
        self, entry: "os.DirEntry[str]", folder: Path, base: Path, root: Path
    ) -> Path | None:
        """Classify an entry of a folder; returns its path if it is a folder to search."""
        path = folder / entry.name
        file = File(path, base, root)
        if is_hidden(entry.name):
            self._pass(HIDDEN, path)
        elif entry.is_symlink():
            if is_folder(path):
                self._folder_links.append(file)
            else:
                self._classify(file)
        else:
            try:
                if entry.is_dir():
                    return path
                # The type of most entries is known from the folder: no request for each file.
                self._classify(file, is_regular=entry.is_file())
            except OSError as error:
                self.listing.unreachable[path] = f"cannot be reached ({error.strerror})"
        return None

    def _classify(self, file: File, is_regular: bool = False) -> None:
        """Add a file if it may be a picture; count it otherwise."""
        path, kind = file.path, by_suffix(file.path.name)
        is_picture = kind is not None and kind.is_picture
        if not (is_regular or os.path.isfile(path)):
            self._special(file, is_picture)
        elif is_picture or (kind is None and _is_picture_inside(path)):
            self._file_links.append(file) if is_link(path) else self._add(file)
        else:
            self._pass(path.suffix.lower() or "without suffix", path)

    def _special(self, file: File, is_picture: bool) -> None:
        """A pipe, a socket, a device, or a link that leads nowhere or to something out of reach."""
        path, reason = file.path, _why_missing(file.path)
        if reason == NOWHERE:
            self.listing.dangling.append(path)
        if is_picture:
            self._add(file)
        elif not reason:
            self._pass(SPECIAL, path)
        elif reason == NOWHERE:
            self._pass(DANGLING, path)
        else:  # it may lead to a folder
            self.listing.unreachable[path] = reason

    def _add(self, file: File) -> None:
        if self._is_new(file.path):
            self.listing.files.append(file)

    def _pass(self, reason: str, path: Path) -> None:
        if self._is_new(path):
            self.listing.passed.add(reason, path)

    def _is_new(self, path: Path) -> bool:
        """Whether a path is accounted for the first time; inputs may overlap."""
        full = os.path.abspath(path)
        is_new = full not in self._paths
        self._paths.add(full)
        return is_new

    def _cannot_list(self, error: OSError) -> None:
        reason = f"this folder cannot be listed ({error.strerror})"
        self.listing.unreachable[Path(error.filename)] = reason


def _is_named_as_picture(path: Path) -> bool:
    kind = by_suffix(path.name)
    return kind is not None and kind.is_picture


def _is_picture_inside(path: Path) -> bool:
    """Whether the first bytes of a file are those of a picture."""
    try:
        with open(path, "rb") as file:
            found = recognise(file)
    except OSError:
        return False
    return found is not None and found.is_picture


def _why_missing(path: Path) -> str:
    """Why nothing is found at a path; empty if something is."""
    try:
        path.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return NOWHERE
        return f"cannot be reached ({error.strerror})"
    except ValueError:  # a null character
        return NOWHERE
    return ""


def is_below(path: Path, folder: Path) -> bool:
    """Whether `path` is `folder` or inside it, by their names."""
    full, outer = os.path.abspath(path), os.path.abspath(folder)
    return full == outer or full.startswith(outer.rstrip("/") + "/")
