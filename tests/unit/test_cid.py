"""CIDs computed here are those that IPFS gives; the known ones come from
``ipfs add --only-hash --chunker=size-1048576`` (Kubo 0.40.1)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_node.artifacts import cid
from fl_node.artifacts.cid import CHUNK_BYTES, LINKS_PER_NODE, CidError
from fl_node.errors import FLNodeError

EMPTY = "QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH"
HELLO = "QmT78zSuBmuS4z925WZfrqQ1qHaJ56DQaTfyMUF7F8ff5o"
FULL_NODE = LINKS_PER_NODE * CHUNK_BYTES
KUBO = {
    0: EMPTY,
    1: "QmQGb6CHE3S7BK7gJCBNNnDAALk8pXokXH8Krhy77nsEma",
    CHUNK_BYTES - 1: "QmVCzNE2vBokWvpZ8G3EgvewPtdK4MiD4W9GPJeYdY6R5w",
    CHUNK_BYTES: "QmStg3AKNsEE7Jych1vUqhcgtvQeeqtxMYhQY7k8dY6eRj",
    CHUNK_BYTES + 1: "QmaJvEobc92F53EaSfbVdpAH6eo1FZqvDDP6euDnKup7fm",
    2 * CHUNK_BYTES: "QmdafMkMrRQgu7jz6NT4iBpBbU84c1UHmsjeqY8itbfZUr",
    FULL_NODE: "QmcyLR8VHPMYTxi38VkSkc6mPCQ2xQaYXQXPEVMs8fn75s",
    FULL_NODE + 1: "QmW7vXSkvBrmqae3kEuDeSKf9fAcpZrttXSU1NUj6SmAhV",
}
"""By size, of as many bytes of :func:`text`."""


def text(size: int) -> bytes:
    line = b"federated learning\n"
    return (line * (size // len(line) + 1))[:size]


def test_a_well_known_file_has_its_well_known_cid() -> None:
    assert cid.of_bytes(b"") == EMPTY
    assert cid.of_bytes(b"hello world\n") == HELLO


@pytest.mark.parametrize("size", KUBO)
def test_a_file_has_the_cid_that_kubo_gives_it(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(text(size))
    assert cid.of_file(path) == KUBO[size]
    assert cid.of_bytes(text(size)) == KUBO[size]


@pytest.mark.parametrize("size", [0, 1, 113, 114, 127, 128, 16_370, 16_384, CHUNK_BYTES])
def test_a_small_file_is_one_block_around_its_content(size: int) -> None:
    content = text(size)
    before, after = cid._framed(size)
    block = before + content + after
    assert cid.from_digest(hashlib.sha256(block).digest()) == cid.of_bytes(content)
    found = cid.content_of_leaf(block)
    assert found is not None
    assert found == content


@pytest.fixture(scope="module")
def small_nodes() -> object:
    """Chunks and nodes so small that a few bytes make a tree of several levels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cid, "CHUNK_BYTES", 4)
        patch.setattr(cid, "LINKS_PER_NODE", 3)
        yield


@given(content=st.binary(max_size=200))
def test_a_file_and_its_bytes_have_the_same_cid_whatever_the_depth_of_the_tree(
    small_nodes: object, tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "content"
    path.write_bytes(content)
    assert cid.of_file(path) == cid.of_bytes(content)


@given(content=st.binary(min_size=1, max_size=60), data=st.data())
def test_a_changed_anotherchanges_the_cid(small_nodes: object, content: bytes, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(content) - 1))
    another = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[position]))
    changed = content[:position] + bytes([another]) + content[position + 1 :]
    assert cid.of_bytes(changed) != cid.of_bytes(content)


@given(digest=st.binary(min_size=32, max_size=32))
def test_a_digest_comes_back_from_its_cid(digest: bytes) -> None:
    name = cid.from_digest(digest)
    assert len(name) == 46
    assert name.startswith("Qm")
    assert cid.to_digest(name) == digest


@given(wrong=st.text(alphabet=cid._ALPHABET, min_size=44, max_size=44))
def test_every_cid_that_is_taken_is_the_only_text_for_its_digest(wrong: str) -> None:
    name = "Qm" + wrong
    try:
        digest = cid.to_digest(name)
    except CidError:
        return
    assert cid.from_digest(digest) == name


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "Qm",
        EMPTY[:-1],
        EMPTY + "1",
        " " + EMPTY[1:],
        EMPTY[:-1] + "0",
        EMPTY[:-1] + "l",
        EMPTY[:-1] + "é",
        EMPTY.lower(),
        "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi",
        "Qm" + "1" * 44,
        "Qm" + "z" * 44,
    ],
)
def test_what_is_no_cid_is_refused_with_its_text(wrong: str) -> None:
    with pytest.raises(CidError) as caught:
        cid.to_digest(wrong)
    assert repr(wrong) in str(caught.value)
    assert isinstance(caught.value, FLNodeError)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_digest_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(CidError, match=f"32 bytes, not {size}"):
        cid.from_digest(bytes(size))


@given(content=st.binary(max_size=200), parts=st.lists(st.integers(0, 60), max_size=8))
def test_parts_have_the_cid_of_the_whole(small_nodes: object, content: bytes, parts: list[int]) -> None:
    hasher, rest = cid.Hasher(), content
    for size in parts:
        hasher.update(rest[:size])
        rest = rest[size:]
    hasher.update(memoryview(rest))
    assert hasher.cid() == cid.of_bytes(content)


@pytest.mark.parametrize("block", [b"", b"x", b"x" * 40, cid._framed(40)[0] + b"x" * 40 + b"\x18\x29"])
def test_any_other_block_has_no_content(block: bytes) -> None:
    assert cid.content_of_leaf(block) is None
