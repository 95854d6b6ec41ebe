"""Rounds with masks: what header, learners and audit must agree on.

The contract closes a round, and with that its set of members is final. Each member then publishes shares: of the own
seed of each member, and of the seeds that members have in common with those who are lost. A threshold of shares gives
each of these seeds, and with them anybody removes the masks from the sum, and from nothing else.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal, cast

import numpy as np

from fl_node.aggregation.fixed_point import FixedPoint, Words, reduced
from fl_node.aggregation.rule import shares
from fl_node.artifacts.model_file import (
    PRIVATE,
    SCORES,
    GlobalMeta,
    Input,
    MaskedMeta,
    MaskedSize,
    Rejection,
    Tensor,
    Tensors,
    WeightsFile,
    check_local,
    masked_shapes,
    write_blocks,
)
from fl_node.errors import ConfigError, WeightsError
from fl_node.plan.schema import Plan
from fl_node.privacy import dealing, graph
from fl_node.privacy.dealing import OWN, Dealer, Label, RoundKey
from fl_node.privacy.streams import Stream
from fl_node.protocol.budget import Spent
from fl_node.protocol.names import learners_have, learners_label
from fl_node.protocol.openings import Opening
from fl_node.protocol.publications import samples_of
from fl_node.runtime.tensors import blocks_of, flat, shape_of

LARGEST_LOSS = 32.0
"""A loss is a masked value too, as a share of this: far above that of any model which says anything."""

MOST_CHOICES = math.comb(graph.COMPLETE, graph.COMPLETE // 2 + 1)
"""How many sets of shares are tried for a seed: all those of a complete graph."""

Seeds = Mapping[tuple[int, int], bytes]
"""Seeds by member and place."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with what a learner published to remove masks."""

    node_id: int
    text: str


@dataclass(frozen=True)
class Revealed:
    """What the openings of a round give.

    ``seeds`` are all that are needed, if ``lacking`` is empty: else these members' seeds need shares of more
    learners. Of ``lost`` members no shares that may still come give the seeds.
    """

    seeds: Seeds
    lacking: tuple[int, ...]
    lost: tuple[int, ...]
    faults: tuple[Fault, ...]


def fixed_point(plan: Plan) -> FixedPoint:
    """Return how a masked plan makes integers of updates.

    Raises
    ------
    ValueError
        The plan has no masks.
    """
    point = plan.fixed_point
    if point is None:
        raise ValueError(f"the plan {plan.name} has no fixed-point arithmetic")
    return point


def masked_size(plan: Plan) -> MaskedSize:
    """Return what bounds the masked files of a plan."""
    return MaskedSize(fixed_point(plan).modulus_bits, graph.degree(plan.learners))


def count_of(plan: Plan, node_id: int) -> int:
    """Return what a learner's values are multiplied by: what it counts for, without a common divisor of all."""
    return reduced(plan.counts)[node_id - 1]


def needed_members(plan: Plan) -> int:
    """Return how many members a round must have before anything of it is opened."""
    return plan.least_members


def stuck_without(plan: Plan, node_ids: Collection[int]) -> str:
    """Return why a round waits for learners that can't publish in it; empty if it closes without them.

    Parameters
    ----------
    plan
        The run's plan.
    node_ids
        The learners that have no key of the round.
    """
    if not node_ids:
        return ""
    who = f"{learners_have(node_ids)} no key of this round"
    if plan.round_timeout and plan.required_learners < plan.learners:
        if plan.learners - len(node_ids) >= plan.required_learners:
            return ""
        return f"{who}, and the round can't close without {plan.required_learners} learners; start a new run"
    missing = "round_timeout" if not plan.round_timeout else f"min_learners below {plan.learners}"
    return (
        f"{who}, and the plan has no {missing}, so the round can't close; start a new run with "
        "round_timeout and min_learners"
    )


def label_of(parent: WeightsFile) -> Label:
    """Return what the masks of the round are for that starts from these global weights."""
    return Label(parent.global_meta.round, parent.cid)


def keys_of(parent: WeightsFile) -> dict[int, bytes]:
    """Return the public keys by nodeId of the round that starts from these global weights."""
    return {node_id: bytes.fromhex(key) for node_id, key in parent.global_meta.keys or ()}


def check_keys(parent: WeightsFile) -> None:
    """Check that masks can be made with all keys of the round that starts from these global weights.

    Raises
    ------
    WeightsError
        A key is not usable, so the header has made the file falsely.
    """
    for node_id, key in keys_of(parent).items():
        if not dealing.is_usable(key):
            raise WeightsError(f"metadata: keys: {key.hex()} of learner {node_id} is not a usable X25519 key", "keys")


