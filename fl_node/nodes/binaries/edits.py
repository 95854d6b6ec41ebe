"""Edits of a pinned module's source, each named after the advisory that it answers.

An edit finds its place by a line of the original, so that no code of the original is kept here. Each file has to have
the pinned SHA-256 before its edits and after them: the edits apply to one release and give one result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_node.errors import BinaryError


@dataclass(frozen=True)
class Edit:
    """Text that goes into a file.

    Parameters
    ----------
    advisory
        The advisory that it answers, such as ``CVE-2026-22862``; empty for what only supports the others.
    anchor
        The one line of the file, without the space around it, that shows the place.
    text
        The new lines.
    place
        ``before`` or ``after`` the anchor, or ``instead`` of it.
    """

    advisory: str
    anchor: str
    text: str
    place: str = "after"


@dataclass(frozen=True)
class EditedFile:
    """One file of a module and the edits of it.

    Parameters
    ----------
    path
        Where it is in the module.
    before, after
        Its SHA-256 without and with the edits, in hexadecimal.
    edits
        What is done to it, in order.
    """

    path: str
    before: str
    after: str
    edits: tuple[Edit, ...]


def advisories(files: Sequence[EditedFile]) -> tuple[str, ...]:
    """Return the names of the advisories that the edits answer, sorted, each once."""
    return tuple(sorted({edit.advisory for file in files for edit in file.edits if edit.advisory}))


def fingerprint(version: str, files: Sequence[EditedFile]) -> str:
    """Return a short name for a version and the result of all edits; another edit gives another one."""
    lines = [version, *(f"{file.path} {file.after}" for file in files)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


def apply(files: Sequence[EditedFile], folder: Path) -> None:
    """Edit the files of a module in `folder`.

    Raises
    ------
    BinaryError
        A file is not the pinned one, before its edits or after them, or has no such anchor. What was edited until
        then stays edited, so the folder is of no use.
    """
    for file in files:
        path = folder / file.path
        try:
            content = path.read_bytes()
        except OSError as error:
            raise BinaryError(f"{file.path} can't be edited: {error.strerror}") from error
        _check(file, content, file.before, "before its edits")
        text = content.decode()
        for edit in file.edits:
            text = _edited(file, edit, text)
        content = text.encode()
        _check(file, content, file.after, "after its edits")
        path.chmod(0o644)
        path.write_bytes(content)


def _edited(file: EditedFile, edit: Edit, text: str) -> str:
    lines = text.splitlines(keepends=True)
    places = [number for number, line in enumerate(lines) if line.strip() == edit.anchor]
    if len(places) != 1:
        raise BinaryError(f"{file.path} has {len(places)} lines {edit.anchor!r}, should be 1")
    (place,) = places
    start = place + 1 if edit.place == "after" else place
    end = place if edit.place == "before" else place + 1
    return "".join([*lines[:start], edit.text, *lines[end:]])


def _check(file: EditedFile, content: bytes, wanted: str, when: str) -> None:
    if (digest := hashlib.sha256(content).hexdigest()) != wanted:
        raise BinaryError(f"{file.path} has SHA-256 {digest} {when}, should be {wanted}")


# Geth

_SHORT_CIPHERTEXT = Edit(
    "CVE-2026-22862",
    anchor="func symDecrypt(params *ECIESParams, key, ct []byte) (m []byte, err error) {",
    # The initial vector comes first. Without a whole one, slicing the ciphertext would end the process.
    text="""\
	if len(ct) < params.BlockSize {
		return nil, ErrInvalidMessage
	}
""",
)

_POINT_OFF_CURVE = Edit(
    "CVE-2026-26315",
    anchor="if skLen+macLen > MaxSharedKeyLength(pub) {",
    # A product with a point of a weaker curve tells bits of the private key.
    text="""\
	if pub.X == nil || pub.Y == nil || !pub.Curve.IsOnCurve(pub.X, pub.Y) {
		return nil, ErrInvalidPublicKey
	}
