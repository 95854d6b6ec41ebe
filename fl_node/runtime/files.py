"""Files that are written whole or not at all, with the path in every error; and results that are never lost."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from fl_node.errors import ConfigError
from fl_node.runtime import scratch

_PROCESS = {"LOCK", "FLOCK", "diskUsage.cache"}
"""Locks and caches that a database has while it is open."""
KEY_DIGITS = "64 hexadecimal digits"
"""What a file with a key of 32 bytes holds."""
NO_FOLDER = "it exists and is not a folder"
NO_FILE = "it exists and is not a regular file"
MAX_NAME = 64
"""Bytes of a file's name that has room for more wherever a result is kept."""
SMALL = 1024**2
"""The most bytes of a file that people write by hand, such as a key."""
_PROBE = b"\0" * 4096
"""So much is written to see whether a disk is full."""


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Add the path to an ``OSError`` that names no file, as errors of writing do.

    Raises
    ------
    OSError
        The error of the block, with the path.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.strerror = reason(error)  # a library's error may have no more than a text
            error.filename = str(path)
        raise


@contextlib.contextmanager
def replacing(path: Path, suffix: str = ".partial") -> Iterator[Path]:
    """Give a path beside a file; what is written there becomes the file at the end, or what was there before stays.

    A link stays a link.

    Parameters
    ----------
    path
        The file.
    suffix
        How the name of the path ends that is given; the name is short, whatever the file's is.

    Raises
    ------
    OSError
        The file can't be written; the error has a path.
    FileExistsError
        Its path is that of a folder, a device or a pipe.
    """
    target = path.resolve()
    with named(path):
        if target.exists() and not target.is_file():
            raise FileExistsError(errno.EEXIST, NO_FILE, str(path))
        partial = target.with_name(f".{os.getpid()}.{secrets.token_hex(4)}{suffix}")
        try:
            yield partial
            partial.replace(target)
        except OSError as error:
            if error.filename == str(partial):
                error.filename = str(path)
                error.filename2 = None
            raise
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def write(path: Path, content: str | bytes) -> None:
    """Write a file in UTF-8; it appears whole, or what was there before stays.

    A device or a pipe is written to as it is.

    Raises
    ------
    OSError
        It can't be written; the error has a path.
    """
    data = content.encode() if isinstance(content, str) else content
    target = path.resolve()  # a link stays a link
    if target.exists() and not target.is_file():
        with named(path):
            target.write_bytes(data)
        return
    with replacing(path) as partial:
        partial.write_bytes(data)


@contextlib.contextmanager
def together(folder: Path) -> Iterator[Path]:
    """Give an empty folder; at the end what is in it appears in another, or nothing of it after an error.

    What is there already under the same names is replaced; a link stays a link.

    Parameters
    ----------
    folder
        Where the files appear.

    Raises
    ------
    OSError
        The files can't be written; the error has the path that the file would have had.
    IsADirectoryError
        A folder has the path of a file.
    """
    here = folder
    try:
        with named(folder), scratch.folder(f".{scratch.PREFIX}", folder) as here:
            yield here
            new = {
                path: folder / path.name for path in sorted(here.iterdir()) if not path.name.startswith(scratch.LOCK)
            }
            for target in new.values():
                if target.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
            linked = [path for path, target in new.items() if target.is_symlink() or not _is_plain(target)]
            for path in linked:  # first, as it is these that can fail
                write(new[path], path.read_bytes())
            for path, target in new.items():
                if path not in linked:
                    path.replace(target)
    except OSError as error:
        if isinstance(error.filename, str) and Path(error.filename).is_relative_to(here):
            inside = Path(error.filename).relative_to(here)
            error.filename, error.filename2 = str(folder if here == folder else folder / inside), None
        raise


def _is_plain(path: Path) -> bool:
    return path.is_file() or not path.exists()


