"""The chain's libraries are imported without what is never used of them; everything that is used works."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import json, sys
import fl_node.chain.client, fl_node.nodes.dev_chain
without = not any(name.startswith(("py_ecc.bls", "aiohttp")) for name in sys.modules)
from eth_account import Account
account = Account.create()
file = Account.encrypt(account.key, "secret", kdf="scrypt", iterations=2)
from py_ecc.bls import G2ProofOfPossession
from py_ecc.bls12_381 import curve_order
import eth_keyfile.keyfile
from fl_node.runtime.lean_imports import CURVE_ORDER
try:
    eth_keyfile.keyfile.bls.SkToPk
    error = None
except AttributeError as raised:
    error = str(raised)
import eth.precompiles
try:
    eth.precompiles.bls12_g1_add(None)
    left_out = None
except RuntimeError as raised:
    left_out = str(raised)
from eth.precompiles.bls12_381.bls12_381_g1 import bytes_to_g1_optimized_point3D, g1_optimized_3d_to_bytes
import aiohttp
from web3.utils import async_exception_handling
try:
    async_exception_handling.ClientSession()
    asynchronous = None
except RuntimeError as raised:
    asynchronous = str(raised)
print(json.dumps({
    "asynchronous": asynchronous,
    "aiohttp": aiohttp.ClientTimeout(1).total,
    "without": without,
    "decrypted": Account.decrypt(file, "secret") == account.key,
    "public key": len(G2ProofOfPossession.SkToPk(1)),
    "error": error,
    "left out": left_out,
    "bytes of a point": len(g1_optimized_3d_to_bytes(bytes_to_g1_optimized_point3D(bytes(128)))),
    "order": curve_order == CURVE_ORDER,
}))
"""


def test_what_is_left_out_is_imported_only_by_who_asks_for_it() -> None:
    output = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    result = json.loads(output)
    assert result.pop("error").startswith("SkToPk")
    assert result.pop("left out").endswith("(fl_node.runtime.lean_imports)")
    assert result.pop("asynchronous").endswith("(fl_node.runtime.lean_imports)")
    assert result == {
        "without": True,
        "aiohttp": 1,
        "decrypted": True,
        "public key": 48,
        "order": True,
        "bytes of a point": 128,
    }


OTHER_VERSION = """
import sys
from fl_node.runtime import lean_imports
# As if they imported other names.
lean_imports.REPLACEMENTS["eth_keyfile.keyfile"]["py_ecc.bls"] = {}
lean_imports.REPLACEMENTS["eth.precompiles"]["eth.precompiles.bls12_381"] = {}
lean_imports.REPLACEMENTS["web3.beacon.async_beacon"]["aiohttp"] = {}
import fl_node.chain.client, eth_keyfile.keyfile, eth.precompiles, web3.beacon.async_beacon
print(len(eth_keyfile.keyfile.bls.SkToPk(1)), eth.precompiles.bls12_g1_add.__module__)
print(web3.beacon.async_beacon.ClientTimeout.__module__)
"""


def test_a_version_that_needs_more_of_what_is_left_out_gets_it() -> None:
    output = subprocess.run([sys.executable, "-c", OTHER_VERSION], capture_output=True, text=True, check=True).stdout
    assert output == "48 eth.precompiles.bls12_381.bls12_381_g1\naiohttp.client\n"
