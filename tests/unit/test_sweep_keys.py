"""Keys and certificates for a sweep on several machines."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from pathlib import Path

import pytest

from fl_node.errors import ConfigError
from fl_node.experiments import sweep_keys

MACHINES = ("127.0.0.1", "header", "learner-1")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    sweep_keys.create(folder, MACHINES, 1)
    return folder


def context(folder: Path, side: int) -> ssl.SSLContext:
    made = ssl.SSLContext(side)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    made.load_verify_locations(folder / sweep_keys.AUTHORITY)
    made.load_cert_chain(folder / sweep_keys.CERTIFICATE, folder / sweep_keys.KEY)
    return made


def talk(server: ssl.SSLContext, client: ssl.SSLContext, name: str | None = None) -> bytes:
    """Return what arrives when client and server connect; an error of either is raised."""
    left, right = socket.socketpair()
    failures: list[Exception] = []

    def serve() -> None:
        try:
            with server.wrap_socket(left, server_side=True) as end:
                end.sendall(b"hello")
        except (OSError, ssl.SSLError) as error:
            failures.append(error)
            left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(right, server_hostname=name) as end:
            received = end.recv(5)
    finally:
        thread.join()
    if failures:
        raise failures[0]
    return received


def test_machines_with_keys_of_one_call_trust_each_other(keys: Path) -> None:
    for server, client in (MACHINES[:2], MACHINES[1:]):
        assert talk(context(keys / server, ssl.PROTOCOL_TLS_SERVER), context(keys / client, ssl.PROTOCOL_TLS_CLIENT))


def test_a_certificate_names_its_machine(keys: Path) -> None:
    client = context(keys / "header", ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = True
    assert talk(context(keys / "127.0.0.1", ssl.PROTOCOL_TLS_SERVER), client, "127.0.0.1") == b"hello"
    with pytest.raises(ssl.SSLCertVerificationError):
        talk(context(keys / "learner-1", ssl.PROTOCOL_TLS_SERVER), client, "127.0.0.1")


def test_keys_of_another_call_are_refused(keys: Path, tmp_path: Path) -> None:
    sweep_keys.create(tmp_path, ["header"], 1)
    with pytest.raises(OSError):  # either side may notice first
        talk(context(keys / "header", ssl.PROTOCOL_TLS_SERVER), context(tmp_path / "header", ssl.PROTOCOL_TLS_CLIENT))


def test_only_the_owner_can_read_what_is_written_and_no_key_of_the_authority_is_kept(keys: Path) -> None:
    files = [path for path in keys.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"ca.pem", "cert.pem", "key.pem"}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in keys.iterdir()} == {0o700}
    private = [path for path in files if b"PRIVATE" in path.read_bytes()]
    assert len(private) == len(MACHINES)
    assert len({path.read_bytes() for path in private}) == len(MACHINES)
    assert len({path.read_bytes() for path in files if path.name == "ca.pem"}) == 1


@pytest.mark.parametrize("names", [["../x"], [""], ["a b"], ["a", "a"], ["a" * 64], ["-x"], ["a/b"], ["é"]])
def test_names_that_are_no_machines_are_refused_before_anything_is_written(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(ConfigError):
        sweep_keys.create(tmp_path / "keys", names, 1)
    assert not (tmp_path / "keys").exists()


def test_keys_that_exist_are_not_overwritten(keys: Path) -> None:
    before = (keys / "header" / "key.pem").read_bytes()
    with pytest.raises(ConfigError, match="header exists"):
        sweep_keys.create(keys, ["new", "header"], 1)
    assert (keys / "header" / "key.pem").read_bytes() == before
    assert not (keys / "new").exists()


def test_keys_that_are_missing_or_open_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        sweep_keys.check(tmp_path / "nowhere")
    sweep_keys.create(tmp_path, ["header"], 1)
    assert sweep_keys.check(tmp_path / "header").key == tmp_path / "header" / "key.pem"
    (tmp_path / "header" / "key.pem").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        sweep_keys.check(tmp_path / "header")
    (tmp_path / "header" / "cert.pem").unlink()
    with pytest.raises(ConfigError, match=r"cert\.pem"):
        sweep_keys.check(tmp_path / "header")


@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem"])
@pytest.mark.parametrize("damage", ["empty", "garbage", "of another call"])
def test_keys_that_are_damaged_or_mixed_are_named(tmp_path: Path, name: str, damage: str) -> None:
    for call in ("first", "second"):
        sweep_keys.create(tmp_path / call, ["header"], 1)
    folder = tmp_path / "first" / "header"
    another = (tmp_path / "second" / "header" / name).read_text()
    (folder / name).write_text({"empty": "", "garbage": "garbage"}.get(damage, another))
    with pytest.raises(ConfigError, match=r"first/header.*fl-node sweep-keys"):
        sweep_keys.check(folder)


def test_keys_that_have_expired_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_keys, "BEFORE", datetime.timedelta(days=3))
    sweep_keys.create(tmp_path, ["header"], -1)
    with pytest.raises(ConfigError, match="expired"):
        sweep_keys.check(tmp_path / "header")
