"""A learner's part in secure aggregation: its keys, its masked file, and its openings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from fl_node import events
from fl_node.artifacts import cid
from fl_node.artifacts.model_file import Tensors, WeightsFile
from fl_node.chain.contract import View
from fl_node.errors import ConfigError, WeightsError
from fl_node.models.trainer import Score
from fl_node.plan.schema import Plan
from fl_node.privacy.round_keys import RoundKeys
from fl_node.privacy.secret import load_or_create
from fl_node.protocol import impasse
from fl_node.protocol.masked import keys_of, masked_file, open_shares
from fl_node.protocol.names import learners_label
from fl_node.protocol.openings import Opening, parse
from fl_node.protocol.reader import Reader
from fl_node.roles.impasse import SETTLE, End, find_open
from fl_node.roles.loop import Site, Waiting
from fl_node.runtime import files
from fl_node.runtime.logs import emit


class Masking:
    """The masks of a learner in a run.

    Parameters
    ----------
    site
        The learner's node; its secret is made if there is none.
    plan, plan_cid
        The run's plan and its CID.
    reader
        Reads the files of others.

    Raises
    ------
    ConfigError
        The host has no secret, or others may read it.
    """

    def __init__(self, site: Site, plan: Plan, plan_cid: str, reader: Reader) -> None:
        if site.secret is None:
            raise ConfigError("secure aggregation needs the secret of a host")
        self._site = site
        self._plan = plan
        self._plan_cid = plan_cid
        self._reader = reader
        self._address = site.contract.address
        was_there = site.secret.exists()
        self._secret = load_or_create(site.secret)
        self._keys = RoundKeys(site.folder, self._secret)
        if not was_there and self._keys.has_any(self._address):
            emit(events.SecretReplaced(file=str(site.secret)))
        self._done = -1  # the round before which all secrets are erased
        self._sat_out = -1
        self._refused = ""
        self._end = End(site)
        self._opening: Path | None = None  # the last opening that was made here
        self._opened = ""  # its CID
        self._closed: tuple[int, Mapping[int, str]] = (-1, {})  # the last closed round and its members' files
        self._closed_since = 0.0

    def announce(self, view: View, node_id: int, round_: int) -> Waiting | None:
        """Announce this learner's key for a round; None if this is done.

        Parameters
        ----------
        view
            What the contract says now.
        node_id
            The learner.
        round_
            The next round, or 0.
        """
        contract = self._site.contract
        if node_id in contract.keys(round_, [node_id], view.block):
            return None
        key = self._keys.make(self._address, round_)
        receipt = contract.announce_key(round_, key.public, view.nonce)
        if receipt is None:
            return Waiting("block", f"a block with the key of round {round_}", round=round_)
        emit(events.KeyAnnounced(round=round_, block=receipt.block, gas=receipt.gas))
        return None

    def stuck_open(self, view: View, parent: WeightsFile, published: Mapping[int, str]) -> Waiting | None:
        """Return the wait of an open round that can never close or be opened; None if it can.

        Parameters
        ----------
        view
            What the contract says now.
        parent
            The global weights that it started from, which are verified.
        published
            The CIDs of the files that are published in it, by nodeId.

        Raises
        ------
        RunStuck
            It can't, and stays so.
        """
        silent = [node_id for node_id in view.learners if node_id not in published]
        found = find_open(self._site.contract, self._plan, view.state.round, parent, silent, view.block)
        return None if found is None else self._end.wait(view.state, found)

    def stuck_closed(
        self, view: View, parent: WeightsFile, published: Mapping[int, str], opened: Mapping[int, str]
    ) -> Waiting | None:
        """Return the wait of a closed round that can never end; None if it can, as far as its files tell.

        Parameters
        ----------
        view
            What the contract says now.
        parent
            The global weights that the round started from.
        published, opened
            The CIDs of the files and of the openings of its members, by nodeId.

        Raises
        ------
        StoreUnreachable
            The store does not answer.
        RunStuck
            It can't, and stays so.
        """
        found = impasse.of_closed_round(self._reader, self._plan, self._plan_cid, parent, published, opened)
        self._reader.forget(*self._site.folder.glob("*-*.safetensors"))
        return None if found is None else self._end.wait(view.state, found)

    def takes_part(self, parent: WeightsFile, node_id: int) -> bool:
        """Return whether this learner has the key that it announced for the round of these global weights."""
        round_ = parent.global_meta.round
        key = self._keys.get(self._address, round_)
        if key is not None and keys_of(parent).get(node_id) == key.public:
            return True
        if self._sat_out != round_:
            self._sat_out = round_
            emit(events.RoundSatOut(round=round_))
        return False

    def write(self, path: Path, parent: WeightsFile, node_id: int, trained: Tensors, score: Score) -> WeightsFile:
        """Write this learner's masked file, after its key of the next round is on disk.

        Parameters
        ----------
        path
            Where to write.
        parent
            The global weights that it trained from.
        node_id
            The learner.
        trained
            Its local weights.
        score
            What it measured.

        Raises
        ------
        WeightsError
            This learner has no key in this round.
        """
        round_ = parent.global_meta.round
        key = self._keys.get(self._address, round_)
        if key is None:
            raise WeightsError(f"this learner has no key for round {round_}", "keys")
        next_key = self._keys.make(self._address, round_ + 1).public
        return masked_file(
            path,
            self._plan,
            self._plan_cid,
            node_id=node_id,
            parent=parent,
            trained=trained,
            accuracy=score.accuracy,
            loss=score.loss,
            key=key,
            next_key=next_key,
            # By the weights too: of a withdrawn round others come, and the same noise twice would cancel.
            noise=self._secret.derive(self._address, round_, "learner-noise", parent.cid),
        )

    def open(
        self,
        view: View,
        node_id: int,
        parent: WeightsFile,
        published: Mapping[int, str],
        lend: Callable[[str, Path], None],
    ) -> Waiting | None:
        """Publish the opening of a closed round, once and for one set of members; None if this is done.

        Parameters
        ----------
        view
            What the contract says; the round is closed.
        node_id
            The learner.
        parent
            The global weights that the round started from.
        published
            The CIDs of its members' files.
        lend
            Puts a file that is here already where it is needed.

        Raises
        ------
        StoreUnreachable
            The store does not answer.
        RunStuck
            Too few members have a valid file, so nothing can be opened.
        """
        contract, round_ = self._site.contract, parent.global_meta.round
        if contract.opening_at(round_, node_id, view.block) is not None:
            return None
        path = opening_path(self._site.folder, round_, parent.cid)
        if not path.exists() and (waiting := self._settle(view, round_, published)) is not None:
            return waiting
        if self._opening != path or not path.exists() or cid.of_file(path) != self._opened:
            for name in published.values():
                lend(name, self._reader.path(name))
            known = impasse.read_files(self._reader, self._plan, self._plan_cid, parent, published)
            if found := impasse.of_files(self._plan, round_, known.good, known.bad, known.missing):
                return self._end.wait(view.state, found)
            if known.missing:
                parts = [f"the file of learner {other}; {why}" for other, why in sorted(known.missing.items())]
                text = f"round {round_}: {'; '.join(parts)}"
                return Waiting("updates", text, round=round_, learners=tuple(sorted(known.missing)))
            if node_id not in known.good:
                return None
            try:
                self._write_opening(path, node_id, parent, known.good)
            except WeightsError as error:
                return self._refuse(round_, str(error))
            self._opening, self._opened = path, cid.of_file(path)
            # What was read for it is not needed any more; this learner's own files have other names.
            self._reader.forget(*self._site.folder.glob("*-*.safetensors"))
        opening = parse(path.read_bytes())
        self._site.store.add(path)
        receipt = contract.open_masks(round_, self._opened, view.nonce)
        if receipt is None:
            return Waiting("block", f"a block with the opening of round {round_}", round=round_)
        emit(
            events.MasksOpened(
                round=round_, cid=self._opened, members=opening.members, block=receipt.block, gas=receipt.gas
            )
        )
        return None

    def _settle(self, view: View, round_: int, published: Mapping[int, str]) -> Waiting | None:
        """Return the wait until the members of a closed round are certain; None if they are.

        After its timeout a round closes with any learners that are enough. Sealers may replace the block that closed
        it by another one, with other members, and a learner opens a round for one set of members only.
        """
        record, timeout = view.record, self._plan.round_timeout
        if not timeout or record.closed_at < record.opened_at + timeout:
            return None  # it needed all learners
        now = self._site.timing.clock.monotonic()
        if self._closed != (round_, published):
            self._closed, self._closed_since = (round_, dict(published)), now
        if now - self._closed_since >= SETTLE:
            return None
        who = learners_label(sorted(published))
        return Waiting(
            "round_end", f"round {round_} to stay closed with {who}", round=round_, until=self._closed_since + SETTLE
        )

    def finish(self, round_: int) -> None:
        """Erase the secrets of all rounds before this one, which started from verified weights."""
        if self._done != round_:
            self._keys.erase(self._address, round_)
            self._done = round_
            if round_:
                emit(events.SecretsErased(round=round_))

    def _write_opening(self, path: Path, node_id: int, parent: WeightsFile, good: Mapping[int, WeightsFile]) -> None:
        """Write this learner's opening to disk before it is sent; an existing opening stays.

        Raises
        ------
        WeightsError
            The existing opening is damaged, of another round, or for another set of members. Or this learner has no
            key of the round, or the set is too small.
        """
        if path.exists():
            try:
                before = parse(path.read_bytes())
            except WeightsError as error:
                raise WeightsError(
                    f"{path} is damaged ({error}), and it opens a round only once", "opening"
                ) from error
            of = (before.plan, before.node_id, before.round, before.parent)
            if of != (self._plan_cid, node_id, parent.global_meta.round, parent.cid):
                raise WeightsError(f"{path} is of learner {before.node_id} in round {before.round}", "opening")
            if before.members != tuple(sorted(good)):
                raise WeightsError(
                    f"it opened this round for learners {_list(before)}, and opens it for no second set", "members"
                )
            return
        key = self._keys.get(self._address, parent.global_meta.round)
        if key is None:
            raise WeightsError("its key of this round is gone", "keys")
        opening, faults = open_shares(self._plan, self._plan_cid, node_id, key, parent, good)
        for fault in faults:
            emit(events.OpeningRejected(round=parent.global_meta.round, learner=fault.node_id, detail=fault.text))
        files.write(path, opening.to_bytes())

    def _refuse(self, round_: int, reason: str) -> Waiting:
        if self._refused != reason:
            self._refused = reason
            emit(events.OpeningRefused(round=round_, detail=reason))
        text = f"the end of round {round_}; this learner opens nothing: {reason}"
        contract = self._site.contract
        return Waiting("round_end", text, round=round_, watch=contract.round, seen=round_)


def opening_path(folder: Path, round_: int, parent: str) -> Path:
    """Return the path of a learner's opening of a round.

    Parameters
    ----------
    folder
        The learner's folder.
    round_
        The round.
    parent
        The CID of the global weights that the round started from.
    """
    return folder / f"opening-{round_}-{parent}.json"


def _list(opening: Opening) -> str:
    return ", ".join(map(str, opening.members))
