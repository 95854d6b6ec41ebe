"""Where the runs of a sweep are carried out: Dask in this process, or a scheduler and workers on several machines.

On several machines, each connection uses TLS, and both sides need a certificate of the same authority. Whoever has
such a certificate can run programs on the workers: that is how Dask works.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import queue
import re
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
from distributed import Client, Future, KilledWorker, LocalCluster, Scheduler, Security, Worker

from fl_node.errors import ConfigError, FLNodeError, ProcessError
from fl_node.experiments import sweep_keys
from fl_node.experiments.trial import TookTooLong, Trial, TrialRunner, carry_out
from fl_node.runtime import scratch

POLL = 1.0
"""Seconds between two looks at whether a result has come."""
LOOK = 5.0
"""Seconds between two looks at which workers are connected."""
REACH = 60.0
"""Seconds in which a scheduler should answer."""
WORKERS_PATIENCE = 120.0
"""Seconds for which a sweep waits while no worker is connected."""
RETRIES = 3
"""How often a run is repeated whose worker is lost."""
LOST_AFTER = "300s"
"""Time after which a worker that says nothing, on a connection that holds, is lost: a busy host may be slow."""
_NO_HTTP = "127.0.0.1:0"
"""Dask always opens a port for HTTP; here it is one on loopback without pages."""
_SETTINGS = {
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.scheduler.allowed-failures": RETRIES,
    "distributed.scheduler.worker-ttl": LOST_AFTER,
    # A worker gets a run when it can begin it. So with a worker, only what it had begun is lost.
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.worker.profile.enabled": False,
    "distributed.comm.tls.min-version": 1.3,
}
_LOGGERS = ("distributed", "distributed.client", "distributed.core", "distributed.worker", "distributed.scheduler")


@dataclass(frozen=True)
class Endpoint:
    """The host and the port of a scheduler or a worker."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def endpoint(option: str, text: str, *, prefix: str = "") -> Endpoint:
    """Return the endpoint in a text such as ``192.168.56.10:8786``.

    Parameters
    ----------
    option
        The option that the error message names.
    text
        The text.
    prefix
        What it begins with, such as ``tls://``.

    Raises
    ------
    ConfigError
        It is malformed.
    """
    match = re.fullmatch(rf"{re.escape(prefix)}([A-Za-z0-9.-]+):([0-9]{{1,5}})", text)
    if match is None or not 0 < int(match[2]) < 65536:
        raise ConfigError(f"{option} {text}: should be such as {prefix}192.168.56.10:8786")
    return Endpoint(match[1], int(match[2]))


@contextlib.contextmanager
def local(jobs: int, data_dir: Path | None, modules: Path | None = None) -> Iterator[Client]:
    """Give a client of a cluster within this process.

    Parameters
    ----------
    jobs
        Runs at a time.
    data_dir, modules
        Where the data set and custom modules are, if given.
    """
    with _prepared():
        cluster = LocalCluster(
            n_workers=1,
            threads_per_worker=jobs,
            processes=False,
            memory_limit=0,
            dashboard_address=_NO_HTTP,
            worker_dashboard_address=_NO_HTTP,
            scheduler_kwargs={"dashboard": False},
            silence_logs=False,
            plugins=(TrialRunner(data_dir, modules),),
        )
        with cluster, Client(cluster, set_as_default=False) as client:
            yield client


@contextlib.contextmanager
def remote(address: str, keys: Path) -> Iterator[Client]:
    """Give a client of a scheduler that :func:`serve_scheduler` started.

    Parameters
    ----------
    address
        Such as ``tls://192.168.56.10:8786``.
    keys
        The folder with key and certificates.

    Raises
    ------
    ConfigError
        Address or keys are wrong.
    ProcessError
        The scheduler does not answer, or does not accept the certificate.
    """
    endpoint("--scheduler", address, prefix="tls://")
    security = _security(keys)
    with _prepared():
        try:
            client = Client(address, security=security, timeout=REACH, set_as_default=False)
        except OSError as error:
            raise ProcessError(
                f"the scheduler {address} does not answer, or its certificate is of another authority than that in "
                f"{keys}: {_first_line(error)}"
            ) from error
        try:
            yield client
        finally:
            client.close(timeout=POLL)


