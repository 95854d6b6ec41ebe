"""The pinned versions of Geth and Kubo, their digests, and how they are built."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fl_node.errors import BinaryError
from fl_node.nodes.binaries.edits import GETH_EDITS, GETH_META, EditedFile, advisories, fingerprint

Report = Callable[[str], None]

#: Systems and architectures that binaries can be had for.
PLATFORMS = ("linux-amd64", "linux-arm64", "darwin-amd64", "darwin-arm64")

_MODULES = Path(__file__).parents[2] / "gomod"


class SkippedError(Exception):
    """A step that didn't give the binary; its text says why."""


@dataclass(frozen=True)
class Binary:
    """One program, pinned.

    Parameters
    ----------
    name
        What the program is called here and in file names of the cache.
    title
        What people call it.
    version
        The one version that is used, of the module and in file names.
    full_version
        What the program says that it is; for a patched build this names what was fixed.
    command
        File name in a release and on ``PATH``.
    version_args
        Arguments that make the program say its version.
    version_prefix
        What stands before the version, on a line of its own.
    commit
        The source it is from: if it names a ``Git Commit``, then one that starts so.
    path_variable, digest_variable
        Environment variables that name a binary, and a digest of the release.
    urls
        Where the official release is, each with ``{platform}`` as in ``linux-amd64``; none if it is always built.
    member
        The program inside the release, also with ``{platform}``.
    algorithm
        Of the digests, as ``hashlib`` names it.
    digests
        Of the releases, by platform; one that isn't here is unpinned and not used.
    module
        Folder with the pinned Go module.
    repository
        The Go module that is pinned there.
    command_package
        The Go package in it that is the program.
    ldflags
        For Go's linker.
    go
        The oldest Go that can build it.
    edits
        Edits of the module's source before it is built.
    fixed
        Advisories that the edits answer, or the versions of other modules in ``go.mod``.

    """

    name: str
    title: str
    version: str
    full_version: str
    command: str
    version_args: tuple[str, ...]
    version_prefix: str
    commit: str
    path_variable: str
    digest_variable: str
    urls: tuple[str, ...]
    member: str
    algorithm: str
    digests: Mapping[str, str] = field(hash=False)
    module: Path
    repository: str
    command_package: str
    ldflags: str
    go: tuple[int, int]
    edits: tuple[EditedFile, ...] = ()
    fixed: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.title} {self.version}"

    @property
    def package(self) -> str:
        """The Go package that is the program."""
        return f"{self.repository}/{self.command_package}"

    @property
    def file_name(self) -> str:
        """Name of the file in the cache; each set of fixes has its own."""
        name = f"{self.command}-{self.version}"
        return f"{name}-fixed-{fingerprint(self.full_version, self.edits)}" if self.fixed else name

    @property
    def unpatched_variable(self) -> str:
        """The environment variable that asks for the release without fixes, if it is 1."""
        return f"FL_NODE_{self.name.upper()}_UNPATCHED"


#: The last Geth that seals Clique blocks (release of commit c5ba367e), as it was published. Nobody fixes it any more.
#: The arm64 release has no digest that could be confirmed, so there it is built.
GETH_UNPATCHED = Binary(
    name="geth",
    title="Unpatched Geth",
    version="1.13.15",
    full_version="1.13.15-stable",
    command="geth",
    version_args=("version",),
    version_prefix="Version: ",
    commit="c5ba367e",
    path_variable="FL_NODE_GETH",
    digest_variable="FL_NODE_GETH_SHA256",
    urls=("https://gethstore.blob.core.windows.net/builds/geth-{platform}-1.13.15-c5ba367e.tar.gz",),
    member="geth-{platform}-1.13.15-c5ba367e/geth",
    algorithm="sha256",
    digests={"linux-amd64": "cd0aa1e73bad4c2dcbaa225675a11556281d10e2bc25b8b1bd669da0670e33c2"},
    module=_MODULES / "geth",
    repository="github.com/ethereum/go-ethereum",
    command_package="cmd/geth",
    # Geth's memsize reaches into the runtime, which Go refuses from 1.23 on unless told not to.
    ldflags="-checklinkname=0 -s -w",
    go=(1, 23),
)

#: The Geth of every testbed: the same source with the fixes of ``edits.py``, so it is always built.
GETH = replace(
    GETH_UNPATCHED,
    title="Geth",
    full_version=f"1.13.15-{GETH_META}",
    urls=(),
    digests={},
    edits=GETH_EDITS,
    fixed=advisories(GETH_EDITS),
)

