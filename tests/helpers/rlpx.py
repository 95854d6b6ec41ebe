"""Geth's peer protocol, as far as an attacker needs it: RLPx (EIP-8), devp2p's hello, and messages of eth.

https://github.com/ethereum/devp2p/blob/master/rlpx.md
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import secrets
import socket
from collections.abc import Sequence
from typing import Any

import rlp
from Crypto.Cipher import AES
from Crypto.Hash import keccak
from Crypto.Util import Counter
from eth_keys import keys
from py_ecc.secp256k1 import secp256k1

PAUSE = 60.0
HELLO, DISCONNECT = 0, 1
#: Messages of eth; what comes before 16 is devp2p's own.
STATUS, GET_HEADERS, HEADERS, BODIES = 16, 19, 20, 22

Point = tuple[int, int]


def public_point(public: bytes) -> Point:
    """Return the point of a public key of 64 bytes."""
    return int.from_bytes(public[:32]), int.from_bytes(public[32:])


def point_bytes(point: Point) -> bytes:
    """Return a point as a public key of 64 bytes."""
    return point[0].to_bytes(32) + point[1].to_bytes(32)


@functools.cache
def shared_secret(private: bytes, public: bytes) -> bytes:
    """Return the x coordinate of the product of a private key and a public one."""
    return int(secp256k1.multiply(public_point(public), int.from_bytes(private))[0]).to_bytes(32)


def encrypt(public: bytes, message: bytes, prefix: bytes) -> bytes:
    """Encrypt with ECIES for the owner of a public key."""
    ephemeral = secrets.token_bytes(32)
    point = b"\x04" + keys.PrivateKey(ephemeral).public_key.to_bytes()
    return sealed(point, shared_secret(ephemeral, public), message, prefix)


def sealed(point: bytes, secret: bytes, message: bytes, prefix: bytes, *, iv: int = 16) -> bytes:
    """Encrypt with ECIES, with any ephemeral point and any secret.

    With an `iv` shorter than 16 bytes, and no message, the MAC is right and the ciphertext too short.
    """
    derived = hashlib.sha256(b"\0\0\0\1" + secret).digest()
    vector = secrets.token_bytes(iv)
    body = vector + (stream(derived[:16], vector).encrypt(message) if message else b"")
    tag = hmac.new(hashlib.sha256(derived[16:]).digest(), body + prefix, "sha256").digest()
    return point + body + tag


def stream(key: bytes, vector: bytes = bytes(16)) -> Any:
    """Return AES in counter mode."""
    counter = Counter.new(128, initial_value=int.from_bytes(vector))
    return AES.new(key, AES.MODE_CTR, counter=counter)


def digest(*parts: bytes) -> bytes:
    """Return the Keccak-256 of the parts."""
    return keccak.new(digest_bits=256, data=b"".join(parts)).digest()


def xor(first: bytes, second: bytes) -> bytes:
    """Return the exclusive or of two texts of one length."""
    return bytes(a ^ b for a, b in zip(first, second, strict=True))


def literal(data: bytes) -> bytes:
    """Return what Snappy decompresses to `data`, with nothing compressed."""
    size, length = bytearray(), len(data)
    while length >= 128:
        size.append(length & 127 | 128)
        length >>= 7
    size.append(length)
    return bytes(size) + (bytes([63 << 2]) + (len(data) - 1).to_bytes(4, "little") + data if data else b"")


class Mac:
    """RLPx's authentication of one direction."""

    def __init__(self, key: bytes, start: bytes) -> None:
        self._cipher = AES.new(key, AES.MODE_ECB)
        self._state = keccak.new(digest_bits=256, data=start, update_after_digest=True)

    def _mix(self, seed: bytes) -> bytes:
        self._state.update(xor(self._cipher.encrypt(self._state.digest()[:16]), seed))
        return bytes(self._state.digest()[:16])

    def header(self, data: bytes) -> bytes:
        """Return the MAC of a frame's header."""
        return self._mix(data)

    def body(self, data: bytes) -> bytes:
        """Return the MAC of a frame's body."""
        self._state.update(data)
        return self._mix(bytes(self._state.digest()[:16]))


def auth_message(node: bytes, private: bytes, ephemeral: bytes, nonce: bytes) -> bytes:
    """Return the first message of a handshake, before it is encrypted."""
    token = shared_secret(private, node)
    signature = keys.PrivateKey(ephemeral).sign_msg_hash(xor(token, nonce)).to_bytes()
    public = keys.PrivateKey(private).public_key.to_bytes()
    return bytes(rlp.encode([signature, public, nonce, b"\4"])) + bytes(100)