def usable_keys(keys: Mapping[int, str]) -> tuple[tuple[int, str], ...]:
    """Return keys as a global file has them, without those of which no secrets come."""
    return tuple((n, key) for n, key in sorted(keys.items()) if dealing.is_usable(bytes.fromhex(key)))


def wrong_keys(keys: Mapping[int, str]) -> tuple[Fault, ...]:
    """Return what is wrong with the keys that learners announced for a round: unusable ones, and the same key twice.

    Who has copied the key of another can't publish valid shares. Nobody can tell which of them has.

    Parameters
    ----------
    keys
        The keys in hexadecimal digits, by nodeId.
    """
    faults = []
    for node_id, key in sorted(keys.items()):
        same = [other for other in sorted(keys) if other != node_id and keys[other] == key]
        if not dealing.is_usable(bytes.fromhex(key)):
            faults.append(Fault(node_id, f"announced {key}, which is not a usable X25519 key; it can't take part"))
        elif same:
            faults.append(Fault(node_id, f"announced {key}, which is also the key of {learners_label(same)}"))
    return tuple(faults)


def neighbours_in(parent: WeightsFile, node_id: int) -> tuple[int, ...]:
    """Return a learner's neighbours in the round that starts from these global weights.

    Raises
    ------
    WeightsError
        It has no key in this round, so it can't take part.
    """
    keys = keys_of(parent)
    if node_id not in keys:
        raise WeightsError(f"learner {node_id} announced no key for round {parent.global_meta.round}", "keys")
    return graph.neighbours(node_id, keys, str(label_of(parent)))


def dealer_of(plan: Plan, parent: WeightsFile, node_id: int, key: RoundKey) -> Dealer:
    """Return a learner's seeds in the round that starts from some global weights.

    Parameters
    ----------
    plan
        The run's plan.
    parent
        The global weights.
    node_id
        The learner.
    key
        Its key of the round.
    """
    keys, others = keys_of(parent), neighbours_in(parent, node_id)
    public = {other: keys[other] for other in others}
    return Dealer(key, label_of(parent), node_id, public, _threshold(plan, len(others) + 1))