#: A current Geth, which has no Clique. No testbed runs it; tests run a lab on the chain of its developer mode.
GETH_CURRENT = Binary(
    name="geth-current",
    title="Current Geth",
    version="1.17.10",
    full_version="1.17.10-stable",
    command="geth",
    version_args=("version",),
    version_prefix="Version: ",
    commit="",
    path_variable="FL_NODE_GETH_CURRENT",
    digest_variable="",
    urls=(),
    member="",
    algorithm="",
    digests={},
    module=_MODULES / "geth-current",
    repository="github.com/ethereum/go-ethereum",
    command_package="cmd/geth",
    ldflags="-s -w",
    go=(1, 25),
)

#: Kubo as it was published: a member's file of 2 MB stops it.
KUBO_UNPATCHED = Binary(
    name="kubo",
    title="Unpatched Kubo",
    version="0.40.1",
    full_version="0.40.1",
    command="ipfs",
    version_args=("version", "--number"),
    version_prefix="",
    commit="39f8a655",
    path_variable="FL_NODE_IPFS",
    digest_variable="FL_NODE_KUBO_SHA512",
    urls=(
        "https://dist.ipfs.tech/kubo/v0.40.1/kubo_v0.40.1_{platform}.tar.gz",
        "https://github.com/ipfs/kubo/releases/download/v0.40.1/kubo_v0.40.1_{platform}.tar.gz",
    ),
    member="kubo/ipfs",
    algorithm="sha512",
    digests={
        "linux-amd64": "86f9c07bca62d09839e53553df0f81bc306364b1467a459d52f3e4505cc948d1"
        "96ed0c219c03c667cd681e057bb24bbfc0e0eebf4b83bc64a36a0e9923a60e05",
        "linux-arm64": "07a52fb63c37ac687ad41bc949f60e16856387d5d33ecf452771b5d992fa4fe2"
        "e659f383d267de69cd9755aa5751847aab66247b5cdeeaad7a06b780ece51cb7",
        "darwin-amd64": "b8becb9d8782a968e4489a60f62bfc2a1fb5638df01488051c2255e2ebc14a9f"
        "1666097ba1ceb50f8fe8ca8efc642726bca093f81195d327dd46c1444c0f39ad",
        "darwin-arm64": "13b6d5dc04e661bfde6b8ba469bcf5b19d9d0062fe8ed50c7aadd8a078f500d0"
        "bceee4be7c9bfa476b48c4eb84c246ba083605ed1ed24d16b98e6cd0f09140bb",
    },
    module=_MODULES / "kubo",
    repository="github.com/ipfs/kubo",
    command_package="cmd/ipfs",
    ldflags="-s -w",
    go=(1, 25),
)


#: The Kubo of every testbed: go.mod takes a newer go-ipld-prime, which bounds how deep a block nests. Kubo's version
#: stays as it is, for programs that ask the API; its "commit" names the fix.
KUBO = replace(
    KUBO_UNPATCHED,
    title="Kubo",
    full_version="0.40.1-fixed.CVE-2026-42328",
    version_args=("version", "--number", "--commit"),
    urls=(),
    digests={},
    ldflags="-s -w -X github.com/ipfs/kubo.CurrentCommit=fixed.CVE-2026-42328",
    fixed=("CVE-2026-42328",),
)

_UNPATCHED = {"geth": GETH_UNPATCHED, "kubo": KUBO_UNPATCHED}


def unpatched(binary: Binary) -> Binary:
    """Return the pin of the release without the fixes."""
    return _UNPATCHED[binary.name]


def pin(name: str | Binary) -> Binary:
    """Return the pin of ``geth``, ``kubo`` or ``ipfs``; the one without fixes if the user asks for that.

    Raises
    ------
    BinaryError
        There is no such program, or the variable that asks for the release is neither yes nor no.
    """
    binary = {"geth": GETH, "kubo": KUBO, "ipfs": KUBO}.get(name) if isinstance(name, str) else name
    if binary is None:
        raise BinaryError(f"unknown binary {name!r}; should be geth, kubo or ipfs")
    value = os.environ.get(binary.unpatched_variable, "").strip()
    if value not in ("", "0", "1"):
        raise BinaryError(f"{binary.unpatched_variable}={value}: should be 1 for the release without fixes, or 0")
    return unpatched(binary) if value == "1" and binary in (GETH, KUBO) else binary