def keep(path: Path, content: str | bytes) -> None:
    """Write a file as :func:`write` does, for a result that took long: it is not lost if that fails.

    Raises
    ------
    ConfigError
        It can't be written; the message says where the content is instead.
    """
    try:
        write(path, content)
    except OSError as error:
        raise ConfigError(f"{described(error)}{rescued(path.name, content)}") from error


def rescued(name: str, content: str | bytes) -> str:
    """Write a file where there is a place for it, and return how a message goes on that says where.

    Parameters
    ----------
    name
        The file's name; a long one is replaced.
    content
        Its content.
    """

    def fill(folder: Path) -> Path:
        path = folder / (name if len(os.fsencode(name)) <= MAX_NAME else "result")
        write(path, content)
        return path

    return elsewhere(fill)


def elsewhere(fill: Callable[[Path], Path], what: str = "the result") -> str:
    """Write a result where there is a place for it, and return how a message goes on that says where.

    The folder for temporary files, the working directory and the home are tried.

    Parameters
    ----------
    fill
        Writes the result to an empty folder, and returns the path that the message should name.
    what
        The name of the result.
    """
    places: tuple[Callable[[], Path], ...] = (lambda: Path(tempfile.gettempdir()), Path.cwd, Path.home)
    why = ""
    for find in places:
        folder: Path | None = None
        try:
            folder = Path(tempfile.mkdtemp(prefix="fl-node-", dir=find()))
            return f"; {what} is in {fill(folder)}"
        except (OSError, RuntimeError) as error:
            why = reason(error) if isinstance(error, OSError) else str(error)
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
    return f"; {what} is lost: it can't be written to the temporary, current or home folder either ({why})"


def copy_folder(source: Path, target: Path) -> None:
    """Copy what is in a folder into another, where what is there stays; without what belongs to a running process.

    Raises
    ------
    OSError
        Something can't be read or written; the error has a path.
    """

    def fail(error: OSError) -> None:
        raise error

    for name, _, files in os.walk(source, onerror=fail):
        here = target / Path(name).relative_to(source)
        here.mkdir(parents=True, exist_ok=True)
        for file in files:
            if file not in _PROCESS and not (here / file).exists():
                copy(Path(name) / file, here / file)


def copy(source: Path, target: Path) -> None:
    """Copy the content of a file; a device without an end is not read.

    Raises
    ------
    OSError
        The file can't be read or written; the error has a path.
    FileExistsError
        It is not a regular file.
    """
    if not stat.S_ISREG(source.stat().st_mode):
        raise FileExistsError(errno.EEXIST, NO_FILE, str(source))
    with named(target):
        shutil.copyfile(source, target)


@contextlib.contextmanager
def output_file(path: Path, what: str, *, regular: bool = False) -> Iterator[None]:
    """Make the folder of a file that a command writes at its end.

    After an error neither it is left nor the folders above it, where they are new and empty.

    Parameters
    ----------
    path
        The file.
    what
        How an error message begins.
    regular
        Whether the file can't be a device or a pipe.

    Raises
    ------
    ConfigError
        The file can't be written.
    """
    target = path.resolve()
    with _new_folders(target.parent):
        _check_file(path, target, what, regular=regular)
        yield


def _check_file(path: Path, target: Path, what: str, *, regular: bool) -> None:
    """Check that a file can be written later, and make its folder.

    Raises
    ------
    ConfigError
        It can't; the message begins with ``what``.
    """
    try:
        if target.is_dir():
            raise ConfigError(f"{what} {path}: should be a file, not a folder")
        if target.exists() and not target.is_file():
            if regular:
                raise ConfigError(f"{what} {path}: {NO_FILE}")
            if not os.access(target, os.W_OK):
                raise ConfigError(f"{what} {path}: no write permission")
            return
        check_folder(target.parent, f"{what} {path}: folder")
        if not target.exists():
            # Not the name itself, which somebody else may use meanwhile, but one of its length.
            name = f".{os.getpid()}.{secrets.token_hex(4)}".ljust(len(os.fsencode(target.name)), "x")
            target.with_name(name).touch(exist_ok=False)
            target.with_name(name).unlink()
    except OSError as error:
        raise ConfigError(f"{what} {path}: {reason(error)}") from error


