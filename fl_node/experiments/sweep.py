"""Many runs, to compare rules under attack: every combination of rule, attack, share of attackers and seed.

Each cell is a run of its own, audited, whose result is kept by the CID of its plan; so an interrupted sweep goes on
where it was, and one that is extended does only what is new.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_node.aggregation import RULES
from fl_node.aggregation.rule import Robust
from fl_node.artifacts import cid
from fl_node.attacks import DATA_CHOICE, UPDATE_CHOICE
from fl_node.attacks.backdoor import Backdoor
from fl_node.errors import ConfigError, JsonError
from fl_node.plan import loading as plans
from fl_node.plan.schema import Plan
from fl_node.runtime import files, numerals, strict_json
from fl_node.runtime.settings import Settings
from fl_node.runtime.templating import render
from fl_node.seeds import derive, permutation

LIMIT = 7200.0
"""Seconds that one run may take, unless the user says otherwise."""
CLEAN = "none"
"""The attack that is none."""
_ATTACKS = (DATA_CHOICE, UPDATE_CHOICE)


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    rule: str
    attack: str
    share: float
    seed: int
    plan: Plan

    @property
    def name(self) -> str:
        """The CID of the cell's plan, by which its result is kept."""
        return cid.of_bytes(self.plan.to_bytes())

    def __str__(self) -> str:
        attacked = f"{self.attack} by {self.share:.0%}" if self.attack != CLEAN else "no attack"
        return f"{self.rule}, {attacked}, seed {self.seed}"


@dataclass(frozen=True)
class Figure:
    """What the seeds of one combination reached in the last round: means and sample deviations, as fractions."""

    rule: str
    attack: str
    share: float
    mean: float
    deviation: float
    values: tuple[float, ...]
    backdoor: float | None
    """How often a backdoor works, on average."""


@dataclass(frozen=True)
class Remote:
    """A scheduler on another machine, such as ``tls://192.168.56.10:8786``, and the folder with the keys for it."""

    address: str
    keys: Path


def cells(
    plan: Plan, rules: Sequence[str], attacks: Sequence[str], shares: Sequence[float], seeds: Sequence[int]
) -> list[Cell]:
    """Return the runs of a sweep: each rule without attack, and with each attack by each share of the learners.

    Parameters
    ----------
    plan
        What all have in common.
    rules
        Such as ``fedavg``, ``norm_clipping:1.5``. What a rule is told of liars is their true number unless it is
        given, as in ``krum:4``.
    attacks
        Such as ``label_flip``, ``scale:5``, ``label_flip+scale:5``.
    shares
        The share of learners that attack, 0 to 1; who they are follows from the seed.
    seeds
        Of the runs.

    Raises
    ------
    ConfigError
        A combination is malformed; the message names it.
    PlanError
        A combination is not possible; the message names it.
    """
    for attack in attacks:
        if attack != CLEAN:  # checked even if the shares make nobody attack
            alone = {"name": "attack", "attack": _attack(attack) | {"learners": [1]}}
            plans.validate(alone, f"attack {attack}")
    by_name: dict[str, Cell] = {}
    most = max((attackers(plan, share) for share in shares), default=0)
    for seed, rule in itertools.product(seeds, rules):
        for attack, share in [(CLEAN, 0.0), *itertools.product(attacks, shares)]:
            content = plan.model_dump() | {"seed": seed, "aggregation": _rule(plan, rule, max(most, 1))}
            content.pop("attack", None)
            count = attackers(plan, share)
            if attack != CLEAN and count:
                order = permutation(plan.learners, derive(seed, "attackers"))
                content["attack"] = _attack(attack) | {"learners": sorted(int(i) + 1 for i in order[:count])}
            cell = Cell(
                rule, attack, share, seed, plans.validate(content, f"rule {rule} with attack {attack} by {count}")
            )
            by_name.setdefault(cell.name, cell)
    return list(by_name.values())


