"""The documentation builds into a site without a complaint, and complains of what is wrong."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import typer.main

from fl_node.cli.app import app
from fl_node.plan.json_schema import plan_schema
from tests.helpers.checkout import PAGES, ROOT, build_site, copy


def words(page: Path) -> str:
    """Return a page's text without its tags."""
    text = re.sub(r"<(script|style).*?</\1>", "", page.read_text(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", text)))


def test_every_page_of_the_repository_is_in_the_site(site: Path) -> None:
    for page in PAGES:
        path = page.relative_to(ROOT)
        name = path.with_name("index.html") if path.name == "README.md" else path.with_suffix(".html")
        assert (site / name).is_file(), path


def test_every_command_is_in_the_reference_with_all_of_its_first_line_and_no_markup(site: Path) -> None:
    text = words(site / "reference" / "commands.html")
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        line = " ".join((command.help or "").split("\n\n")[0].split())
        assert f"{name}: {line}" in text, name
    assert "Exit codes 0 success" in text
    assert not re.search(r"\[/?(bold|dim|red|green)\]", text)


def test_every_setting_of_a_plan_is_in_the_reference(site: Path) -> None:
    text = words(site / "reference" / "plan.html")
    schema = plan_schema()
    parts = [schema]
    while parts:
        part = parts.pop()
        parts += [setting for setting in part["properties"].values() if "properties" in setting]
        for name in part["properties"]:
            assert re.search(rf"\b{name}\b", text), name
    assert "rounds whole number from 1 to 1000000 5" in text
    assert re.search(r"momentum number from 0 below 1 0.9 \(\s?fedadam\s?, fedavgm\s?\)", text)


def test_everything_that_the_contract_has_is_in_the_reference(site: Path) -> None:
    text = words(site / "reference" / "contract.html")
    artifact = json.loads((ROOT / "contracts" / "FederatedLearning.json").read_text())
    for entry in artifact["abi"]:
        assert f"{entry.get('name', 'constructor')}(" in text
    for notice in artifact["userdoc"]["methods"].values():
        assert notice["notice"].replace("`", "") in text


def test_links_to_what_is_missing_and_pages_that_nobody_can_reach_fail_the_build(tmp_path: Path) -> None:
    root = tmp_path / "copy"
    copy(root)
    links = {
        "nowhere.md": "docs/nowhere.md",
        "how-it-works.md#nothing": "does not contain an anchor '#nothing'",
        "../contracts/Nothing.sol": "contracts/Nothing.sol",
        "../plans/demo.toml": None,
        "modes.md": None,
    }
    with (root / "docs" / "testbed.md").open("a") as page:
        page.write("".join(f"\n[a link]({link})\n" for link in links))
    shutil.copy(root / "docs" / "modes.md", root / "docs" / "unreachable.md")
    done = build_site(root, tmp_path / "site")
    assert done.returncode != 0
    for complaint in filter(None, [*links.values(), "docs/unreachable.md"]):
        assert complaint in done.stderr
    assert "demo.toml" not in done.stderr
    assert "'modes.md'" not in done.stderr
