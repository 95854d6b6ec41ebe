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
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import h11
import numpy as np
import uvicorn
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import AppStatus
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from fl_node import events
from fl_node.data.images import as_mnist
from fl_node.errors import ConfigError, DataError, FLNodeError
from fl_node.monitor import metrics
from fl_node.monitor.inference import Busy, NoAnswer, Predictor
from fl_node.monitor.observer import Observer
from fl_node.monitor.reading import TOO_LARGE, Newest
from fl_node.monitor.state import MonitorState
from fl_node.plan.data_sets import SIDE
from fl_node.runtime.logs import emit

PORT = 8090
CANVAS = 280
"""Width and height in pixels of what is drawn on the page."""
STREAMS = 50
"""Pages that can be open at a time. Then one of the address with most makes room for an address that has fewer."""
CONNECTIONS = 200
"""Connections that can be open at a time, those of the pages too."""
PATIENCE = 10.0
"""Seconds in which a whole request must arrive, and in which a browser must take a part of an answer."""
ALIVE = 5.0
"""Seconds after which a page hears that the server is there still."""
GATHER = 0.05
"""Seconds in which changes that come together are pushed together."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

AppStatus.enable_automatic_graceful_drain = False  # it would end the streams of each later server of this process too


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
    server(Page(observer, predictor), names).run(sockets=[listener])


def server(page: Page, names: Collection[str]) -> uvicorn.Server:
    """Return a server of the page."""
    config = uvicorn.Config(
        page.app(names),
        access_log=False,
        log_level="error",  # what is wrong with a request is told to who made it
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=16 * 1024,
        http=_Connection,
        ws="none",
    )
    return _Server(config, page)


def bind(address: str, port: int) -> socket.socket:
    """Return a socket that listens at an address of this machine.

    Raises
    ------
    ConfigError
        The address is not available.
    """
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    except ValueError as error:
        raise ConfigError(f"--listen {address}: should be an IP address, such as 127.0.0.1") from error
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen()  # a browser that comes early waits instead of being refused
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else "invalid port"
        raise ConfigError(f"--listen {address} --port {port}: {reason}") from error
    return listener


def measure(observer: Observer, predictor: Predictor, ending: threading.Event) -> None:
    """Measure all new global weights on the plan's test images until the server stops.

    Parameters
    ----------
    observer
        Knows the newest global weights, and keeps their scores.
    predictor
        Measures them.
    ending
        Set when the server stops.
    """
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
            emit(events.EvaluationFailed(round=newest.round, detail=str(error)))


class _Connection(H11Protocol):
    """A connection that is ended if it waits too long for its browser.

    It waits while no whole request has come, and while the browser takes nothing of an answer. If there are too many
    connections, a new one replaces the one that has waited the longest.
    """

    since: float | None = None
    """When it began to wait; None while its request is being answered."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self.since = self.loop.time()
        if len(self.connections) > CONNECTIONS:
            peers = [peer for peer in self.connections if isinstance(peer, _Connection) and peer is not self]
            waiting = [(since, peer) for peer in peers if (since := peer.waits_since()) is not None]
            _, oldest = min(waiting, key=lambda entry: entry[0], default=(0.0, self))
            oldest.end()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, also where an answer to its beginning is on its way."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:
            self.end()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self.since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Wait until the browser takes what was sent."""
        self._stuck = self.loop.call_later(PATIENCE, self.end)
        super().pause_writing()

    def resume_writing(self) -> None:
        """Go on to send."""
        self._stuck.cancel()
        super().resume_writing()

    def waits_since(self) -> float | None:
        """Return when it began to wait for a whole request, or None if it has one that is being answered."""
        answering = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        return None if answering else self.since

    def end(self) -> None:
        """Drop the connection at once."""
        self.connections.discard(self)
        self.transport.abort()


class _Server(uvicorn.Server):
    """Ends connections that wait too long, and the streams of open pages first, which would keep it from ending."""

    def __init__(self, config: uvicorn.Config, page: Page) -> None:
        super().__init__(config)
        self._page = page

    async def on_tick(self, counter: int) -> bool:
        """Look after the connections; uvicorn calls this ten times a second."""
        late = asyncio.get_running_loop().time() - PATIENCE
        for peer in list(self.server_state.connections):
            if isinstance(peer, _Connection) and (since := peer.waits_since()) is not None and since < late:
                peer.end()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._page.ending = True
        super().handle_exit(sig, frame)


class Page:
    """The answers to what a browser asks."""

    def __init__(self, observer: Observer, predictor: Predictor) -> None:
        self.ending = False
        self._observer = observer
        self._predictor = predictor
        self._streams: list[_Place] = []
        self._told: tuple[MonitorState, dict[str, Any]] = (MonitorState(), content(MonitorState()))

    def app(self, names: Collection[str]) -> ASGIApp:
        """Return the application."""
        routes = [
            Route("/events", self.events),
            Route("/state", self.state),
            Route("/metrics", self.metrics),
            Route("/image", self.image),
            Route("/predict", self.predict, methods=["POST"]),
            Mount("/", StaticFiles(packages=[("fl_node", "static")], html=True)),
        ]
        return Guard(Starlette(routes=routes), names)

    async def state(self, _request: Request) -> Response:
        """Answer with all that is seen, for scripts."""
        return _Json(self._content())

    async def metrics(self, _request: Request) -> Response:
        """Answer with the metrics."""
        text = await run_in_threadpool(metrics.exposition, lambda: self._observer.state)
        return Response(text, media_type=metrics.CONTENT_TYPE)

    async def events(self, request: Request) -> Response:
        """Answer with all that is seen and, as long as the browser listens, what becomes of it."""
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        place = self._place(request.client.host if request.client else "")
        if place is None:
            return _sorry(503, f"too many open pages; at most {STREAMS}")
        return _Stream(self._stream(place), lambda: self._leave(place))

    def _place(self, address: str) -> _Place | None:
        """Return a place for a page of an address, or None if nobody has to make room for it."""
        if len(self._streams) >= STREAMS:
            having = Counter(stream.address for stream in self._streams)
            (greediest, most), *_ = having.most_common(1)
            if having[address] + 1 >= most:
                return None
            self._leave(next(stream for stream in self._streams if stream.address == greediest))
        place = _Place(address)
        self._streams.append(place)
        return place

    def _leave(self, place: _Place) -> None:
        place.taken = False
        with contextlib.suppress(ValueError):
            self._streams.remove(place)

    async def _stream(self, place: _Place) -> AsyncIterator[ServerSentEvent]:
        changed = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(changed.set)

        pushed = Pushed()
        with self._observer.listening(wake):
            yield ServerSentEvent(retry=1000)
            while place.taken and not self.ending:
                changed.clear()
                for name, value in pushed.news(self._content()):
                    yield _event(name, value)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), 0.5)
                    await asyncio.sleep(GATHER)

    async def image(self, _request: Request) -> Response:
        """Answer with one of the run's test images."""
        try:
            image = await run_in_threadpool(self._predictor.image, self._newest(), secrets.randbelow)
        except FLNodeError as error:
            return _sorry(_status(error), str(error))
        pixels = base64.b64encode(image.pixels).decode()
        return JSONResponse(
            {"pixels": pixels, "label": image.label, "number": image.number, "count": image.count, "side": SIDE}
        )

    async def predict(self, request: Request) -> Response:
        """Answer with what the newest global weights say of the pixels in the body, a byte each."""
        if request.headers.get("content-type") != "application/octet-stream":
            return _sorry(415, "the Content-Type should be application/octet-stream")
        body = await _body(request, CANVAS * CANVAS)
        sides = {side * side: side for side in (SIDE, CANVAS)}
        if len(body) not in sides:
            return _sorry(413, f"the body should be {SIDE} × {SIDE} or {CANVAS} × {CANVAS} pixels, one byte each")
        side = sides[len(body)]
        try:
            pixels = as_mnist(np.frombuffer(body, np.uint8).reshape(side, side), "the drawing", invert=False)
        except DataError as error:
            return _sorry(422, str(error))
        try:
            newest, probabilities = await run_in_threadpool(self._predicted, pixels.tobytes())
        except FLNodeError as error:
            return _sorry(_status(error), str(error))
        return JSONResponse(
            {
                "round": newest.round,
                "cid": newest.cid,
                "digit": int(np.argmax(probabilities)),
                "probabilities": probabilities,
                "seen": base64.b64encode(pixels.tobytes()).decode(),
            }
        )

    def _content(self) -> dict[str, Any]:
        """Return what is seen now, put into words once for all pages."""
        now = self._observer.state
        if now is not self._told[0]:
            self._told = now, content(now)
        return self._told[1]

    def _newest(self) -> Newest:
        newest = self._observer.newest
        if newest is None:
            too_large = f"the newest global weights are {TOO_LARGE}"
            raise NothingYet(too_large if self._observer.unread else "no global weights yet")
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


