"""Masked rounds: the sum comes out to the bit, whoever is lost, and nothing else does."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_node.artifacts import cid, model_file
from fl_node.artifacts.model_file import SCORES, GlobalMeta, LocalMeta, WeightsFile
from fl_node.errors import WeightsError
from fl_node.plan.schema import Plan
from fl_node.privacy import shamir
from fl_node.privacy.dealing import OWN, RoundKey
from fl_node.protocol import masked, openings
from fl_node.protocol.global_files import global_file
from fl_node.protocol.masked import Revealed
from fl_node.protocol.openings import Opening
from fl_node.protocol.publications import samples_of

SHAPES = {"a": (40, 30), "b": (7,), "c": ()}
ROUND = 4


def plan_of(learners: int, threshold: int = 0, **aggregation: Any) -> Plan:
    privacy = {"secure_aggregation": True} | ({"threshold": threshold} if threshold else {})
    return Plan.model_validate(
        {
            "name": "masked",
            "learners": learners,
            "min_learners": max(threshold or 2 * learners // 3 + 1, 3),
            "data": {"name": "digits", "train": 10 * learners + 1},
            "model": {"name": "mlp"},
            "aggregation": {"rule": "fedavg", "arithmetic": "fixed", **aggregation},
            "privacy": privacy,
        }
    )


@dataclass
class Cohort:
    """Learners with keys, what they trained, and their files of one round."""

    folder: Path
    plan: Plan
    members: Collection[int]

    def __post_init__(self) -> None:
        self.plan_cid = cid.of_bytes(self.plan.to_bytes())
        learners = range(1, self.plan.learners + 1)
        self.keys = {node: RoundKey(bytes([node]) * 32) for node in learners}
        generator = np.random.default_rng(1)
        weights = {name: generator.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
        public = tuple((node, key.public.hex()) for node, key in self.keys.items())
        meta = GlobalMeta(self.plan_cid, ROUND, self.plan_cid, "fedavg", keys=public, scores=(0.5, 1.0))
        self.parent = model_file.write(self.folder / "parent", meta, weights)
        self.trained = {
            node: {
                name: np.asarray(value + generator.normal(0, 0.5, value.shape)).astype(np.float32)
                for name, value in weights.items()
            }
            for node in learners
        }
        self.files = {node: self.file(node) for node in self.members}

    def file(self, node: int) -> WeightsFile:
        return masked.masked_file(
            self.folder / f"masked-{node}",
            self.plan,
            self.plan_cid,
            node_id=node,
            parent=self.parent,
            trained=self.trained[node],
            accuracy=node / 100,
            loss=node / 10,
            key=self.keys[node],
            next_key=RoundKey(bytes([100 + node]) * 32).public,
        )

    def openings(self, who: Collection[int]) -> dict[int, Opening]:
        opened = {}
        for node in who:
            opening, faults = masked.open_shares(
                self.plan, self.plan_cid, node, self.keys[node], self.parent, self.files
            )
            assert not faults
            opened[node] = openings.parse(opening.to_bytes())
            assert opened[node] == opening
        return opened

    def reveal(self, opened: Mapping[int, Opening]) -> Revealed:
        return masked.reveal(self.plan, self.parent, self.files, opened)

    def result(self, revealed: Revealed, announced: Mapping[int, str] | None = None) -> WeightsFile:
        made = masked.unmasked_file(
            self.folder / "global",
            self.plan,
            self.plan_cid,
            parent=self.parent,
            files=self.files,
            seeds=revealed.seeds,
            announced=announced or {},
        )
        assert model_file.read(made.path, SHAPES) == made
        return made

    def plain(self) -> WeightsFile:
        """Return the global file of the same weights without masks."""
        plain = self.plan.model_dump() | {"privacy": {}, "min_learners": 1}
        inputs = []
        for node in self.members:
            samples = samples_of(self.plan, node)
            meta = LocalMeta(self.plan_cid, node, ROUND, self.parent.cid, samples, 0.5, 0.5)
            inputs.append(model_file.write(self.folder / f"plain-{node}", meta, self.trained[node]))
        return global_file(
            self.folder / "plain",
            Plan.model_validate(plain),
            self.plan_cid,
            round_=ROUND + 1,
            parent=self.parent.cid,
            inputs=inputs,
            parent_file=self.parent,
        )


def assert_same_weights(first: WeightsFile, second: WeightsFile) -> None:
    for name in SHAPES:
        assert first.tensor(name).tobytes() == second.tensor(name).tobytes()


def test_masked_and_unmasked_files_are_the_same_whatever_blocks_they_are_written_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = set()
    for block in (3, 2**18):
        monkeypatch.setattr("fl_node.runtime.tensors.BLOCK", block)
        (folder := tmp_path / str(block)).mkdir()
        cohort = Cohort(folder, plan_of(5, 3), [1, 2, 4, 5])
        result = cohort.result(cohort.reveal(cohort.openings(cohort.members)))
        names.add((*(file.cid for file in cohort.files.values()), result.cid))
    assert len(names) == 1


@pytest.mark.parametrize(
    ("learners", "threshold", "members", "openers"),
    [
        (3, 0, [1, 2, 3], [1, 2, 3]),
        (3, 2, [1, 2, 3], [1, 3]),
        (5, 0, [1, 2, 4, 5], [1, 2, 4, 5]),
        (5, 3, [1, 2, 4, 5], [2, 4, 5]),
        (16, 0, range(1, 17), range(3, 17)),
        (20, 0, [n for n in range(1, 21) if n not in (4, 11)], [n for n in range(1, 21) if n not in (4, 7, 11)]),
    ],
    ids=["all", "one lost before opening", "one lost before publishing", "both", "2 of 16 lost", "sparse graph"],
)
def test_what_members_open_gives_the_sum_to_the_bit(
    tmp_path: Path, learners: int, threshold: int, members: Collection[int], openers: Collection[int]
) -> None:
    cohort = Cohort(tmp_path, plan_of(learners, threshold), members)
    for node, file in cohort.files.items():
        bound = masked.masked_size(cohort.plan)
        assert model_file.read(file.path, SHAPES, masked=bound) == file
        masked.check_masked(file, cohort.plan, cohort.plan_cid, node, cohort.parent)
    revealed = cohort.reveal(cohort.openings(openers))
    assert (revealed.lacking, revealed.faults) == ((), ())
    made = cohort.result(revealed)
    assert_same_weights(made, cohort.plain())
    assert [one.node_id for one in made.global_meta.inputs] == list(members)
    counts = [masked.count_of(cohort.plan, node) for node in members]
    right = np.average([node / 100 for node in members], weights=counts)
    accuracy, loss = made.global_meta.scores or (0.0, 0.0)
    assert (accuracy, loss) == (pytest.approx(right, abs=1e-5), pytest.approx(10 * right, abs=1e-3))


def test_a_ring_of_2_to_the_64_gives_the_same_sum(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, plan_of(3, modulus_bits=64), [1, 2, 3])
    assert cohort.files[1].tensor("a").dtype == np.uint64
    assert_same_weights(cohort.result(cohort.reveal(cohort.openings([1, 2, 3]))), cohort.plain())


def test_the_result_is_one_whichever_openings_are_used(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, plan_of(5, 3), [1, 2, 4, 5])
    files = {cohort.result(cohort.reveal(cohort.openings(who))).cid for who in ([1, 2, 4], [2, 4, 5], [1, 2, 4, 5])}
    assert len(files) == 1


def test_below_the_threshold_nothing_is_revealed(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, plan_of(5), [1, 2, 4, 5])
    revealed = cohort.reveal(cohort.openings([1, 2, 4]))
    assert (revealed.lacking, dict(revealed.seeds)) == ((1, 2, 4, 5), {})


@pytest.mark.parametrize("members", [[1, 2], [1, 2, 3]])
def test_nobody_opens_a_set_that_is_too_small(tmp_path: Path, members: list[int]) -> None:
    cohort = Cohort(tmp_path, plan_of(5), members)
    with pytest.raises(WeightsError, match="nothing is opened for learner"):
        cohort.openings([1])


def test_nobody_opens_a_set_without_itself(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, plan_of(5), [1, 2, 4, 5])
    with pytest.raises(WeightsError, match="nothing is opened for learners 1, 2, 4, 5"):
        masked.open_shares(cohort.plan, cohort.plan_cid, 3, cohort.keys[3], cohort.parent, cohort.files)


def test_never_both_secrets_of_one_learner_are_opened(tmp_path: Path) -> None:
    """Whatever the set, an opening has the own seeds of members, and seeds of pairs with learners that are none."""
    for members in ([1, 2, 3, 4, 5], [1, 2, 4, 5]):
        cohort = Cohort(tmp_path, plan_of(5, 3), members)
        for opening in cohort.openings(members).values():
            assert set(opening.shares) == set(members)
            for shares in opening.shares.values():
                assert set(shares) == {OWN, *(set(range(1, 6)) - set(members))}


def test_a_wrong_share_is_named_and_the_round_goes_on_without_it(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, plan_of(5, 3), [1, 2, 4, 5])
    right, opened = cohort.result(cohort.reveal(cohort.openings([2, 4, 5]))), cohort.openings([1, 2, 4, 5])
    shares = {dealer: {place: bytes(32) for place in of} for dealer, of in opened[2].shares.items()}
    opened[2] = dataclasses.replace(opened[2], shares=shares)
    revealed = cohort.reveal(opened)
    assert {fault.node_id for fault in revealed.faults} == {2}
    assert revealed.lacking == ()
    assert cohort.result(revealed).cid == right.cid
    # Without it too few are left: nothing wrong comes out.
    del opened[5]
    assert cohort.reveal(opened).lacking == (1, 2, 4, 5)


def test_an_opening_for_another_set_is_named_and_not_used(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, plan_of(5, 3), [1, 2, 4, 5])
    opened = cohort.openings([1, 2, 4, 5])
    opened[4] = dataclasses.replace(opened[4], members=(1, 2, 3, 4, 5))
    revealed = cohort.reveal(opened)
    assert [fault.node_id for fault in revealed.faults] == [4]
    assert revealed.lacking == ()


@pytest.mark.parametrize("field", ["round", "parent"])
def test_an_opening_of_another_round_is_named_as_such_and_not_used(tmp_path: Path, field: str) -> None:
    cohort = Cohort(tmp_path, plan_of(5, 3), [1, 2, 4, 5])
    opened = cohort.openings([1, 2, 4, 5])
    other = {"round": ROUND - 1, "parent": cid.of_bytes(b"other")}[field]
    opened[4] = dataclasses.replace(opened[4], **{field: other})
    revealed = cohort.reveal(opened)
    assert [fault.node_id for fault in revealed.faults] == [4]
    assert str(other) in revealed.faults[0].text
    assert revealed.lacking == ()


@pytest.mark.parametrize(
    ("wrong", "silent", "lost"),
    [([], (), ()), ([1], (), ()), ([1], (2,), ()), ([1, 2], (), (1, 2, 4, 5)), ([1], (), ()), ([], (1, 2), ())],
)
def test_seeds_are_lost_when_no_opening_that_may_come_can_give_them(
    tmp_path: Path, wrong: list[int], silent: tuple[int, ...], lost: tuple[int, ...]
) -> None:
    cohort = Cohort(tmp_path, plan_of(5, 3), [1, 2, 4, 5])
    opened = cohort.openings([n for n in (1, 2, 4, 5) if n not in silent])
    for node in wrong:
        shares = {dealer: {place: bytes(32) for place in of} for dealer, of in opened[node].shares.items()}
        opened[node] = dataclasses.replace(opened[node], shares=shares)
    revealed = masked.reveal(cohort.plan, cohort.parent, cohort.files, opened, silent)
    assert revealed.lost == lost
    assert set(lost) <= set(revealed.lacking)


def test_who_deals_shares_that_give_no_seed_is_named(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, plan_of(3), [1, 2, 3])
    file = cohort.files[2]
    tensors = file.tensors()
    tensors["privacy/commitments"] = tensors["privacy/commitments"] ^ 1
    cohort.files[2] = model_file.write(cohort.folder / "other", file.masked_meta, tensors)
    revealed = cohort.reveal(cohort.openings([1, 2, 3]))
    assert [fault.node_id for fault in revealed.faults] == [2]
    assert revealed.lacking == (2,)


@pytest.mark.parametrize(("learners", "threshold"), [(4, 3), (20, 0)])
def test_a_share_that_is_off_its_polynomial_does_not_undo_what_the_others_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learners: int, threshold: int
) -> None:
    everyone = list(range(1, learners + 1))
    cohort, split = Cohort(tmp_path, plan_of(learners, threshold), everyone), shamir.split
    right, dealer = cohort.plain(), learners
    first = min(cohort.files[dealer].masked_meta.neighbours)

    def off(secret: int, coefficients: Sequence[int], places: Iterable[int]) -> dict[int, int]:
        return split(secret, coefficients, places) | {first: 1}

    with monkeypatch.context() as changed:
        changed.setattr(shamir, "split", off)
        cohort.files[dealer] = cohort.file(dealer)
    opened = cohort.openings(everyone)
    before = cohort.reveal({node: one for node, one in opened.items() if node != first})
    assert (before.lacking, before.faults) == ((), ())
    # Its hash is right, so the share counts.
    after = cohort.reveal(opened)
    assert (after.lacking, after.lost) == ((), ())
    assert [fault.node_id for fault in after.faults] == [dealer]
    assert after.seeds == before.seeds
    assert_same_weights(cohort.result(after), right)


def test_who_seals_no_shares_for_a_learner_is_named_by_it_and_others_suffice(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, plan_of(5, 3), [1, 2, 3, 4, 5])
    file, right = cohort.files[2], cohort.plain()
    tensors = file.tensors()
    sealed = tensors["privacy/sealed"].copy()
    sealed[0] ^= 1
    cohort.files[2] = model_file.write(
        cohort.folder / "other", file.masked_meta, {**tensors, "privacy/sealed": sealed}
    )
    opening, faults = masked.open_shares(cohort.plan, cohort.plan_cid, 1, cohort.keys[1], cohort.parent, cohort.files)
    assert [fault.node_id for fault in faults] == [2]
    revealed = cohort.reveal({1: opening, **cohort.openings([3, 4, 5])})
    assert revealed.lacking == ()
    assert_same_weights(cohort.result(revealed), right)


def test_a_learner_without_a_key_takes_no_part_and_its_key_counts_from_the_next_round_on(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, plan_of(5, 3), [1, 2, 4, 5])
    keys = tuple(entry for entry in cohort.parent.global_meta.keys or () if entry[0] != 3)
    meta = dataclasses.replace(cohort.parent.global_meta, keys=keys)
    cohort.parent = model_file.write(cohort.folder / "fewer", meta, cohort.parent.tensors())
    with pytest.raises(WeightsError, match="learner 3 announced no key for round 4"):
        cohort.file(3)
    cohort.files = {node: cohort.file(node) for node in cohort.members}
    useless = bytes(32).hex()
    made = cohort.result(cohort.reveal(cohort.openings([1, 2, 4])), {3: "ab" * 32, 1: "cd" * 32, 6: useless})
    announced = dict(made.global_meta.keys or ())
    assert set(announced) == {1, 2, 3, 4, 5}
    assert (announced[3], announced[1]) == ("ab" * 32, cohort.files[1].masked_meta.next_key)


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"neighbours": (2,)}, "metadata.neighbours"),
        ({"round": 5}, "metadata.round"),
        ({"node_id": 2}, "metadata.node_id"),
        ({"samples": 1}, "metadata.samples"),
        ({"parent": cid.of_bytes(b"other")}, "metadata.parent"),
    ],
)
def test_a_masked_file_with_wrong_metadata_is_refused(tmp_path: Path, changed: dict[str, Any], code: str) -> None:
    cohort = Cohort(tmp_path, plan_of(3), [1, 2, 3])
    file = cohort.files[1]
    wrong = dataclasses.replace(file, meta=dataclasses.replace(file.masked_meta, **changed))
    with pytest.raises(WeightsError) as caught:
        masked.check_masked(wrong, cohort.plan, cohort.plan_cid, 1, cohort.parent)
    assert caught.value.code == code


def test_files_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, plan_of(3), [1, 2, 3])
    plain = model_file.write(
        tmp_path / "plain-1", LocalMeta(cohort.plan_cid, 1, ROUND, cohort.parent.cid, 10, 0.5, 0.5), cohort.trained[1]
    )
    with pytest.raises(WeightsError, match="kind is local; should be masked"):
        model_file.read(plain.path, SHAPES, masked=masked.masked_size(cohort.plan))
    with pytest.raises(WeightsError, match="not F32"):
        model_file.read(cohort.files[1].path, SHAPES)
    larger = dataclasses.replace(masked.masked_size(cohort.plan), modulus_bits=64)
    with pytest.raises(WeightsError, match="modulus_bits is 32; should be 64"):
        model_file.read(cohort.files[1].path, SHAPES, masked=larger)


def test_a_masked_file_shows_nothing_and_says_no_accuracy(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, plan_of(3), [1, 2, 3])
    file = cohort.files[1]
    assert not {"accuracy", "loss"} & {field.name for field in dataclasses.fields(file.masked_meta)}
    words = np.concatenate([file.tensor(name).ravel() for name in ("a", "b", SCORES)])
    # Of 1,209 random words of 32 bits, half of all bits are set: 19,344 ± 98.
    assert abs(int(np.unpackbits(words.view(np.uint8)).sum()) - 16 * words.size) < 6 * 98
    # Another learner that trained the same has other words everywhere.
    cohort.trained[2] = cohort.trained[1]
    assert (cohort.file(2).tensor("a") == file.tensor("a")).mean() < 0.01
    # The file is little larger than a plain one of a model of common size.
    extra = sum(values.nbytes for name, values in file.tensors().items() if name.startswith("privacy/"))
    assert extra < 1200


def test_masks_of_16_learners_cost_less_than_a_tenth_of_the_paper_s_model(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, plan_of(16), [1])
    tensors = cohort.files[1].tensors()
    extra = sum(values.nbytes for name, values in tensors.items() if name.startswith("privacy/"))
    assert extra < 0.1 * 4 * 225_034


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"\xff", b'{"format":"fl-node/opening/1"}', b"[" * 1000],
)
def test_what_is_no_opening_is_refused(content: bytes) -> None:
    with pytest.raises(WeightsError, match="no opening"):
        openings.parse(content)


def test_an_opening_in_another_form_is_refused(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, plan_of(3), [1, 2, 3])
    content = cohort.openings([1])[1].to_bytes()
    for other in (
        content + b"\n",
        content.replace(b'"round":4', b'"round": 4'),
        content.replace(b"[1,2,3]", b"[true]"),
    ):
        with pytest.raises(WeightsError, match="no opening"):
            openings.parse(other)
