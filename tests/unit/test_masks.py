"""Masks, shares and seals: published vectors, masks that cancel, and what an opening says and does not say."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_node.errors import ConfigError
from fl_node.privacy import dealing, graph, shamir
from fl_node.privacy.dealing import OWN, Dealer, Label, RoundKey
from fl_node.privacy.round_keys import FOLDER, RoundKeys
from fl_node.privacy.secret import HostSecret
from fl_node.privacy.streams import Stream

LABEL = Label(3, "Qm")
WORD = np.dtype("<u4")


def dealers(count: int, threshold: int, label: Label = LABEL) -> dict[int, Dealer]:
    keys = {node: RoundKey(bytes([node]) * 32) for node in range(1, count + 1)}
    return {
        node: Dealer(key, label, node, {n: k.public for n, k in keys.items() if n != node}, threshold)
        for node, key in keys.items()
    }


def test_chacha20_gives_the_stream_of_rfc_8439() -> None:
    # Appendix A.1, test vector 1: key and nonce of zeros, counter 0.
    right = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7da41597c5157488d7724e03fb8d84a37"
    stream = Stream(bytes(32))
    first, second = stream.words((2, 3), WORD), stream.words((6,), WORD)
    assert (first.tobytes() + second.tobytes()).hex() == right
    assert first.shape == (2, 3)


@pytest.mark.parametrize(
    ("scalar", "point", "right"),
    [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        ("09" + 31 * "00", "09" + 31 * "00", "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"),
    ],
)
def test_x25519_gives_the_results_of_rfc_7748(scalar: str, point: str, right: str) -> None:
    private = X25519PrivateKey.from_private_bytes(bytes.fromhex(scalar))
    assert private.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(point))).hex() == right


@given(
    secret=st.integers(0, 2**248 - 1),
    coefficients=st.lists(st.integers(0, shamir.PRIME - 1), min_size=0, max_size=6),
    places=st.sets(st.integers(1, 1000), min_size=7, max_size=9),
    seed=st.randoms(),
)
def test_as_many_shares_as_the_threshold_give_the_secret(secret, coefficients, places, seed) -> None:  # type: ignore[no-untyped-def]
    shares = shamir.split(secret, coefficients, places)
    some = dict(seed.sample(sorted(shares.items()), len(coefficients) + 1))
    assert shamir.combine(some) == secret


def test_fewer_shares_than_the_threshold_fit_any_secret() -> None:
    # With two of three shares any secret has a polynomial: nothing is said of it.
    shares = shamir.split(7, [11, 13], [1, 2, 3])
    for other in (0, 1, 2**200):
        third = shamir.combine({0 - 3: other, **{place - 3: share for place, share in list(shares.items())[:2]}})
        assert shamir.combine({**{p: shares[p] for p in (1, 2)}, 3: third}) == other


@settings(deadline=None, max_examples=20)
@given(count=st.integers(3, 6), lost=st.integers(0, 2), seed=st.integers(0, 2**32), bits=st.sampled_from([4, 8]))
def test_what_is_opened_removes_the_masks_whoever_is_lost(count: int, lost: int, seed: int, bits: int) -> None:
    threshold = count - lost if count - lost > count // 2 else count // 2 + 1
    members = list(range(1, max(count - lost, threshold) + 1))
    everyone, word = dealers(count, threshold), np.dtype(f"<u{bits}")
    values = np.random.default_rng(seed).integers(0, 2 ** (8 * bits), (count, 20), dtype=word)
    total = np.zeros(20, word)
    for node in members:
        masked = values[node - 1].copy()
        for sign, stream in everyone[node].streams():
            words = stream.words((20,), word)
            masked = masked + words if sign > 0 else masked - words
        total += masked
    for node in members:
        places = [OWN, *(n for n in everyone if n != node)]
        dealt = everyone[node].deal()
        for place in dealing.opened_places(places[1:], members):
            shares = {}
            for recipient in members[:threshold]:
                public = RoundKey(bytes([node]) * 32).public
                sealed = dealt.sealed[recipient - 1].tobytes()
                share = everyone[recipient].unseal(node, public, places, sealed)[place]
                hashed = dealing.share_hash(str(LABEL), node, recipient, place, share)
                assert dealt.hashes[recipient - 1, places.index(place)].tobytes() == hashed
                shares[recipient] = share
            seed_ = dealing.recovered(shares)
            assert seed_ == everyone[node].seeds()[place]
            right = dealing.commitment(str(LABEL), node, place, seed_)
            assert dealt.commitments[places.index(place)].tobytes() == right
            words = dealing.stream(seed_).words((20,), word)
            total = total - words if dealing.sign(node, place) > 0 else total + words
    assert total.tolist() == np.sum(values[: len(members)], axis=0, dtype=word).tolist()


@given(learners=st.sets(st.integers(1, 60), min_size=3, max_size=40), text=st.text(max_size=8), seed=st.randoms())
def test_never_both_secrets_of_a_learner_are_opened(learners: set[int], text: str, seed) -> None:  # type: ignore[no-untyped-def]
    members = set(seed.sample(sorted(learners), seed.randint(1, len(learners))))
    opened = {
        frozenset({node, place}) - {OWN} if place == OWN else frozenset({node, place})
        for node in members
        for place in dealing.opened_places(graph.neighbours(node, learners, text), members)
    }
    for node in learners:
        own = frozenset({node}) in opened
        assert own == (node in members)
        # Of a member no seed is opened that it has in common with another member: those hide its values.
        pairs = {other for other in learners - {node} if frozenset({node, other}) in opened}
        assert not (own and pairs & members)


def test_seals_open_for_their_recipient_alone_and_for_their_round_alone() -> None:
    everyone = dealers(3, 2)
    sealed, public = everyone[1].deal().sealed, RoundKey(bytes([1]) * 32).public
    places = [OWN, 2, 3]
    assert set(everyone[2].unseal(1, public, places, sealed[1].tobytes())) == set(places)
    other = dealers(3, 2, Label(4, "Qm"))
    damaged = bytes([sealed[1, 0] ^ 1]) + sealed[1].tobytes()[1:]
    for dealer, content in (
        (everyone[2], sealed[2].tobytes()),
        (other[2], sealed[1].tobytes()),
        (everyone[2], damaged),
    ):
        with pytest.raises(ValueError, match="learner 1 sealed no shares"):
            dealer.unseal(1, public, places, content)


def test_the_same_key_deals_the_same_bits_and_each_round_and_start_has_others() -> None:
    first, again = dealers(3, 2)[1].deal(), dealers(3, 2)[1].deal()
    assert all(getattr(first, name).tobytes() == getattr(again, name).tobytes() for name in dealing.shapes(2))
    labels = [Label(3, "Qm"), Label(4, "Qm"), Label(3, "Qn")]
    seeds = [seed for label in labels for seed in dealers(3, 2, label)[1].seeds().values()]
    assert len(set(seeds)) == len(seeds)


def test_a_public_key_of_small_order_is_not_usable() -> None:
    assert not any(dealing.is_usable(bytes([low]) + bytes(31)) for low in (0, 1))
    assert dealing.is_usable(RoundKey(bytes(32)).public)


@given(learners=st.sets(st.integers(1, 1000), min_size=1, max_size=60), label=st.text(max_size=5))
def test_neighbours_are_mutual_and_as_many_as_the_graph_has(learners: set[int], label: str) -> None:
    found = {node: graph.neighbours(node, learners, label) for node in learners}
    for node, others in found.items():
        assert len(set(others)) == len(others) == graph.degree(len(learners))
        assert node not in others
        assert all(node in found[other] for other in others)


def test_each_round_has_another_sparse_graph() -> None:
    graphs = [tuple(graph.neighbours(node, range(1, 33), label) for node in range(1, 33)) for label in "ab"]
    assert graphs[0] != graphs[1]
    assert [graph.degree(count) for count in (3, 16, 17, 32, 100)] == [2, 15, 16, 20, 28]


def test_a_round_key_is_its_owners_alone_and_erased_it_never_comes_again(tmp_path: Path) -> None:
    keys = RoundKeys(tmp_path, HostSecret(bytes(32)))
    first = keys.make("0xAB", 0)
    assert keys.make("0xab", 0) == keys.get("0xAB", 0) == first
    keys.make("0xab", 1)
    files = sorted((tmp_path / FOLDER).iterdir())
    assert [path.stat().st_mode & 0o777 for path in files] == [0o600, 0o600]
    assert (tmp_path / FOLDER).stat().st_mode & 0o777 == 0o700
    keys.erase("0xAB", 1)
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["0xab-1.key"]
    # From the host's secret alone the key does not come again.
    assert keys.make("0xAB", 0) != first
    keys.erase("0xab", 2)
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_a_round_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    keys = RoundKeys(tmp_path, HostSecret(bytes(32)))
    keys.make("0xab", 0)
    (path,) = (tmp_path / FOLDER).iterdir()
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        keys.get("0xab", 0)


def test_a_round_key_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    keys = RoundKeys(tmp_path, HostSecret(bytes(32)))
    assert not keys.has_any("0xAb")
    keys.make("0xAb", 1)
    assert keys.has_any("0xAb")
    assert not keys.has_any("0xCd")
    (path,) = (tmp_path / FOLDER).iterdir()
    path.write_bytes(b"short")
    with pytest.raises(ConfigError, match="5 bytes"):
        keys.get("0xAb", 1)
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match=path.name):
        keys.get("0xAb", 1)
    path.rmdir()
    (tmp_path / FOLDER).rmdir()
    (tmp_path / FOLDER).write_bytes(b"")
    with pytest.raises(ConfigError, match=FOLDER):
        keys.make("0xAb", 1)


def test_masked_words_look_random_and_follow_from_nothing_public() -> None:
    """Zeros with masks: bytes as often as each other, and no correlation with what anybody can compute."""
    size = 2**16
    everyone = dealers(3, 2)
    masked = {}
    for node, dealer in everyone.items():
        total = np.zeros(size, WORD)
        for sign, stream in dealer.streams():
            words = stream.words((size,), WORD)
            total = total + words if sign > 0 else total - words
        masked[node] = total
    for words in masked.values():
        counts = np.bincount(words.view(np.uint8), minlength=256)
        expected = 4 * size / 256
        # Chi squared with 255 degrees of freedom: random bytes are beyond 400 once in 10^8; these are fixed.
        assert ((counts - expected) ** 2 / expected).sum() < 400
    public = [str(LABEL).encode(), *(RoundKey(bytes([n]) * 32).public for n in everyone)]
    for secret in public:
        words = dealing.stream(secret).words((size,), WORD)
        assert not any(np.array_equal(words, other) for other in masked.values())
    for first, second in itertools.combinations(masked.values(), 2):
        assert (first == second).mean() < 0.001
