"""The commands that show, check and report a run."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fl_node.cli.common import (
    check_alone,
    checked_address,
    console,
    errors,
    given_or,
    journals_at_hand,
    make_trainer,
    make_trainer_with_data_if_there,
    never_lost,
    open_run,
    plan_of,
    print_note,
)
from fl_node.cli.options import (
    DEFAULT_STORE,
    AnchorOption,
    ContractChoice,
    DataOption,
    FolderOption,
    JsonOption,
    KeyOption,
    ModulesOption,
    RpcChoice,
    RunArgument,
    StoreChoice,
)
from fl_node.cli.roles import accounts_of
from fl_node.cli.statements import anchored_journals, signed_before, statements_at_hand
from fl_node.cli.statements import attest as attest_result
from fl_node.errors import ConfigError, LogError, StoreError
from fl_node.runtime import files, scratch
from fl_node.runtime.terminal import styled
from fl_node.wording import counted

if TYPE_CHECKING:
    from fl_node.artifacts.model_file import Tensors
    from fl_node.audit.result import Audit
    from fl_node.chain.contract import Contract
    from fl_node.models.trainer import Trainer
    from fl_node.plan.schema import Plan


def logs(
    source: Annotated[
        str, typer.Argument(metavar="RUN|-", help="Run folder, such as runs/demo; - reads standard input.")
    ],
    nodes: Annotated[
        list[str] | None, typer.Option("--node", help="Show only this node, such as learner-1; may be repeated.")
    ] = None,
    names: Annotated[
        list[str] | None, typer.Option("--event", help="Show only events with this name; may be repeated.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the logs of header and learners as text, sorted by time.

    Roles log JSON lines if standard error is not a terminal: a lab to the log files in its run folder, a host to the
    journal. On a host: journalctl -u fl-learner -o cat --follow | fl-node logs -
    """
    from fl_node import events as kinds
    from fl_node.runtime import logs as logging_

    for name in names or ():
        if name not in kinds.EVENTS:
            raise ConfigError(f"--event {name}: should be one of {', '.join(kinds.EVENTS)}")
    for event in logging_.read(source, nodes or ()):
        if not names or event["event"] in names:
            print(json.dumps(event) if as_json else logging_.sentence(event), flush=True)


def status(
    run: RunArgument = None,
    rpc: RpcChoice = None,
    store: StoreChoice = None,
    contract: ContractChoice = None,
    as_json: JsonOption = False,
) -> None:
    """Show the progress of a run from chain and store; works on any node."""
    from fl_node.audit.journals import compare
    from fl_node.chain import clique
    from fl_node.lab.show import rounds_table
    from fl_node.protocol.hidden import hidden
    from fl_node.protocol.names import learners_label
    from fl_node.report import collect

    with open_run(run, rpc, store, contract) as (run_contract, run_store), scratch.folder() as here:
        result = collect.collect(run_contract, run_store, here)
        sealers = clique.sealers(run_contract.chain)
        paths = journals_at_hand(run, run_contract)
        warnings = compare(run_contract, result.plan, paths) if paths else []
    if as_json:
        of_chain = asdict(sealers) | {"missing": sealers.missing} if sealers else None
        typer.echo(collect.as_json(result, sealers=of_chain, journals=warnings))
        return
    state = "ended" if result.ended else f"in round {result.round} of {result.plan.rounds}"
    console.print(styled(result.plan.name, "bold"), f", {state}", sep="")
    console.print(f"contract {result.contract}, plan {result.plan_cid}")
    console.print(rounds_table(collect.table(result)))
    console.print(f"sealers: {sealers or clique.NOT_CLIQUE}")
    for warning in warnings:
        console.print(styled("journals", "red"), f": {warning}", sep="")
    if result.spent and result.plan.dp is not None:
        most = max(result.spent.values())
        limit = "" if result.plan.dp.limit is None else f" of at most {result.plan.dp.limit:g}"
        console.print(f"privacy: ε = {most:g}{limit} for δ = {result.plan.dp.delta:g}, by what was published")
    if result.plan.is_masked:
        console.print(hidden(result.plan))
    for change in result.header_changes:
        console.print(f"the header changed to {change.account}, {change.node}, in block {change.block}")
    for verdict in result.verdicts:
        # Of a run that goes well only the newest word is of interest.
        if verdict.rejected or verdict.withdrawn or verdict is result.verdicts[-1]:
            console.print(f"global weights {verdict.round} ({verdict.cid}): {verdict.words(len(result.learners))}")
    if result.budget_spent:
        console.print(f"the privacy budget of {learners_label(result.budget_spent)} is spent: no more publications")
    if not result.ended:
        if result.stuck:
            console.print(styled("the run can't go on", "red"), f": {result.stuck}", sep="")
            return
        who = learners_label(result.awaited) if result.awaited else "the header"
        if any(entry.problem for node_id, entry in result.open_round.items() if node_id in result.awaited):
            who = f"the file of {who}"
        console.print(f"round {result.round}: waiting for {who}")


