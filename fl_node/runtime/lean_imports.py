"""Imports the chain's libraries without what this project never uses of them, which takes half of their time.

``eth_account`` and ``web3`` import ``eth_keyfile``. Only its key files for validators (EIP-2335) need BLS signatures;
those of this project (version 3) do not. py-evm needs them for precompiled contracts of Prague (EIP-2537), while the
chain in Python is London. ``web3`` needs ``aiohttp`` for its asynchronous providers. Code that imports
``py_ecc.bls``, ``eth.precompiles.bls12_381`` or ``aiohttp`` itself gets it.
"""

from __future__ import annotations

# Modules that Python has loaded by now: nobody knows yet whose files other imports would find (see safe_path).
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

CURVE_ORDER = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001
"""The order of BLS12-381, from its specification."""


class _Signatures:
    """In place of ``G2ProofOfPossession``."""

    def __getattr__(self, name: str) -> object:
        raise AttributeError(f"{name}: BLS signatures are left out (fl_node.runtime.lean_imports)")


def _left_out(*_: object) -> None:
    raise RuntimeError("BLS precompiled contracts are left out (fl_node.runtime.lean_imports)")


class _Http:
    """In place of the classes of ``aiohttp``, which stand in type hints and make connections."""

    def __init__(self, *_: object, **__: object) -> None:
        raise RuntimeError("asynchronous HTTP is left out (fl_node.runtime.lean_imports)")


class _HttpError(Exception):
    """In place of ``aiohttp.ClientError``."""


_AIOHTTP: dict[str, dict[str, object]] = {
    "aiohttp": {
        "ClientError": _HttpError,
        **dict.fromkeys(("ClientResponse", "ClientSession", "ClientTimeout", "TCPConnector"), _Http),
    }
}

REPLACEMENTS: dict[str, dict[str, dict[str, object]]] = {
    "eth_keyfile.keyfile": {
        "py_ecc.bls": {"G2ProofOfPossession": _Signatures()},
        "py_ecc.bls12_381": {"curve_order": CURVE_ORDER},
    },
    "eth.precompiles": {
        "eth.precompiles.bls12_381": {
            f"bls12_{name}": _left_out
            for name in ("g1_add", "g1_msm", "map_fp_to_g1", "g2_add", "g2_msm", "map_fp2_to_g2", "pairing_check")
        },
    },
    "web3._utils.http_session_manager": _AIOHTTP,
    "web3.beacon.async_beacon": _AIOHTTP,
    "web3.providers.rpc.async_rpc": _AIOHTTP,
    "web3.utils.async_exception_handling": _AIOHTTP,
}
"""What a module gets instead, by the module, the module that it imports, and name."""


class _Finder:
    """Finds the modules that would import what is left out, and has their code executed without it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how the module is imported; None for all other modules."""
        if fullname not in REPLACEMENTS or (spec := PathFinder.find_spec(fullname, path, target)) is None:
            return None
        loader = spec.loader
        if loader is None:
            return None
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            replacements = REPLACEMENTS[fullname]
            missing = [name for name in replacements if name not in sys.modules]
            for name in missing:
                sys.modules[name] = ModuleType(name)
                vars(sys.modules[name]).update(replacements[name])
            try:
                execute(module)
                return
            except (ImportError, AttributeError, TypeError):
                pass  # another version, which needs more of what is left out
            finally:
                for name in missing:
                    del sys.modules[name]
            execute(module)

        loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Leave it out of later imports of ``eth_keyfile``, py-evm and ``web3``."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