class Peer:
    """A connection to a node, from the handshake on.

    Parameters
    ----------
    port
        The node's port on loopback.
    node
        Its public key.
    private
        The private key of who connects.
    """

    def __init__(self, port: int, node: bytes, private: bytes) -> None:
        self._private = private
        self._compressed = False
        self._socket = socket.create_connection(("127.0.0.1", port), PAUSE)
        ephemeral, nonce = secrets.token_bytes(32), secrets.token_bytes(32)
        message = auth_message(node, private, ephemeral, nonce)
        prefix = (len(message) + 113).to_bytes(2)
        auth = prefix + encrypt(node, message, prefix)
        self._socket.sendall(auth)
        size = self._read(2)
        answer = self._read(int.from_bytes(size))
        derived = hashlib.sha256(b"\0\0\0\1" + shared_secret(private, answer[1:65])).digest()
        plain = stream(derived[:16], answer[65:81]).decrypt(answer[81:-32])
        remote, remote_nonce, *_ = rlp.decode(plain, strict=False)
        secret = shared_secret(ephemeral, remote)
        aes = digest(secret, digest(secret, digest(remote_nonce, nonce)))
        mac = digest(secret, aes)
        self._out, self._in = stream(aes), stream(aes)
        self._out_mac = Mac(mac, xor(mac, remote_nonce) + auth)
        self._in_mac = Mac(mac, xor(mac, nonce) + size + answer)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def send(self, code: int, content: Any, *, encoded: bytes | None = None) -> None:
        """Send a message."""
        data = rlp.encode(content) if encoded is None else encoded
        frame = rlp.encode(code) + (literal(data) if self._compressed else data)
        header = self._out.encrypt((len(frame).to_bytes(3) + b"\xc2\x80\x80").ljust(16, b"\0"))
        body = self._out.encrypt(frame + bytes(-len(frame) % 16))
        self._socket.sendall(header + self._out_mac.header(header) + body + self._out_mac.body(body))

    def receive(self) -> tuple[int, bytes]:
        """Return the next message: its code, and its content as it came."""
        header = self._in.decrypt(self._read(32)[:16])
        size = int.from_bytes(header[:3])
        frame = self._in.decrypt(self._read(size + -size % 16 + 16)[: size + -size % 16])[:size]
        return (0 if frame[0] == 0x80 else frame[0]), frame[1:]

    def hello(self) -> None:
        """Say hello, offer eth/68, and wait for the node's hello."""
        public = keys.PrivateKey(self._private).public_key.to_bytes()
        self.send(HELLO, [b"\5", b"a test", [[b"eth", b"\x44"]], b"", public])
        code, content = self.receive()
        if code != HELLO:
            raise ConnectionError(f"message {code} instead of a hello: {content.hex()}")
        self._compressed = True

    def join(self) -> None:
        """Send back the node's own status, with which the handshake of eth ends."""
        while (message := self.receive())[0] != STATUS:
            pass
        self.send(STATUS, None, encoded=decompress(message[1]))

    def answers(self) -> bool:
        """Return whether the node answers a request after all that was sent before; else it closes the connection."""
        try:
            self.send(GET_HEADERS, [1, [0, 1, 0, 0]])
            while (code := self.receive()[0]) != HEADERS:
                if code == DISCONNECT:
                    return False
        except ConnectionError:
            return False
        return True

    def _read(self, count: int) -> bytes:
        parts: list[bytes] = []
        while count:
            if not (part := self._socket.recv(count)):
                raise ConnectionError("the node closed the connection")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


def decompress(data: bytes) -> bytes:
    """Return what Snappy compressed."""
    position = next(place for place, byte in enumerate(data) if byte < 128) + 1
    out = bytearray()
    while position < len(data):
        tag = data[position]
        position += 1
        if tag & 3 == 0:
            length = tag >> 2
            if length >= 60:
                extra = length - 59
                length = int.from_bytes(data[position : position + extra], "little")
                position += extra
            out += data[position : position + length + 1]
            position += length + 1
            continue
        if tag & 3 == 1:
            length, offset = (tag >> 2 & 7) + 4, (tag >> 5) << 8 | data[position]
            position += 1
        else:
            width = 2 if tag & 3 == 2 else 4
            length, offset = (tag >> 2) + 1, int.from_bytes(data[position : position + width], "little")
            position += width
        for _ in range(length):
            out.append(out[-offset])
    return bytes(out)


def rejected(port: int, packet: bytes) -> bool:
    """Send a first packet and return whether the node closed the connection without an answer."""
    with socket.create_connection(("127.0.0.1", port), PAUSE) as connection:
        try:
            connection.sendall(packet)
            connection.shutdown(socket.SHUT_WR)
            return not connection.recv(1)
        except ConnectionError:
            return True


def bodies(count: int) -> bytes:
    """Return a response of `count` empty bodies of blocks, to a request that nobody made."""
    content = rlp.encode(7) + listed(b"\xc2\xc0\xc0" * count)
    return listed(content)


def listed(content: bytes) -> bytes:
    """Return an RLP list with this content."""
    size = len(content).to_bytes((len(content).bit_length() + 7) // 8)
    return bytes([0xF7 + len(size)]) + size + content


def points_off_the_curve() -> Sequence[bytes]:
    """Return ephemeral points that no honest node sends: of order 2 on another curve, beyond the field, infinity."""
    prime = secp256k1.P
    generator = secp256k1.G
    return [
        b"\4" + (5).to_bytes(32) + bytes(32),
        b"\4" + bytes(64),
        b"\4" + (generator[0]).to_bytes(32) + (generator[1] + 1).to_bytes(32),
        b"\4" + (2**256 - 1).to_bytes(32) * 2,
        # x = 1 is on the curve; so 1 + P is its other name.
        b"\4" + (1 + prime).to_bytes(32) + pow(8, (prime + 1) // 4, prime).to_bytes(32),
    ]


def guesses(point: bytes) -> list[bytes]:
    """Return the secrets that a node may get from a point of order 2: its x, times the cube roots of 1."""
    root = pow(2, (secp256k1.P - 1) // 3, secp256k1.P)
    x = int.from_bytes(point[1:33])
    return [(x * pow(root, power, secp256k1.P) % secp256k1.P).to_bytes(32) for power in range(3)]