def attackers(plan: Plan, share: float) -> int:
    """Return how many learners of a plan a share is.

    Raises
    ------
    ConfigError
        It is not a share.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"--attackers {share:g}: should be a share from 0 to 1")
    return round(share * plan.learners)


def _rule(plan: Plan, text: str, attackers: int) -> dict[str, Any]:
    name, _, number = text.partition(":")
    settings: dict[str, Any] = {"rule": name}
    rule = RULES.get(name)
    if name == plan.aggregation.rule and not number:
        settings = plan.aggregation.model_dump()
    elif number:
        if rule is None:
            raise ConfigError(f"rule {text}: unknown rule {name!r}; should be one of {', '.join(RULES)}")
        if rule.number is None:
            raise ConfigError(f"rule {text}: {name} has no number to set")
        settings[rule.number] = _number(text, number, rule)
    elif rule is not None and issubclass(rule, Robust):
        settings["num_malicious"] = attackers
    return settings


def _attack(text: str) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    known = {name: (choice.key, variant) for choice in _ATTACKS for name, variant in choice.variants.items()}
    for part in text.split("+"):
        name, _, number = part.partition(":")
        if name not in known:
            raise ConfigError(f"attack {text}: unknown attack {name}; should be one of {', '.join(known)}")
        key, attack = known[name]
        if key in settings:
            raise ConfigError(f"attack {text}: {settings[key]} and {name} can't be combined")
        settings[key] = name
        if number:
            if attack.number is None:
                raise ConfigError(f"attack {text}: {name} has no number to set")
            settings[attack.number] = _number(text, number, attack)
    return settings


def _number(text: str, number: str, settings: type[Settings]) -> float:
    """Return the number after a name, in the type of the setting.

    Raises
    ------
    ConfigError
        The text is not a number.
    """
    assert settings.number is not None
    is_whole = settings.model_fields[settings.number].annotation is int
    try:
        return numerals.whole(number) if is_whole else numerals.real(number)
    except ValueError as error:
        raise ConfigError(f"{text}: {number} is not a number") from error


def run(
    todo: Iterable[Cell],
    folder: Path,
    jobs: int,
    data_dir: Path | None,
    done: Callable[[Cell, Mapping[str, Any], bool], None],
    *,
    modules: Path | None = None,
    backend: str = "embedded",
    limit: float = LIMIT,
    remote: Remote | None = None,
    report: Callable[[str], None] = lambda _line: None,
) -> dict[str, dict[str, Any]]:
    """Carry out what is not done yet, and return all results by the names of their cells.

    Parameters
    ----------
    todo
        The cells.
    folder
        Where results are kept, in ``cells/``.
    jobs
        Runs at a time on this machine.
    data_dir
        Where the data set is on this machine.
    done
        Called with each cell, its result, and whether it had been kept from before.
    modules
        Where custom modules are on this machine; else ``FL_NODE_MODULES`` counts.
    backend
        ``embedded``, all roles in one process, or ``processes``, each run a lab on real Geth and IPFS.
    limit
        Seconds that one run may take.
    remote
        The scheduler whose workers carry the runs out; None: this machine does.
    report
        Called with a line when a worker comes or is lost.

    Raises
    ------
    DataError
        The data set is not available.
    ModuleError
        The plan's custom module can't be loaded.
    ConfigError
        The address or the keys of the scheduler are wrong, a worker differs from this machine, or a result that was
        kept is damaged, or the folder for results can't be written.
    ProcessError
        A run failed; the others that were going on are ended. Or the scheduler or all workers are lost.
    """
    kept = folder / "cells"
    files.check_folder(kept, "--results")
    results: dict[str, dict[str, Any]] = {}
    missing: dict[str, Cell] = {}
    for cell in todo:
        path = kept / f"{cell.name}.json"
        if os.path.lexists(path):
            results[cell.name] = _kept(path)
            done(cell, results[cell.name], True)
        else:
            missing[cell.name] = cell
    if not missing:
        return results
    from fl_node.experiments import cluster
    from fl_node.experiments.trial import Trial, required_versions

    if remote is None:
        from fl_node.data import loading

        # Once, and before any child that would say so by a traceback of its own.
        loading.load(next(iter(missing.values())).plan, data_dir, modules)
        place, versions = cluster.local(max(jobs, 1), data_dir, modules), {}
    else:
        place, versions = cluster.remote(remote.address, remote.keys), required_versions()
    trials = {
        name: Trial(str(cell), cell.plan.to_bytes(), limit, backend, _has_backdoor(cell), versions)
        for name, cell in missing.items()
    }
    with place as client, contextlib.closing(cluster.results(client, trials, report)) as arriving:
        for name, result in arriving:
            files.keep(kept / f"{name}.json", json.dumps(result, indent=2) + "\n")
            results[name] = result
            done(missing[name], result, False)
    return results


def _has_backdoor(cell: Cell) -> bool:
    return cell.plan.attack is not None and isinstance(cell.plan.attack.on_data, Backdoor)


def _kept(path: Path) -> dict[str, Any]:
    """Return the stored result of a cell.

    Raises
    ------
    ConfigError
        The file can't be read or is not a result.
    """
    remedy = "delete the file to run its cell again"
    wrong = ConfigError(f"{path} should be the result of a cell; {remedy}")
    try:
        result: dict[str, Any] = strict_json.read(path)
        last = result["rounds"][-1]
        shares = [last[key] for key in ("accuracy", "backdoor") if key == "accuracy" or last.get(key) is not None]
    except JsonError as error:
        raise ConfigError(f"{error}; {remedy}") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; {remedy}") from error
    except (LookupError, TypeError, AttributeError) as error:
        raise wrong from error
    if not all(type(share) in (int, float) and 0 <= share <= 1 for share in shares):
        raise wrong
    return result


def figures(wanted: Iterable[Cell], results: Mapping[str, Mapping[str, Any]]) -> list[Figure]:
    """Return what each combination of rule, attack and share reached in the last round, over its seeds."""
    groups: dict[tuple[str, str, float], list[Mapping[str, Any]]] = {}
    for cell in wanted:
        if cell.name in results:
            groups.setdefault((cell.rule, cell.attack, cell.share), []).append(results[cell.name]["rounds"][-1])
    summaries = []
    for (rule, attack, share), last in groups.items():
        values = tuple(float(entry["accuracy"]) for entry in last)
        backdoors = [float(entry["backdoor"]) for entry in last if entry.get("backdoor") is not None]
        summaries.append(
            Figure(
                rule,
                attack,
                share,
                statistics.fmean(values),
                statistics.stdev(values) if len(values) > 1 else 0.0,
                values,
                statistics.fmean(backdoors) if backdoors else None,
            )
        )
    return summaries


def write(folder: Path, plan: Plan, results: Sequence[Figure], seeds: Sequence[int]) -> Path:
    """Write ``sweep.json``, ``sweep.md`` and ``sweep.html`` with a heat map; return the path of the last.

    Parameters
    ----------
    folder
        Where the files are written.
    plan
        The plan that the cells vary.
    results
        One figure per rule, attack and share of attackers.
    seeds
        The seeds of the runs.
    """
    columns = sorted(
        {(figure.share, figure.attack) for figure in results},
        key=lambda column: (column[1] != CLEAN, column[1], column[0]),
    )
    rules = list(dict.fromkeys(figure.rule for figure in results))
    by_place = {(figure.rule, figure.share, figure.attack): figure for figure in results}
    heads = [attack if attack == CLEAN else f"{attack}, {share:.0%}" for share, attack in columns]
    rows = [
        {"rule": rule, "cells": [by_place.get((rule, share, attack)) for share, attack in columns]} for rule in rules
    ]
    context = {"plan": plan, "seeds": list(seeds), "heads": heads, "rows": rows, "colour": colour, "ink": ink}
    content = {
        "plan": plan.model_dump(mode="json"),
        "seeds": list(seeds),
        "figures": [vars(figure) | {"values": list(figure.values)} for figure in results],
    }
    with files.together(folder) as new:
        files.write(new / "sweep.json", json.dumps(content, indent=2) + "\n")
        files.write(new / "sweep.md", render("sweep.md.j2", **context))
        files.write(new / "sweep.html", render("sweep.html.j2", **context))
    return folder / "sweep.html"


def colour(value: float) -> str:
    """Return the colour of a fraction in a heat map, as CSS: cividis, whose order is seen alike by everybody."""
    import matplotlib as mpl

    red, green, blue, _ = mpl.colormaps["cividis"](min(max(value, 0.0), 1.0), bytes=True)
    return f"rgb({red} {green} {blue})"


def ink(value: float) -> str:
    """Return the colour of text that can be read on :func:`colour`."""
    return "#000" if value > 0.47 else "#fff"
