"""Runs in the guest: a FIDO2 token of software, which the kernel takes for a USB device (uhid).

Its arguments are the file of its secret (made when it isn't there) and, if it has one, its PIN.
It is touched by a person at once, whenever that is wanted.

What it speaks: "Client to Authenticator Protocol (CTAP) 2.0", with the extension hmac-secret and
PIN protocol one; how the device is made: Documentation/hid/uhid.rst of the kernel.
"""

import hashlib
import hmac
import os
import struct
import sys
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

UHID_OUTPUT, UHID_CREATE2, UHID_INPUT2 = 6, 11, 12
BUS_USB = 3
REPORT = 64
DESCRIPTOR = bytes.fromhex(
    "06d0f1 0901 a101 0920 1500 26ff00 7508 9540 8102 0921 1500 26ff00 7508 9540 9102 c0"
)
"""Reports of 64 bytes in and out, of the usage page that FIDO has."""

PING, INIT, CBOR, CANCEL, ERROR = 0x81, 0x86, 0x90, 0x91, 0xBF
MAKE_CREDENTIAL, GET_ASSERTION, GET_INFO, CLIENT_PIN = 1, 2, 4, 6
INVALID_COMMAND, EXCLUDED, NO_CREDENTIALS = 0x01, 0x19, 0x2E
PIN_INVALID, PIN_AUTH_INVALID, PIN_NOT_SET, PIN_REQUIRED = 0x31, 0x33, 0x35, 0x36
PRESENT, VERIFIED, WITH_KEY, WITH_EXTENSIONS = 0x01, 0x04, 0x40, 0x80
CURVE = ec.SECP256R1()
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class Refused(Exception):
    """A request is answered with this status."""


