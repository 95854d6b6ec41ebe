"""What the live page has read of one run: its log, its newest blocks, and what its files say of themselves."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from fl_node.artifacts.model_file import GlobalMeta
from fl_node.artifacts.store import Store, TooLarge, WrongContent
from fl_node.chain.contract import Contract, LogEntry
from fl_node.errors import PlanError, StoreError, WeightsError
from fl_node.monitor.state import BlockView, FileFacts, RoundView
from fl_node.plan.schema import Plan
from fl_node.protocol.history import History
from fl_node.protocol.reader import Reader
from fl_node.protocol.retention import first_kept

MAX_FILES = 600
"""Model files that are read for what they say of themselves, the newest first."""
MAX_BYTES = 256 * 1024**2
"""The largest model file that is read."""
TOO_LARGE = f"larger than {MAX_BYTES // 1024**2} MB, so this page does not read it"
UNREAD = (
    f"The newest global weights are larger than {MAX_BYTES // 1024**2} MB. This page does not read such files: it "
    "shows no accuracy from them, can't measure them, and can't try the model. To check the run, use fl-node audit; "
    "for the accuracies, fl-node report; to try the model on an image, fl-node predict."
)
FETCH_TIMEOUT = 3.0
TRIES = 6
"""After so many a file counts as missing; it is looked for still, once a minute."""


@dataclass(frozen=True)
class Newest:
    """The newest global weights that were read: a file that stays until there are newer ones."""

    path: Path
    cid: str
    round: int
    plan: Plan


@dataclass
class Reading:
    """What was read of one run; another contract starts a new one."""

    address: str | None = None
    kind: type[Contract] = Contract
    """The version of the contract."""
    log: list[LogEntry] = field(default_factory=list)
    head: int = -1
    past: History | None = None
    plan: Plan | None = None
    plan_problem: str = ""
    blocks: dict[int, BlockView] = field(default_factory=dict)
    files: dict[str, FileFacts] = field(default_factory=dict)
    tries: dict[str, tuple[int, float]] = field(default_factory=dict)
    rounds: tuple[RoundView, ...] = ()
    newest: Newest | None = None
    older: Newest | None = None
    """The one before, which somebody may be reading still."""

    @property
    def unread(self) -> str:
        """What does not work because the newest global weights are too large to be read; empty if they are not."""
        newest = str(self.past.rounds[-1].started.cid) if self.past is not None and self.past.rounds else ""
        facts = self.files.get(newest)
        return UNREAD if facts is not None and facts.state == "large" else ""

    def wanted(self) -> str | None:
        """Return the CID of the file to be read next: the plan, then the newest global weights, then all others."""
        past = self.past
        if past is None:
            return None
        names = [past.plan_cid]
        kept = first_kept(self.plan, past) if self.plan is not None else 0
        for round_ in reversed(past.rounds):
            local = reversed(round_.published) if round_.number >= kept else ()
            names += [str(round_.started.cid), *(str(entry.cid) for entry in local)]
        now = time.monotonic()
        return next((n for n in names[:MAX_FILES] if self.tries.get(n, (0, 0.0))[1] <= now), None)

    def read(self, name: str, store: Store, path: Path) -> FileFacts:
        """Read a file that is wanted, and return what is known of it then.

        Parameters
        ----------
        name
            Its CID.
        store
            A store that is up.
        path
            Where the file is kept until :meth:`take_in`.
        """
        reader = Reader(store, path.parent, timeout=FETCH_TIMEOUT, max_bytes=MAX_BYTES)
        is_plan = self.past is not None and name == self.past.plan_cid
        try:
            if is_plan:
                self.plan = reader.read_plan(name, FETCH_TIMEOUT, path)
                if self.past and self.past.rounds:
                    # Should they have been read before, they were of no use without the plan.
                    self.tries.pop(str(self.past.rounds[-1].started.cid), None)
                return FileFacts("read")
            return FileFacts("read", reader.read(name, path=path).meta)
        except (TooLarge, WrongContent, WeightsError, PlanError) as error:
            if is_plan:
                self.plan_problem = str(error)
            elif isinstance(error, TooLarge):
                return FileFacts("large", problem=TOO_LARGE)
            return FileFacts("bad", problem=str(error))
        except StoreError as error:
            count = self.tries.get(name, (0, 0.0))[0] + 1
            self.tries[name] = (count, time.monotonic() + min(2.0**count, 60.0))
            return FileFacts("missing" if count >= TRIES else "coming", problem=str(error))

    def take_in(self, name: str, path: Path, facts: FileFacts) -> None:
        """Note what is known of a file; keep the newest global weights and those before, and no other file.

        Parameters
        ----------
        name, path
            The file's CID, and where it is if it was read.
        facts
            What :meth:`read` returned.
        """
        if facts.state in ("read", "bad", "large"):
            self.tries[name] = (0, float("inf"))
        self.files[name] = facts
        meta, newest = facts.meta, self.newest
        # Whatever a file says of itself, the chain says what the global weights of a round are.
        known = [(str(round_.started.cid), round_.number) for round_ in self.past.rounds] if self.past else []
        if (
            isinstance(meta, GlobalMeta)
            and (name, meta.round) in known
            and self.plan
            and (newest is None or newest.round < meta.round)
        ):
            kept = path.with_name(f"{name}.safetensors")
            path.replace(kept)
            self.newest, older, self.older = Newest(kept, name, meta.round, self.plan), self.older, newest
            if older is not None and older.cid not in (name, newest.cid if newest else None):
                older.path.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
