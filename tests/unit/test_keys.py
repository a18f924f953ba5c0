"""The sources of passphrases, and their order."""

import asyncio
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest

from cryptbackd import luks2, run
from cryptbackd.daemon import children
from cryptbackd.daemon.keys import Chain, Key, NoKey, Request, SourceFailed, root_keyring
from cryptbackd.daemon.keys.ask_password import AskPassword
from cryptbackd.daemon.keys.credential import EncryptedCredential, PlainCredential
from cryptbackd.daemon.keys.root_keyring import RootKeyring
from cryptbackd.daemon.keys.token import Tokens
from cryptbackd.luks2 import FIDO2, RECOVERY, TPM2, Token


@attrs.define
class Fake:
    """A source whose answers are known."""

    name: str
    answers: list[str]
    asks_again: bool = False
    asked: list[Request] = attrs.field(factory=list)

    told: list[bool] = attrs.field(factory=list)

    async def key(self, request: Request) -> Key | None:
        self.asked.append(request)
        match self.answers.pop(0) if self.answers else "nothing":
            case "key":
                return Key(self.name, token=1, told=self.told.append)
            case "pin":
                return Key(self.name, os.open("/dev/null", os.O_RDONLY), told=self.told.append)
            case "fail":
                raise SourceFailed("It is broken.")
        return None


def chain(*sources: Fake) -> tuple[Chain, list[str]]:
    failed: list[str] = []
    return Chain(sources, "home", None, lambda name, _exc: failed.append(name)), failed


def ask(keys: Chain, *refused: str) -> list[str]:
    async def all_of_them() -> list[str]:
        out = []
        for name in ("", *refused):
            key = await keys.next("open", name)
            out.append(key.source if isinstance(key, Key) else key.why)
        return out

    return asyncio.run(all_of_them())


def test_the_first_that_has_one() -> None:
    keys, failed = chain(Fake("a", []), Fake("b", ["key"]), Fake("c", ["key"]))
    assert ask(keys) == ["b"]
    assert failed == []


def test_a_failing_source_is_told_once_and_the_next_is_asked() -> None:
    keys, failed = chain(Fake("a", ["fail", "fail"]), Fake("b", ["key", "key"], asks_again=True))
    assert ask(keys, "b") == ["b", "b"]
    assert failed == ["a"]


def test_a_refused_source_is_not_asked_again() -> None:
    first = Fake("a", ["key", "key"])
    keys, _failed = chain(first, Fake("b", ["key"]))
    assert ask(keys, "a") == ["a", "b"]
    assert len(first.asked) == 1


def test_the_prompt_is_asked_again_and_knows_that_it_was_wrong() -> None:
    prompt = Fake("prompt", ["pin"] * 9, asks_again=True)
    keys, _failed = chain(prompt)
    answers = ask(keys, "prompt", "prompt", "prompt")
    assert answers[:3] == ["prompt"] * 3
    assert "3 passphrases were tried" in answers[3]
    assert [request.attempt for request in prompt.asked] == [1, 2, 3]
    assert "prompt" not in prompt.asked[0].refused
    assert "prompt" in prompt.asked[1].refused


def test_three_tries_in_all() -> None:
    keys, _failed = chain(Fake("a", ["pin"]), Fake("prompt", ["pin"] * 9, asks_again=True))
    answers = ask(keys, "a", "prompt", "prompt")
    assert answers[:3] == ["a", "prompt", "prompt"]
    assert "3 passphrases were tried" in answers[3]


def test_a_token_that_fails_takes_no_try_from_a_person() -> None:
    token = Fake("TPM2", ["key", "key"], asks_again=True)
    stale = Fake("credential", ["pin"])
    keys, _failed = chain(token, stale, Fake("prompt", ["pin"] * 9, asks_again=True))
    answers = ask(keys, "TPM2", "TPM2", "credential", "prompt", "prompt")
    assert answers[:5] == ["TPM2", "TPM2", "credential", "prompt", "prompt"]


def test_nobody_has_one() -> None:
    keys, _failed = chain(Fake("a", []))
    assert ask(keys) == ["No passphrase was found, and nobody answered the question for it."]
    keys, _failed = chain(Fake("a", ["key"]))
    assert ask(keys, "a")[1] == "The passphrase was wrong, and no other was given."
    assert isinstance(asyncio.run(keys.next("open")), NoKey)


def test_a_source_hears_once_what_became_of_its_key() -> None:
    first, second = Fake("a", ["key"]), Fake("b", ["key"])
    keys, _failed = chain(first, second)
    assert ask(keys, "a") == ["a", "b"]
    assert (first.told, second.told) == ([False], [])
    keys.over(opened=True)
    keys.over(opened=False)
    assert (first.told, second.told) == ([False], [True])


