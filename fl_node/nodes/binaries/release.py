"""The official release of a program, from its URLs or a mirror, checked against its digest before it is unpacked."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import requests
import urllib3

from fl_node.nodes.binaries.pins import Binary, Report, SkippedError

#: No release tarball and no binary in one is larger, in bytes.
MAX_BYTES = 256 * 10**6
#: Seconds to connect, seconds without a byte, and seconds for a whole download.
CONNECT_TIMEOUT, READ_TIMEOUT, DOWNLOAD_TIMEOUT = 10.0, 60.0, 1800.0
_CHUNK = 2**16
_PROGRESS_BYTES = 10 * 10**6


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def fetch(binary: Binary, machine: str, scratch: Path, say: Report) -> Path:
    """Download the release and return the program in it.

    Parameters
    ----------
    binary
        The pin of the program.
    machine
        System and architecture to download for, such as ``linux-arm64``.
    scratch
        A folder for the archive and the program.
    say
        Called with one line of progress at a time.

    Raises
    ------
    SkippedError
        No source has a release with the pinned digest; the message says why.
    """
    digest = os.environ.get(binary.digest_variable, "").strip().lower() or binary.digests.get(machine)
    if digest is None:
        raise SkippedError(
            f"no pinned digest for the release for {machine}, building from source "
            f"(set {binary.digest_variable} to give a digest)"
        )
    reasons = []
    for source in _sources(binary, machine):
        tarball = scratch / "release.tar.gz"
        try:
            _fetch(source, tarball, binary, digest, say)
            return _unpack(tarball, binary.member.format(platform=machine), scratch / "release")
        except SkippedError as reason:
            reasons.append(str(reason))
        finally:
            tarball.unlink(missing_ok=True)
    raise SkippedError(f"no release: {', '.join(reasons)}")


def _sources(binary: Binary, machine: str) -> list[str]:
    urls = [url.format(platform=machine) for url in binary.urls]
    mirror = os.environ.get("FL_NODE_BINARIES_MIRROR")
    if not mirror:
        return urls
    names = dict.fromkeys(url.rsplit("/", 1)[1] for url in urls)
    return [f"{mirror.rstrip('/')}/{name}" for name in names]


def _fetch(source: str, target: Path, binary: Binary, digest: str, say: Report) -> None:
    """Download a release into `target`, bounded in size and time, and check its digest.

    Raises
    ------
    SkippedError
        The download fails, exceeds a bound, or does not have `digest`.
    """
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
                    raise SkippedError(f"{name} is larger than {_megabytes(MAX_BYTES)}")
                if time.monotonic() - started > DOWNLOAD_TIMEOUT:
                    raise SkippedError(f"{name} took more than {DOWNLOAD_TIMEOUT:.0f} s")
                hasher.update(chunk)
                out.write(chunk)
                if done - shown >= _PROGRESS_BYTES:
                    shown = done
                    say(f"{binary}: {_megabytes(done)}" + (f" of {_megabytes(total)}" if total else ""))
    except (OSError, urllib3.exceptions.HTTPError) as error:
        raise SkippedError(f"{name}: {_short(error)}") from error
    if hasher.hexdigest() != digest:
        raise SkippedError(f"{name} rejected: its {binary.algorithm} is {hasher.hexdigest()}, should be {digest}")


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
            return "its certificate is not trusted (set REQUESTS_CA_BUNDLE to your site's CA)"
        case requests.exceptions.ProxyError():
            return "the proxy rejected the request"
        case requests.Timeout() | urllib3.exceptions.TimeoutError():
            return "timed out"
        case requests.ConnectionError():
            return "can't be reached"
        case OSError(strerror=str(text)):
            return text
    return str(error)


def _unpack(tarball: Path, member: str, target: Path) -> Path:
    """Extract the program from a release archive.

    Raises
    ------
    SkippedError
        The archive is damaged or does not contain the program.
    """
    try:
        with tarfile.open(tarball, "r:gz") as archive:
            info = archive.getmember(member)
            program = archive.extractfile(info) if info.isfile() and info.size <= MAX_BYTES else None
            if program is None:
                raise SkippedError(f"{member} in the release is not a regular file")
            with program, target.open("wb") as out:
                shutil.copyfileobj(program, out, _CHUNK)
    except KeyError:
        raise SkippedError(f"the release has no {member}") from None
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise SkippedError(f"the release can't be unpacked: {error}") from error
    target.chmod(0o755)
    return target
