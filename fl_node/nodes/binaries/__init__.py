"""Geth and Kubo: which versions a testbed runs, where they come from, and how they are verified.

A binary is taken from the first of these that has it:

1. one that is installed already, of exactly the pinned version: ``FL_NODE_GETH`` or ``FL_NODE_IPFS``, then
   the cache, then, unless it is for hosts, ``PATH``: what is there may want a newer C library than theirs;
2. the official release, or the same file on a mirror, checked against its digest before it is unpacked;
3. the pinned Go module in ``fl_node/gomod``, whose every source file is checked against its ``go.sum``.

One packet stops Geth's release of the pinned version, one file stops Kubo's. So both are built, Geth with the small
edits of ``edits.py``, Kubo with a newer module, and their versions name the advisories that this answers. A release
is used only if ``FL_NODE_GETH_UNPATCHED=1`` or ``FL_NODE_KUBO_UNPATCHED=1`` asks for it.

========================================================== ===============================================
``FL_NODE_GETH``, ``FL_NODE_IPFS``                         a binary to use; an error if it is not the pinned
                                                           version
``FL_NODE_GETH_UNPATCHED``, ``FL_NODE_KUBO_UNPATCHED``     1: the release, without fixes
``FL_NODE_CACHE``                                          the cache folder; binaries are in its ``bin``
``FL_NODE_BINARIES_MIRROR``                                a URL or folder that holds the release tarballs
``FL_NODE_GETH_SHA256``, ``FL_NODE_KUBO_SHA512``           the release's digest, instead of the pinned one
``GOPROXY``, ``PIP_INDEX_URL``                             a site's mirrors of Go modules and of PyPI
``HTTPS_PROXY``, ``REQUESTS_CA_BUNDLE``, ``SSL_CERT_FILE`` a site's proxy and certificate authority
========================================================== ===============================================
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import platformdirs

from fl_node.errors import BinaryError
from fl_node.nodes.binaries.build import build
from fl_node.nodes.binaries.pins import (
    GETH,
    GETH_CURRENT,
    GETH_UNPATCHED,
    KUBO,
    KUBO_UNPATCHED,
    PLATFORMS,
    Binary,
    Report,
    SkippedError,
    pin,
    unpatched,
)
from fl_node.nodes.binaries.programs import OtherVersionError, check_version, this_machine
from fl_node.nodes.binaries.release import fetch
from fl_node.runtime import scratch as temporary

__all__ = [
    "GETH",
    "GETH_CURRENT",
    "GETH_UNPATCHED",
    "KUBO",
    "KUBO_UNPATCHED",
    "PLATFORMS",
    "Binary",
    "cache_folder",
    "copy",
    "digest",
    "find",
    "install",
    "install_all",
    "pin",
]


def cache_folder() -> Path:
    """Return the cache's root: ``FL_NODE_CACHE``, else the user's cache folder for ``fl-node``."""
    root = os.environ.get("FL_NODE_CACHE")
    return Path(root).expanduser() if root else platformdirs.user_cache_path("fl-node")


def find(name: str | Binary, *, cache: Path | None = None) -> Path | None:
    """Return a binary of the pinned version that is installed already.

    Parameters
    ----------
    name
        ``geth``, ``kubo`` (or ``ipfs``), or a pin.
    cache
        Root of the cache; `cache_folder` if not given.

    Returns
    -------
    Path or None
        Its absolute path, or None if there is none.

    Raises
    ------
    BinaryError
        ``FL_NODE_GETH`` or ``FL_NODE_IPFS`` names a program that is not the pinned version with the fixes.
    """
    try:
        return _installed(pin(name), cache or cache_folder())
    except SkippedError:
        return None


def install(
    name: str | Binary, *, machine: str | None = None, cache: Path | None = None, report: Report | None = None
) -> Path:
    """Return a binary of the pinned version; fetch or build it if need be.

    Parameters
    ----------
    name
        ``geth``, ``kubo`` (or ``ipfs``), or a pin.
    machine
        System and architecture of the hosts that it is for, such as ``linux-arm64``; if not given, it is for this
        machine, and may be one on its ``PATH``.
    cache
        Root of the cache; `cache_folder` if not given.
    report
        Gets one line for each step that gives nothing, with the reason, and some about progress.

    Returns
    -------
    Path
        Absolute path of a binary that has run here and named the right version; one for another machine can't be
        run, so it is what the verified release or the pinned module gave, and still has the digest it had then.

    Raises
    ------
    BinaryError
        No way led to it, and the message says which were tried and what can be done; or ``FL_NODE_GETH`` or
        ``FL_NODE_IPFS`` names a program that is not the pinned version with the fixes.

    """
    binary, cache = pin(name), cache or cache_folder()
    say: Report = report or (lambda _line: None)
    on_path = machine is None
    machine = machine or this_machine()
    foreign = machine != this_machine()
    if machine not in PLATFORMS:
        raise BinaryError(f"platform {machine}: should be one of {', '.join(PLATFORMS)}")
    folder = cache / "bin" / machine if foreign else cache / "bin"
    reasons: list[str] = []

    try:
        return _kept(folder / binary.file_name) if foreign else _installed(binary, cache, on_path=on_path)
    except SkippedError as reason:
        reasons.append(str(reason))
        say(f"{binary}: {reason}")

    try:
        folder.mkdir(parents=True, exist_ok=True)
        # On the cache's own file system, so that the last step is one atomic rename.
        with temporary.folder(f".{binary.file_name}-", folder) as scratch:
            for released in (True, False) if binary.urls else (False,):
                try:
                    if released:
                        program = fetch(binary, machine, scratch, say)
                    else:
                        program = build(binary, machine, scratch, cache, say)
                    if not foreign:
                        check_version(binary, program)
                except SkippedError as reason:
                    reasons.append(str(reason))
                    say(f"{binary}: {reason}")
                    continue
                target = (folder / binary.file_name).absolute()
                if foreign:
                    _digest_file(target).write_text(digest(program) + "\n")
                program.replace(target)
                say(f"{binary}: installed as {target}")
                return target
    except OSError as error:
        raise BinaryError(
            f"{binary}: can't write to {folder}: {error.strerror}; set FL_NODE_CACHE to another folder"
        ) from error
    mirror = "set FL_NODE_BINARIES_MIRROR to a mirror of the release, " if binary.urls else ""
    raise BinaryError(
        f"{binary} could not be installed ({'; '.join(reasons)}). Install Go {binary.go[0]}.{binary.go[1]} or newer, "
        f"set GOPROXY and PIP_INDEX_URL to mirrors of Go modules and PyPI, "
        f"{mirror}or {binary.path_variable} to a {binary.command} {binary.full_version}"
    )


def install_all(
    report: Report | None = None, *, machine: str | None = None, cache: Path | None = None
) -> dict[str, Path]:
    """Install Geth and Kubo.

    Parameters
    ----------
    report, machine, cache
        As for `install`.

    Returns
    -------
    dict
        Path by name: ``geth``, ``kubo``.

    Raises
    ------
    BinaryError
        One of them could not be installed.

    """
    return {binary.name: install(binary, machine=machine, cache=cache, report=report) for binary in (GETH, KUBO)}


def copy(binaries: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Copy binaries to a folder as ``geth`` and ``ipfs``, whole or not at all; one that is there already is kept.

    Raises
    ------
    BinaryError
        The folder can't be written to.

    """
    copies = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in binaries.items():
            copies[name] = folder / pin(name).command
            if copies[name].is_file() and digest(copies[name]) == digest(path):
                continue
            partial = folder / f".{copies[name].name}.{os.getpid()}.partial"
            try:
                shutil.copyfile(path, partial)
                partial.chmod(0o755)
                partial.replace(copies[name])
            finally:
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise BinaryError(f"can't write to {folder}: {error.strerror}") from error
    return copies


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _kept(path: Path) -> Path:
    """Return a cached binary for another machine, if it still has its recorded digest.

    Raises
    ------
    SkippedError
        The cache does not have it, or it has changed.
    """
    try:
        if _digest_file(path).read_text().strip() == digest(path):
            return path.absolute()
    except OSError:
        pass
    raise SkippedError(f"not in the cache ({path})")


