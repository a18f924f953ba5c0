"""Headers and keyslots, by the real cryptsetup on plain files: nothing of it needs a device."""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd import config, luks2, paths, protocol, secret
from cryptbackd.errors import DriveFailed, ForgedDrive, Refused, ToolFailed, WrongPassphrase
from cryptbackd.luks2 import FIDO2, RECOVERY, TPM2, Token
from cryptbackd.model import Device, JobKind
from cryptbackd.worker import header as headers
from cryptbackd.worker import keyslots, own_header, whitelist
from cryptbackd.worker.control import Control
from cryptbackd.worker.jobs import adopt, init
from cryptbackd.worker.jobs import passphrase as job
from cryptbackd.worker.keyslots import Keyslots
from cryptbackd.worker.layers import luks
from cryptbackd.worker.whitelist import Header

CRYPTSETUP = "/usr/sbin/cryptsetup"
CHEAP = ("--pbkdf", "argon2id", "--pbkdf-memory", "64", "--pbkdf-force-iterations", "4")
FIRST = b"first pass"
SIZE = 2 << 20
"""Bytes of the header; the real ones have more room for keyslots."""
SMALL = ("--luks2-keyslots-size", "1m", "--offset", str(SIZE // 512), *CHEAP)
LENGTH = SIZE + (1 << 20)


def cryptsetup(*words: str, stdin: bytes = b"") -> int:
    return subprocess.run(
        [CRYPTSETUP, *words], input=stdin, capture_output=True, check=False
    ).returncode


@pytest.fixture(scope="session")
def formatted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A container as `init` formats it, but for the cost."""
    file = tmp_path_factory.mktemp("luks") / "container"
    with file.open("wb") as empty:
        empty.truncate(LENGTH)
    plain = ("--batch-mode", "--type", "luks2", "--cipher", "aes-xts-plain64", "--key-size", "512")
    words = ("--sector-size", "4096", *SMALL, str(file))
    assert cryptsetup("luksFormat", *plain, *words, stdin=FIRST + b"\n") == 0
    return file.read_bytes()


@attrs.frozen
class World:
    """A stored header, and the container on a drive."""

    directory: Path
    drive: Path

    @property
    def stored(self) -> Header:
        return headers.load("home")

    def opens(self, passphrase: bytes, file: Path | None = None) -> bool:
        where = str(file or headers.path_of("home"))
        return cryptsetup("open", "--test-passphrase", where, stdin=passphrase + b"\n") == 0

    @contextmanager
    def opened(self) -> Iterator[int]:
        fd = os.open(self.drive, os.O_RDWR)
        try:
            yield fd
        finally:
            os.close(fd)


@pytest.fixture
def world(formatted: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(paths, "HEADERS", tmp_path / "headers")
    drive = tmp_path / "container"
    drive.write_bytes(formatted)
    headers.store("home", whitelist.parse(formatted))
    return World(tmp_path, drive)


@pytest.fixture
def control() -> Iterator[Control]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield Control(theirs)


@contextmanager
def kept(text: bytes) -> Iterator[int]:
    reading, writing = os.pipe()
    os.write(writing, text)
    os.close(writing)
    try:
        with secret.kept(reading) as fd:
            yield fd
    finally:
        os.close(reading)


def changed(
    world: World, control: Control, change: Callable[[Keyslots, Callable[[bytes], int]], object]
) -> Header:
    """Do *change* to a copy of the stored header, and put it in its place."""
    with ExitStack() as stack, headers.copied("home") as copy:
        change(Keyslots(str(copy), control, 64, 4), lambda text: stack.enter_context(kept(text)))
        fresh = whitelist.parse(copy.read_bytes())
        headers.replace("home", copy)
    return fresh


@contextmanager
def no_room(length: int) -> Iterator[None]:
    """No file may become longer, as if the filesystem were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_computer_that_has_no_room_for_a_header_is_not_taken_for_the_drive(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = world.stored
    told = "The computer can't store a LUKS header"
    with no_room(SIZE // 2), world.opened() as drive:
        with pytest.raises(Refused, match=told), headers.copied("home"):
            pass
        with pytest.raises(Refused, match=told):
            headers.keep_theirs("home", drive, SIZE)
        with pytest.raises(Refused, match=told):
            headers.store("home", before)

    def full(*_names: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, headers.copied("home") as copy:
        patched.setattr(os, "link", full)
        with pytest.raises(Refused, match=told):
            headers.replace("home", copy)
        with pytest.raises(Refused, match=told):
            headers.keep_old("home")
    assert world.stored == before
    assert os.listdir(paths.HEADERS) == ["home"]


# A secret on its way


def test_a_secret_is_all_of_it_and_can_be_read_again() -> None:
    with kept(b"pass \n phrase") as fd:
        for _ in range(2):
            assert Path(secret.name(fd)).read_bytes() == b"pass \n phrase"
        assert os.read(fd, 100) == b"pass \n phrase"


def test_a_secret_may_come_from_a_file_in_many_pieces_and_late(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"pass")
    with (tmp_path / "file").open("rb") as file, secret.kept(file.fileno()) as fd:
        assert os.read(fd, 100) == b"pass"
    reading, writing = os.pipe()

    def write() -> None:
        for piece in (b"pa", b"ss"):
            os.write(writing, piece)
        os.close(writing)

    thread = threading.Timer(0.05, write)
    thread.start()
    with secret.kept(reading) as fd:
        assert os.read(fd, 100) == b"pass"
    thread.join()
    os.close(reading)


@pytest.mark.parametrize("text", [b"", b"x" * 513, b"x" * 4000])
def test_what_is_no_secret_is_refused(text: bytes) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Refused) as caught, kept(text):
        pass
    assert "xxx" not in str(caught.value)
    assert len(os.listdir("/proc/self/fd")) == before


def test_nobody_waits_for_a_secret_for_ever() -> None:
    reading, writing = os.pipe()
    with pytest.raises(Refused, match="Nobody gave"), secret.kept(reading, patience=0.05):
        pass
    os.close(reading)
    os.close(writing)


# What a header is


def test_a_header_says_what_it_is(world: World, formatted: bytes) -> None:
    stored = world.stored
    assert stored.keyslots == {0}
    assert stored.typed == {0}
    assert stored.tokens == ()
    assert stored.size == SIZE
    assert stored.seqid == struct.unpack_from(">Q", formatted, 16)[0]
    assert len(stored.fingerprint) == 64


def test_another_volume_has_another_fingerprint(world: World, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with other.open("wb") as empty:
        empty.truncate(LENGTH)
    words = ("--sector-size", "4096", "--cipher", "aes-xts-plain64", "--key-size", "512", *SMALL)
    assert cryptsetup("luksFormat", "-q", "--type", "luks2", *words, str(other), stdin=FIRST) == 0
    header = whitelist.parse(other.read_bytes())
    assert header.fingerprint != world.stored.fingerprint
    assert not header.same_volume(world.stored)


def test_a_header_whose_copies_have_different_numbers_is_not_believed(world: World) -> None:
    newer = changed(world, Control.__new__(Control), _nothing_but_a_label)
    raw = world.drive.read_bytes()
    torn = newer.raw[: newer.metadata] + raw[newer.metadata :]
    with pytest.raises(ForgedDrive, match="its two copies differ"):
        whitelist.parse(torn)


def _nothing_but_a_label(slots: Keyslots, _secret: object) -> None:
    assert cryptsetup("config", "--label", "x", slots.node) == 0


SLOTS = st.frozensets(st.integers(0, 31), min_size=1)


@given(
    SLOTS,
    st.lists(
        st.builds(
            Token,
            st.integers(0, 31),
            st.sampled_from([TPM2, FIDO2, RECOVERY]),
            st.frozensets(st.integers(0, 31), max_size=2).map(lambda slots: tuple(sorted(slots))),
            st.booleans(),
        ),
        max_size=4,
    ),
)
def test_what_is_typed_is_what_no_machine_has(slots: frozenset[int], tokens: list[Token]) -> None:
    machines = {n for token in tokens if token.kind in (TPM2, FIDO2) for n in token.keyslots}
    assert luks2.typed(slots, tokens) == slots - machines


@pytest.mark.parametrize(
    ("tokens", "gone", "left"),
    [
        ([], {0}, True),
        ([], {0, 1}, False),
        ([Token(0, TPM2, (1,), False)], {0}, False),
        ([Token(0, FIDO2, (1,), True)], {0}, False),
        ([Token(0, RECOVERY, (1,), False)], {0}, True),
        ([Token(0, RECOVERY, (1,), False)], {1}, True),
    ],
)
def test_the_last_that_opens_it_anywhere_is_never_removed(
    world: World, tokens: list[Token], gone: set[int], left: bool
) -> None:
    header = attrs.evolve(world.stored, keyslots=frozenset({0, 1}), tokens=tuple(tokens))
    if left:
        keyslots.want_left(header, gone)
    else:
        with pytest.raises(Refused, match="the last passphrase"):
            keyslots.want_left(header, gone)


# What is done to keyslots


def test_a_passphrase_is_added_changed_and_removed(world: World, control: Control) -> None:
    before = world.stored
    added = changed(world, control, lambda k, s: k.add(s(FIRST), s(b"second")))
    keyslots.judge(before, added, added=1)
    assert (world.opens(FIRST), world.opens(b"second")) == (True, True)
    third = changed(world, control, lambda k, s: k.change(s(FIRST), s(b"third")))
    keyslots.judge(added, third)
    assert (world.opens(FIRST), world.opens(b"third")) == (False, True)
    removed = changed(world, control, lambda k, s: k.remove(s(b"third")))
    keyslots.judge(third, removed, gone={0})
    assert (world.opens(b"third"), world.opens(b"second")) == (False, True)
    assert removed.typed == {1}


def test_one_that_is_in_two_keyslots_is_removed_from_both(world: World, control: Control) -> None:
    changed(world, control, lambda k, s: k.add(s(FIRST), s(b"twice")))
    before = changed(world, control, lambda k, s: k.add(s(FIRST), s(b"twice")))
    after = changed(world, control, lambda k, s: k.remove_all(s(b"twice"), 1, before))
    keyslots.judge(before, after, gone={1, 2})
    assert (world.opens(b"twice"), world.opens(FIRST)) == (False, True)


def test_one_that_is_in_two_keyslots_is_changed_in_both(world: World, control: Control) -> None:
    before = changed(world, control, lambda k, s: k.add(s(FIRST), s(FIRST)))
    changed(world, control, lambda k, s: k.change(s(FIRST), s(b"new")))
    after = changed(world, control, lambda k, s: k.remove_rest(s(FIRST), 0))
    keyslots.judge(before, after, gone={1})
    assert (world.opens(FIRST), world.opens(b"new")) == (False, True)


def test_a_passphrase_may_have_any_bytes_but_an_end_of_line(world: World, control: Control) -> None:
    odd = b" tail \xff\xc3\xa4" + b"x" * 500
    changed(world, control, lambda k, s: k.add(s(FIRST), s(odd)))
    assert world.opens(odd)
    with kept(odd) as fd:
        assert Keyslots(str(headers.path_of("home")), control).opened_by(fd) == 1


@pytest.mark.parametrize("verb", ["opened_by", "add", "change", "remove"])
def test_a_wrong_passphrase_changes_nothing(world: World, control: Control, verb: str) -> None:
    before = world.stored
    with headers.copied("home") as copy, kept(b"wrong") as wrong, kept(b"new") as new:
        both = [wrong, new] if verb in ("add", "change") else [wrong]
        with pytest.raises(WrongPassphrase, match="nothing was changed"):
            getattr(Keyslots(str(copy), control, 64, 4), verb)(*both)
        assert copy.read_bytes() == before.raw
    assert not (paths.HEADERS / ".home.new").exists()


def test_a_change_that_did_something_else_is_not_taken(world: World, control: Control) -> None:
    before = world.stored
    after = changed(world, control, lambda k, s: k.add(s(FIRST), s(b"second")))
    for wrong in ({"added": 0}, {"added": 1, "gone": {0}}, {"added": 2}):
        with pytest.raises(ToolFailed, match="not as it should be"):
            keyslots.judge(before, after, **wrong)
    with pytest.raises(ToolFailed, match="not changed"):
        keyslots.judge(after, after)
    with pytest.raises(ToolFailed, match="another volume's"):
        keyslots.judge(attrs.evolve(before, salt="other"), after, added=1)


# The header on the drive


def test_the_drive_gets_the_stored_header_and_keeps_its_data(
    world: World, control: Control
) -> None:
    data = world.drive.read_bytes()[SIZE:]
    after = changed(world, control, lambda k, s: k.change(s(FIRST), s(b"new")))
    with world.opened() as fd:
        assert "It is older than the stored one" in headers.difference(after, fd)
        own_header.put(after, fd)
        assert headers.difference(after, fd) == ""
    assert world.drive.read_bytes() == after.raw + data
    assert world.opens(b"new", world.drive)


class Cut(Exception):
    """The plug was pulled."""


@pytest.mark.parametrize("writes", range(12))
def test_cut_off_in_the_middle_the_drive_opens_and_is_finished_later(
    world: World, control: Control, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """With the old passphrase or the new one, and by whoever looks at it: real cryptsetup."""
    after = changed(world, control, lambda k, s: k.change(s(FIRST), s(b"new")))
    pwrite, left = os.pwrite, writes

    def cut(fd: int, data: bytes, offset: int) -> int:
        nonlocal left
        if left == 0:
            pwrite(fd, data[: len(data) // 3 // 512 * 512], offset)
            raise Cut
        left -= 1
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", cut)
    with world.opened() as fd:
        with suppress(Cut):
            own_header.put(after, fd)
        monkeypatch.undo()
        monkeypatch.setattr(paths, "HEADERS", world.directory / "headers")
        copy = world.directory / "elsewhere"
        copy.write_bytes(world.drive.read_bytes())
        assert world.opens(FIRST, copy) or world.opens(b"new", copy)
        own_header.settle("home", after, fd, control)
        assert headers.difference(after, fd) == ""
    assert headers.pending("home") is None
    assert world.drive.read_bytes()[: after.size] == after.raw


def test_a_passphrase_that_was_changed_elsewhere_is_not_taken_for_ours(
    world: World, control: Control
) -> None:
    after = changed(world, control, lambda k, s: k.add(s(FIRST), s(b"new")))
    assert cryptsetup(
        "luksAddKey", "-q", *CHEAP, str(world.drive), stdin=FIRST + b"\nelsewhere\n"
    ) == 0  # fmt: skip
    theirs = world.drive.read_bytes()
    with world.opened() as fd:
        own_header.settle("home", after, fd, control)
        assert "another computer" in headers.difference(after, fd)
    assert world.drive.read_bytes() == theirs
    assert headers.pending("home") is not None


def test_a_change_that_was_not_even_stored_leaves_nothing_to_finish(
    world: World, control: Control
) -> None:
    os.link(headers.path_of("home"), paths.pending_header("home"))
    with world.opened() as fd:
        own_header.settle("home", world.stored, fd, control)
    assert not paths.pending_header("home").exists()


def test_an_older_copy_takes_the_drives_place_but_not_the_headers(
    world: World, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a copy from before a passphrase was removed; what is pending stays as well."""
    changed(world, control, lambda k, s: k.add(s(FIRST), s(b"second")))
    after = changed(world, control, lambda k, s: k.remove(s(FIRST)))
    proved: list[Header] = []
    written: list[str] = []
    monkeypatch.setattr(adopt, "_prove", lambda _name, header, _control: proved.append(header))
    monkeypatch.setattr(init, "rewrite", lambda _name, toml: written.append(toml))
    text = 'uuid = "AAAA-BBBB"\ncontainer = "c"\n[backup]\ninclude = ["/etc"]\n'
    there = config.parse(text.replace("AAAA", "CCCC"), "")
    start = protocol.Start(JobKind.INIT, "home", Device("/dev/sdx1", 8, 1, "/dev/sdx", 7), text)
    with world.opened() as fd:
        adopt._move(start, there, headers.read(fd), control)
    assert (world.stored.raw, [header.raw for header in proved]) == (after.raw, [after.raw])
    assert not world.opens(FIRST)
    assert headers.pending("home") is not None
    assert "is older than the stored one" in control.warnings.told[0]
    assert written == [text.replace("AAAA", "CCCC")]


def test_without_room_for_an_entry_nothing_becomes_of_a_drive(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "DRIVES_D", world.directory)
    (world.directory / ".new.toml.new").symlink_to("/dev/full")
    with (
        pytest.raises(DriveFailed, match="No space left"),
        init.enrolled(init.Options("new", ("/etc",)), world.stored, "uuid"),
    ):
        pytest.fail("the container got its name")
    assert not headers.path_of("new").exists()


@given(st.binary(min_size=1, max_size=4), st.data())
def test_in_between_is_each_sector_of_the_one_or_the_other(
    seed: bytes, data: st.DataObject
) -> None:
    before = b"".join(bytes([n]) * 512 for n in seed)
    after = b"".join(bytes([n ^ 1]) * 512 for n in seed)
    picks = data.draw(st.lists(st.booleans(), min_size=len(seed), max_size=len(seed)))
    found = b"".join(
        (after if pick else before)[512 * n : 512 * n + 512] for n, pick in enumerate(picks)
    )
    assert own_header.between(found, before, after)
    assert not own_header.between(found[:-1] + b"\x80", before, after) or seed[-1] | 1 == 0x81
    assert not own_header.between(found[:-512], before, after)


# What a job does


@contextmanager
def asked(*answers: bytes | None) -> Iterator[tuple[Control, list[int]]]:
    """A control whose daemon answers each question for a key with the next of *answers*.

    None: the key is the end to be written to of a pipe, whose other end is in the list.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    outs: list[int] = []

    def answer() -> None:
        for text in answers:
            if protocol.receive(ours) is None:
                return
            reading, writing = os.pipe()
            if text is None:
                outs.append(reading)
                protocol.send(ours, protocol.Key("enrolment"), writing)
            else:
                os.write(writing, text)
                protocol.send(ours, protocol.Key("enrolment"), reading)
                os.close(reading)
            os.close(writing)

    thread = threading.Thread(target=answer)
    thread.start()
    with ours, theirs:
        yield Control(theirs), outs
        theirs.shutdown(socket.SHUT_RDWR)
        thread.join()
    for fd in outs:
        os.close(fd)


def play(
    world: World, action: str, *answers: bytes | None, what: str = "passphrase", pin: bool = False
) -> tuple[str, bytes]:
    """A change of passphrases but for the drive: what it says, and what it hands out."""
    options = job.Options(action, what, pin, pbkdf_memory=64, pbkdf_iterations=4)
    stored = world.stored
    with asked(*answers) as (control, outs):
        with headers.copied("home") as copy:
            change = job._change(options, stored, copy, world.directory, control)
            fresh = whitelist.parse(copy.read_bytes())
            keyslots.judge(stored, fresh, added=change.added, gone=set(change.gone))
            headers.replace("home", copy)
        return change.sentence, os.read(outs[0], 4096) if outs else b""


def test_a_recovery_key_is_handed_out_past_us_and_opens_the_drive(world: World) -> None:
    sentence, printed = play(world, "recovery-key", FIRST, None)
    assert sentence == "A recovery key was made."
    key = printed.strip()
    assert len(key) == 71
    assert world.opens(key)
    stored = world.stored
    assert [token.kind for token in stored.tokens] == [RECOVERY]
    assert stored.typed == {0, 1}
    # It counts as something that opens the drive, and is no passphrase.
    assert play(world, "remove", FIRST)[0] == "The passphrase was removed."
    for action, hint in (("remove", "--what recovery-key"), ("change", "is not changed")):
        with pytest.raises(Refused, match=hint):
            play(world, action, key, b"new")
    with pytest.raises(Refused, match="last passphrase"):
        play(world, "remove", key, what="recovery-key")
    play(world, "add", key, b"again")
    assert (
        play(world, "remove", b"again", what="recovery-key")[0] == "The recovery key was removed."
    )
    assert (world.opens(key), world.opens(b"again"), world.stored.tokens) == (False, True, ())


@pytest.mark.parametrize("action", ["add", "change"])
def test_a_job_takes_the_passphrases_from_who_asked(world: World, action: str) -> None:
    play(world, action, FIRST, b"new")
    assert world.opens(b"new")
    assert world.opens(FIRST) is (action == "add")


def test_the_last_passphrase_stays(world: World) -> None:
    before = world.stored
    with pytest.raises(Refused, match="last passphrase"):
        play(world, "remove", FIRST)
    assert world.stored == before


def test_what_is_not_there_is_not_removed(world: World) -> None:
    with pytest.raises(Refused, match="has none"):
        play(world, "remove", FIRST, what="tpm2")


def test_a_second_tpm2_would_open_it_past_the_pin(world: World) -> None:
    header = attrs.evolve(world.stored, tokens=(Token(0, TPM2, (0,), True),))
    with pytest.raises(Refused, match="already"):
        keyslots.want_one_tpm2(header)


def test_a_token_that_is_enrolled_without_the_pin_is_not_taken(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As systemd-cryptenroll does it with a token that has none: with a notice."""

    def enroll(slots: Keyslots, kind: str, current: int, _pin: int, _place: Path) -> None:
        with kept(b"of the token") as new:
            slots.add(current, new)
        token = {"type": kind, "keyslots": ["1"], "fido2-clientPin-required": False}
        words = [luks.CRYPTSETUP, "token", "import", "--disable-external-tokens", slots.node]
        subprocess.run(words, input=json.dumps(token).encode(), check=True)

    monkeypatch.setattr(Keyslots, "enroll", enroll)
    before = world.stored
    with pytest.raises(Refused, match="The token has no PIN; nothing was changed"):
        play(world, "enroll-fido2", FIRST, b"4711", pin=True)
    assert world.stored == before
    play(world, "enroll-fido2", FIRST)
    assert world.stored.typed == {0}


def test_where_no_pin_is_given_nobody_is_waited_for(tmp_path: Path) -> None:
    """What can't be read, unlike what isn't there, ends systemd-cryptenroll at once."""
    given = keyslots._credential(tmp_path, "cryptenroll.fido2-pin", None)
    with given as directory, pytest.raises(IsADirectoryError):
        (directory / "cryptenroll.fido2-pin").read_bytes()
    assert list(tmp_path.iterdir()) == []


# What was asked


@pytest.mark.parametrize(
    "options",
    [{"action": "explode"}, {"action": "remove", "what": "everything"}],
)
def test_what_is_no_change_of_passphrases_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(Refused):
        job.Options.from_message(options)


def test_a_token_is_refused_before_anything_is_done_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(keyslots, "TPMS", tmp_path)
    monkeypatch.setattr(keyslots, "ROOT", tmp_path)
    for kind in (TPM2, FIDO2):
        with pytest.raises(Refused, match="nothing was changed"):
            keyslots.want_tools(kind, pin=False)


def test_a_token_that_the_service_may_not_open_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(keyslots, "CRYPTENROLL", "/bin/true")
    monkeypatch.setattr(keyslots, "ROOT", tmp_path)
    place = tmp_path / "sys/class/hidraw/hidraw0/device"
    place.mkdir(parents=True)
    (place / "report_descriptor").write_bytes(bytes.fromhex("05010906a101"))  # a keyboard
    with pytest.raises(Refused, match="no FIDO2 token to be seen"):
        keyslots.want_tools(FIDO2, pin=False)
    (place / "report_descriptor").write_bytes(bytes.fromhex("06d0f10901a101"))
    with pytest.raises(Refused, match="can't be opened") as refused:
        keyslots.want_tools(FIDO2, pin=False)
    assert "cryptbackd(8)" in refused.value.hint
    node = tmp_path / "dev/hidraw0"
    node.parent.mkdir()
    node.touch()
    keyslots.want_tools(FIDO2, pin=False)