def check_folder(path: Path, what: str) -> None:
    """Make a folder if it is not there, and check that files can be written to it.

    Raises
    ------
    ConfigError
        They can't; the message begins with ``what``.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(_PROBE)
            file.flush()
    except FileExistsError as error:
        raise ConfigError(f"{what} {path}: {NO_FOLDER}") from error
    except OSError as error:
        raise ConfigError(f"{what} {path}: {reason(error)}") from error


@contextlib.contextmanager
def output_folder(path: Path, what: str) -> Iterator[None]:
    """Make a folder for what a command writes at its end.

    After an error neither it is left nor the folders above it, where they are new and empty.

    Raises
    ------
    ConfigError
        Files can't be written to it; the message begins with ``what``.
    """
    with _new_folders(path):
        check_folder(path, what)
        yield


@contextlib.contextmanager
def _new_folders(path: Path) -> Iterator[None]:
    """After an error, remove a folder and those above it that were not there before, where they are empty."""
    new = list(itertools.takewhile(lambda folder: not os.path.lexists(folder), (path, *path.parents)))
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in new:
                folder.rmdir()
        raise


def described(error: OSError) -> str:
    """Return the path of an error, if it has one, and what the system says of it."""
    why = reason(error)
    if error.filename is None and isinstance(error, FileNotFoundError) and not _has_working_folder():
        return "the working directory does not exist any more; change to another (cd)"
    return why if error.filename is None else f"{error.filename}: {why}"


def _has_working_folder() -> bool:
    try:
        Path.cwd()
    except OSError:
        return False
    return True


def read_small(path: Path) -> bytes:
    """Return the content of a file that people write by hand; a device without an end is not read to its end.

    Raises
    ------
    OSError
        It can't be read, or has more than :data:`SMALL` bytes.
    """
    with path.open("rb") as file, named(path):
        content = file.read(SMALL + 1)
    if len(content) > SMALL:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return content


def create_private(path: Path, text: str) -> bool:
    """Create a file that only its owner may read, whole or not at all, whatever the umask is.

    Parameters
    ----------
    path
        The file; its folder is made if it is not there.
    text
        Its content, in ASCII.

    Returns
    -------
    bool
        Whether it was created; False if somebody else has created it in the meantime, whose file stays.

    Raises
    ------
    OSError
        It can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=".", suffix=".partial", dir=path.parent)  # short, whatever the name
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file, named(path):
            os.fchmod(handle, 0o600)
            file.write(text)
            file.flush()
            os.fsync(handle)
        try:
            os.link(partial, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            if os.path.lexists(path):
                return False
            Path(partial).rename(path)
        return True
    finally:
        Path(partial).unlink(missing_ok=True)


def private_text(path: Path, name: str, content: str) -> str:
    """Return the text of a file that only its owner may read.

    Parameters
    ----------
    path
        The file, in ASCII.
    name
        What it is, for error messages.
    content
        What it should hold, for error messages.

    Raises
    ------
    ConfigError
        The file is missing, is a device or is no text, or others may read it.
    """
    try:
        kind = path.stat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind) or stat.S_ISDIR(kind)):
            raise ConfigError(f"{name} {path}: should be a file that holds {content}")
        mode = stat.S_IMODE(kind)
        text = read_small(path).decode("ascii").strip()
    except OSError as error:
        raise ConfigError(f"{name} {path}: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} {path} should hold {content}") from error
    if mode & 0o077:
        raise ConfigError(f"{name} {path} has mode {mode:04o}; others may read it: chmod 600 {path}")
    return text


def reason(error: OSError) -> str:
    """Return what the system says of an error, without number and path."""
    return error.strerror or str(error) or type(error).__name__
