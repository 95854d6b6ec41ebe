"""The address of a store: a folder, or the multiaddress of an IPFS API."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fl_node.artifacts.folder_store import FolderStore
from fl_node.artifacts.ipfs_store import IpfsStore
from fl_node.artifacts.store import Store
from fl_node.errors import ConfigError


def connect(address: str) -> Store:
    """Return the store at an address: a folder, or the multiaddress of an IPFS API.

    ``/ip4/127.0.0.1/tcp/5001`` is a multiaddress. A folder must exist. With the prefix ``file:`` it need not: adding
    the first file creates it.

    Raises
    ------
    ConfigError
        The address is neither, such as a URL, ``host:port``, or the path of a folder that does not exist.
    """  # noqa: DOC501 - see _no_store
    if address.startswith("file:"):
        return FolderStore(Path(_folder_of(address)))
    if address.startswith(_MULTIADDRESS):
        _check_multiaddress(address)
        return IpfsStore(address)
    # Folders with such names may exist: earlier versions of this program created them.
    if _URL.match(address) or _HOST_AND_PORT.match(address) or f"/{address}".startswith(_MULTIADDRESS):
        raise _no_store(address, f"is neither a folder nor a multiaddress{_suggestion(address)}")
    if not os.path.isdir(address):  # noqa: PTH112 - Path raises where a name is too long
        exists = os.path.lexists(address) if "\0" not in address else False
        raise _no_store(address, "is not a folder" if exists else "does not exist")
    return FolderStore(Path(address))


_MULTIADDRESS = ("/ip4/", "/ip6/", "/dns/", "/dns4/", "/dns6/", "/unix/")
_URL = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*:/")
_HOST_AND_PORT = re.compile(r"\s*(\[[^/]*\]|[^/:]*):[0-9]*\s*/?\s*$")


def _no_store(address: str, problem: str) -> ConfigError:
    return ConfigError(
        f"store {address!r} {problem}; should be the multiaddress of an IPFS API, such as "
        "/ip4/127.0.0.1/tcp/5001, or an existing folder (file:FOLDER creates one)"
    )


def _folder_of(address: str) -> str:
    path = address.removeprefix("file:")
    if path.startswith("//"):
        parts = urlsplit(address)
        if parts.netloc not in ("", "localhost"):
            raise _no_store(address, f"has the host {parts.netloc!r}")
        path = unquote(parts.path)
    if not path.strip() or not path.isprintable() or path != path.strip():
        raise _no_store(address, "has no folder name")
    if os.path.lexists(path) and not os.path.isdir(path):  # noqa: PTH112 - as above
        raise _no_store(address, "is not a folder")
    return path


def _check_multiaddress(address: str) -> None:
    from ipfshttpclient.exceptions import AddressError
    from ipfshttpclient.http_common import multiaddr_to_url_data

    try:
        url, *_ = multiaddr_to_url_data(address, "")
    except (AddressError, ValueError) as error:
        raise _no_store(address, "is malformed") from error
    # The parser accepts spaces around a number, digits of other scripts, and port 0.
    is_plain = address.isprintable() and address == address.strip()
    if not address.startswith("/unix/"):
        is_plain = is_plain and address.isascii() and " " not in address and urlsplit(url).port != 0
    if not is_plain:
        raise _no_store(address, "is malformed")


def _suggestion(address: str) -> str:
    """Return a question with the multiaddress for a URL or a host and port; empty if it is not clear."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return ""
    if (
        not host
        or not port
        or parts.scheme not in ("", "http", "https")
        or not re.fullmatch(r"[A-Za-z0-9.:-]+", host)
    ):
        return ""
    kind = "ip6" if ":" in host else "ip4" if re.fullmatch(r"[0-9.]+", host) else "dns"
    return f" (did you mean /{kind}/{host}/tcp/{port}{'/https' if parts.scheme == 'https' else ''}?)"
