"""What one learner does with its secrets in one round: masks, shares of them, and what it opens of others' shares.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017,
https://doi.org/10.1145/3133956.3133982. Each pair of neighbours has a common seed, by X25519 (RFC 7748), and each
learner a seed of its own. It shares all its seeds among its neighbours and itself, sealed for each by
ChaCha20-Poly1305 (RFC 8439), with hashes by which anybody can check a share or a seed that is opened.

Differently from the paper, what is shared for the case that a neighbour is lost is the seed of the pair, not the key:
so an opening says nothing of other rounds, nor of a round that is repeated from other global weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fl_node.privacy import shamir
from fl_node.privacy.streams import KEY_BYTES, Stream, expand

OWN = 0
"""The place of a learner's own seed among its seeds; the others stand at the nodeIds of its neighbours."""
SEED_BYTES = 31
SHARE_BYTES = 32
HASH_BYTES = 32
TAG_BYTES = 16
_NONCE = bytes(12)  # each key seals one message
_COEFFICIENT_BYTES = 48  # so many more than the field's order has that no residue is more likely

Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


@dataclass(frozen=True)
class Label:
    """The context of masks: a round, and the global weights that it starts from.

    Their file names the keys of all learners, which are made for this run alone, so no other run has its CID.
    """

    round: int
    parent: str

    def __str__(self) -> str:
        return f"{self.round}/{self.parent}"


@dataclass(frozen=True)
class RoundKey:
    """The secret key of a learner for a round."""

    content: bytes = field(repr=False)

    @property
    def _private(self) -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes(expand(self.content, "key"))

    @property
    def public(self) -> bytes:
        """The public key, 32 bytes."""
        return self._private.public_key().public_bytes_raw()

    def agreed(self, other: bytes, *purpose: str | int, length: int) -> bytes:
        """Return what this key and another's public half give for a purpose.

        Parameters
        ----------
        other
            The public half of the other's key.
        purpose
            What the result is for; each purpose has its own.
        length
            The number of bytes.

        Raises
        ------
        ValueError
            The public half is no usable point.
        """
        return expand(self._private.exchange(X25519PublicKey.from_public_bytes(other)), *purpose, length=length)

    def derive(self, *purpose: str | int, length: int) -> bytes:
        """Return what follows from this key alone for a purpose."""
        return expand(self.content, "own", *purpose, length=length)


@dataclass(frozen=True)
class Dealt:
    """What a learner publishes of its seeds.

    ``commitments`` has a hash for each seed: the learner's own, then those of its neighbours. ``hashes`` has one for
    each recipient and seed, and ``sealed`` what is sealed for each recipient. Recipients are in ascending order of
    nodeId, the learner itself among them.
    """

    commitments: Bytes
    hashes: Bytes
    sealed: Bytes


