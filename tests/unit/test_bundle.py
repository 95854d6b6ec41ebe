"""A bundle is used only with its digest, and what it could smuggle in is refused."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile

import pytest

from fl_node.nodes.binaries import GETH, KUBO
from tests.helpers.checkout import ROOT, load

SCRIPT = ROOT / "ansible" / "files" / "unpack_bundle.py"
module = load("ansible/files/unpack_bundle.py")

FOREIGN = "linux-arm64" if module._architecture() != "arm64" else "linux-amd64"
OWN = f"linux-{module._architecture()}"


def content(machine=FOREIGN, geth=GETH.file_name):
    return {
        f"bin/{machine}/geth": b"geth",
        f"bin/{machine}/ipfs": b"ipfs",
        "bin/pins.json": json.dumps({machine: {"geth": geth, "ipfs": KUBO.file_name}}).encode(),
        "packages/nftables_1.0%3a2.deb": b"a package",
        "image/image.tar": b"an image",
    }


def pack(path, files, *, sums=None, more=()):
    """Write an archive; `more` are members that no `make bundle` writes."""
    lines = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in (sums or files).items())
    with tarfile.open(path, "w") as tar:
        for name, data in {**files, "SHA256SUMS": lines.encode()}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info in more:
            tar.addfile(info)
    return path


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unpack(path, sha256=None, folder=None):
    """Return what is wrong, or None."""
    sys.argv = ["unpack_bundle.py", f"--archive={path}", f"--sha256={sha256 or digest(path)}"]
    sys.argv.append(f"--folder={folder or path.with_suffix('')}")
    try:
        module.main()
    except SystemExit as error:
        return str(error)
    return None


@pytest.fixture
def archive(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    for binary in (GETH, KUBO):
        monkeypatch.delenv(binary.path_variable, raising=False)
    return pack(tmp_path / "lab.tar", content())


def test_a_bundle_with_its_digest_is_unpacked_once(archive):
    assert unpack(archive) is None
    folder = archive.with_suffix("")
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        *content(),
        "SHA256SUMS",
    }
    assert (folder / "bin" / FOREIGN / "geth").stat().st_mode & 0o777 == 0o755
    before = folder.stat().st_ino
    (folder / "package").mkdir()
    assert unpack(archive, digest(archive).upper()) is None
    assert folder.stat().st_ino == before


def test_another_digest_is_refused_before_anything_is_written(archive):
    assert "its SHA-256 is" in unpack(archive, "0" * 64)
    assert not archive.with_suffix("").exists()


def test_an_archive_that_is_swapped_for_another_is_refused(archive):
    known = digest(archive)
    pack(archive, content() | {"packages/worse.deb": b"another package"})
    assert "its SHA-256 is" in unpack(archive, known)


def special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "member",
    [
        special("../outside", tarfile.REGTYPE),
        special("/etc/outside", tarfile.REGTYPE),
        special("bin/../../outside", tarfile.REGTYPE),
        special("bin/./x", tarfile.REGTYPE),
        special("elsewhere/x", tarfile.REGTYPE),
        special("loose", tarfile.REGTYPE),
        special("bin/a\nb", tarfile.REGTYPE),
        special("bin/link", tarfile.SYMTYPE, "/etc/passwd"),
        special("bin/link", tarfile.LNKTYPE, "bin/pins.json"),
        special("bin/device", tarfile.CHRTYPE),
        special("bin/device", tarfile.BLKTYPE),
        special("bin/pipe", tarfile.FIFOTYPE),
        special("bin/folder", tarfile.DIRTYPE),
        special("bin/pins.json", tarfile.REGTYPE),
        special("bin/unlisted", tarfile.REGTYPE),
    ],
    ids=lambda member: f"{member.name!r} {member.type!r}",
)
def test_a_member_that_no_bundle_has_is_refused_and_nothing_is_written(archive, member):
    pack(archive, content(), more=[member])
    assert unpack(archive) is not None
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]


def test_a_file_that_is_not_what_the_list_says_is_refused(archive):
    pack(archive, content(), sums=content() | {"image/image.tar": b"another image"})
    assert "image/image.tar in it does not have the digest" in unpack(archive)
    assert not archive.with_suffix("").exists()


@pytest.mark.parametrize("damage", ["changed", "added", "removed", "linked"])
def test_an_unpacked_folder_that_was_touched_is_unpacked_again(archive, damage):
    unpack(archive)
    folder = archive.with_suffix("")
    package = folder / "packages" / "nftables_1.0%3a2.deb"
    if damage == "changed":
        package.write_bytes(b"another one")
    elif damage == "added":
        (folder / "packages" / "more.deb").write_bytes(b"one more")
    else:
        package.unlink()
    if damage == "linked":
        (archive.parent / "outside").write_bytes(b"a package")
        package.symlink_to(archive.parent / "outside")
    assert unpack(archive) is None
    assert [path.name for path in (folder / "packages").iterdir()] == [package.name]
    assert package.read_bytes() == b"a package"
    assert not package.is_symlink()


def test_a_folder_that_is_no_bundle_is_never_removed(archive):
    folder = archive.with_suffix("")
    folder.mkdir()
    (folder / "thesis.tex").write_text("two years of work")
    assert "no unpacked bundle" in unpack(archive)
    assert (folder / "thesis.tex").exists()


def test_programs_of_other_pins_are_refused(archive):
    pack(archive, content(geth="geth-1.10.0"))
    assert f"is geth-1.10.0, and this checkout pins {GETH.file_name}" in unpack(archive)


def test_a_bundle_without_pins_is_refused(archive):
    pack(archive, {name: data for name, data in content().items() if name != "bin/pins.json"})
    assert "no bin/pins.json" in unpack(archive)


def test_a_program_that_says_another_version_is_refused(archive):
    script = b"#!/bin/sh\necho Version: 1.10.0-stable\n"
    pack(archive, content(OWN) | {f"bin/{OWN}/geth": script})
    assert GETH.version in unpack(archive)


@pytest.mark.parametrize("text", [b"", b"not an archive" * 1000])
def test_what_is_no_archive_is_refused(archive, text):
    archive.write_bytes(text)
    assert unpack(archive) is not None


def test_packages_that_are_not_listed_are_not_installed(tmp_path):
    script = SCRIPT.parents[2] / "roles" / "base" / "files" / "install_packages.sh"
    (tmp_path / "good.deb").write_bytes(b"changed on its way")
    (tmp_path / "more.deb").write_bytes(b"left from another time")
    (tmp_path / "SHA256SUMS").write_text(f"{hashlib.sha256(b'good').hexdigest()}  good.deb\n")
    ended = subprocess.run(["bash", script, tmp_path, "good"], capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "good.deb: FAILED" in ended.stdout
    assert not (tmp_path / "more.deb").exists()
    assert not (tmp_path / "Packages").exists()


def test_the_unpatched_geth_is_used_only_when_it_is_asked_for(archive, monkeypatch):
    pack(archive, content(geth="geth-1.13.15"))
    assert f"this checkout pins {GETH.file_name}" in unpack(archive)
    monkeypatch.setenv("FL_NODE_GETH_UNPATCHED", "1")
    assert unpack(archive) is None
