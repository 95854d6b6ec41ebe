"""The live page of a run: one page that says what is seen, pushes what changes, and lets the model be tried.

It only reads. Anybody who reaches it may look, so it listens on loopback unless it is told otherwise. A page of
another site that a browser has open can't read it: there is no CORS, and a ``Host`` that names neither an address nor
this machine is refused, so that no name can be rebound to it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from importlib import resources
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fl_node import metrics
from fl_node.errors import ConfigError, DataError, FLNodeError
from fl_node.images import as_mnist
from fl_node.logs import say
from fl_node.observer import Newest, Observer
from fl_node.plan import SIDE
from fl_node.predictor import Busy, NoAnswer, Predictor
from fl_node.snapshot import Snapshot

PORT = 8090
CANVAS = 280
"""Width and height in pixels of what is drawn on the page."""
STREAMS = 50
"""Pages that can be open at a time."""
ALIVE = 5.0
"""Seconds after which a page hears that the server is there still."""
GATHER = 0.05
"""Seconds in which changes that come together are pushed together."""
ASSETS = {
    "": "text/html",
    "dashboard.css": "text/css",
    "dashboard.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def serve(observer: Observer, predictor: Predictor, listener: socket.socket, names: Collection[str]) -> None:
    """Serve the page on a socket until SIGINT or SIGTERM.

    Parameters
    ----------
    observer, predictor
        What is shown, and what is asked about images.
    listener
        A bound socket.
    names
        Names of this machine that a browser may call it by; addresses always do.
    """
    page = Page(observer, predictor)
    config = uvicorn.Config(
        page.app(names),
        access_log=False,
        log_level="warning",
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=3,
        limit_concurrency=4 * STREAMS,
        h11_max_incomplete_event_size=16 * 1024,
    )
    _Server(config, page).run(sockets=[listener])


def bind(address: str, port: int) -> socket.socket:
    """Return a socket that listens at an address of this machine.

    Raises
    ------
    ConfigError
        It can't be had.
    """
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    except ValueError as error:
        raise ConfigError(f"--listen {address}: should be an address, such as 127.0.0.1") from error
    one = socket.socket(family)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((address, port))
        one.listen()  # whoever comes as soon as the address is told waits a moment, and is not refused
    except (OSError, OverflowError) as error:
        one.close()
        reason = error.strerror if isinstance(error, OSError) else "no such port"
        raise ConfigError(f"--listen {address} --port {port}: {reason}") from error
    return one


def measure(observer: Observer, predictor: Predictor, ending: threading.Event) -> None:
    """Measure each new global weights on the plan's test images, until the end."""
    done = None
    while not ending.wait(0.5):
        newest = observer.newest
        if newest is None or newest.cid == done:
            continue
        try:
            observer.measured(newest.cid, predictor.measure(newest))
            done = newest.cid
        except Busy:
            continue
        except FLNodeError as error:
            done = newest.cid
            say("not evaluated", f"global weights {newest.round}: {error}", level=logging.WARNING, round=newest.round)


class _Server(uvicorn.Server):
    """Ends the streams of open pages first, which would keep it from ending."""

    def __init__(self, config: uvicorn.Config, page: Page) -> None:
        super().__init__(config)
        self._page = page

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._page.ending = True
        super().handle_exit(sig, frame)


