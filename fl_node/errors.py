"""Every error that ``fl-node`` raises on purpose, with the exit code that the command line gives it."""

from __future__ import annotations


class FLNodeError(Exception):
    """Base of all errors that a user can cause and fix; shown as one line."""

    exit_code = 1


class PlanError(FLNodeError):
    """A plan that can't be carried out: unknown keys, wrong types, impossible values."""

    exit_code = 2


class JsonError(FLNodeError):
    """JSON from outside that is malformed or goes beyond a bound; the caller says whose it is."""

    exit_code = 2


class ConfigError(FLNodeError):
    """An option, environment variable, key file or run folder that is missing or wrong."""

    exit_code = 2


class ModuleError(ConfigError):
    """A custom module that is not installed, is not the plan's, or does not do what it should."""


class DataError(FLNodeError):
    """A data set that is not available, or has the wrong content."""

    exit_code = 3


class ChainError(FLNodeError):
    """The Ethereum node can't be reached, answers wrongly, or refused a transaction."""

    exit_code = 4


class ChainUnreachable(ChainError):
    """The Ethereum node does not answer; it may come back."""


class ContractError(ChainError):
    """The contract reverted a call.

    Parameters
    ----------
    message
        What the contract refused, for people.
    name
        The contract's custom error, such as ``NotHeader``; empty if it is none of the contract's.
    """

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class Reverted(ContractError):
    """A transaction that the contract accepted before was reverted in its block: something else came first."""


class JournalError(FLNodeError):
    """A line of a role's journal that is damaged or that the role did not sign."""

    exit_code = 2


class LogError(ChainError):
    """A contract's log has what the contract of a run never says."""


class StoreError(FLNodeError):
    """The file store (IPFS or folder) can't be reached or failed."""

    exit_code = 5


class StoreUnreachable(StoreError):
    """The store does not answer; it may come back."""


class FileMissing(StoreError):
    """For a hash no file could be had: for the time allowed nothing of it arrived.

    ``received`` is how many bytes had arrived before; asking again goes on from there.
    """

    def __init__(self, message: str, received: int = 0) -> None:
        super().__init__(message)
        self.received = received


class WeightsError(FLNodeError):
    """A model file that is not what it claims to be, or not what is wanted; it is rejected.

    Parameters
    ----------
    message
        What is wrong, for people.
    code
        Which check failed, for programs: ``malformed``, ``too_large``, ``tensors`` (names, shapes, types),
        ``not_finite``, ``metadata.FIELD``, ``bounds``, ``repeated``, ``not_newer``, ``shard``, or ``invalid``.
    """

    exit_code = 6

    def __init__(self, message: str, code: str = "invalid") -> None:
        super().__init__(message)
        self.code = code


class GaveUp(FLNodeError):
    """A role waited as long as it was told to, and stopped.

    Parameters
    ----------
    message
        What it waited for, for people.
    code
        The same for programs, one of :data:`fl_node.events.Wait`.
    """

    exit_code = 7

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class RunStuck(FLNodeError):
    """A run that can never go on, whoever comes back.

    Parameters
    ----------
    message
        Why, and the remedy, for people.
    learners
        The learners that caused it, by nodeId.
    """

    exit_code = 10

    def __init__(self, message: str, learners: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.learners = learners


class BinaryError(FLNodeError):
    """Geth or IPFS could not be installed, or is not the pinned version."""

    exit_code = 8


class ProcessError(FLNodeError):
    """A process of a lab could not be started or ended unexpectedly."""

    exit_code = 9