REQUEST = Request("home", None, "open", 1, frozenset())


def content(key: Key | None) -> bytes:
    assert key is not None
    assert key.fd is not None
    data = os.read(key.fd, 1000)
    key.close()
    return data


class TestPlainCredential:
    """``/etc/credstore``."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "cryptback.home"
        path.write_text("secret")
        path.chmod(0o600)
        return path

    def source(self, file: Path) -> PlainCredential:
        return PlainCredential(file.parent, owner=os.geteuid())

    def test_it_is_the_opened_file(self, file: Path) -> None:
        assert content(asyncio.run(self.source(file).key(REQUEST))) == b"secret"

    def test_there_is_none(self, file: Path) -> None:
        file.unlink()
        assert asyncio.run(self.source(file).key(REQUEST)) is None

    @pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
    def test_one_that_others_can_read_is_not_used(self, file: Path, mode: int) -> None:
        file.chmod(mode)
        with pytest.raises(SourceFailed, match="may read it"):
            asyncio.run(self.source(file).key(REQUEST))

    def test_one_of_somebody_else_is_not_used(self, file: Path) -> None:
        source = PlainCredential(file.parent, owner=os.geteuid() + 1)
        with pytest.raises(SourceFailed, match="belongs to user"):
            asyncio.run(source.key(REQUEST))

    def test_a_link_is_not_followed(self, file: Path) -> None:
        file.rename(file.with_name("real"))
        file.symlink_to(file.with_name("real"))
        with pytest.raises(SourceFailed, match="can't be opened"):
            asyncio.run(self.source(file).key(REQUEST))

    def test_a_pipe_is_not_waited_for(self, file: Path) -> None:
        file.unlink()
        os.mkfifo(file, 0o600)
        with pytest.raises(SourceFailed, match="not a regular file"):
            asyncio.run(self.source(file).key(REQUEST))


def programs(monkeypatch: pytest.MonkeyPatch, script: str) -> list[list[str]]:
    """Every program that is started becomes this Python *script*; what was to be started."""
    started: list[list[str]] = []
    spawn = run.spawn

    def instead(argv: Sequence[str], **how: object) -> object:
        started.append(list(argv))
        return spawn([sys.executable, "-c", script], **how)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "spawn", instead)
    return started


class TestEncryptedCredential:
    """``/etc/credstore.encrypted``."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> EncryptedCredential:
        (tmp_path / "cryptback.home").write_text("sealed")
        return EncryptedCredential(tmp_path)

    def test_the_decrypted_text_stays_in_the_pipe(
        self, source: EncryptedCredential, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started = programs(monkeypatch, "print('secret')")
        assert content(asyncio.run(source.key(REQUEST))) == b"secret\n"
        assert started == [
            [
                "/usr/bin/systemd-creds", "decrypt", "--name=cryptback.home",
                str(source.directory / "cryptback.home"), "-",
            ]
        ]  # fmt: skip

    def test_a_bad_one_fails_with_the_last_words(
        self, source: EncryptedCredential, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        programs(monkeypatch, "import sys; print('half'); sys.exit('first\\nNo such key')")
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(SourceFailed, match="No such key"):
            asyncio.run(source.key(REQUEST))
        assert len(os.listdir("/proc/self/fd")) == before

    def test_there_is_none(self, tmp_path: Path) -> None:
        assert asyncio.run(EncryptedCredential(tmp_path).key(REQUEST)) is None


class TestRootKeyring:
    """Root's own ``keyring``."""

    REQUEST = attrs.evolve(REQUEST, luks_uuid="1234-abcd")

    @pytest.fixture
    def source(self, tmp_path: Path) -> RootKeyring:
        file = tmp_path / ".config" / "python_keyring" / "keyringrc.cfg"
        file.parent.mkdir(parents=True)
        file.write_text("[backend]\n")
        file.chmod(0o600)
        return RootKeyring(tmp_path, owner=os.geteuid())

    def test_what_it_has_stays_in_the_pipe(
        self, source: RootKeyring, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started = programs(monkeypatch, "import os; print('secret', os.environ['HOME'])")
        assert content(asyncio.run(source.key(self.REQUEST))) == f"secret {source.home}\n".encode()
        assert started == [
            ["/usr/bin/python3", "-I", "-m", "cryptbackd.lookup", "1234-abcd"]
        ]  # fmt: skip

    def test_none_is_set_up(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        started = programs(monkeypatch, "print('secret')")
        assert asyncio.run(RootKeyring(tmp_path).key(self.REQUEST)) is None
        assert started == []

    def test_without_a_uuid_there_is_nothing_to_look_for(self, source: RootKeyring) -> None:
        assert asyncio.run(source.key(REQUEST)) is None

    def test_it_has_nothing(self, source: RootKeyring, monkeypatch: pytest.MonkeyPatch) -> None:
        programs(monkeypatch, "import sys; sys.exit(10)")
        before = len(os.listdir("/proc/self/fd"))
        assert asyncio.run(source.key(self.REQUEST)) is None
        assert len(os.listdir("/proc/self/fd")) == before

    def test_it_is_locked(self, source: RootKeyring, monkeypatch: pytest.MonkeyPatch) -> None:
        programs(
            monkeypatch,
            "import sys; print('The keyring is locked.', file=sys.stderr); sys.exit(11)",
        )
        with pytest.raises(SourceFailed, match="The keyring is locked"):
            asyncio.run(source.key(self.REQUEST))

    def test_it_blocks(self, source: RootKeyring, monkeypatch: pytest.MonkeyPatch) -> None:
        programs(monkeypatch, "import time; time.sleep(60)")
        monkeypatch.setattr(root_keyring, "_DEADLINE", 0.1)

        async def ask() -> None:
            with pytest.raises(SourceFailed, match="did not end within"):
                await source.key(self.REQUEST)
            await children._abandoned.all_ended()

        before = len(os.listdir("/proc/self/fd"))
        asyncio.run(ask())
        assert len(os.listdir("/proc/self/fd")) == before

    def test_others_may_not_write_what_it_runs(
        self, source: RootKeyring, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started = programs(monkeypatch, "print('secret')")
        source._file.chmod(0o666)
        with pytest.raises(SourceFailed, match="nobody else may write"):
            asyncio.run(source.key(self.REQUEST))
        assert started == []


class TestAskPassword:
    """``systemd-ask-password``."""

    def test_the_answer_stays_in_the_pipe(self, monkeypatch: pytest.MonkeyPatch) -> None:
        started = programs(monkeypatch, "print('answer')")
        assert content(asyncio.run(AskPassword().key(REQUEST))) == b"answer\n"
        assert started[0][-1] == "Passphrase for the backup drive home:"
        assert "--id=cryptback:home" in started[0]

    def test_after_a_wrong_one_it_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        started = programs(monkeypatch, "print('answer')")
        request = attrs.evolve(REQUEST, refused=frozenset({"prompt"}))
        content(asyncio.run(AskPassword().key(request)))
        assert started[0][-1].startswith("That was wrong. ")

    def test_nobody_answers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        programs(monkeypatch, "import sys; sys.exit(1)")
        before = len(os.listdir("/proc/self/fd"))
        assert asyncio.run(AskPassword().key(REQUEST)) is None
        assert len(os.listdir("/proc/self/fd")) == before

    def test_a_question_that_nobody_needs_any_more_is_taken_back(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        mark = tmp_path / "terminated"
        programs(
            monkeypatch,
            "import pathlib, signal, sys, time\n"
            f"def end(*_): pathlib.Path({str(mark)!r}).touch(); sys.exit(1)\n"
            f"signal.signal(signal.SIGTERM, end); pathlib.Path({str(mark)!r} + '.up').touch()\n"
            "time.sleep(60)",
        )

        async def cancelled() -> None:
            task = asyncio.create_task(AskPassword().key(REQUEST))
            while not mark.with_name("terminated.up").exists():
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await children._abandoned.all_ended()

        before = len(os.listdir("/proc/self/fd"))
        started = time.monotonic()
        asyncio.run(cancelled())
        assert mark.exists()
        assert time.monotonic() - started < 10
        assert len(os.listdir("/proc/self/fd")) == before


class TestTokens:
    """The tokens of the stored header."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        for place in ("sys/class/tpmrm/tpmrm0", "sys/class/hidraw/hidraw0/device"):
            (tmp_path / place).mkdir(parents=True)
        self.descriptor(tmp_path, "06d0f10901a101")
        for kind in ("systemd-tpm2", "systemd-fido2"):
            plugin = tmp_path / f"x86_64-linux-gnu/cryptsetup/libcryptsetup-token-{kind}.so"
            plugin.parent.mkdir(parents=True, exist_ok=True)
            plugin.touch()
        return tmp_path

    def descriptor(self, root: Path, begins: str) -> None:
        place = root / "sys/class/hidraw/hidraw0/device/report_descriptor"
        place.write_bytes(bytes.fromhex(begins))

    def source(self, root: Path, *tokens: Token, asker: Fake | None = None) -> Tokens:
        self.header(root, {str(t.number): self.json(t) for t in tokens})
        return Tokens([asker or Fake("prompt", [])], directory=root, root=root, plugins=root)

    def json(self, token: Token) -> dict[str, object]:
        pin = {"tpm2-pin": True, "fido2-clientPin-required": True} if token.pin else {}
        return {"type": token.kind, "keyslots": [str(n) for n in token.keyslots], **pin}

    def header(self, root: Path, tokens: dict[str, object]) -> None:
        """A metadata area with these tokens, and nothing else that matters."""
        name, text = b"sha256", json.dumps({"tokens": tokens}).encode()
        head = (luks2.MAGIC[0], 2, 16384, 3, b"", name, b"", b"", b"", 0, b"")
        area = bytearray(luks2.FIELDS.pack(*head, b"").ljust(4096, b"\0") + text).ljust(
            16384, b"\0"
        )
        checksum = hashlib.sha256(area).digest()
        at = luks2.FIELDS.size - 64
        area[at : at + 32] = checksum
        (root / "home").write_bytes(area)

    def keys(self, source: Tokens, times: int = 4) -> list[tuple[str, int] | None]:
        async def all_of_them() -> list[tuple[str, int] | None]:
            found = [await source.key(REQUEST) for _ in range(times)]
            for key in found:
                if key is not None:
                    key.close()
            return [None if key is None else (key.source, key.token) for key in found]

        return asyncio.run(all_of_them())

    def test_each_is_tried_once_in_the_order_of_their_numbers(self, root: Path) -> None:
        tokens = Token(2, FIDO2, (3,), False), Token(0, TPM2, (1,), False)
        recovery = Token(1, RECOVERY, (2,), False)
        found = self.keys(self.source(root, *tokens, recovery))
        assert found == [("TPM2", 0), ("FIDO2 token", 2), None, None]

    def test_a_token_whose_device_is_not_here_is_passed_over(self, root: Path) -> None:
        (root / "sys/class/tpmrm/tpmrm0").rmdir()
        tokens = Token(0, TPM2, (1,), False), Token(1, FIDO2, (2,), False)
        assert self.keys(self.source(root, *tokens), 2) == [("FIDO2 token", 1), None]

    def test_nobody_is_asked_for_the_pin_of_a_token_that_is_a_keyboard(self, root: Path) -> None:
        self.descriptor(root, "05010906a101")
        asker = Fake("prompt", ["pin"])
        assert self.keys(self.source(root, Token(0, FIDO2, (1,), True), asker=asker), 1) == [None]
        assert asker.asked == []

    def test_a_pin_is_asked_for_like_a_passphrase_and_once_more(self, root: Path) -> None:
        asker = Fake("prompt", ["pin"] * 9)
        found = self.keys(self.source(root, Token(0, TPM2, (1,), True), asker=asker), 3)
        assert found == [("TPM2", 0), ("TPM2", 0), None]
        assert [request.purpose for request in asker.asked] == ["tpm2-pin"] * 2
        assert [sorted(request.refused) for request in asker.asked] == [[], ["prompt"]]

    def test_who_gave_the_pin_hears_what_became_of_it(self, root: Path) -> None:
        asker = Fake("prompt", ["pin"])
        source = self.source(root, Token(0, TPM2, (1,), True), asker=asker)
        key = asyncio.run(source.key(REQUEST))
        assert key is not None
        key.told(True)
        key.close()
        assert asker.told == [True]

    def test_a_pin_that_nobody_gives_is_not_asked_for_again(self, root: Path) -> None:
        asker = Fake("prompt", [])
        found = self.keys(self.source(root, Token(0, TPM2, (1,), True), asker=asker), 2)
        assert found == [None, None]
        assert len(asker.asked) == 1

    def test_without_the_plugin_it_is_told(self, root: Path) -> None:
        source = self.source(root, Token(0, TPM2, (1,), False))
        source.plugins = root / "nowhere"
        with pytest.raises(SourceFailed, match="lacks its plugin"):
            asyncio.run(source.key(REQUEST))

    def test_no_header_and_a_damaged_one(self, root: Path) -> None:
        source = self.source(root, Token(0, TPM2, (1,), False))
        (root / "home").write_bytes(b"garbage" * 9999)
        with pytest.raises(SourceFailed, match="can't be read"):
            asyncio.run(source.key(REQUEST))
        (root / "home").unlink()
        assert asyncio.run(source.key(REQUEST)) is None

    def test_what_is_asked_names_the_pin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        started = programs(monkeypatch, "print('1234')")
        request = attrs.evolve(REQUEST, purpose="tpm2-pin")
        content(asyncio.run(AskPassword().key(request)))
        assert started[0][-1] == "PIN of this computer's TPM2 for the backup drive home:"