def masked_file(
    path: Path,
    plan: Plan,
    plan_cid: str,
    *,
    node_id: int,
    parent: WeightsFile,
    trained: Tensors,
    accuracy: float,
    loss: float,
    key: RoundKey,
    next_key: bytes,
    noise: bytes | None = None,
) -> WeightsFile:
    """Write a learner's masked local weights.

    Parameters
    ----------
    path
        Where to write.
    plan, plan_cid
        The run's plan and its CID.
    node_id
        The learner.
    parent
        The global weights that it trained from.
    trained
        Its local weights.
    accuracy, loss
        What it measured.
    key
        Its key of this round.
    next_key
        The public half of its key of the next round.
    noise
        With differential privacy of whole learners, the secret that its noise follows from. Accuracy and loss are
        left out then.

    Raises
    ------
    ConfigError
        Whole learners are protected, and no secret is given.
    """
    point, count = fixed_point(plan), count_of(plan, node_id)
    bits: Literal[32, 64] = 32 if point.modulus_bits == 32 else 64
    dealer = dealer_of(plan, parent, node_id, key)
    dealt, streams, start = dealer.deal(), dealer.streams(), parent.on_demand()

    def update(name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.asarray(np.subtract(trained[name], start[name], dtype=np.float64))

    def updates(name: str) -> Iterator[Words]:
        for block in blocks_of(shape_of(trained, name)):
            change = np.subtract(flat(trained, name, *block), flat(start, name, *block), dtype=np.float64)
            yield point.words(change, count)

    def masked(words: Words) -> Words:
        for sign, stream in streams:
            _add(words, stream, sign)
        return words

    if plan.dp is not None and plan.dp.is_of_learners:
        scores = masked(np.zeros(2, point.dtype))
        noisy = _noisy(plan, trained, update, noise)

        def words(name: str) -> Iterable[Words]:
            return [noisy(name)]
    else:
        scores = masked(
            point.words(point.range * np.array([accuracy, min(loss, LARGEST_LOSS) / LARGEST_LOSS]), count)
        )
        words = updates

    def blocks(name: str) -> Iterator[Tensor]:
        if name == SCORES:
            yield cast(Tensor, scores)
        elif name.startswith(PRIVATE):
            yield cast(Tensor, getattr(dealt, name.removeprefix(PRIVATE)))
        else:
            for block in words(name):
                yield cast(Tensor, masked(block))

    meta = MaskedMeta(
        plan=plan_cid,
        node_id=node_id,
        round=parent.global_meta.round,
        parent=parent.cid,
        samples=samples_of(plan, node_id),
        neighbours=neighbours_in(parent, node_id),
        modulus_bits=bits,
        next_key=next_key.hex(),
    )
    shapes = masked_shapes({name: shape_of(trained, name) for name in trained}, len(meta.neighbours))
    return write_blocks(path, meta, shapes, blocks)


def check_masked(file: WeightsFile, plan: Plan, plan_cid: str, node_id: int, parent: WeightsFile) -> MaskedMeta:
    """Check that a file holds a learner's masked local weights, trained from certain global weights.

    Parameters
    ----------
    file
        A checked masked file.
    plan, plan_cid
        The run's plan and its CID.
    node_id
        The learner that published the file.
    parent
        The global weights.

    Raises
    ------
    WeightsError
        The metadata differ; the message names the field. Or the learner has no key in this round.
    """
    meta, right = file.masked_meta, neighbours_in(parent, node_id)
    check_local(
        file,
        plan=plan_cid,
        node_id=node_id,
        round_=parent.global_meta.round,
        parent=parent.cid,
        samples=samples_of(plan, node_id),
    )
    if meta.neighbours != right:
        raise WeightsError(
            f"metadata: neighbours are {list(meta.neighbours)}; should be {list(right)}", "metadata.neighbours"
        )
    return meta


def open_shares(
    plan: Plan, plan_cid: str, node_id: int, key: RoundKey, parent: WeightsFile, files: Mapping[int, WeightsFile]
) -> tuple[Opening, tuple[Fault, ...]]:
    """Return what a member of a closed round publishes to remove masks, and whose shares it could not read.

    Parameters
    ----------
    plan, plan_cid
        The run's plan and its CID.
    node_id
        The member.
    key
        Its key of this round.
    parent
        The global weights that the round started from.
    files
        The valid masked files of all members by nodeId: the set that is summed.

    Raises
    ------
    WeightsError
        The set is too small, or this learner is no member.
    """
    if len(files) < needed_members(plan) or node_id not in files:
        members = learners_label(files) if files else "no learners"
        raise WeightsError(
            f"round {parent.global_meta.round}: nothing is opened for {members}; a sum needs "
            f"{needed_members(plan)} members",
            "members",
        )
    dealer, keys = dealer_of(plan, parent, node_id, key), keys_of(parent)
    opened: dict[int, dict[int, bytes]] = {}
    faults = []
    for other, file in sorted(files.items()):
        neighbours = file.masked_meta.neighbours
        if node_id not in (*neighbours, other):
            continue
        try:
            mine = _unsealed(dealer, node_id, other, keys[other], file, str(label_of(parent)))
        except ValueError as error:
            faults.append(Fault(other, str(error)))
            continue
        opened[other] = {place: mine[place] for place in dealing.opened_places(neighbours, files)}
    meta = parent.global_meta
    return Opening(plan_cid, node_id, meta.round, parent.cid, tuple(sorted(files)), opened), tuple(faults)


def reveal(
    plan: Plan,
    parent: WeightsFile,
    files: Mapping[int, WeightsFile],
    openings: Mapping[int, Opening],
    silent: Collection[int] = (),
) -> Revealed:
    """Return the seeds that openings give: each from the first shares that give it, in the order of nodeId.

    Parameters
    ----------
    plan
        The run's plan.
    parent
        The global weights that the round started from.
    files
        The valid masked files of its members, by nodeId.
    openings
        What members published, by nodeId.
    silent
        The members whose openings may still come.
    """
    members = tuple(sorted(files))
    others = {n: one for n, one in sorted(openings.items()) if not _is_for(one, members, parent)}
    faults = [Fault(n, _difference(one, members, parent)) for n, one in others.items()]
    usable = {n: one for n, one in openings.items() if n not in others}
    seeds: dict[tuple[int, int], bytes] = {}
    lacking: dict[int, None] = {}
    lost: dict[int, None] = {}
    for member, file in sorted(files.items()):
        shared = _Shared.of(plan, parent, member, file)
        for place in dealing.opened_places(file.masked_meta.neighbours, members):
            seed, found = shared.recover(place, usable)
            faults += found
            if seed is None:
                lacking[member] = None
                if not shared.may_come(place, usable, silent):
                    lost[member] = None
            else:
                seeds[member, place] = seed
    return Revealed(seeds, tuple(lacking), tuple(lost), tuple(dict.fromkeys(faults)))


def _is_for(opening: Opening, members: tuple[int, ...], parent: WeightsFile) -> bool:
    """Return whether an opening is for this set of members of this round."""
    return (opening.members, opening.round, opening.parent) == (members, parent.global_meta.round, parent.cid)


def _difference(opening: Opening, members: tuple[int, ...], parent: WeightsFile) -> str:
    """Return why an opening is not for this set of members of this round."""
    round_ = parent.global_meta.round
    if opening.round != round_:
        return f"published an opening of round {opening.round}, not {round_}"
    if opening.parent != parent.cid:
        return f"published an opening of a round that started from {opening.parent}, not {parent.cid}"
    return f"opens for {learners_label(opening.members)}; the members of round {round_} are {_list(members)}"


@dataclass(frozen=True)
class _Shared:
    """What a learner's masked file says of its seeds and of their shares."""

    label: str
    dealer: int
    places: list[int]
    recipients: list[int]
    hashes: dealing.Bytes
    commitments: dealing.Bytes
    threshold: int

    @classmethod
    def of(cls, plan: Plan, parent: WeightsFile, dealer: int, file: WeightsFile) -> _Shared:
        neighbours = file.masked_meta.neighbours
        return cls(
            str(label_of(parent)),
            dealer,
            [OWN, *neighbours],
            sorted((*neighbours, dealer)),
            _array(file, "hashes"),
            _array(file, "commitments"),
            _threshold(plan, len(neighbours) + 1),
        )

    def recover(self, place: int, openings: Mapping[int, Opening]) -> tuple[bytes | None, list[Fault]]:
        """Return the seed at a place, if the openings give it, and what is wrong with shares of it."""
        good, faults = self._good_shares(place, openings)
        if len(good) < self.threshold:
            return None, faults
        committed = self.commitments[self.places.index(place)].tobytes()
        wrong = Fault(self.dealer, "dealt shares that do not give the seed it is committed to")
        # A dealer may give some learners other shares, with the right hash. Whoever reads the openings later has more
        # of them, and must still come to the same seed.
        for number, chosen in enumerate(_choices(sorted(good), self.threshold)):
            seed = dealing.recovered({recipient: good[recipient] for recipient in chosen})
            if seed is not None and dealing.commitment(self.label, self.dealer, place, seed) == committed:
                return seed, [*faults, wrong] if number else faults
        return None, [*faults, wrong]

    def may_come(self, place: int, openings: Mapping[int, Opening], silent: Collection[int]) -> bool:
        """Return whether the openings that may still come can give a seed that others do not give."""
        coming = [recipient for recipient in self.recipients if recipient in silent]
        good, _ = self._good_shares(place, openings)
        return bool(coming) and len(good) + len(coming) >= self.threshold

    def _good_shares(self, place: int, openings: Mapping[int, Opening]) -> tuple[dict[int, bytes], list[Fault]]:
        """Return the shares of a seed whose hash is right, by recipient, and who opened others."""
        column = self.places.index(place)
        good: dict[int, bytes] = {}
        faults: list[Fault] = []
        for row, recipient in enumerate(self.recipients):
            shares = openings[recipient].shares.get(self.dealer, {}) if recipient in openings else {}
            if place not in shares:
                continue
            share = shares[place]
            hashed = dealing.share_hash(self.label, self.dealer, recipient, place, share)
            if hashed == self.hashes[row, column].tobytes():
                good[recipient] = share
            else:
                faults.append(Fault(recipient, f"opens a wrong share of a seed of learner {self.dealer}"))
        return good, faults


def _choices(recipients: Sequence[int], threshold: int) -> Iterator[Sequence[int]]:
    """Return which shares of a seed are tried, the first ones first: up to 16 learners, all that may give it.

    Beyond there are too many, and some are drawn: enough to do without a few wrong shares.
    """
    yield recipients[:threshold]
    if math.comb(len(recipients), threshold) <= MOST_CHOICES:
        yield from itertools.islice(itertools.combinations(recipients, threshold), 1, None)
    else:
        draws = Random(0)  # noqa: S311 - nothing secret follows from it
        yield from (draws.sample(recipients, threshold) for _ in range(MOST_CHOICES))


def unmasked_file(
    path: Path,
    plan: Plan,
    plan_cid: str,
    *,
    parent: WeightsFile,
    files: Mapping[int, WeightsFile],
    seeds: Seeds,
    announced: Mapping[int, str],
    refused: Sequence[Rejection] = (),
    absent: Collection[int] = (),
    spent: Spent | None = None,
) -> WeightsFile:
    """Write the global file of a masked round; header, learners and audit all call this.

    Parameters
    ----------
    path
        Where to write.
    plan, plan_cid
        The run's plan and its CID.
    parent
        The global weights that the round started from.
    files
        The valid masked files of its members, by nodeId.
    seeds
        What :func:`reveal` returned.
    announced
        The keys that learners announced on their own for the next round, in hexadecimal digits.
    refused, absent
        Learners whose file is invalid, and learners without one.
    spent
        What had been spent when the round closed, in a run with differential privacy.
    """
    point, members = fixed_point(plan), sorted(files)
    counts = [count_of(plan, node_id) for node_id in members]
    streams = [
        (-dealing.sign(node_id, place), dealing.stream(seed)) for (node_id, place), seed in sorted(seeds.items())
    ]

    def total(name: str, first: int, stop: int) -> Words:
        words = np.zeros(stop - first, point.dtype)
        for node_id in members:
            words += cast(Words, files[node_id].flat(name, first, stop))
        for sign, stream in streams:
            _add(words, stream, sign)
        return words

    def blocks(name: str) -> Iterator[Tensor]:
        for block in blocks_of(parent.shapes[name]):
            yield point.updated(parent.flat(name, *block), total(name, *block), counts)

    # A learner may have published any scores; those of the global file are bounded, so that it can be read.
    accuracy, loss = np.clip(point.mean(total(SCORES, 0, 2), counts) / point.range, 0.0, 1.0).tolist()
    keys = {**announced, **{node_id: file.masked_meta.next_key for node_id, file in files.items()}}
    parts = shares(counts)
    meta = GlobalMeta(
        plan=plan_cid,
        round=parent.global_meta.round + 1,
        parent=parent.cid,
        rule=plan.aggregation.rule,
        inputs=tuple(
            Input(node_id, files[node_id].cid, files[node_id].masked_meta.samples, part)
            for node_id, part in zip(members, parts, strict=True)
        ),
        refused=tuple(sorted(refused, key=lambda refusal: refusal.node_id)),
        absent=tuple(sorted(absent)),
        spent=None if spent is None else spent.publications,
        epsilon=None if spent is None else spent.epsilon,
        keys=usable_keys(keys),
        scores=None if plan.noise_adders else (accuracy, loss * LARGEST_LOSS),
    )
    return write_blocks(path, meta, parent.shapes, blocks)


def _noisy(
    plan: Plan,
    names: Collection[str],
    update: Callable[[str], np.ndarray[Any, np.dtype[np.float64]]],
    secret: bytes | None,
) -> Callable[[str], Words]:
    """Return what gives the tensors of a clipped update with the learner's share of noise.

    Raises
    ------
    ConfigError
        No secret is given, or the plan has no noise multiplier yet.
    """
    noise, point = plan.learner_noise, fixed_point(plan)
    if noise is None or secret is None:
        raise ConfigError("differential privacy needs the secret of a host and a plan with its noise multiplier")
    integers = noise.update(names, update)

    def words(name: str) -> Words:
        values = integers[name]
        return np.asarray(values + noise.noise(secret, name, values.shape)).astype(point.dtype)

    return words


def _threshold(plan: Plan, recipients: int) -> int:
    """Return how many of its recipients open a seed."""
    return plan.threshold if plan.learners <= graph.COMPLETE else graph.threshold(recipients)


def _unsealed(
    dealer: Dealer, node_id: int, other: int, public: bytes, file: WeightsFile, label: str
) -> dict[int, bytes]:
    """Return the shares that are sealed for a learner in another's file.

    Raises
    ------
    ValueError
        They can't be read, or are not those whose hashes the file has.
    """
    neighbours = file.masked_meta.neighbours
    places, row = [OWN, *neighbours], sorted((*neighbours, other)).index(node_id)
    mine = dealer.unseal(other, public, places, _array(file, "sealed")[row].tobytes())
    hashes = _array(file, "hashes")[row]
    for column, place in enumerate(places):
        if dealing.share_hash(label, other, node_id, place, mine[place]) != hashes[column].tobytes():
            raise ValueError(f"learner {other} sealed other shares for learner {node_id} than it has hashes of")
    return mine


def _add(words: Words, stream: Stream, sign: int) -> None:
    if sign > 0:
        words += stream.words(words.shape, words.dtype)
    else:
        words -= stream.words(words.shape, words.dtype)


def _array(file: WeightsFile, name: str) -> dealing.Bytes:
    return cast(dealing.Bytes, file.tensor(f"{PRIVATE}{name}"))


def _list(node_ids: Collection[int]) -> str:
    return ", ".join(map(str, sorted(node_ids))) or "none"