def results(
    client: Client, trials: Mapping[str, Trial], report: Callable[[str], None]
) -> Generator[tuple[str, dict[str, Any]], None, None]:
    """Carry runs out, and give the name and the result of each when it has ended.

    What is going on when the caller stops is ended.

    Parameters
    ----------
    client
        The client of a cluster.
    trials
        The runs by their names.
    report
        Called with a line when a worker comes or is lost.

    Raises
    ------
    FLNodeError
        A run failed: ends the sweep at once.
    ProcessError
        The scheduler is lost, or there are no workers. Or, when all others have ended, runs failed whose workers were
        lost, or that took too long.
    """
    finished: queue.SimpleQueue[Future[dict[str, Any]]] = queue.SimpleQueue()
    # Names are unique, because a scheduler may still know the runs of a sweep that was interrupted.
    sweep = uuid.uuid4().hex[:8]
    names: dict[str, str] = {}
    futures = []
    watch = _Watch(client, report)
    failures: list[str] = []
    try:
        for name, trial in trials.items():
            future = client.submit(carry_out, trial, key=f"{name}-{sweep}", pure=False)
            names[str(future.key)] = name
            futures.append(future)
            future.add_done_callback(finished.put)
        for _ in range(len(futures)):
            future = _next(client, finished, watch)
            name = names[str(future.key)]
            try:
                result = future.result()
            except KilledWorker as error:
                lost, last = error.allowed_failures + 1, error.last_worker.address
                failures.append(f"{trials[name].title}: {lost} workers were lost while they ran it, last {last}")
                continue
            except TookTooLong as error:
                failures.append(str(error))
                continue
            except FLNodeError:
                raise
            except Exception as error:
                if isinstance(error, CancelledError) or client.status != "running":
                    raise ProcessError(_lost(client)) from error
                raise ProcessError(f"{trials[name].title}: {type(error).__name__}: {_first_line(error)}") from error
            future.release()
            yield name, result
    finally:
        if client.status == "running":
            with contextlib.suppress(OSError, RuntimeError, TimeoutError):
                client.cancel([future for future in futures if not future.done()])
    if failures:
        count = f"{len(failures)} of {len(trials)} runs failed" if len(failures) > 1 else "a run failed"
        raise ProcessError(f"{count}; the next call repeats what is missing:\n  " + "\n  ".join(failures))


def _next(
    client: Client, finished: queue.SimpleQueue[Future[dict[str, Any]]], watch: _Watch
) -> Future[dict[str, Any]]:
    while True:
        try:
            return finished.get(timeout=POLL)
        except queue.Empty:
            if client.status != "running":
                raise ProcessError(_lost(client)) from None
            watch.look()


def _lost(client: Client) -> str:
    where = client.scheduler.address if client.scheduler is not None else ""
    return f"the connection to the scheduler {where} is lost; finished runs are kept, the next call resumes"


class _Watch:
    """Sees workers come and go."""

    def __init__(self, client: Client, report: Callable[[str], None]) -> None:
        self._client = client
        self._report = report
        self._workers: dict[str, str] = {}
        self._looked = 0.0
        self._seen = time.monotonic()

    def look(self) -> None:
        """Report the workers that came and those that are gone.

        Raises
        ------
        ProcessError
            There has been none for a long time.
        """
        now = time.monotonic()
        if now - self._looked < LOOK:
            return
        self._looked = now
        try:
            workers = self._client.scheduler_info(n_workers=-1)["workers"]
        except OSError:
            return  # the status of the client shows it next
        connected = {address: str(worker["name"]) for address, worker in workers.items()}
        if not self._client.cluster:  # else the worker is this process
            for address in connected.keys() - self._workers.keys():
                self._report(f"worker {connected[address]}: connected")
            for address in self._workers.keys() - connected.keys():
                self._report(f"worker {self._workers[address]}: lost; its runs are repeated on another")
        self._workers = connected
        if connected:
            self._seen = now
        elif now - self._seen > WORKERS_PATIENCE:
            raise ProcessError(
                f"no worker has been connected to the scheduler for {WORKERS_PATIENCE:.0f} s; finished runs are "
                "kept. Start fl-node sweep-worker, then repeat the call"
            )


