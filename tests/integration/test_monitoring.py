"""What docs/monitoring names is really exported: by the live page, by a real Geth, by a real Kubo."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from fl_node.chain.keys import create_key
from fl_node.monitor import metrics
from fl_node.monitor.observer import Observer
from fl_node.nodes.backends import Endpoint, ProcessBackend, free_ports
from fl_node.runtime.waiting import wait_until
from tests.helpers.runs import World, plan

FOLDER = Path(__file__).parents[2] / "docs" / "monitoring"
PATIENCE = 600.0
"""Seconds after which something has hung."""
FUNCTIONS = {"by", "increase", "rate", "sum", "time"}


def fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return str(answer.read().decode())


def names(text: str) -> set[str]:
    """The names of all samples in Prometheus' text format."""
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What each of the three sources says, by the job that scrapes it."""
    folder = tmp_path_factory.mktemp("monitoring")
    accounts = {node: create_key(folder / f"{node}.key") for node in ("header", "learner-1")}
    backend = ProcessBackend(folder / "nodes", accounts, print)
    (backend.geth["header"].metrics_port,) = free_ports(1)
    try:
        ends = backend.start()
        host, port = ends["header"].store.split("/")[2::2]
        geth = f"http://127.0.0.1:{backend.geth['header'].metrics_port}/debug/metrics/prometheus"
        yield {
            "fl-node": page(folder / "world"),
            "geth": fetched(geth),
            "ipfs": fetched(f"http://{host}:{port}/debug/metrics/prometheus"),
        }
    finally:
        backend.stop()


def page(folder: Path) -> str:
    """The metrics of a run with two learners, of which a round is closed."""
    with World(folder) as world:
        run = world.deploy(plan())
        run.close_round()
        (folder / "work").mkdir()
        end = Endpoint(world.rpc, str(run.files))
        with Observer({"header": end}, lambda: run.address, folder / "work") as observer:
            assert wait_until(lambda: observer.newest is not None and observer.newest.round == 1, PATIENCE)
            # Files are read in any order.
            local = (1, 2)
            assert wait_until(lambda: all(observer.state.rounds[0].local[n].accuracy for n in local), PATIENCE)
            assert observer.newest is not None
            observer.measured(observer.newest.cid, 0.75)
            return metrics.exposition(lambda: observer.state).decode()


def expressions() -> list[str]:
    content: dict[str, Any] = json.loads((FOLDER / "grafana.json").read_text())
    return [target["expr"] for panel in content["panels"] for target in panel.get("targets", [])]


def metrics_of(expression: str) -> set[str]:
    """The metrics that an expression of PromQL speaks of."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\bby \([^)]*\)", "", expression)
    return set(re.findall(r"[a-z_][a-z0-9_]*", re.sub(r"\b\d[\d.e]*", "", bare))) - FUNCTIONS


@pytest.mark.parametrize("expression", expressions())
def test_each_metric_of_the_dashboard_is_exported(exported: dict[str, str], expression: str) -> None:
    wanted = metrics_of(expression)
    assert wanted
    assert wanted <= names("\n".join(exported.values())), expression


def test_each_metric_of_the_documentation_is_exported(exported: dict[str, str]) -> None:
    documented = set(re.findall(r"`(fl_[a-z_]+)`", (FOLDER.parent / "monitoring.md").read_text()))
    assert documented == names(exported["fl-node"])


def test_the_jobs_that_the_dashboard_speaks_of_are_scraped(exported: dict[str, str]) -> None:
    jobs = {job["job_name"] for job in yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]}
    assert jobs == set(exported)
    assert set(re.findall(r'job="([^"]+)"', " ".join(expressions()))) <= jobs


def test_the_ports_are_those_of_the_hosts() -> None:
    def default(role: str, name: str) -> int:
        content = (FOLDER.parents[1] / "roles" / role / "defaults" / "main.yml").read_text()
        return int(yaml.safe_load(content)[name])

    jobs = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    ports = {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs}
    assert ports == {
        "fl-node": [f"127.0.0.1:{default('fl_node', 'fl_node_dashboard_port')}"],
        "geth": [f"127.0.0.1:{default('geth', 'geth_metrics_port')}"],
        "ipfs": ["127.0.0.1:5001"],
    }
