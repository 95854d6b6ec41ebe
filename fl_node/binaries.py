"""Geth and Kubo: which versions a testbed runs, where they come from, and how they are verified.

A binary is taken from the first of these that has it:

1. one that is installed already, of exactly the pinned version: ``FL_NODE_GETH`` or ``FL_NODE_IPFS``, then
   the cache, then, unless it is for hosts, ``PATH``: what is there may want a newer C library than theirs;
2. the official release, or the same file on a mirror, checked against the digest below before it is unpacked;
3. the pinned Go module in ``fl_node/gomod``, whose every source file is checked against its ``go.sum``.

========================================================== ===============================================
``FL_NODE_GETH``, ``FL_NODE_IPFS``                         a binary to use, if it has the right version
``FL_NODE_CACHE``                                          the cache folder; binaries are in its ``bin``
``FL_NODE_BINARIES_MIRROR``                                a URL or folder that holds the release tarballs
``FL_NODE_GETH_SHA256``, ``FL_NODE_KUBO_SHA512``           the release's digest, instead of the pinned one
``HTTPS_PROXY``, ``REQUESTS_CA_BUNDLE``, ``SSL_CERT_FILE`` a site's proxy and certificate authority
========================================================== ===============================================
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import platformdirs
import requests
import urllib3

from fl_node.errors import BinaryError

Report = Callable[[str], None]

#: Systems and architectures that binaries can be had for.
PLATFORMS = ("linux-amd64", "linux-arm64", "darwin-amd64", "darwin-arm64")
#: No release tarball and no binary in one is larger, in bytes.
MAX_BYTES = 256 * 10**6
#: Seconds to connect, seconds without a byte, and seconds for a whole download.
CONNECT_TIMEOUT, READ_TIMEOUT, DOWNLOAD_TIMEOUT = 10.0, 60.0, 1800.0
#: Seconds that a binary has to say its version, and Go to build one.
VERSION_TIMEOUT, BUILD_TIMEOUT = 60.0, 3600.0
_CHUNK = 2**16
_PROGRESS_BYTES = 10 * 10**6


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
        The one version that is used.
    command
        File name in a release and on ``PATH``.
    version_args
        Arguments that make the program say its version.
    version_pattern
        What it then says, on a line of its own.
    commit
        The source it is from: if it names a ``Git Commit``, then one that starts so.
    path_variable, digest_variable
        Environment variables that name a binary, and a digest of the release.
    urls
        Where the official release is, each with ``{platform}`` as in ``linux-amd64``.
    member
        The program inside the release, also with ``{platform}``.
    algorithm
        Of the digests, as ``hashlib`` names it.
    digests
        Of the releases, by platform; one that isn't here is unpinned and not used.
    module
        Folder with the pinned Go module.
    package
        The Go package that is the program.
    ldflags
        For Go's linker.
    go
        The oldest Go that can build it.

    """

    name: str
    title: str
    version: str
    command: str
    version_args: tuple[str, ...]
    version_pattern: str
    commit: str
    path_variable: str
    digest_variable: str
    urls: tuple[str, ...]
    member: str
    algorithm: str
    digests: Mapping[str, str] = field(hash=False)
    module: Path
    package: str
    ldflags: str
    go: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.title} {self.version}"

    @property
    def file_name(self) -> str:
        """Name of the file in the cache."""
        return f"{self.command}-{self.version}"


_MODULES = Path(__file__).parent / "gomod"

#: The last Geth that seals Clique blocks (release of commit c5ba367e). The arm64 release has no digest that
#: could be confirmed, so there Geth is built.
GETH = Binary(
    name="geth",
    title="Geth",
    version="1.13.15",
    command="geth",
    version_args=("version",),
    version_pattern=r"Version: 1\.13\.15-stable",
    commit="c5ba367e",
    path_variable="FL_NODE_GETH",
    digest_variable="FL_NODE_GETH_SHA256",
    urls=("https://gethstore.blob.core.windows.net/builds/geth-{platform}-1.13.15-c5ba367e.tar.gz",),
    member="geth-{platform}-1.13.15-c5ba367e/geth",
    algorithm="sha256",
    digests={"linux-amd64": "cd0aa1e73bad4c2dcbaa225675a11556281d10e2bc25b8b1bd669da0670e33c2"},
    module=_MODULES / "geth",
    package="github.com/ethereum/go-ethereum/cmd/geth",
    # Geth's memsize reaches into the runtime, which Go refuses from 1.23 on unless told not to.
    ldflags="-checklinkname=0 -s -w",
    go=(1, 23),
)