def serve_scheduler(listen: Endpoint, keys: Path, report: Callable[[str], None]) -> None:
    """Be a scheduler until a signal comes.

    Parameters
    ----------
    listen
        Where to listen, and nowhere else.
    keys
        The folder with key and certificates.
    report
        Called with a line when it is ready.

    Raises
    ------
    ConfigError
        The keys are wrong, or the address can't be used.
    """

    @contextlib.asynccontextmanager
    async def start() -> AsyncIterator[Scheduler]:
        async with Scheduler(
            host=listen.host,
            port=listen.port,
            protocol="tls",
            security=security,
            dashboard=False,
            dashboard_address=_NO_HTTP,
        ) as scheduler:
            report(f"scheduler: listening on tls://{listen}")
            yield scheduler

    security = _security(keys)
    with _prepared():
        try:
            asyncio.run(_serve(start))
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"--listen {listen}: {_first_line(error)}") from error


def serve_worker(
    scheduler: str,
    listen: Endpoint,
    keys: Path,
    name: str,
    jobs: int,
    data_dir: Path | None,
    report: Callable[[str], None],
    *,
    modules: Path | None = None,
) -> None:
    """Be a worker until a signal comes.

    Parameters
    ----------
    scheduler
        The address of the scheduler, such as ``tls://192.168.56.10:8786``.
    listen
        Where to listen for the scheduler, and nowhere else.
    keys
        The folder with key and certificates.
    name
        What the worker is called.
    jobs
        Runs at a time.
    data_dir, modules
        Where the data set and custom modules are, if given.
    report
        Called with a line when it is ready.

    Raises
    ------
    ConfigError
        The keys are wrong, or the address can't be used.
    ProcessError
        The scheduler does not answer, or is lost.
    """

    @contextlib.asynccontextmanager
    async def start() -> AsyncIterator[Worker]:
        async with Worker(
            scheduler,
            name=name,
            nthreads=jobs,
            host=listen.host,
            port=listen.port,
            protocol="tls",
            security=security,
            memory_limit=0,
            dashboard_address=_NO_HTTP,
            death_timeout=REACH,
            plugins=(TrialRunner(data_dir, modules),),
        ) as worker:
            report(f"worker {name}: connected to {scheduler}")
            yield worker

    endpoint("SCHEDULER", scheduler, prefix="tls://")
    security = _security(keys)
    with _prepared():
        try:
            stopped = asyncio.run(_serve(start))
        except (OSError, RuntimeError) as error:
            raise ProcessError(
                f"worker {name}, listening on {listen}, can't work for {scheduler}: {_first_line(error)}"
            ) from error
    if not stopped:
        raise ProcessError(f"worker {name}: the connection to the scheduler {scheduler} is lost")


async def _serve(start: Callable[[], contextlib.AbstractAsyncContextManager[Scheduler | Worker]]) -> bool:
    """Serve until a signal comes, or until the server ends; return whether it was the signal."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    stopping = asyncio.ensure_future(stop.wait())
    context = start()
    entering = asyncio.ensure_future(context.__aenter__())
    await asyncio.wait({stopping, entering}, return_when=asyncio.FIRST_COMPLETED)
    if not entering.done():
        entering.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await entering
        return True
    server = entering.result()
    ended = asyncio.ensure_future(server.finished())  # type: ignore[no-untyped-call]
    await asyncio.wait({stopping, ended}, return_when=asyncio.FIRST_COMPLETED)
    await context.__aexit__(None, None, None)
    return stop.is_set()


def _security(keys: Path) -> Security:
    files = sweep_keys.check(keys)
    roles = itertools.product(("client", "scheduler", "worker"), (("cert", files.certificate), ("key", files.key)))
    paths = {f"tls_{role}_{what}": str(path) for role, (what, path) in roles}
    return Security(require_encryption=True, tls_ca_file=str(files.authority), **paths)


@contextlib.contextmanager
def _prepared() -> Iterator[None]:
    """Apply the settings of Dask, whose log would repeat what the messages here say.

    Dask puts its folder first where Python looks for modules. By default its name is known, in the folder for
    temporary files, so another user may have put modules there; here it is a new folder of this user alone.
    """
    levels = {name: logging.getLogger(name).level for name in (*_LOGGERS, "tornado", "tornado.application")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        with (
            scratch.folder("fl-sweep-") as folder,
            dask.config.set(_SETTINGS | {"temporary-directory": str(folder)}),
        ):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or of what caused it: Dask's own say that something failed."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