def shapes(neighbours: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what a learner with so many neighbours publishes of its seeds."""
    seeds = recipients = neighbours + 1
    return {
        "commitments": (seeds, HASH_BYTES),
        "hashes": (recipients, seeds, HASH_BYTES),
        "sealed": (recipients, seeds * SHARE_BYTES + TAG_BYTES),
    }


class Dealer:
    """A learner's seeds in one round.

    Parameters
    ----------
    key
        Its key of this round.
    label
        What the masks are for.
    node_id
        Its nodeId.
    neighbours
        The public keys of its neighbours, by nodeId.
    threshold
        How many of its recipients can open a seed.
    """

    def __init__(
        self, key: RoundKey, label: Label, node_id: int, neighbours: Mapping[int, bytes], threshold: int
    ) -> None:
        self._key = key
        self._label = str(label)
        self._node_id = node_id
        self._public = {**neighbours, node_id: key.public}
        self._neighbours = sorted(neighbours)
        self._threshold = threshold

    def seeds(self) -> dict[int, bytes]:
        """Return this learner's seeds: its own, and one shared with each neighbour."""
        own = self._key.derive("seed", self._label, length=SEED_BYTES)
        return {OWN: own} | {other: self._pair(other) for other in self._neighbours}

    def streams(self) -> list[tuple[int, Stream]]:
        """Return the masks that are added to this learner's values, each with its sign."""
        return [(sign(self._node_id, place), stream(seed)) for place, seed in self.seeds().items()]

    def deal(self) -> Dealt:
        """Share all seeds; the same key always gives the same bits."""
        seeds, recipients = self.seeds(), sorted(self._public)
        polynomials = {place: self._coefficients(place) for place in seeds}
        shares = {
            place: shamir.split(int.from_bytes(seed), polynomials[place], recipients) for place, seed in seeds.items()
        }
        hashes, sealed = [], []
        for recipient in recipients:
            mine = [shares[place][recipient].to_bytes(SHARE_BYTES) for place in seeds]
            hashes.append(
                [
                    share_hash(self._label, self._node_id, recipient, place, share)
                    for place, share in zip(seeds, mine, strict=True)
                ]
            )
            cipher = ChaCha20Poly1305(self._sealing(self._node_id, recipient, self._public[recipient]))
            sealed.append(cipher.encrypt(_NONCE, b"".join(mine), self._label.encode()))
        commitments = [commitment(self._label, self._node_id, place, seed) for place, seed in seeds.items()]
        return Dealt(_array(commitments), np.stack([_array(row) for row in hashes]), _array(sealed))

    def unseal(self, dealer: int, public: bytes, places: Sequence[int], sealed: bytes) -> dict[int, bytes]:
        """Return the shares that another learner sealed for this one, by the places of its seeds.

        Parameters
        ----------
        dealer
            The other learner.
        public
            Its public key.
        places
            The places of its seeds, in order.
        sealed
            What it sealed.

        Raises
        ------
        ValueError
            It was not sealed for this learner, or is of another length.
        """
        cipher = ChaCha20Poly1305(self._sealing(dealer, self._node_id, public))
        try:
            content = cipher.decrypt(_NONCE, sealed, self._label.encode())
        except InvalidTag as error:
            raise ValueError(f"learner {dealer} sealed no shares for learner {self._node_id}") from error
        if len(content) != SHARE_BYTES * len(places):
            raise ValueError(f"learner {dealer} sealed {len(content)} bytes, not {SHARE_BYTES * len(places)}")
        return {place: content[SHARE_BYTES * i : SHARE_BYTES * (i + 1)] for i, place in enumerate(places)}

    def _pair(self, other: int) -> bytes:
        first, second = sorted((self._node_id, other))
        return self._key.agreed(self._public[other], "pair", self._label, first, second, length=SEED_BYTES)

    def _sealing(self, dealer: int, recipient: int, public: bytes) -> bytes:
        return self._key.agreed(public, "seal", self._label, dealer, recipient, length=SHARE_BYTES)

    def _coefficients(self, place: int) -> list[int]:
        count = self._threshold - 1
        content = self._key.derive("shares", self._label, place, length=_COEFFICIENT_BYTES * max(count, 1))
        parts = [content[_COEFFICIENT_BYTES * i : _COEFFICIENT_BYTES * (i + 1)] for i in range(count)]
        return [int.from_bytes(part) % shamir.PRIME for part in parts]


def is_usable(public: bytes) -> bool:
    """Return whether a public key is usable: it is not one of the points of small order."""
    try:
        RoundKey(bytes(KEY_BYTES)).agreed(public, length=KEY_BYTES)
    except ValueError:
        return False
    return True


def opened_places(neighbours: Sequence[int], members: Collection[int]) -> list[int]:
    """Return the places of a member's seeds that are opened: its own, and those with neighbours that are not members.

    So of no learner both is opened: of a member never a seed that it has in common with another member, of anybody
    else never its own.

    Parameters
    ----------
    neighbours
        The member's neighbours.
    members
        The learners whose masked values are summed.
    """
    return [OWN, *(place for place in neighbours if place not in members)]


def sign(node_id: int, place: int) -> int:
    """Return whether a learner adds or subtracts the words of one of its seeds, so that those of a pair cancel."""
    return 1 if place == OWN or node_id < place else -1


def stream(seed: bytes) -> Stream:
    """Return the stream of random words for a seed."""
    return Stream(expand(seed, "mask"))


def commitment(label: str, node_id: int, place: int, seed: bytes) -> bytes:
    """Return the hash by which a learner commits itself to a seed.

    Parameters
    ----------
    label
        What the masks are for.
    node_id
        The learner.
    place
        The place of the seed among its seeds.
    seed
        The seed.
    """
    return hashlib.sha256(f"fl-node/commitment/{label}/{node_id}/{place}/".encode() + seed).digest()


def share_hash(label: str, dealer: int, recipient: int, place: int, share: bytes) -> bytes:
    """Return the hash by which anyone can check an opened share.

    Parameters
    ----------
    label
        What the masks are for.
    dealer, recipient
        Whose seed is shared, and whose share it is.
    place
        The place of the seed among the dealer's.
    share
        The share.
    """
    return hashlib.sha256(f"fl-node/share/{label}/{dealer}/{recipient}/{place}/".encode() + share).digest()


def recovered(shares: Mapping[int, bytes]) -> bytes | None:
    """Reconstruct a seed from as many shares as the threshold requires; None if they are inconsistent.

    Parameters
    ----------
    shares
        The shares by the nodeIds of their recipients.
    """
    seed = shamir.combine({place: int.from_bytes(share) for place, share in shares.items()})
    return seed.to_bytes(SEED_BYTES) if seed < 2 ** (8 * SEED_BYTES) else None


def _array(rows: Sequence[bytes]) -> Bytes:
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)
