"""Runs whose hosts delete the files of old rounds: nothing is lost that is needed, and the audit tells who did it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fl_node import events
from fl_node.artifacts.folder_store import FolderStore
from fl_node.audit.pruned import PRUNED, WRONG_STATEMENT
from fl_node.chain.keys import load_key
from fl_node.errors import ConfigError, StoreUnreachable
from fl_node.leakage.published import read_update
from fl_node.plan.schema import Plan
from fl_node.protocol import history, journal, statement
from fl_node.protocol.names import learner_name
from fl_node.protocol.reader import Reader
from fl_node.protocol.statement import Statement
from fl_node.report.contribution import contributions
from fl_node.roles.journal import Recorder
from fl_node.roles.loop import Site
from fl_node.roles.pruner import Pruner
from tests.helpers.runs import Event, Run, World, plan
from tests.helpers.warm import fl_node

ROUNDS = 5


def kept(keep: int = 1, **settings: Any) -> Plan:
    return plan(**{"rounds": ROUNDS, "retention": {"rounds": keep}} | settings)


def played(run: Run) -> Run:
    """Play a run to its end, by its roles."""
    with ExitStack() as stack:
        roles = [stack.enter_context(run.header())]
        roles += [stack.enter_context(run.learner(n)) for n in range(1, run.plan.learners + 1)]
        for role in roles:
            role.finish()
    return run


@pytest.fixture(scope="module")
def pruned_run(world: World) -> Run:
    """A run that has ended, of which nobody changes the files."""
    return played(world.deploy(kept()))


def locals_of(run: Run, round_: int) -> set[str]:
    return {str(entry.cid) for entry in history.read(run.contract).rounds[round_].published}


def here(run: Run, names: Iterable[str]) -> set[str]:
    return {name for name in names if (run.files / name).exists()}


def test_local_files_of_old_rounds_are_deleted_and_all_others_stay(pruned_run: Run) -> None:
    past = history.read(pruned_run.contract)
    for number in range(ROUNDS):
        names = locals_of(pruned_run, number)
        assert here(pruned_run, names) == (names if number == ROUNDS - 1 else set()), number
    stay = {past.plan_cid, *(str(started.started.cid) for started in past.rounds)}
    assert here(pruned_run, stay) == stay


def test_the_audit_passes_and_says_which_rounds_it_recomputed_and_who_deleted_the_others(pruned_run: Run) -> None:
    audited = pruned_run.audit()
    assert audited.passed, audited.findings
    assert [one.round for one in audited.pruned] == list(range(ROUNDS - 1))
    assert sorted(audited.weights) == [0, ROUNDS]
    for one in audited.pruned:
        assert [(deed.who, deed.account) for deed in one.deleted] == [
            (f"learner {n}", pruned_run.world.accounts[learner_name(n)]) for n in (1, 2)
        ]
        assert one.verified == ()
    assert [note.code for note in audited.notes] == [PRUNED]


def test_without_journals_the_audit_passes_and_names_nobody(pruned_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruned_run, "journals", list)
    audited = pruned_run.audit()
    assert audited.passed, audited.findings
    assert [(one.round, one.deleted) for one in audited.pruned] == [(n, ()) for n in range(ROUNDS - 1)]


def test_a_file_that_is_not_due_is_missed(world: World) -> None:
    run = played(world.deploy(kept()))
    lost = sorted(locals_of(run, ROUNDS - 1))[0]
    (run.files / lost).unlink()
    audited = run.audit()
    assert {(finding.round, finding.field) for finding in audited.findings} == {(ROUNDS - 1, "file")}
    assert ROUNDS not in audited.weights


def test_a_record_of_a_deletion_that_was_not_agreed_excuses_nothing(world: World) -> None:
    run = played(world.deploy(kept(ROUNDS - 1)))
    name = learner_name(1)
    (folder,) = (run.folder / name).iterdir()
    contract = run.as_node(name)
    recorder = Recorder(folder, contract, "learner", load_key(world.keys[name]))
    started = history.read(run.contract).rounds[2].started
    recorder.prune([(2, str(started.cid))], contract.chain.head())
    for lost in locals_of(run, 2):
        (run.files / lost).unlink()
    audited = run.audit()
    assert {(finding.round, finding.field) for finding in audited.findings} == {(2, "file")}
    assert [one.round for one in audited.pruned] == [0]


def test_old_rounds_whose_files_are_there_are_recomputed(world: World) -> None:
    run = world.deploy(kept())
    for _ in range(ROUNDS):
        run.close_round()
    audited = run.audit()
    assert audited.passed, audited.findings
    assert (audited.pruned, sorted(audited.weights)) == ([], list(range(ROUNDS + 1)))


def test_files_that_somebody_kept_are_recomputed_although_their_learners_deleted_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FolderStore, "remove", lambda _self, _names: None)
    run = played(world.deploy(kept()))
    assert all(journal.read(path).pruned for path in run.journals() if "learner" in str(path))
    audited = run.audit()
    assert audited.passed, audited.findings
    assert (audited.pruned, sorted(audited.weights)) == ([], list(range(ROUNDS + 1)))


def test_a_false_global_file_is_found_though_its_local_files_are_gone(world: World) -> None:
    run = world.deploy(kept(learners=3))
    files = run.publish_locals()
    run.publish_global(run.average(files[:2]))
    for _ in range(ROUNDS - 1):
        run.close_round()
    for number in range(ROUNDS - 1):
        for name in locals_of(run, number):
            (run.files / name).unlink()
    audited = run.audit()
    assert (1, "learner 3", "inputs") in {(f.round, f.node, f.field) for f in audited.findings}


# Signed results of audits


def attested(run: Run, node: str, path: Path, **changes: Any) -> Path:
    """Sign that an audit recomputed all global weights."""
    past = history.read(run.contract)
    account = load_key(run.world.keys[node])
    weights = {started.number: str(started.started.cid) for started in past.rounds}
    fields = {"contract": run.address, "plan": past.plan_cid, "account": account.address, "time": 1.0}
    path.write_bytes(statement.signed(Statement(**{**fields, "weights": weights, **changes}), account))
    return path


def test_an_earlier_audit_is_named_but_counts_as_no_recomputation(pruned_run: Run, tmp_path: Path) -> None:
    path = attested(pruned_run, "learner-2", tmp_path / "one.audit.json")
    audited = pruned_run.audit(statements=[path])
    assert audited.passed
    assert sorted(audited.weights) == [0, ROUNDS]
    account = pruned_run.world.accounts["learner-2"]
    assert all([(d.who, d.account) for d in one.verified] == [("learner 2", account)] for one in audited.pruned)


@pytest.mark.parametrize("change", [{"contract": "0x" + "ab" * 20}, {"plan": "QmOther"}])
def test_a_result_of_another_run_is_ignored(pruned_run: Run, tmp_path: Path, change: dict[str, str]) -> None:
    path = attested(pruned_run, "learner-2", tmp_path / "one.audit.json", **change)
    assert all(one.verified == () for one in pruned_run.audit(statements=[path]).pruned)


def test_a_changed_result_or_of_other_weights_is_noted(pruned_run: Run, tmp_path: Path) -> None:
    changed = attested(pruned_run, "learner-2", tmp_path / "changed.audit.json")
    changed.write_text(changed.read_text().replace('"time":1.0', '"time":2.0'))
    other = attested(pruned_run, "mallory", tmp_path / "other.audit.json", weights={1: "QmOther"})
    audited = pruned_run.audit(statements=[changed, other])
    assert [note.code for note in audited.notes].count(WRONG_STATEMENT) == 2
    assert all(one.verified == () for one in audited.pruned)


# Kills, failures, learners that were away


def site(run: Run, node: str, store: FolderStore | None = None) -> Site:
    folder = run.folder / node / "role"
    folder.mkdir(parents=True, exist_ok=True)
    contract = run.as_node(node)
    recorder = Recorder(folder, contract, "learner", load_key(run.world.keys[node]))
    return Site(contract.chain, contract, store or run.store, folder, journal=recorder)


def finish(here: Site, run: Run, node_id: int) -> None:
    """Delete what is old, as a role does at its end."""
    pruner = Pruner.of(here, run.plan)
    assert pruner is not None
    pruner.finish(node_id)
    pruner.close()


def test_a_learner_that_is_killed_after_its_record_deletes_the_files_at_its_next_start(world: World) -> None:
    run = world.deploy(kept())
    for _ in range(ROUNDS):
        run.close_round()

    class Killed(FolderStore):
        def remove(self, names: Iterable[str]) -> None:
            raise StoreUnreachable("killed")

    finish(site(run, "learner-1", Killed(run.files)), run, 1)
    (path,) = run.journals()
    recorded = journal.read(path)
    assert [entry.round for entry in recorded.pruned] == list(range(ROUNDS - 1))
    assert len(here(run, locals_of(run, 0))) == 2
    finish(site(run, "learner-1"), run, 1)
    again = journal.read(path)
    assert (again.problem, again.pruned) == ("", recorded.pruned), "recorded once"
    assert all(len(here(run, locals_of(run, number))) == 1 for number in range(ROUNDS - 1)), "the other's stay"
    assert len(here(run, locals_of(run, ROUNDS - 1))) == 2
    assert run.audit().passed


def test_files_are_deleted_although_weights_were_withdrawn_before(world: World) -> None:
    run = world.deploy(kept())
    run.close_round()
    files = run.publish_locals()
    run.publish_global(run.average(files[:1]))
    for node_id in (1, 2):
        run.reject(node_id, 2, "inputs")
    run.publish_global(run.average(files), learner_name(1))
    pruner = Pruner.of(site(run, "learner-1"), run.plan)
    assert pruner is not None
    for closed in (4, 5):
        while run.contract.round() < closed:
            run.publish_global(run.average(run.publish_locals()), learner_name(1))
        pruner.finish(1)
        assert [len(here(run, locals_of(run, n))) for n in range(closed)] == [1] * (closed - 1) + [2]
    pruner.close()
    assert run.audit().passed


def test_nothing_is_deleted_without_a_record(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run = world.deploy(kept())
    for _ in range(ROUNDS):
        run.close_round()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "journal.jsonl")

    monkeypatch.setattr("fl_node.roles.journal.append_line", full)
    finish(site(run, "learner-1"), run, 1)
    assert len(here(run, locals_of(run, 0))) == 2


def test_a_learner_without_a_majority_of_attestations_deletes_nothing(world: World) -> None:
    run = world.deploy(kept(learners=3))
    for _ in range(ROUNDS):
        names = [run.local(n) for n in (1, 2, 3)]
        for file in names:
            contract = run.as_node(learner_name(file.local_meta.node_id))
            name = run.store.add(file.path)
            parent = run.current()
            contract.set_local_weight(
                file.local_meta.node_id,
                name,
                contract.chain.nonce(),
                trained_from=(parent.global_meta.round, parent.cid),
                attests=file.local_meta.node_id == 1,
            )
        run.publish_global(run.average(names))
    finish(site(run, "learner-1"), run, 1)
    assert len(here(run, locals_of(run, 0))) == 3
    assert not run.journals()


@pytest.fixture
def roles() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_a_learner_that_was_away_for_longer_than_files_are_kept_takes_part_again(
    world: World, roles: ExitStack
) -> None:
    run = world.deploy(kept(learners=3, min_learners=2, round_timeout=1.0, rounds=7))

    def is_fourth(event: Event) -> bool:
        return event.name == events.LocalWeightsPublished.name and event.fields["round"] == 3

    header, first = roles.enter_context(run.header()), roles.enter_context(run.learner(1))
    with run.learner(2, until=is_fourth) as second:
        header.wait_for(events.GlobalWeightsPublished, round=4)
        second.finish()
    first.wait_for(events.RoundsPruned)
    # Without it the first learner has no second for another round.
    late = roles.enter_context(run.learner(3))
    late.wait_for(events.LocalWeightsPublished)
    for role in (header, first, late, roles.enter_context(run.learner(2))):
        role.finish()
    audited = run.audit()
    assert audited.passed, audited.findings
    assert any(3 in past.latest() for past in history.read(run.contract).rounds)


def test_a_store_that_is_away_is_reported_once_and_tried_again(
    world: World, roles: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = world.deploy(kept())
    remove, failures = FolderStore.remove, iter([True])

    def fail_once(self: FolderStore, names: Iterable[str]) -> None:
        if next(failures, False):
            raise StoreUnreachable("the store is away")
        remove(self, names)

    monkeypatch.setattr(FolderStore, "remove", fail_once)
    all_roles = [roles.enter_context(role) for role in (run.header(), run.learner(1), run.learner(2))]
    for role in all_roles:
        role.finish()
    assert sum(len(role.of(events.PruningFailed)) for role in all_roles) == 1
    assert not here(run, locals_of(run, 0))


# Reports, contributions, attacks


def test_a_report_says_pruned(pruned_run: Run) -> None:
    result = pruned_run.collect()
    assert [[entry.pruned for entry in closed.local.values()] for closed in result.rounds] == [
        *[[True, True]] * (ROUNDS - 1),
        [False, False],
    ]
    assert all(entry.problem is None for closed in result.rounds for entry in closed.local.values())


def test_what_needs_old_files_says_that_they_are_gone(pruned_run: Run, tmp_path: Path) -> None:
    past, trainer = history.read(pruned_run.contract), pruned_run.trainer
    with pytest.raises(ConfigError, match="retention"):
        contributions(
            pruned_run.contract, pruned_run.store, tmp_path, pruned_run.plan, trainer.shapes(), lambda _tensors: 0
        )
    reader = Reader(pruned_run.store, tmp_path, pruned_run.plan, trainer.shapes())
    with pytest.raises(ConfigError, match="retention"):
        read_update(reader, past, pruned_run.plan, 1, 0)
    assert read_update(reader, past, pruned_run.plan, 1, ROUNDS - 1).round == ROUNDS - 1


def test_a_lab_with_retention_is_audited_signed_and_shown(tiny_plan: Path, tmp_path: Path) -> None:
    settings = ("--set", "rounds=4", "--set", "retention.rounds=1")
    lab = fl_node("lab", tiny_plan, *settings, "--runs", tmp_path, "--json")
    assert lab.returncode == 0, lab.stderr
    folder = tmp_path / "tiny"
    key = folder / "nodes" / "learner-1" / "role.key"
    first = fl_node("audit", folder, "--attest", "--key", key, "--json")
    assert first.returncode == 0, first.stderr
    content = json.loads(first.stdout)
    assert [one["round"] for one in content["pruned"]] == [0, 1, 2]
    assert sorted(content["weights"]) == ["0", "4"]
    signed = statement.read(Path(content["signed"]))
    assert sorted(signed.weights) == [0, 4]
    # The same word of the same account is not kept twice; another account's is.
    for name, keys in (("learner-1", {"signed_before"}), ("learner-2", {"signed"})):
        other = fl_node("audit", folder, "--attest", "--key", folder / "nodes" / name / "role.key", "--json")
        assert {"signed", "signed_before"} & json.loads(other.stdout).keys() == keys, other.stderr
    again = fl_node("audit", folder)
    assert again.returncode == 0, again.stderr
    assert "3 pruned" in again.stdout
    shown = fl_node("status", folder)
    assert (shown.returncode, shown.stdout.count("pruned")) == (0, 6), shown.stdout
    report = fl_node("report", folder, "-o", tmp_path / "report", "--no-evaluate")
    assert report.returncode == 0, report.stderr
    assert "pruned" in (tmp_path / "report" / "report.html").read_text()


def test_a_masked_lab_deletes_openings_with_the_masked_files(tiny_plan: Path, tmp_path: Path) -> None:
    settings = ["rounds=3", "learners=3", "retention.rounds=1", "aggregation.arithmetic=fixed"]
    settings += ["privacy.secure_aggregation=true"]
    lab = fl_node(
        "lab", tiny_plan, *(part for one in settings for part in ("--set", one)), "--runs", tmp_path, "--json"
    )
    assert lab.returncode == 0, lab.stderr
    folder = tmp_path / "tiny"
    audited = fl_node("audit", folder, "--json")
    assert audited.returncode == 0, audited.stdout
    assert [one["round"] for one in json.loads(audited.stdout)["pruned"]] == [0, 1]
    # The plan, four global files, and of the last round three masked files and their openings.
    assert len(list((folder / "nodes" / "files").iterdir())) == 1 + 4 + 3 + 3


def test_attest_without_anything_to_sign_or_a_key_is_one_line(tiny_plan: Path, tmp_path: Path) -> None:
    assert fl_node("lab", tiny_plan, "--set", "rounds=1", "--runs", tmp_path, "--json").returncode == 0
    folder = tmp_path / "tiny"
    no_key = fl_node("audit", folder, "--attest", "--key", tmp_path / "none.key")
    assert no_key.returncode == ConfigError.exit_code
    assert len(no_key.stderr.splitlines()) == 1
    assert "none.key" in no_key.stderr


@pytest.mark.nightly
def test_on_real_nodes_learners_that_share_a_node_lose_nothing_and_no_copy_stays(
    tiny_plan: Path, tmp_path: Path
) -> None:
    settings = [f"--set={one}" for one in ("rounds=4", "learners=4", "retention.rounds=1")]
    lab = fl_node("lab", tiny_plan, "--backend", "processes", "--nodes", "2", *settings, "--runs", tmp_path, "--json")
    assert lab.returncode == 0, lab.stderr
    folder = tmp_path / "tiny"
    audited = fl_node("audit", folder, "--json")
    assert audited.returncode == 0, audited.stdout
    assert [len(one["deleted"]) for one in json.loads(audited.stdout)["pruned"]] == [4, 4, 4]
    # Without the records it looks for the files, and no node has a copy.
    for path in folder.glob(f"nodes/*/*/*/*{journal.FILE}"):
        path.unlink()
    again = fl_node("audit", folder, "--json")
    assert again.returncode == 0, again.stdout
    assert [len(one["deleted"]) for one in json.loads(again.stdout)["pruned"]] == [0, 0, 0]
