"""The inventory's mistakes, each named in one line before any host is touched."""

import pytest

from tests.helpers.checkout import load

module = load("ansible/filter_plugins/inventory_problems.py")


def problems(headers, learners, testbed=None):
    """Hosts are given as name → (address, node_id)."""
    hosts = {**headers, **learners, **(testbed or {})}
    groups = {"headers": list(headers), "learners": list(learners), "testbed": list(hosts)}
    hostvars = {
        name: {key: value for key, value in (("testbed_address", address), ("node_id", number)) if value is not None}
        for name, (address, number) in hosts.items()
    }
    return module.inventory_problems(groups, hostvars)


HEADER = {"header": ("10.0.0.1", None)}
LEARNERS = {"a": ("10.0.0.2", 1), "b": ("10.0.0.3", 2)}


def test_good_inventory():
    assert problems(HEADER, LEARNERS) == []


@pytest.mark.parametrize(
    ("headers", "learners", "text"),
    [
        ({}, LEARNERS, "no header"),
        ({**HEADER, "other": ("10.0.0.9", None)}, LEARNERS, "2 headers (header, other)"),
        (HEADER, {}, "no learner"),
        (HEADER, {**LEARNERS, "header": ("10.0.0.1", 3)}, "header is in headers and in learners"),
        (HEADER, {"a": ("10.0.0.2", 1), "b": ("10.0.0.2", 2)}, "a and b have one address, 10.0.0.2"),
        (HEADER, {"a": ("10.0.0.2", 1), "b": ("10.0.0.3", 1)}, "a and b have one node_id, 1"),
        (HEADER, {"a": ("10.0.0.2", 1), "b": ("10.0.0.3", 3)}, "node_id 2 is nobody's, b has 3"),
        (HEADER, {"a": ("10.0.0.2", None)}, "a has no node_id"),
        (HEADER, {"a": ("10.0.0.2", "one")}, "a has node_id 'one'"),
        (HEADER, {"a": ("10.0.0.2", True)}, "a has node_id True"),
        (HEADER, {"a": ("10.0.0.2", 0)}, "a has node_id 0"),
        (HEADER, {"a": ("lab.example", 1)}, "a has the address 'lab.example', which is not IPv4"),
        (HEADER, {"a": (None, 1)}, "a has no address"),
        (HEADER, {"a": ("127.0.0.1", 1)}, "by which other hosts can't reach it"),
    ],
)
def test_each_mistake_is_named(headers, learners, text):
    lines = problems(headers, learners)
    assert len(lines) == 1
    assert text in lines[0]


def test_all_mistakes_at_once():
    assert len(problems({}, {"a": ("10.0.0.2", 1), "b": ("10.0.0.2", 1)})) == 3


def test_host_without_role():
    assert problems(HEADER, LEARNERS, {"lost": ("10.0.0.7", None)}) == [
        "lost is in testbed, but neither in headers nor in learners"
    ]


def ids(**given):
    """Hosts are given as name → its variables."""
    return module.learner_ids(list(given), given)


def test_each_host_has_the_learners_that_it_names_or_as_many_as_it_says():
    assert ids(a={"node_id": 1}, b={"node_id": 2}) == {"a": [1], "b": [2]}
    assert ids(a={"node_ids": [3, 1]}, b={"node_id": 2}) == {"a": [1, 3], "b": [2]}
    assert ids(a={"learners": 2}, b={"node_ids": [2, 4]}, c={"learners": 1}) == {"a": [1, 3], "b": [2, 4], "c": [5]}
    assert ids(a={}, b={"node_ids": "1"}, c={"learners": "2"}) == {"a": [], "b": [], "c": []}


@pytest.mark.parametrize(
    ("node_ids", "role", "units"),
    [
        ([], "header", ["fl-header.service"]),
        ([7], "learner", ["fl-learner.service"]),
        ([2, 4], "learner", ["fl-learner@2.service", "fl-learner@4.service"]),
    ],
)
def test_several_learners_have_a_unit_each(node_ids, role, units):
    assert module.role_units(node_ids, role) == units