KUBO = Binary(
    name="kubo",
    title="Kubo",
    version="0.40.1",
    command="ipfs",
    version_args=("version", "--number"),
    version_pattern=r"0\.40\.1",
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
    package="github.com/ipfs/kubo/cmd/ipfs",
    ldflags="-s -w",
    go=(1, 25),
)

#: All that a testbed needs. Kubo's program is called ``ipfs``, so it answers to that name too.
BINARIES: Mapping[str, Binary] = {"geth": GETH, "kubo": KUBO, "ipfs": KUBO}


class _SkippedError(Exception):
    """A step that didn't give the binary; its text says why."""


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


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

    """
    try:
        return _installed(_pin(name), cache or cache_folder())
    except _SkippedError:
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
        No way led to it; the message says which were tried and what can be done.

    """
    binary, cache = _pin(name), cache or cache_folder()
    say: Report = report or (lambda _line: None)
    on_path = machine is None
    machine = machine or _platform()
    foreign = machine != _platform()
    if machine not in PLATFORMS:
        raise BinaryError(f"platform {machine}: should be one of {', '.join(PLATFORMS)}")
    folder = cache / "bin" / machine if foreign else cache / "bin"
    reasons: list[str] = []

    try:
        return _kept(folder / binary.file_name) if foreign else _installed(binary, cache, on_path=on_path)
    except _SkippedError as reason:
        reasons.append(str(reason))
        say(f"{binary}: {reason}")

    try:
        folder.mkdir(parents=True, exist_ok=True)
        # On the cache's own file system, so that the last step is one atomic rename.
        with tempfile.TemporaryDirectory(prefix=f".{binary.file_name}-", dir=folder) as scratch:
            for step in (_release, _build):
                try:
                    made = step(binary, machine, Path(scratch), say)
                    if not foreign:
                        _check_version(binary, made)
                except _SkippedError as reason:
                    reasons.append(str(reason))
                    say(f"{binary}: {reason}")
                    continue
                target = (folder / binary.file_name).absolute()
                if foreign:
                    _digest_file(target).write_text(digest(made) + "\n")
                made.replace(target)
                say(f"{binary}: installed as {target}")
                return target
    except OSError as error:
        raise BinaryError(
            f"{binary}: can't write to {folder}: {error.strerror}; name another cache by FL_NODE_CACHE"
        ) from error
    raise BinaryError(
        f"{binary} could not be installed ({'; '.join(reasons)}). Install Go {_dotted(binary.go)} or newer, "
        f"set FL_NODE_BINARIES_MIRROR to where the release can be had, "
        f"or {binary.path_variable} to a {binary.command} {binary.version}"
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
            copies[name] = folder / BINARIES[name].command
            if copies[name].is_file() and digest(copies[name]) == digest(path):
                continue
            partial = folder / f".{copies[name].name}.{os.getpid()}.partial"
            shutil.copyfile(path, partial)
            partial.chmod(0o755)
            partial.replace(copies[name])
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
    """Return a binary for another machine that is in the cache, as it was put there."""
    try:
        if _digest_file(path).read_text().strip() == digest(path):
            return path.absolute()
    except OSError:
        pass
    raise _SkippedError(f"not in the cache ({path})")


def _pin(name: str | Binary) -> Binary:
    if isinstance(name, Binary):
        return name
    try:
        return BINARIES[name]
    except KeyError:
        raise BinaryError(f"no binary is called {name!r}; there are {', '.join(BINARIES)}") from None


# Step 1: what is there already


def _installed(binary: Binary, cache: Path, *, on_path: bool = True) -> Path:
    named = os.environ.get(binary.path_variable)
    cached = cache / "bin" / binary.file_name
    candidates = [
        (binary.path_variable, Path(named).expanduser() if named else None),
        (str(cached), cached if os.access(cached, os.F_OK) else None),
    ]
    if on_path:
        found = shutil.which(binary.command)
        candidates.append((f"{binary.command} on PATH", Path(found) if found else None))
    reasons = []
    for where, path in candidates:
        if path is None:
            reasons.append(f"no {where}")
            continue
        try:
            _check_version(binary, path)
        except _SkippedError as reason:
            reasons.append(f"{where}: {reason}")
            continue
        return path.absolute()
    raise _SkippedError(f"not installed: {', '.join(reasons)}")


def _check_version(binary: Binary, path: Path) -> None:
    """Run `path` and see that it is the pinned version."""
    try:
        output = _run_new([str(path.absolute()), *binary.version_args], VERSION_TIMEOUT)
    except OSError as error:
        raise _SkippedError(f"{path} can't be run here: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise _SkippedError(f"{path} did not say its version in {VERSION_TIMEOUT:.0f} s") from error
    lines = [line.strip() for line in (output.stdout + output.stderr).splitlines() if line.strip()]
    if output.returncode != 0:
        raise _SkippedError(f"{path} failed: {lines[-1] if lines else f'exit code {output.returncode}'}")
    if not any(re.fullmatch(binary.version_pattern, line) for line in lines):
        said = next((line for line in lines if re.search(r"\d+\.\d+\.\d+", line)), "nothing")
        raise _SkippedError(f"{path} is not {binary.version} (it says {said!r})")
    commit = next((line for line in lines if line.startswith("Git Commit: ")), None)
    if commit and not commit.startswith(f"Git Commit: {binary.commit}"):
        raise _SkippedError(f"{path} is not from commit {binary.commit} (it says {commit!r})")


def _run_new(command: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a file that was written just now.

    Another thread's child may hold it open for writing between its fork and its exec; that passes.
    """
    for _ in range(50):
        try:
            return _run(command, timeout)
        except OSError as error:
            if error.errno != errno.ETXTBSY:
                raise
            time.sleep(0.02)
    return _run(command, timeout)


def _run(
    command: list[str], timeout: float, *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env=env,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


# Step 2: the official release


def _release(binary: Binary, machine: str, scratch: Path, say: Report) -> Path:
    digest = os.environ.get(binary.digest_variable, "").strip().lower() or binary.digests.get(machine)
    if digest is None:
        raise _SkippedError(
            f"no pinned digest for the release for {machine}, building from source "
            f"({binary.digest_variable} can give one)"
        )
    reasons = []
    for source in _sources(binary, machine):
        tarball = scratch / "release.tar.gz"
        try:
            _fetch(source, tarball, binary, digest, say)
            return _unpack(tarball, binary.member.format(platform=machine), scratch / "release")
        except _SkippedError as reason:
            reasons.append(str(reason))
        finally:
            tarball.unlink(missing_ok=True)
    raise _SkippedError(f"no release: {', '.join(reasons)}")


def _platform() -> str:
    """Return system and architecture as in the releases' names: ``linux-amd64``."""
    machine = platform.machine().lower()
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
    return f"{platform.system().lower()}-{architecture}"


def _sources(binary: Binary, machine: str) -> list[str]:
    urls = [url.format(platform=machine) for url in binary.urls]
    mirror = os.environ.get("FL_NODE_BINARIES_MIRROR")
    if not mirror:
        return urls
    names = dict.fromkeys(url.rsplit("/", 1)[1] for url in urls)
    return [f"{mirror.rstrip('/')}/{name}" for name in names]


def _fetch(source: str, target: Path, binary: Binary, digest: str, say: Report) -> None:
    """Copy a release into `target`, bounded in size and time; refuse one whose digest is not `digest`."""
    name = _without_password(source)
    say(f"{binary}: fetching {name}")
    started = time.monotonic()
    hasher = hashlib.new(binary.algorithm)
    done = shown = 0
    try:
        with _open(source) as (stream, total), target.open("wb") as out:
            while chunk := stream.read(_CHUNK):
                done += len(chunk)
                if max(done, total) > MAX_BYTES:
                    raise _SkippedError(f"{name} is larger than {_megabytes(MAX_BYTES)}")
                if time.monotonic() - started > DOWNLOAD_TIMEOUT:
                    raise _SkippedError(f"{name} took more than {DOWNLOAD_TIMEOUT:.0f} s")
                hasher.update(chunk)
                out.write(chunk)
                if done - shown >= _PROGRESS_BYTES:
                    shown = done
                    say(f"{binary}: {_megabytes(done)}" + (f" of {_megabytes(total)}" if total else ""))
    except (OSError, urllib3.exceptions.HTTPError) as error:
        raise _SkippedError(f"{name}: {_short(error)}") from error
    if hasher.hexdigest() != digest:
        raise _SkippedError(f"{name} refused, its {binary.algorithm} is {hasher.hexdigest()} and not {digest}")


@contextmanager
def _open(source: str) -> Iterator[tuple[_Readable, int]]:
    """Open a URL or a file; give it with its size in bytes (0 if the server doesn't say)."""
    if urlsplit(source).scheme not in ("http", "https"):
        path = Path(source.removeprefix("file://")).expanduser()
        with path.open("rb") as file:
            yield file, path.stat().st_size
        return
    # requests knows the first two by itself; the third is what the rest of a system goes by.
    bundles = (os.environ.get(name) for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"))
    with requests.get(
        source,
        stream=True,
        timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
        verify=next((bundle for bundle in bundles if bundle), True),
        # Else a server may call the tarball an encoding of the tar, and what comes out has another digest.
        headers={"Accept-Encoding": "identity", "User-Agent": "fl-node"},
    ) as response:
        response.raise_for_status()
        yield response.raw, int(response.headers.get("Content-Length", 0))


def _without_password(source: str) -> str:
    return re.sub(r"(?<=://)[^/@]*@", "", source)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB"


def _short(error: Exception) -> str:
    """Say in a few words what went wrong; the texts of requests fill a screen."""
    match error:
        case requests.HTTPError():
            return f"HTTP {error.response.status_code}" if error.response is not None else str(error)
        case requests.exceptions.SSLError():
            return "its certificate is not trusted (a site's own CA can be named by REQUESTS_CA_BUNDLE)"
        case requests.exceptions.ProxyError():
            return "the proxy did not let it through"
        case requests.Timeout() | urllib3.exceptions.TimeoutError():
            return "timed out"
        case requests.ConnectionError():
            return "can't be reached"
        case OSError(strerror=str(text)):
            return text
    return str(error)


def _unpack(tarball: Path, member: str, target: Path) -> Path:
    """Take the one program out of a release."""
    try:
        with tarfile.open(tarball, "r:gz") as archive:
            info = archive.getmember(member)
            program = archive.extractfile(info) if info.isfile() and info.size <= MAX_BYTES else None
            if program is None:
                raise _SkippedError(f"{member} in the release is not a program")
            with program, target.open("wb") as out:
                shutil.copyfileobj(program, out, _CHUNK)
    except KeyError:
        raise _SkippedError(f"the release holds no {member}") from None
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise _SkippedError(f"the release can't be unpacked: {error}") from error
    target.chmod(0o755)
    return target


# Step 3: the pinned Go module


def _build(binary: Binary, machine: str, scratch: Path, say: Report) -> Path:
    """Build the program from the module that ``go.sum`` pins, without cgo: it then runs with any libc."""
    needed = f"{_dotted(binary.go)} or newer"
    env = {name: value for name, value in os.environ.items() if name not in ("GOOS", "GOARCH")}
    env |= {"CGO_ENABLED": "0", "GOWORK": "off"}
    if machine != _platform():
        env["GOOS"], env["GOARCH"] = machine.split("-")
    go = shutil.which("go")
    if go is None:
        raise _SkippedError(f"not built: Go is not installed (Go {needed} is needed)")
    try:
        # Asked in the module's folder, a Go that may fetch newer toolchains answers with the one it will use.
        version = _run([go, "env", "GOVERSION"], BUILD_TIMEOUT, cwd=binary.module, env=env)
        found = re.match(r"go(\d+)\.(\d+)", version.stdout)
        if found is None:
            raise _SkippedError(f"not built: Go {needed} is needed ({_last_line(version.stderr)})")
        if (int(found[1]), int(found[2])) < binary.go:
            raise _SkippedError(f"not built: Go is too old ({version.stdout.strip()}; Go {needed} is needed)")
        say(f"{binary}: building from source with {version.stdout.strip()}; this takes some minutes")
        started = time.monotonic()
        target = scratch / "built"
        command = [go, "build", "-mod=readonly", "-trimpath", "-buildvcs=false", f"-ldflags={binary.ldflags}"]
        build = _run([*command, "-o", str(target), binary.package], BUILD_TIMEOUT, cwd=binary.module, env=env)
    except OSError as error:
        raise _SkippedError(f"not built: {go} can't be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise _SkippedError(f"not built: Go was not done after {BUILD_TIMEOUT:.0f} s") from error
    if build.returncode != 0:
        raise _SkippedError(f"not built: {_last_line(build.stderr)}")
    if machine != _platform():
        _check_build(binary, machine, go, target)
    say(f"{binary}: built in {time.monotonic() - started:.0f} s")
    return target


def _check_build(binary: Binary, machine: str, go: str, path: Path) -> None:
    """See by what Go wrote into a program, which can't be run here, that it is the pinned version for `machine`."""
    module = binary.package.partition("/cmd/")[0]
    system, architecture = machine.split("-")
    told = _run([go, "version", "-m", str(path)], VERSION_TIMEOUT)
    lines = [line.split()[:3] for line in told.stdout.splitlines()]
    wanted = [["mod", module, f"v{binary.version}"], ["build", f"GOOS={system}"], ["build", f"GOARCH={architecture}"]]
    if not all(line in lines for line in wanted):
        raise _SkippedError(f"not built: what Go made is not from {module} v{binary.version} for {machine}")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "Go said nothing"


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