""",
    place="before",
)

#: Most RLP items in one message of a peer. A node sends responses of at most 2 MB, which have fewer. Decoded, so many
#: take some 30 MB.
MAX_ITEMS = 2**19

_COUNT_ITEMS = Edit(
    "CVE-2026-26313",
    anchor="func (msg Msg) String() string {",
    # Decoded, an empty list of one byte takes 24 bytes of memory and more. So the items are counted first: a list's
    # header is stepped over, so that the loop meets what is in it, and all else is skipped. What isn't RLP ends the
    # count; decoding refuses it.
    text=f"""\
func (msg Msg) Bounded() (Msg, error) {{
	data, err := io.ReadAll(msg.Payload)
	if err != nil {{
		return msg, err
	}}
	msg.Payload = bytes.NewReader(data)
	for items := 0; len(data) > 0; items++ {{
		if items == {MAX_ITEMS} {{
			return msg, newPeerError(errInvalidMsg, "(code %x) (size %d) too many items", msg.Code, msg.Size)
		}}
		kind, content, rest, err := rlp.Split(data)
		if err != nil {{
			break
		}}
		if kind == rlp.List {{
			data = data[len(data)-len(rest)-len(content):]
		}} else {{
			data = rest
		}}
	}}
	return msg, nil
}}

""",
    place="before",
)

_BOUND_MESSAGE = Edit(
    "CVE-2026-26313",
    anchor="defer msg.Discard()",
    text="""\
	if msg, err = msg.Bounded(); err != nil {
		return err
	}
""",
    place="before",
)

_GETH_FIXES = (
    EditedFile(
        "crypto/ecies/ecies.go",
        before="772399e85b24e007f8f5695ea510e36fb71843c36cc087ad50db6d31decac98f",
        after="9532d2df11520cc9d5f54902338aa5d8b212e98e4381d3557a55bbad4fb59e38",
        edits=(_SHORT_CIPHERTEXT, _POINT_OFF_CURVE),
    ),
    EditedFile(
        "p2p/message.go",
        before="9ed3661b0aa04ae025f40bf140bcd7373029ea3903476d27b8f9c4ab9ca94a4e",
        after="afa48288e17112abc076d96046d89355a5af161973f79c54b9682ae9c3effb92",
        edits=(_COUNT_ITEMS,),
    ),
    EditedFile(
        "eth/protocols/eth/handler.go",
        before="a1d2f6438563717a76fdc9060f87f07b5e1c3bbf8a0d7fe5e1d27b9f57637fb0",
        after="9b045395ef0ef2dd7486da6bdae478806cbcea88bf3570a60e43f6fd5e0f99e0",
        edits=(_BOUND_MESSAGE,),
    ),
    EditedFile(
        "eth/protocols/snap/handler.go",
        before="8010d3be88a623c24dfb47b70f3916093c168eea4f3f44cd7aa4f4516f572f8f",
        after="8828da07072c9dff6e57a5479489d3a9b052b8eade1b4544dc9cf4a4806b902e",
        edits=(_BOUND_MESSAGE,),
    ),
)

#: What a build of Geth adds to its version, as build metadata of semantic versioning.
GETH_META = "stable+fixed." + ".".join(advisories(_GETH_FIXES))

GETH_EDITS = (
    *_GETH_FIXES,
    EditedFile(
        "params/version.go",
        before="145dc51bf2c4dd4ce04e85830375537e941d65bb4819b744df9cc07702418ded",
        after="c26db717ac80422386631c72a6ae370c92ee34f2695758d16477f4a708c64d2a",
        edits=(
            Edit(
                "",
                anchor='VersionMeta  = "stable" // Version metadata to append to the version string',
                text=f'\tVersionMeta  = "{GETH_META}"\n',
                place="instead",
            ),
        ),
    ),
)