class Page:
    """The answers to what a browser asks."""

    def __init__(self, observer: Observer, predictor: Predictor) -> None:
        self.ending = False
        self._observer = observer
        self._predictor = predictor
        self._streams = 0
        self._told: tuple[Snapshot, dict[str, Any]] = (Snapshot(), content(Snapshot()))

    def app(self, names: Collection[str]) -> ASGIApp:
        """Return the application."""
        routes = [
            *(Route(f"/{name}", _asset(name or "dashboard.html", kind)) for name, kind in ASSETS.items()),
            Route("/events", self.events),
            Route("/state", self.state),
            Route("/metrics", self.metrics),
            Route("/image", self.image),
            Route("/predict", self.predict, methods=["POST"]),
        ]
        return Guard(Starlette(routes=routes), names)

    async def state(self, _request: Request) -> Response:
        """Answer with all that is seen, for scripts."""
        return JSONResponse(self._content())

    async def metrics(self, _request: Request) -> Response:
        """Answer with the metrics."""
        text = await run_in_threadpool(metrics.exposition, lambda: self._observer.snapshot)
        return Response(text, media_type=metrics.CONTENT_TYPE)

    async def events(self, _request: Request) -> Response:
        """Answer with all that is seen and, as long as the browser listens, what becomes of it."""
        if self._streams >= STREAMS:
            return _sorry(503, f"{STREAMS} pages are open already")
        return StreamingResponse(self._stream(), media_type="text/event-stream")

    async def _stream(self) -> AsyncIterator[str]:
        changed = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(changed.set)

        self._streams += 1
        pushed = Pushed()
        spoke = 0.0
        try:
            with self._observer.listening(wake):
                yield "retry: 1000\n\n"
                while not self.ending:
                    changed.clear()
                    for name, value in pushed.news(self._content()):
                        yield _event(name, value)
                        spoke = time.monotonic()
                    if time.monotonic() - spoke > ALIVE:
                        yield _event("alive", {})
                        spoke = time.monotonic()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(changed.wait(), 0.5)
                        await asyncio.sleep(GATHER)
        finally:
            self._streams -= 1

    async def image(self, _request: Request) -> Response:
        """Answer with one of the run's test images."""
        try:
            found = await run_in_threadpool(self._predictor.image, self._newest(), secrets.randbelow)
        except FLNodeError as error:
            return _sorry(_status(error), str(error))
        pixels = base64.b64encode(found.pixels).decode()
        return JSONResponse(
            {"pixels": pixels, "label": found.label, "number": found.number, "count": found.count, "side": SIDE}
        )

    async def predict(self, request: Request) -> Response:
        """Answer with what the newest global weights say of the pixels in the body, a byte each."""
        if request.headers.get("content-type") != "application/octet-stream":
            return _sorry(415, "pixels are wanted, as application/octet-stream")
        body = await _body(request, CANVAS * CANVAS)
        sides = {side * side: side for side in (SIDE, CANVAS)}
        if len(body) not in sides:
            return _sorry(413, f"{SIDE} × {SIDE} or {CANVAS} × {CANVAS} pixels are wanted, a byte each")
        side = sides[len(body)]
        try:
            pixels = as_mnist(np.frombuffer(body, np.uint8).reshape(side, side), "the drawing", invert=False)
        except DataError as error:
            return _sorry(422, str(error))
        try:
            newest, found = await run_in_threadpool(self._predicted, pixels.tobytes())
        except FLNodeError as error:
            return _sorry(_status(error), str(error))
        return JSONResponse(
            {
                "round": newest.round,
                "cid": newest.cid,
                "digit": int(np.argmax(found)),
                "probabilities": found,
                "seen": base64.b64encode(pixels.tobytes()).decode(),
            }
        )

    def _content(self) -> dict[str, Any]:
        """Return what is seen now, put into words once for all pages."""
        now = self._observer.snapshot
        if now is not self._told[0]:
            self._told = now, content(now)
        return self._told[1]

    def _newest(self) -> Newest:
        newest = self._observer.newest
        if newest is None:
            raise NothingYet("there are no global weights yet")
        return newest

    def _predicted(self, pixels: bytes) -> tuple[Newest, list[float]]:
        newest = self._newest()
        try:
            return newest, self._predictor.predict(newest, pixels)
        except NoAnswer:
            # Those may have been replaced twice while others were answered.
            if (newer := self._newest()).cid == newest.cid:
                raise
            return newer, self._predictor.predict(newer, pixels)


class NothingYet(FLNodeError):
    """There is no model to ask yet."""


class Guard:
    """Refuses what no browser on this page asks, and says in each answer what a browser may do with it."""

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app = app
        self._names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [*message["headers"], *((k.lower().encode(), v.encode()) for k, v in HEADERS.items())]
                message = {**message, "headers": kept}
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        problem = None
        if not is_own(headers.get("host", ""), self._names):
            problem = _sorry(421, "this server is not called that; use its address, or say --name when it is started")
        elif headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and scope["path"] != "/":
            problem = _sorry(403, "this is for the page of this server alone")
        await (problem or self._app)(scope, receive, guarded)


def is_own(host: str, names: Collection[str]) -> bool:
    """Return whether a ``Host`` header is an address or one of the names; any other may be a name rebound by DNS."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    name = name.lower()
    if name in names:
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


class Pushed:
    """What one page has been told already."""

    def __init__(self) -> None:
        self._said: dict[str, object] = {}
        self._rounds: dict[int, Mapping[str, Any]] = {}

    def news(self, now: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Return what the page does not know yet, as names and values; of rounds only those that changed."""
        rounds = {one["round"]: one for one in now["rounds"]}
        contract = now["run"] and now["run"]["contract"]
        if self._said.get("contract") != contract or self._rounds.keys() - rounds.keys():
            self._rounds = {}
            self._said["contract"] = contract
            yield "reset", {}
        for name, value in now.items():
            if name != "rounds" and (name not in self._said or self._said[name] != value):
                self._said[name] = value
                yield name, value
        changed = [one for number, one in rounds.items() if self._rounds.get(number) != one]
        if changed:
            self._rounds = rounds
            yield "rounds", changed


def content(now: Snapshot) -> dict[str, Any]:
    """Return what is seen as JSON has it."""
    run = now.run
    return {
        "run": asdict(run) | {"ended": run.ended} if run else None,
        "nodes": [asdict(node) for node in now.nodes],
        "rounds": [asdict(one) for one in now.rounds],
        "blocks": [asdict(block) for block in now.blocks],
        "problem": now.problem,
    }


def _event(name: str, value: object) -> str:
    return f"event: {name}\ndata: {json.dumps({'now': time.time(), 'value': value})}\n\n"


def _sorry(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status)


def _status(error: FLNodeError) -> int:
    return 503 if isinstance(error, Busy) else 409 if isinstance(error, NothingYet) else 502


def _asset(name: str, kind: str) -> Callable[[Request], Any]:
    body = (resources.files("fl_node") / "static" / name).read_bytes()

    async def answer(_request: Request) -> Response:
        return Response(body, media_type=kind)

    return answer


async def _body(request: Request, most: int) -> bytes:
    """Return the body, or a byte more than the most, whatever comes after."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > most:
            return body[: most + 1]
    return body
