"""Unpack a bundle that has the wanted digest, and check that its Geth and IPFS are the pinned ones.

The digest is checked before anything else is read. A folder that is unpacked already is kept if it has exactly the
files of the bundle.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from fl_node.errors import BinaryError, FLNodeError
from fl_node.nodes import binaries

SUMS = "SHA256SUMS"
PINS = "bin/pins.json"
FOLDERS = ("bin", "controller", "image", "mnist", "packages", "python", "wheels")
OWN = "package"
"""What the controller builds there from its own source at each use; it is not of the bundle."""
MAX_SUMS = 10**7


def main() -> None:
    """Print nothing if all is well, else one line that says what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--sha256", required=True, help="the archive's digest, as `make bundle` printed it")
    parser.add_argument("--folder", type=Path, required=True, help="where it is unpacked")
    options = parser.parse_args()
    try:
        with options.archive.open("rb") as file:
            check_digest(file, options.sha256)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                members = regular_files(archive)
                sums = listed(archive, members)
                if not holds(options.folder, sums):
                    unpack(archive, members, sums, options.folder)
        check_pins(options.folder)
    except (OSError, tarfile.TarError, ValueError, FLNodeError) as error:
        sys.exit(str(error))


def check_digest(file: BufferedReader, wanted: str) -> None:
    """Refuse an archive that is not the one whose digest was given."""
    found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted.lower():
        raise ValueError(
            f"its SHA-256 is {found}, and testbed_bundle_sha256 is {wanted}: it is damaged or another one"
        )
    file.seek(0)


def regular_files(archive: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """Return the members by name; all must be plain files in the folders of a bundle."""
    members: dict[str, tarfile.TarInfo] = {}
    for member in archive:
        name = PurePosixPath(member.name)
        inside = member.name == SUMS or (len(name.parts) > 1 and name.parts[0] in FOLDERS)
        if not inside or str(name) != member.name or ".." in name.parts or not member.name.isprintable():
            raise ValueError(f"{member.name!r} in it is not a name that a bundle has")
        if not member.isreg() or member.issparse():
            raise ValueError(f"{member.name} in it is not a plain file")
        if member.name in members:
            raise ValueError(f"{member.name} is in it twice")
        members[member.name] = member
    return members


def listed(archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo]) -> dict[str, str]:
    """Return the digest of each member, from the list inside."""
    if SUMS not in members or members[SUMS].size > MAX_SUMS:
        raise ValueError(f"it has no {SUMS}: `make bundle` did not write it")
    sums = {}
    for line in _read(archive, members[SUMS]).read().decode().splitlines():
        found = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
        if found is None:
            raise ValueError(f"{SUMS} in it has the line {line!r}, which is not a digest and a name")
        sums[found[2]] = found[1]
    if sums.keys() != members.keys() - {SUMS}:
        raise ValueError(f"{SUMS} in it does not list exactly its files")
    return sums


def holds(folder: Path, sums: dict[str, str]) -> bool:
    """Whether a folder has these files, unchanged, and no others."""
    found = {str(path.relative_to(folder)): path for path in _files(folder)}
    found.pop(SUMS, None)
    return found.keys() == sums.keys() and all(
        not path.is_symlink() and path.is_file() and binaries.digest(path) == sums[name]
        for name, path in found.items()
    )


def _files(folder: Path) -> Iterator[Path]:
    """Yield all that is not a folder, but for what the controller made itself."""
    for place, folders, files in os.walk(folder):
        if Path(place) == folder and OWN in folders:
            folders.remove(OWN)
        yield from (Path(place, name) for name in files)
        yield from (Path(place, name) for name in folders if Path(place, name).is_symlink())


def unpack(archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], sums: dict[str, str], folder: Path) -> None:
    """Write the files, whole or not at all; the folder's old content goes when the new one is whole."""
    if folder.exists() and any(folder.iterdir()) and not (folder / SUMS).is_file():
        raise ValueError(
            f"{folder} is there, and no unpacked bundle: move it, or name another folder by testbed_cache"
        )
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        new = Path(scratch, "new")
        for name, member in members.items():
            target = new / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with _read(archive, member) as source, target.open("xb") as file:
                shutil.copyfileobj(source, file)
            target.chmod(0o755 if name.startswith("bin/") and name != PINS else 0o644)
            if name != SUMS and binaries.digest(target) != sums[name]:
                raise ValueError(f"{name} in it does not have the digest of its {SUMS}")
        if folder.exists():
            folder.rename(Path(scratch, "old"))
        new.rename(folder)


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> BinaryIO:
    file = archive.extractfile(member)
    if file is None:
        raise ValueError(f"{member.name} in it is not a plain file")
    return file  # type: ignore[return-value]


def check_pins(folder: Path) -> None:
    """Refuse programs that were made from other pins than this checkout's."""
    try:
        pins = json.loads((folder / PINS).read_text())
    except FileNotFoundError:
        raise ValueError(
            f"it has no {PINS}, so it is older than the pins of this checkout: make a new bundle"
        ) from None
    for machine in sorted(path.name for path in (folder / "bin").iterdir() if path.is_dir()):
        for binary in (binaries.pin("geth"), binaries.pin("kubo")):
            path = (folder / "bin" / machine / binary.command).absolute()
            if not path.is_file():
                raise ValueError(f"it has no bin/{machine}/{binary.command}")
            made = pins.get(machine, {}).get(binary.command) if isinstance(pins, dict) else None
            if made != binary.file_name:
                raise ValueError(
                    f"its {binary.title} for {machine} is {made or 'unknown'}, and this checkout pins "
                    f"{binary.file_name}: make a new bundle"
                )
            if machine == f"linux-{_architecture()}" and sys.platform == "linux":
                os.environ[binary.path_variable] = str(path)
                try:
                    binaries.find(binary, cache=Path(folder, "none"))
                except BinaryError as error:
                    raise ValueError(
                        f"its {binary.title} for {machine} is not {binary.title} {binary.full_version}"
                    ) from error


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


if __name__ == "__main__":
    main()