def encoded(value: Any) -> bytes:
    """CBOR (RFC 8949): what this token needs of it."""
    if isinstance(value, bool):
        return b"\xf5" if value else b"\xf4"
    if isinstance(value, int):
        return head(0, value) if value >= 0 else head(1, -1 - value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    if isinstance(value, list):
        return head(4, len(value)) + b"".join(encoded(each) for each in value)
    pairs = [encoded(key) + encoded(each) for key, each in value.items()]
    return head(5, len(pairs)) + b"".join(pairs)


def head(major: int, number: int) -> bytes:
    if number < 24:
        return bytes((major << 5 | number,))
    size = 1 if number < 1 << 8 else 2 if number < 1 << 16 else 4
    return bytes((major << 5 | {1: 24, 2: 25, 4: 26}[size],)) + number.to_bytes(size, "big")


def decoded(data: bytes) -> Any:
    return _decoded(data, 0)[0]


def _decoded(data: bytes, at: int) -> tuple[Any, int]:
    major, number = data[at] >> 5, data[at] & 31
    at += 1
    if major == 7:
        return {20: False, 21: True}.get(number), at
    if number >= 24:
        size = 1 << number - 24
        number, at = int.from_bytes(data[at : at + size], "big"), at + size
    match major:
        case 0:
            return number, at
        case 1:
            return -1 - number, at
        case 2:
            return data[at : at + number], at + number
        case 3:
            return data[at : at + number].decode(), at + number
    items = []
    for _ in range(number * (2 if major == 5 else 1)):
        item, at = _decoded(data, at)
        items.append(item)
    return (dict(zip(items[::2], items[1::2], strict=True)) if major == 5 else items), at


def cose(key: ec.EllipticCurvePublicKey, algorithm: int) -> dict[int, Any]:
    """A public key as CTAP writes it."""
    point = key.public_numbers()
    x, y = (number.to_bytes(32, "big") for number in (point.x, point.y))
    return {1: 2, 3: algorithm, -1: 1, -2: x, -3: y}


class Token:
    """Answers what comes as CBOR; the secret is all that it remembers."""

    def __init__(self, secret: bytes, pin: str) -> None:
        self.secret = secret
        self.pin = hashlib.sha256(pin.encode()).digest()[:16] if pin else b""
        self.agreement = ec.generate_private_key(CURVE)
        self.pin_token = os.urandom(32)

    def answer(self, request: bytes) -> bytes:
        """A status, and what goes with it."""
        said = decoded(request[1:]) if len(request) > 1 else {}
        commands = {
            MAKE_CREDENTIAL: self.make_credential,
            GET_ASSERTION: self.get_assertion,
            GET_INFO: self.get_info,
            CLIENT_PIN: self.client_pin,
        }
        try:
            if request[0] not in commands:
                raise Refused(INVALID_COMMAND)
            return b"\0" + encoded(commands[request[0]](said))
        except Refused as exc:
            return bytes((exc.args[0],))

    def get_info(self, _said: Any) -> dict[int, Any]:
        options = {"rk": False, "up": True, "clientPin": bool(self.pin)}
        return {1: ["FIDO_2_0"], 2: ["hmac-secret"], 3: bytes(16), 4: options, 5: 1200, 6: [1]}

    def make_credential(self, said: dict[int, Any]) -> dict[int, Any]:
        party = said[2]["id"]
        if any(self.is_mine(each["id"], party) for each in said.get(5, [])):
            raise Refused(EXCLUDED)
        flags = PRESENT | WITH_KEY | self.verified(said.get(8), said[1], must=True)
        nonce = os.urandom(16)
        number = nonce + self.derived(b"party" + party.encode() + nonce)[:16]
        key = self.key_of(number)
        extensions = b""
        if said.get(6, {}).get("hmac-secret"):
            flags |= WITH_EXTENSIONS
            extensions = encoded({"hmac-secret": True})
        data = hashlib.sha256(party.encode()).digest() + bytes((flags,)) + bytes(4) + bytes(16)
        data += struct.pack(">H", len(number)) + number + encoded(cose(key.public_key(), -7))
        data += extensions
        signed = key.sign(data + said[1], ec.ECDSA(hashes.SHA256()))
        return {1: "packed", 2: data, 3: {"alg": -7, "sig": signed}}

    def get_assertion(self, said: dict[int, Any]) -> dict[int, Any]:
        mine = [each["id"] for each in said.get(3, []) if self.is_mine(each["id"], said[1])]
        if not mine:
            raise Refused(NO_CREDENTIALS)
        flags = self.verified(said.get(6), said[2], must=False)
        flags |= PRESENT if said.get(5, {}).get("up", True) else 0
        extensions = b""
        wanted = said.get(4, {}).get("hmac-secret")
        if wanted is not None:
            flags |= WITH_EXTENSIONS
            shared = self.shared(wanted[1])
            if not hmac.compare_digest(signature(shared, wanted[2]), wanted[3]):
                raise Refused(PIN_AUTH_INVALID)
            key = self.derived(b"secret" + bytes((flags & VERIFIED,)) + mine[0])
            salts = crypted(shared, wanted[2], decrypt=True)
            halves = [salts[at : at + 32] for at in range(0, len(salts), 32)]
            told = b"".join(hmac.digest(key, half, "sha256") for half in halves)
            extensions = encoded({"hmac-secret": crypted(shared, told)})
        data = hashlib.sha256(said[1].encode()).digest() + bytes((flags,)) + bytes(4) + extensions
        signed = self.key_of(mine[0]).sign(data + said[2], ec.ECDSA(hashes.SHA256()))
        return {1: {"id": mine[0], "type": "public-key"}, 2: data, 3: signed}

    def client_pin(self, said: dict[int, Any]) -> dict[int, Any]:
        match said[2]:
            case 1:
                return {3: 8}
            case 2:
                return {1: cose(self.agreement.public_key(), -25)}
            case 5:
                if not self.pin:
                    raise Refused(PIN_NOT_SET)
                shared = self.shared(said[3])
                if not hmac.compare_digest(crypted(shared, said[6], decrypt=True), self.pin):
                    self.agreement = ec.generate_private_key(CURVE)
                    raise Refused(PIN_INVALID)
                return {2: crypted(shared, self.pin_token)}
        raise Refused(INVALID_COMMAND)

    def verified(self, proof: bytes | None, hashed: bytes, *, must: bool) -> int:
        """The flag for a proof of the PIN; one that is wrong, or missing, is refused."""
        if proof is None:
            if must and self.pin:
                raise Refused(PIN_REQUIRED)
            return 0
        if not hmac.compare_digest(signature(self.pin_token, hashed), proof):
            raise Refused(PIN_AUTH_INVALID)
        return VERIFIED

    def shared(self, key: dict[int, Any]) -> bytes:
        point = ec.EllipticCurvePublicNumbers(
            int.from_bytes(key[-2], "big"), int.from_bytes(key[-3], "big"), CURVE
        )
        exchanged = self.agreement.exchange(ec.ECDH(), point.public_key())
        return hashlib.sha256(exchanged).digest()

    def derived(self, what: bytes) -> bytes:
        return hmac.digest(self.secret, what, "sha256")

    def is_mine(self, number: bytes, party: str) -> bool:
        proof = self.derived(b"party" + party.encode() + number[:16])[:16]
        return hmac.compare_digest(number[16:], proof)

    def key_of(self, number: bytes) -> ec.EllipticCurvePrivateKey:
        value = int.from_bytes(self.derived(b"key" + number), "big") % (ORDER - 1) + 1
        return ec.derive_private_key(value, CURVE)


def signature(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")[:16]


def crypted(key: bytes, data: bytes, *, decrypt: bool = False) -> bytes:
    cipher = Cipher(algorithms.AES(key), modes.CBC(bytes(16)))
    how = cipher.decryptor() if decrypt else cipher.encryptor()
    return how.update(data) + how.finalize()


class Device:
    """The HID device: messages in packets, one channel after the other."""

    def __init__(self, token: Token) -> None:
        self.token = token
        self.uhid = os.open("/dev/uhid", os.O_RDWR)
        self.channels = 0
        self.message: tuple[bytes, int, int, bytes] | None = None
        made = struct.pack("<I128s64s64s", UHID_CREATE2, b"FIDO2 token of the test", b"", b"")
        made += struct.pack("<HHIIII", len(DESCRIPTOR), BUS_USB, 0x1234, 0x5678, 1, 0)
        os.write(self.uhid, made + DESCRIPTOR)

    def serve(self) -> None:
        while True:
            event = os.read(self.uhid, 8192)
            if struct.unpack_from("<I", event)[0] != UHID_OUTPUT:
                continue
            (size,) = struct.unpack_from("<H", event, 4 + 4096)
            packet = event[4 : 4 + size]
            self.packet(packet[1:] if size == REPORT + 1 else packet)  # the report's number

    def packet(self, packet: bytes) -> None:
        channel = packet[:4]
        if packet[4] & 0x80:
            command, length = packet[4], int.from_bytes(packet[5:7], "big")
            self.message = channel, command, length, packet[7:]
        elif self.message is not None and self.message[0] == channel:
            _channel, command, length, data = self.message
            self.message = channel, command, length, data + packet[5:]
        if self.message is not None and len(self.message[3]) >= self.message[2]:
            _channel, command, length, data = self.message
            self.message = None
            self.heard(channel, command, data[:length])

    def heard(self, channel: bytes, command: int, data: bytes) -> None:
        match command:
            case 0x86:
                self.channels += 1
                fresh = self.channels.to_bytes(4, "big")
                # Version 2 of the packets; CBOR is understood, the messages of U2F are not.
                self.say(channel, INIT, data + fresh + bytes((2, 1, 0, 0, 0x04 | 0x08)))
            case 0x90:
                self.say(channel, CBOR, self.token.answer(data))
            case 0x81:
                self.say(channel, PING, data)
            case 0x91:
                pass  # nothing takes so long that it could be cancelled
            case _:
                self.say(channel, ERROR, b"\x01")

    def say(self, channel: bytes, command: int, data: bytes) -> None:
        self.report(channel + bytes((command,)) + struct.pack(">H", len(data)) + data[:57])
        for number, at in enumerate(range(57, len(data), 59)):
            self.report(channel + bytes((number,)) + data[at : at + 59])

    def report(self, packet: bytes) -> None:
        padded = packet.ljust(REPORT, b"\0")
        os.write(self.uhid, struct.pack("<IH", UHID_INPUT2, len(padded)) + padded)


def main() -> None:
    place, *pin = sys.argv[1:]
    file = Path(place)
    if not file.exists():
        file.write_bytes(os.urandom(32))
    Device(Token(file.read_bytes(), pin[0] if pin else "")).serve()


if __name__ == "__main__":
    main()
