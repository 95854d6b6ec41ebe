"""A program built from its pinned Go module, with the edits that its pin asks for."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import time
from pathlib import Path

from fl_node.errors import BinaryError, JsonError
from fl_node.nodes.binaries import edits
from fl_node.nodes.binaries.pins import Binary, Report, SkippedError
from fl_node.nodes.binaries.programs import last_line, this_machine
from fl_node.nodes.binaries.toolchain import Go, find_go
from fl_node.runtime import strict_json


def build(binary: Binary, machine: str, scratch: Path, cache: Path, say: Report) -> Path:
    """Build the program from the module that ``go.sum`` pins, without cgo, so that it runs with any libc.

    Parameters
    ----------
    binary
        The pin of the program.
    machine
        System and architecture to build for, such as ``linux-arm64``.
    scratch
        An empty folder for the build.
    cache
        Root of the cache, where Go is kept if it has to be downloaded.
    say
        Called with one line of progress at a time.

    Raises
    ------
    SkippedError
        The build is not possible; the message says why.
    """
    env = {name: value for name, value in os.environ.items() if name not in ("GOOS", "GOARCH")}
    temporary = scratch.absolute() / "tmp"
    temporary.mkdir(exist_ok=True)
    # What an interrupted build leaves goes with the folder.
    env |= {"CGO_ENABLED": "0", "GOWORK": "off", "GOTMPDIR": str(temporary)}
    if machine != this_machine():
        env["GOOS"], env["GOARCH"] = machine.split("-")
    try:
        go = find_go(binary, cache, env, say)
        fixes = f" with the fixes of {', '.join(binary.fixed)}" if binary.fixed else ""
        say(f"{binary}: building from source{fixes} with {go.version}; this takes some minutes")
        started = time.monotonic()
        module = _edited_module(binary, go, scratch) if binary.edits else binary.module
        target = scratch / "built"
        flags = ["-mod=readonly", "-trimpath", "-buildvcs=false", f"-ldflags={binary.ldflags}"]
        ended = go.run(["build", *flags, "-o", str(target), binary.package], cwd=module)
        if ended.returncode != 0:
            raise SkippedError(last_line(ended.stderr, "no output from Go"))
        if machine != this_machine():
            _check_build(binary, machine, go, target)
    except (SkippedError, BinaryError) as error:
        raise SkippedError(f"not built: {error}") from error
    say(f"{binary}: built in {time.monotonic() - started:.0f} s")
    return target


def _edited_module(binary: Binary, go: Go, scratch: Path) -> Path:
    """Return a copy of the pinned module that builds an edited copy of the source.

    Go's own way, ``go build -overlay``, is refused for files in its module cache.

    Raises
    ------
    SkippedError
        Go can't download the module, or its source is not what ``go.sum`` pins.
    """
    wanted = f"{binary.repository}@v{binary.version}"
    told = go.run(["mod", "download", "-json", wanted], cwd=binary.module)
    try:
        answer = strict_json.loads(told.stdout or "{}")
    except JsonError as error:
        raise SkippedError(f"go mod download did not answer in JSON: {last_line(told.stdout, '')}") from error
    if told.returncode != 0 or not answer.get("Dir"):
        raise SkippedError(last_line(answer.get("Error") or told.stderr, f"Go did not download {wanted}"))
    _copy_verified(binary, Path(answer["Dir"]), scratch / "source")
    edits.apply(binary.edits, scratch / "source")
    module = scratch / "module"
    shutil.copytree(binary.module, module)
    with (module / "go.mod").open("a") as file:
        file.write(f"\nreplace {binary.repository} => ../source\n")
    return module


def _copy_verified(binary: Binary, source: Path, target: Path) -> None:
    """Copy a module's source, and verify the copy against the digest in ``go.sum`` (Go's ``h1``).

    Go verifies a module when it downloads it and never again, so a later change in its cache goes unnoticed.

    Raises
    ------
    SkippedError
        The copy does not have the pinned digest.
    """
    wanted = f"{binary.repository} v{binary.version} h1:"
    sums = (binary.module / "go.sum").read_text().splitlines()
    pinned = [line.removeprefix(wanted) for line in sums if line.startswith(wanted)]
    lines = []
    for path in source.rglob("*"):
        if path.is_file():
            name, content = path.relative_to(source).as_posix(), path.read_bytes()
            copy = target / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
            lines.append((f"{binary.repository}@v{binary.version}/{name}", hashlib.sha256(content).hexdigest()))
    listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(lines))
    if pinned != [base64.b64encode(hashlib.sha256(listing.encode()).digest()).decode()]:
        raise SkippedError(f"{source} does not match go.sum; run go clean -modcache and retry")


def _check_build(binary: Binary, machine: str, go: Go, path: Path) -> None:
    """Check from Go's build information that a program is the pinned version for `machine`, where it can't be run.

    Raises
    ------
    SkippedError
        It is another version, or for another machine.
    """
    system, architecture = machine.split("-")
    told = go.run(["version", "-m", str(path)], cwd=path.parent)
    lines = [line.split()[:3] for line in told.stdout.splitlines()]
    wanted = [
        ["mod", binary.repository, f"v{binary.version}"],
        ["build", f"GOOS={system}"],
        ["build", f"GOARCH={architecture}"],
    ]
    # Fixes show in the version alone, which is text in the program.
    meta = binary.full_version.removeprefix(binary.version).encode()
    if not all(line in lines for line in wanted) or (binary.fixed and meta not in path.read_bytes()):
        raise SkippedError(f"the built program is not from {binary.repository} v{binary.version} for {machine}")
