"""Files that are written whole or not at all, with the path in every error; and results that are never lost."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from fl_node.errors import ConfigError

_PROCESS = {"LOCK", "FLOCK", "diskUsage.cache"}
"""Locks and caches that a database has while it is open."""
KEY_DIGITS = "64 hexadecimal digits"
"""What a file with a key of 32 bytes holds."""
NO_FOLDER = "it exists and is not a folder"
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
    with named(path):
        if target.exists() and not target.is_file():
            target.write_bytes(data)
            return
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            partial.write_bytes(data)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


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

    The folder for temporary files, the working directory and the home are tried.
    """
    places: tuple[Callable[[], Path], ...] = (lambda: Path(tempfile.gettempdir()), Path.cwd, Path.home)
    for find in places:
        try:
            path = Path(tempfile.mkdtemp(prefix="fl-node-", dir=find())) / name
            write(path, content)
        except (OSError, RuntimeError):
            continue
        return f"; the result is in {path}"
    return "; the result is lost: no writable folder among the temporary, current and home folders"


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
                with named(here / file):
                    shutil.copyfile(Path(name) / file, here / file)


def check(path: Path, what: str) -> None:
    """Check that a file can be written later, and make its folder.

    Raises
    ------
    ConfigError
        It can't; the message begins with ``what``.
    """
    target = path.resolve()
    if target.is_dir():
        raise ConfigError(f"{what} {path}: should be a file, not a folder")
    if target.exists() and not target.is_file():
        if not os.access(target, os.W_OK):
            raise ConfigError(f"{what} {path}: no write permission")
        return
    check_folder(target.parent, f"{what} {path}: folder")


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
    new = list(itertools.takewhile(lambda folder: not folder.exists(), (path, *path.parents)))
    try:
        check_folder(path, what)
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
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
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
