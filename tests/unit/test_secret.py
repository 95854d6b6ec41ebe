"""The secret of a host, and the keys that follow from it."""

from __future__ import annotations

import hashlib
import hmac
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fl_node.errors import ConfigError
from fl_node.privacy import secret
from fl_node.privacy.secret import HostSecret, load_or_create

CONTRACT = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"


def test_a_new_secret_is_its_owners_alone_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "new" / "host.secret"
    first = load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(first.content) == 32
    assert load_or_create(path) == first
    assert [*path.parent.iterdir()] == [path]
    assert first.content.hex() not in repr(first)


def test_two_hosts_have_different_secrets(tmp_path: Path) -> None:
    assert load_or_create(tmp_path / "a").content != load_or_create(tmp_path / "b").content


def test_roles_that_start_at_once_have_one_secret(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        contents = set(pool.map(lambda _: load_or_create(tmp_path / "host.secret").content, range(8)))
    assert len(contents) == 1


def test_a_secret_that_others_may_read_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "host.secret"
    load_or_create(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match=f"has mode 0640; others may read it: chmod 600 {path}"):
        load_or_create(path)


@pytest.mark.parametrize("content", [b"", b"ab" * 31, b"ab" * 33, b"xy" * 32, b"\xff" * 64])
def test_a_file_that_holds_no_secret_is_named_and_its_content_is_not(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "host.secret"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        load_or_create(path)
    assert str(caught.value) == f"host secret {path} should hold 64 hexadecimal digits"


def test_a_secret_that_cannot_be_made_or_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"^host secret {tmp_path}/file/host.secret: "):
        load_or_create(tmp_path / "file" / "host.secret")
    with pytest.raises(ConfigError, match=f"^host secret {tmp_path}/host.secret: "):
        secret.load(tmp_path / "host.secret")


def test_each_run_round_and_purpose_has_a_key_of_its_own() -> None:
    host = HostSecret(bytes(range(32)))
    keys = {
        host.derive(CONTRACT, 1, "noise"),
        host.derive(CONTRACT, 2, "noise"),
        host.derive(CONTRACT, 1, "sampling"),
        host.derive(CONTRACT.replace("5", "6"), 1, "noise"),
        HostSecret(bytes(32)).derive(CONTRACT, 1, "noise"),
    }
    assert len(keys) == 5
    assert host.derive(CONTRACT, 1, "noise") == host.derive(CONTRACT.lower(), 1, "noise")
    assert len(host.derive(CONTRACT, 1, "noise", length=44)) == 44


def test_a_key_follows_by_hkdf_as_it_always_did() -> None:
    # By RFC 5869 with Python's own HMAC, step by step.
    content = bytes(range(32))
    extracted = hmac.digest(bytes(32), content, hashlib.sha256)
    expected = hmac.digest(extracted, f"fl-node/{CONTRACT.lower()}/3/noise".encode() + b"\x01", hashlib.sha256)
    assert HostSecret(content).derive(CONTRACT, 3, "noise") == expected