def journal(
    run: RunArgument = None,
    contract: ContractChoice = None,
    folder: FolderOption = Path("work"),
    store: StoreChoice = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Copy the journals to this folder, to keep them elsewhere."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the signed journals of a run's roles: those in a run folder, or this host's.

    A role writes down each round as it sees it: the global weights, the block and the time. With a copy that you keep
    elsewhere, anyone can see later whether the chain was rewritten: fl-node audit --anchor FILE.

    On a host, --folder is the role's folder. Its journal is also in IPFS, and the command prints the CID.
    """
    from fl_node.artifacts.address import connect
    from fl_node.artifacts.ipfs_store import IpfsStore
    from fl_node.lab import run_folder
    from fl_node.protocol import journal as journals

    if run is None and contract is None:
        raise ConfigError("no run given; give its folder, or --contract")
    if run is not None:
        check_alone(run, store=store, contract=contract)
    address = run_folder.load(run).contract if run else checked_address("--contract", str(contract))
    paths = run_folder.journals(run, address) if run else run_folder.journals_of_host(folder, address)
    kept = [content for path in paths if (content := journals.read(path)).entries]
    if not kept:
        raise ConfigError(f"no journal of contract {address} in {run or folder}; it begins with the first round")
    shared = connect(given_or(store, DEFAULT_STORE)) if run is None else None
    cids: dict[str, str] = {}
    if isinstance(shared, IpfsStore):
        try:
            cids = shared.named_files()
        except StoreError as error:
            print_note(f"note: no CIDs: {error}")
    if output is not None:
        with files.output_folder(output, "--output"):
            for content in kept:
                files.write(output / f"{content.name}-{journals.FILE}", content.path.read_bytes())
    if as_json:
        listing = [
            {
                "file": str(content.path),
                "head": content.head,
                "problem": content.problem,
                "cid": cids.get(content.name),
                "entries": [asdict(entry) for entry in content.entries],
            }
            for content in kept
        ]
        typer.echo(json.dumps(listing, indent=2))
        return
    for content in kept:
        last = (content.states or content.entries)[-1]
        console.print(
            styled(f"{last.role} {last.account}", "bold"),
            f": {counted(len(content.entries), 'entry', 'entries')}",
            sep="",
        )
        if gone := content.pruned:
            console.print(
                f"  pruned: its files of {counted(len(gone), 'round')}, the last of them round {gone[-1].round}"
            )
        console.print(f"  last: round {last.round} {last.kind}, {last.cid}, block {last.height} ({last.block})")
        console.print(f"  hash of the last line: {content.head}")
        if cid := cids.get(content.name):
            console.print(f"  in IPFS: {cid}")
        console.print(f"  {content.path}" + (f": {content.problem}" if content.problem else ""))


def audit(
    run: RunArgument = None,
    data_dir: DataOption = None,
    rpc: RpcChoice = None,
    store: StoreChoice = None,
    contract: ContractChoice = None,
    modules: ModulesOption = None,
    learner: Annotated[
        list[str] | None,
        typer.Option(metavar="NODEID=ADDRESS", help="The account that this learner should have; may be repeated."),
    ] = None,
    anchors: AnchorOption = None,
    attest: Annotated[
        bool,
        typer.Option(
            "--attest",
            help="Sign the list of recomputed global weights with the account of --key. Later audits use it when "
            "files are gone (retention in the plan).",
        ),
    ] = False,
    key: KeyOption = Path("role.key"),
    as_json: JsonOption = False,
) -> None:
    """Audit a run: fetch every file, compare it with the chain, recompute every global file bit for bit.

    Anyone can audit a run on any node; it needs only chain and store. The exit code is 0 if the audit passes, and 1
    if it fails, with one line per finding (round, node, field). The command restarts the nodes of a finished lab.

    It also compares the roles' signed journals with the chain, which a majority of its sealers can rewrite: those in
    the run's folder, those that this host has, and those that --anchor gives.

    Rounds whose files were deleted as the plan's retention says are not recomputed. The audit says which, who deleted
    the files and when, and who had recomputed the round before and signed that with --attest.

        fl-node audit runs/demo --attest --key runs/demo/nodes/learner-1/role.key
    """
    from fl_node.audit.auditor import audit as check
    from fl_node.chain.keys import load_key

    account, accounts = load_key(key) if attest else None, accounts_of(learner or ())
    anchored = anchored_journals(anchors or ())

    def make(plan: Plan) -> Trainer:
        if plan.measures_members:
            return make_trainer_with_data_if_there(plan, data_dir, modules, "")
        return make_trainer(plan, modules=modules, with_data=False)

    with open_run(run, rpc, store, contract) as (run_contract, run_store), scratch.folder() as here:
        kept = [*journals_at_hand(run, run_contract), *anchored]
        shared = here / "statements"
        shared.mkdir()
        statements = statements_at_hand(run, run_contract, run_store, anchors or (), shared)
        show = errors.status("auditing", spinner="line") if errors.is_terminal else contextlib.nullcontext()
        with show:
            result = check(
                run_contract,
                run_store,
                here,
                make,
                accounts=accounts,
                journals=kept,
                statements=statements,
            )
        signed: Path | None = None
        unsigned: ConfigError | None = None
        before = None if account is None else signed_before(statements, run_contract, result, account)
        if account is not None and before is None:
            try:
                signed = attest_result(run, run_contract, run_store, result, account)
            except ConfigError as error:
                unsigned = error  # the result comes first
        last_block, final = _last_block(run_contract), run_contract.chain.finalized()
    is_final = None if final is None else last_block <= final
    content = asdict(result) | {"passed": result.passed, "final": is_final}
    if signed is not None:
        content["signed"] = str(signed)
    if before is not None:
        content["signed_before"] = before.name
    text = json.dumps(content, indent=2)
    with never_lost(lambda: files.rescued("audit.json", text)):
        if as_json:
            typer.echo(text)
        else:
            for note in result.notes:
                console.print(f"note: {note}")
            if is_final is False:
                console.print(
                    f"note: the run's last block, {last_block}, is not final yet (final: {final}); "
                    "the chain can still replace it, so audit again later"
                )
            for finding in result.findings:
                console.print(str(finding))
            verdict = "passed" if result.passed else f"FAILED with {counted(len(result.findings), 'finding')}"
            size = f"{result.bytes / 1e6:.1f} MB"
            rounds = f"{counted(result.rounds, 'round')}{pruned_of(result)}"
            console.print(f"audit {verdict}: {rounds}, {counted(result.files, 'file')}, {size}")
            if signed is not None:
                console.print(f"signed result: {signed}")
            if before is not None:
                console.print(f"already signed: {before.name}")
    if not result.passed:
        raise typer.Exit(1)
    if unsigned is not None:
        raise unsigned


def _last_block(contract: Contract) -> int:
    """Return the number of the newest block with an event of the run."""
    try:
        return max((entry.block for entry in contract.log()), default=0)
    except LogError:  # the audit has reported it
        return 0


def report(
    run: RunArgument = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Output folder.")] = Path("report"),
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the run in the report; the run folder's or the plan's name by default."),
    ] = None,
    evaluate: Annotated[
        bool | None,
        typer.Option(
            "--evaluate/--no-evaluate",
            help="Evaluate each round's global weights on the test images; by default, if the data set is available.",
            show_default=False,
        ),
    ] = None,
    data_dir: DataOption = None,
    modules: ModulesOption = None,
    rpc: RpcChoice = None,
    store: StoreChoice = None,
    contract: ContractChoice = None,
    as_json: JsonOption = False,
) -> None:
    """Audit a run and write its report, plan and final model to a folder, from chain and store only.

    Anyone can do this on any node, during the run (for the closed rounds) or after it. report.html is self-contained;
    report.md and report.json have the same content as text and for scripts.

        fl-node report runs/demo -o DIR
    """
    from fl_node.lab import run_folder as runs
    from fl_node.lab.show import rounds_table
    from fl_node.report.collect import table
    from fl_node.report.finalize import finalize

    with (
        files.output_folder(output, "--output"),
        open_run(run, rpc, store, contract) as (run_contract, run_store),
        scratch.folder() as here,
    ):
        plan = plan_of(run_contract, run_store)
        if evaluate is None:
            trainer = make_trainer_with_data_if_there(plan, data_dir, modules, "the report has no evaluation: ")
        else:
            trainer = make_trainer(plan, data_dir, modules, with_data=evaluate)
        title = name or (runs.folder_of(run).resolve().name if run else trainer.plan.name)
        # A run's folder names Geth and IPFS as they were when it was made; a host's node names itself.
        versions = runs.load(run).versions if run else runs.versions() | {"chain client": run_contract.chain.client()}
        conclusion = finalize(
            run_contract,
            run_store,
            output,
            title,
            trainer,
            versions,
            evaluate=trainer.data is not None,
            journals=journals_at_hand(run, run_contract),
            statements=statements_at_hand(run, run_contract, run_store, (), here),
        )
    passed = conclusion.audit.passed
    if as_json:
        content = {
            "report": str(conclusion.report),
            "model": str(conclusion.model) if conclusion.model else None,
            "ended": conclusion.result.ended,
            "audit": asdict(conclusion.audit) | {"passed": passed},
        }
        typer.echo(json.dumps(content, indent=2))
    else:
        console.print(rounds_table(table(conclusion.result)))
        for finding in conclusion.audit.findings:
            console.print(str(finding))
        if not conclusion.result.ended:
            console.print(
                f"the run is in progress, in round {conclusion.result.round} of {plan.rounds}; "
                "it has no final model yet"
            )
        verdict = "passed" if passed else f"FAILED with {counted(len(conclusion.audit.findings), 'finding')}"
        rounds = f"{counted(conclusion.audit.rounds, 'round')}{pruned_of(conclusion.audit)}"
        console.print(f"audit {verdict}: {rounds}, {counted(conclusion.audit.files, 'file')}")
        console.print(f"report: {conclusion.report} (as text: report.md)")
    if not passed:
        raise typer.Exit(1)


def pruned_of(result: Audit) -> str:
    """Return how many rounds of an audit were not recomputed, as the middle of a sentence; empty if all were."""
    count = len(result.pruned)
    return f" ({result.rounds - count} recomputed, {count} pruned as agreed)" if count else ""


def contribution(
    run: RunArgument = None,
    rpc: RpcChoice = None,
    store: StoreChoice = None,
    contract: ContractChoice = None,
    data_dir: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compute each learner's contribution as exact Shapley values, per round and in total, without training.

    For each subset of learners, the command aggregates their files and evaluates the model on the held-out images
    (data.validation). It supports up to 8 learners per round and no asynchronous runs. The result is reproducible
    from chain, store and data set.

        fl-node contribution runs/valued
    """
    from fl_node.data import loading
    from fl_node.data.held_out import held_out
    from fl_node.lab.show import contribution_table
    from fl_node.models.ensemble import trainer_for
    from fl_node.models.evidence import evidence
    from fl_node.report import contribution as work

    with open_run(run, rpc, store, contract) as (run_contract, run_store), scratch.folder() as here:
        plan = plan_of(run_contract, run_store)
        work.check(plan)
        dataset = loading.load_images(plan, data_dir, print_note)
        images, labels = held_out(plan, dataset)
        trainer = trainer_for(plan, dataset)
        measure = evidence(plan, trainer)

        def correct(tensors: Tensors) -> int:
            return int((trainer.predict(tensors, images).argmax(axis=1) == labels).sum())

        show = errors.status("evaluating", spinner="line") if errors.is_terminal else contextlib.nullcontext()
        with show:
            values = work.contributions(run_contract, run_store, here, plan, trainer.shapes(), correct, measure)
    text = json.dumps(work.as_content(values, len(labels)), indent=2)
    with never_lost(lambda: files.rescued("contribution.json", text)):
        if as_json:
            typer.echo(text)
        else:
            console.print(contribution_table(values, len(labels)))
