"""The live page in a real browser, of a run on three real Geth and three real IPFS nodes."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from fl_node.artifacts.folder_store import FolderStore
from fl_node.artifacts.ipfs_store import IpfsStore
from fl_node.chain.client import Chain
from fl_node.chain.keys import create_key, load_key
from fl_node.data import datasets
from fl_node.lab import run_folder
from fl_node.models.keras_trainer import KerasTrainer
from fl_node.nodes.backends import Endpoint, ProcessBackend
from tests.helpers.runs import PATIENCE, Run, World, plan

PLAN = plan(name="seen-live", rounds=50)
NODES = ("header", "learner-1", "learner-2")
Barriers = Callable[[Page], list[str]]


class Swarm(World):
    """A world of three real nodes, each of which is reached through its own RPC."""

    patience = PATIENCE

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = {node: folder / "keys" / f"{node}.key" for node in NODES}
        self.accounts = {node: create_key(path) for node, path in self.keys.items()}
        self.backend = ProcessBackend(folder / "nodes", self.accounts, print)
        self.ends: dict[str, Endpoint] = {}
        self._backend = self.backend  # type: ignore[assignment]
        self._runs = 0

    def __enter__(self) -> Swarm:
        try:
            self.ends = dict(self.backend.start())
        except BaseException:
            self.backend.stop()
            raise
        self.rpc = self.ends["header"].rpc
        return self

    def chain(self, node: str) -> Chain:
        return Chain(self.ends[node].rpc, load_key(self.keys[node]))


class Mirrored(FolderStore):
    """A folder, out of which a test reads, and IPFS."""

    def __init__(self, folder: Path, api: str) -> None:
        super().__init__(folder)
        self._ipfs = IpfsStore(api)

    def add(self, path: Path) -> str:
        self._ipfs.add(path)
        return super().add(path)


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    with Swarm(tmp_path_factory.mktemp("swarm")) as network:
        yield network


@pytest.fixture(scope="module")
def live(swarm: Swarm) -> Run:
    """A run whose rounds the tests play, with a real model."""
    trainer = KerasTrainer(PLAN, datasets.load("digits"))
    run = swarm.deploy(PLAN, lambda _plan: trainer)
    run.store = Mirrored(run.files, swarm.ends["header"].store)
    for path in list(run.files.iterdir()):
        run.store.add(path)
    chain = swarm.chain("header")
    nodes = {n: run_folder.Node(swarm.accounts[n], end.rpc, end.store) for n, end in swarm.ends.items()}
    run_folder.Run("live", "processes", run.plan_cid, run.address, chain.chain_id(), chain.genesis(), nodes).save(
        run.folder
    )
    return run


class Served:
    """`fl-node dashboard` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self.port = 0

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fl_node", "dashboard", str(self._folder), "--port", str(self.port)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        address = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\n", self._process.stdout.readline())
        assert address
        self.port = int(address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def stop(self) -> int:
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(120)
        finally:
            self._process.kill()


@pytest.fixture(scope="module")
def served(live: Run) -> Iterator[Served]:
    server = Served(live.folder)
    server.start()
    yield server
    assert server.stop() == 0


@pytest.fixture
def opened(page: Page, served: Served) -> Page:
    """The page, once it shows the run."""
    page.goto(served.url)
    expect(page.locator("h1")).to_have_text("seen-live")
    return page


def row(page: Page, number: int) -> list[str]:
    """What the table shows of a round, which it has shown before long."""
    line = page.locator(f'#rounds tr[data-round="{number}"]')
    expect(line.locator("td").nth(2)).not_to_have_text("open")
    for learner in range(2):  # their files are read in any order
        expect(line.locator("td").nth(learner)).to_have_text(re.compile(r"\d"))
    return line.locator("th, td").all_inner_texts()


def shows(page: Page, node: str, text: str) -> None:
    """Wait until the card of a node shows a text, given as a regular expression."""
    expect(page.locator(f'[data-node="{node}"]')).to_have_text(re.compile(text), use_inner_text=True)


# What is seen


def test_the_page_shows_nodes_rounds_and_blocks_and_asks_nobody_but_its_server(
    page: Page, served: Served, live: Run
) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(served.url)
    expect(page.locator("h1")).to_have_text("seen-live")
    expect(page.locator("#about")).to_contain_text(live.address)
    for node in NODES:
        shows(page, node, r"Geth\s+up, block \d+, 2 peers\s+IPFS\s+up, 2 peers")
    expect(page.locator("#blocks")).to_contain_text("header registered")
    expect(page.locator("#blocks")).to_contain_text("header deployed the contract")
    assert all(url.startswith(served.url) for url in asked), asked


def test_each_block_names_the_node_that_sealed_it(opened: Page) -> None:
    sealers = opened.locator("#blocks tbody td.who")
    expect(sealers.last).to_have_text("–")  # of the genesis
    # Which account seals is asked of each node, and may be known after the blocks.
    others = [re.compile(f"^({'|'.join(NODES)})$")] * (sealers.count() - 1)
    expect(sealers).to_have_text([*others, "–"])


def test_a_new_round_appears_by_itself(
    opened: Page, live: Run, record_property: Callable[[str, object], None]
) -> None:
    number = live.contract.round()
    files = live.publish_locals()
    last = live.average(files)
    live.publish_global(last)
    block = time.monotonic()  # a receipt is seen once its block is there
    expect(opened.locator(f'#rounds tr[data-round="{number}"] td.mono')).not_to_be_empty()
    record_property("seconds from block to page", round(time.monotonic() - block, 2))
    round_, *accuracies = row(opened, number)
    assert round_ == str(number)
    assert accuracies[:2] == [f"{100 * file.local_meta.accuracy:.2f}" for file in files]
    expect(opened.locator("#state")).to_have_text(f"round {number + 1} of 50")
    expect(opened.locator("#blocks")).to_contain_text(f"header published global weights {number + 1}")
    expect(opened.locator("#chart svg")).to_be_visible()


def test_a_node_that_is_down_is_named_and_the_rest_goes_on(opened: Page, live: Run, swarm: Swarm) -> None:
    number = live.contract.round()
    file = live.local(2)
    swarm.backend.children["header geth"].stop()
    try:
        expect(opened.locator("#state")).to_have_text("header down")
        shows(opened, "header", r"Geth\s+down (just now|for \d+ s)\s+IPFS\s+up")
        shows(opened, "header", "can't be reached")
        live.publish_local(2, file)
        expect(opened.locator("#blocks li").first).to_have_text(
            re.compile(rf"^learner 2 set local weights \S+ in round {number}$")
        )
    finally:
        swarm.backend.restart("header geth")
    expect(opened.locator("#state")).to_have_text(re.compile("^round"))
    shows(opened, "header", r"Geth\s+up")


def test_a_page_whose_server_was_away_finds_it_again(browser: Browser, live: Run) -> None:
    server = Served(live.folder)
    server.start()
    page = browser.new_page()  # its console may complain of a server that is away
    try:
        page.goto(server.url)
        expect(page.locator("#state")).to_have_text(re.compile("^round"))
        assert server.stop() == 0
        expect(page.locator("#state")).to_have_text("connection lost, reconnecting")
        server.start()
        expect(page.locator("#state")).to_have_text(re.compile("^round"))
    finally:
        page.close()
        with contextlib.suppress(AssertionError):
            server.stop()


# The model


@pytest.fixture
def model(live: Run, opened: Page) -> Page:
    """The page of a run that has global weights which it has read."""
    if live.contract.round() == 0:
        live.close_round()
    expect(opened.locator("#rounds tbody tr").nth(1)).to_be_visible()
    return opened


def answered(page: Page) -> str:
    """The digit that the model gave as its answer."""
    expect(page.locator("#answer strong")).to_have_text(re.compile(r"^\d$"))
    expect(page.locator("#answer")).to_contain_text("by global weights")
    shares = [float(text.removesuffix(" %")) for text in page.locator("#bars li span:last-child").all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=1)
    best = page.locator("#answer strong").inner_text()
    assert shares.index(max(shares)) == int(best)
    return best


def test_a_digit_drawn_with_the_mouse_gets_an_answer(model: Page) -> None:
    canvas = model.locator("#canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    points = [(0.3, 0.2), (0.7, 0.2), (0.5, 0.5), (0.4, 0.85)]
    for number, (x, y) in enumerate(points):
        model.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=5)
        if number == 0:
            model.mouse.down()
    model.mouse.up()
    answered(model)
    model.get_by_role("button", name="Clear").click()
    expect(model.locator("#answer")).to_have_text("Nothing drawn yet.")


def test_the_keyboard_alone_draws_a_digit(model: Page) -> None:
    model.keyboard.press("Tab")
    for _ in range(10):  # bounded: the canvas is among the first things that take the focus
        if model.evaluate("document.activeElement.id") == "canvas":
            break
        model.keyboard.press("Tab")
    assert model.evaluate("document.activeElement.id") == "canvas"
    for _ in range(8):
        model.keyboard.press("ArrowUp")
    model.keyboard.press("Space")
    for _ in range(16):
        model.keyboard.press("ArrowDown")
    model.keyboard.press("Enter")
    answered(model)
    model.keyboard.press("Escape")
    expect(model.locator("#answer")).to_have_text("Nothing drawn yet.")


def test_a_test_image_can_be_taken_by_keyboard_and_its_label_is_told(model: Page) -> None:
    button = model.get_by_role("button", name="Use a test image")
    button.focus()
    model.keyboard.press("Enter")
    answered(model)
    expect(model.locator("#answer")).to_contain_text(re.compile("correct|the label is [0-9]"))


def test_an_empty_drawing_is_not_sent(opened: Page) -> None:
    opened.get_by_role("button", name="Ask the model").click()
    expect(opened.locator("#answer")).to_have_text("Nothing drawn yet.")


# For everybody


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_kept_out(model: Page, barriers: Barriers, scheme: str) -> None:
    model.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
    assert barriers(model) == []


def test_nobody_is_kept_out_while_a_node_is_down(opened: Page, barriers: Barriers, swarm: Swarm) -> None:
    swarm.backend.children["learner-1 ipfs"].stop()
    try:
        expect(opened.locator("#state")).to_have_text("learner-1 down")
        for scheme in ("light", "dark"):
            opened.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
            assert barriers(opened) == []
    finally:
        swarm.backend.restart("learner-1 ipfs")
    expect(opened.locator("#state")).to_have_text(re.compile("^round"))


def test_a_small_screen_shows_all_of_it_and_takes_a_finger(browser: Browser, model: Page, served: Served) -> None:
    context = browser.new_context(viewport={"width": 400, "height": 800}, has_touch=True, is_mobile=True)
    try:
        page = context.new_page()
        page.goto(served.url)
        expect(page.locator("#rounds tbody tr").nth(1)).to_be_visible()
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 400
        canvas = page.locator("#canvas")
        canvas.scroll_into_view_if_needed()
        canvas.tap()
        answered(page)
    finally:
        context.close()