def _installed(binary: Binary, cache: Path, *, on_path: bool = True) -> Path:
    named = os.environ.get(binary.path_variable)
    cached = cache / "bin" / binary.file_name
    candidates = [
        (binary.path_variable, Path(named).expanduser() if named else None),
        (str(cached), cached if os.access(cached, os.F_OK) else None),
    ]
    if on_path:
        program = shutil.which(binary.command)
        candidates.append((f"{binary.command} on PATH", Path(program) if program else None))
    reasons = []
    for where, path in candidates:
        if path is None:
            reasons.append(f"no {where}")
            continue
        try:
            check_version(binary, path)
        except SkippedError as reason:
            # Who names a binary wants that one. The others are passed over.
            if where == binary.path_variable:
                raise _unusable(binary, path, reason) from reason
            reasons.append(f"{where}: {reason}")
            continue
        return path.absolute()
    raise SkippedError(f"not installed: {', '.join(reasons)}")


def _unusable(binary: Binary, path: Path, reason: SkippedError) -> BinaryError:
    """Return the error of a binary that the environment names and that can't be used."""
    variable = binary.path_variable
    if (
        isinstance(reason, OtherVersionError)
        and binary.fixed
        and reason.version.startswith(unpatched(binary).full_version)
    ):
        return BinaryError(
            f"{variable}={path} is {binary.title} {reason.version} without the fixes "
            f"of {', '.join(binary.fixed)}: "
            f"anyone who reaches its P2P port can stop it. Unset {variable} to build with the fixes, "
            f"or set {binary.unpatched_variable}=1 to allow it"
        )
    return BinaryError(
        f"{variable}: {reason}. Set {variable} to a {binary.command} {binary.full_version}, or unset it to have "
        "the binary installed"
    )
