"""A certificate authority for the simulated web: made anew for each run, trusted by no one but its clients.

The standard library speaks TLS but cannot sign, and no signing library is among the dependencies, so
here is the little that is needed: ECDSA on P-256 (FIPS 186-5, 6.4; SEC 1, 4.1.3) and certificates in DER
(RFC 5280). One signature takes well below a millisecond. It does not hide its timing from a
neighbour, which would matter for a real key: do not use it for one.
"""

from __future__ import annotations

import hashlib
import ssl
from base64 import encodebytes
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from secrets import randbelow, token_bytes
from typing import Final

# P-256: y² = x³ - 3x + b over the field of P elements; G generates N points (SP 800-186, 3.2.1.3).
_P: Final = 2**256 - 2**224 + 2**192 + 2**96 - 1
_N: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_G: Final = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
_POINT = tuple[int, int]
_VALID: Final = timedelta(days=90)
_CONTEXTS: Final = 1024
"""TLS contexts kept; a host that has been forgotten gets another certificate."""


class Authority:
    """Makes TLS contexts for host names. The keys live in memory; `folder` holds no file but `ca.pem`."""

    def __init__(self, folder: Path) -> None:
        """`folder` must be private: certificates pass through it on their way into the TLS library."""
        self._folder = folder
        self._key = randbelow(_N - 1) + 1
        self._leaf_key = randbelow(_N - 1) + 1
        self._public = _public_bytes(self._key)
        self._leaf_public = _public_bytes(self._leaf_key)
        self._name = _sequence(_set(_sequence(_oid("2.5.4.3"), _utf8("dlconsole demo authority"))))
        now = datetime.now(UTC)
        self._validity = _sequence(_utc_time(now - timedelta(days=1)), _utc_time(now + _VALID))
        self.ca_path = folder / "ca.pem"
        self.ca_path.write_text(_pem("CERTIFICATE", self._ca_certificate()), encoding="ascii")
        self.context_for: Callable[[str], ssl.SSLContext] = lru_cache(_CONTEXTS)(self._make_context)
        """The server-side TLS context with a certificate for this host name or IP address."""

    def certificate(self, host: str) -> bytes:
        """A certificate (DER) that is good for this host name or IP address only."""
        extensions = (
            _extension("2.5.29.17", _sequence(_general_name(host)), critical=True),
            _extension("2.5.29.15", _bits(b"\x80", unused=7), critical=True),  # digitalSignature
            _extension("2.5.29.37", _sequence(_oid("1.3.6.1.5.5.7.3.1"))),  # serverAuth
            _extension("2.5.29.35", _sequence(_tlv(0x80, _key_id(self._public)))),
        )
        # No subject: names of hosts can be longer than a common name's 64 characters.
        return self._sign(_sequence(), self._leaf_public, extensions)

    def _ca_certificate(self) -> bytes:
        extensions = (
            _extension("2.5.29.19", _sequence(_tlv(0x01, b"\xff")), critical=True),  # CA: true
            _extension("2.5.29.15", _bits(b"\x04", unused=2), critical=True),  # keyCertSign
            _extension("2.5.29.14", _tlv(0x04, _key_id(self._public))),
        )
        return self._sign(self._name, self._public, extensions)

    def _sign(self, subject: bytes, public: bytes, extensions: tuple[bytes, ...]) -> bytes:
        algorithm = _sequence(_oid("1.2.840.10045.4.3.2"))  # ecdsa-with-SHA256
        body = _sequence(
            _tlv(0xA0, _integer(2)),
            _integer(int.from_bytes(token_bytes(8))),
            algorithm,
            self._name,
            self._validity,
            subject,
            _public_key(public),
            _tlv(0xA3, _sequence(*extensions)),
        )
        return _sequence(body, algorithm, _bits(_ecdsa_sign(self._key, body)))

    def _make_context(self, host: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.num_tickets = 0  # nobody resumes: each would cost time on both sides
        pem = _pem("EC PRIVATE KEY", _private_key(self._leaf_key, self._leaf_public))
        path = self._folder / "leaf.pem"  # the ssl module reads certificates from files only
        path.write_text(pem + _pem("CERTIFICATE", self.certificate(host)), encoding="ascii")
        try:
            context.load_cert_chain(path)
        finally:
            path.unlink()
        return context


def _ecdsa_sign(key: int, message: bytes) -> bytes:
    """The DER signature of SHA-256(message)."""
    digest = int.from_bytes(hashlib.sha256(message).digest())
    while True:
        nonce = randbelow(_N - 1) + 1
        r = _multiply(nonce)[0] % _N
        s = pow(nonce, -1, _N) * (digest + r * key) % _N
        if r and s:
            return _sequence(_integer(r), _integer(s))


@lru_cache(maxsize=1)
def _doublings() -> tuple[_POINT, ...]:
    """G, 2G, 4G, ... 2²⁵⁵G: with these a multiplication is additions only."""
    points = [_G]
    for _ in range(255):
        x, y = points[-1]
        slope = (3 * x * x - 3) * pow(2 * y, -1, _P) % _P
        x3 = (slope * slope - 2 * x) % _P
        points.append((x3, (slope * (x - x3) - y) % _P))
    return tuple(points)


def _multiply(factor: int) -> _POINT:
    """factor times G, for 0 < factor < N.

    Jacobian coordinates (x/z², y/z³) put off the costly division to the end. The sum of the bits so far
    is always smaller than the next doubling's, so that the two points of an addition are never equal.
    """
    x, y, z = 0, 1, 0
    for bit, (x2, y2) in enumerate(_doublings()):
        if not factor >> bit & 1:
            continue
        if not z:
            x, y, z = x2, y2, 1
            continue
        zz = z * z % _P
        h = (x2 * zz - x) % _P
        slope = (y2 * zz * z - y) % _P
        hh = h * h % _P
        hhh = h * hh % _P
        v = x * hh % _P
        x = (slope * slope - hhh - 2 * v) % _P
        y = (slope * (v - x) - y * hhh) % _P
        z = z * h % _P
    inverse = pow(z, -1, _P)
    return x * inverse**2 % _P, y * inverse**3 % _P


def _public_bytes(key: int) -> bytes:
    x, y = _multiply(key)
    return b"\x04" + x.to_bytes(32) + y.to_bytes(32)


def _public_key(public: bytes) -> bytes:
    curve = _sequence(_oid("1.2.840.10045.2.1"), _oid("1.2.840.10045.3.1.7"))
    return _sequence(curve, _bits(public))


def _private_key(key: int, public: bytes) -> bytes:
    """SEC 1, C.4."""
    curve = _tlv(0xA0, _oid("1.2.840.10045.3.1.7"))
    return _sequence(_integer(1), _tlv(0x04, key.to_bytes(32)), curve, _tlv(0xA1, _bits(public)))


def _key_id(public: bytes) -> bytes:
    return hashlib.sha1(public, usedforsecurity=False).digest()


def _general_name(host: str) -> bytes:
    try:
        return _tlv(0x87, ip_address(host).packed)
    except ValueError:
        return _tlv(0x82, host.encode("ascii"))


def _extension(oid: str, value: bytes, *, critical: bool = False) -> bytes:
    return _sequence(_oid(oid), _tlv(0x01, b"\xff") if critical else b"", _tlv(0x04, value))


def _tlv(tag: int, content: bytes) -> bytes:
    """Tag, length, value: all of DER (X.690, 8.1) that is needed here."""
    if len(content) < 0x80:
        return bytes((tag, len(content))) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(length))) + length + content


def _sequence(*items: bytes) -> bytes:
    return _tlv(0x30, b"".join(items))


def _set(*items: bytes) -> bytes:
    return _tlv(0x31, b"".join(items))


def _integer(value: int) -> bytes:
    return _tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1))


def _bits(content: bytes, *, unused: int = 0) -> bytes:
    return _tlv(0x03, bytes((unused,)) + content)


def _utf8(text: str) -> bytes:
    return _tlv(0x0C, text.encode())


def _utc_time(moment: datetime) -> bytes:
    return _tlv(0x17, moment.strftime("%y%m%d%H%M%SZ").encode())


def _oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    content = bytearray((40 * first + second,))
    for number in rest:
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(0x80 | number & 0x7F)
        content += bytes(reversed(groups))
    return _tlv(0x06, bytes(content))


def _pem(label: str, content: bytes) -> str:
    return f"-----BEGIN {label}-----\n{encodebytes(content).decode()}-----END {label}-----\n"