@dataclass(eq=False)
class _Place:
    """The place of one open page."""

    address: str
    taken: bool = True


class _Stream(EventSourceResponse):
    """A stream of events that says when it has ended, even if it never began."""

    def __init__(self, events: AsyncIterator[ServerSentEvent], ended: Callable[[], None]) -> None:
        super().__init__(events, sep="\n", ping=ALIVE, ping_message_factory=lambda: _event("alive", {}))
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


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
        host, origin = headers.get("host", ""), headers.get("origin")
        site = headers.get("sec-fetch-site", "none")
        problem = None
        if not is_own(host, self._names):
            problem = _sorry(421, "unknown Host header; use the server's IP address, or start it with --name")
        elif scope["path"] != "/" and (
            site not in ("none", "same-origin") or origin not in (None, f"http://{host}", f"https://{host}")
        ):
            problem = _sorry(403, "cross-origin request; use the page of this server")
        with contextlib.suppress(ClientDisconnect):  # nobody is there to be answered
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
        self._told: dict[str, object] = {}
        self._rounds: dict[int, Mapping[str, Any]] = {}

    def news(self, now: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Return what the page does not know yet, as names and values; of rounds only those that changed."""
        rounds = {round_["round"]: round_ for round_ in now["rounds"]}
        contract = now["run"] and now["run"]["contract"]
        if self._told.get("contract") != contract or self._rounds.keys() - rounds.keys():
            self._rounds = {}
            self._told["contract"] = contract
            yield "reset", {}
        for name, value in now.items():
            if name != "rounds" and (name not in self._told or self._told[name] != value):
                self._told[name] = value
                yield name, value
        changed = [round_ for number, round_ in rounds.items() if self._rounds.get(number) != round_]
        if changed:
            self._rounds = rounds
            yield "rounds", changed


def content(now: MonitorState) -> dict[str, Any]:
    """Return what is seen as JSON has it."""
    run = now.run
    return {
        "run": asdict(run) | {"ended": run.ended} if run else None,
        "nodes": [asdict(node) for node in now.nodes],
        "rounds": [asdict(round_) for round_ in now.rounds],
        "blocks": [asdict(block) for block in now.blocks],
        "problem": now.problem,
    }


def _event(name: str, value: object) -> ServerSentEvent:
    return ServerSentEvent(json.dumps({"now": time.time(), "value": value}), event=name, sep="\n")


class _Json(JSONResponse):
    """JSON in ASCII: texts from the chain may hold halves of characters, which have no UTF-8."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return json.dumps(content).encode()


def _sorry(status: int, message: str) -> JSONResponse:
    return _Json({"error": message}, status)


def _status(error: FLNodeError) -> int:
    return 503 if isinstance(error, Busy) else 409 if isinstance(error, NothingYet) else 502


async def _body(request: Request, most: int) -> bytes:
    """Return the body, or a byte more than the most, whatever comes after.

    Raises
    ------
    ClientDisconnect
        The client went away.
    """
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > most:
            return body[: most + 1]
    return body
