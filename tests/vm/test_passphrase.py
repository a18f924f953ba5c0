"""What opens a drive: passphrases, recovery keys, and the headers that they are in."""

from __future__ import annotations

import json
import re

import pytest

from tests.machine import Machine
from tests.machine.enroll import CHEAP, PASSPHRASE, credential
from tests.machine.guest import Result
from tests.vm.container import listing
from tests.vm.failing import KERNEL_MISSES_IT, Hold, first_is_whole, nothing_left, succeeds_next
from tests.vm.runs import ended, history, now
from tests.vm.test_drive_lies import CONTAINER, OTHER_KEY, WIPE, message_id, tamper
from tests.vm.test_enrol import on_terminal, untouched
from tests.vm.test_keys import PLAIN, readers, told, trace, traced

HEADER = "/var/lib/cryptbackd/headers/home"
NEW = "a new passphrase"
CREDENTIAL = "/etc/credstore.encrypted/cryptback.home"

BY_HAND = """
mkdir -p /mnt/drive
mount -o ro {device} /mnt/drive
cryptsetup open --test-passphrase --disable-external-tokens /mnt/drive/backup.luks
code=$?
umount /mnt/drive
exit $code
"""
SAME = """
mkdir -p /mnt/drive
mount -o ro {device} /mnt/drive
cmp --bytes=16777216 /mnt/drive/backup.luks {header}
code=$?
umount /mnt/drive
exit $code
"""
CHANGE_ELSEWHERE = f"""
printf '%s\\n%s\\n' '{PASSPHRASE}' '{NEW}' | cryptsetup luksChangeKey --batch-mode \\
    --pbkdf argon2id --pbkdf-memory 32 --pbkdf-force-iterations {CHEAP[-1]} {CONTAINER}
sync
"""


def change(
    vm: Machine,
    action: str,
    *lines: str,
    options: tuple[str, ...] = (),
    check: bool = True,
) -> Result:
    """`cryptback passphrase` as a script calls it; each of *lines* is a passphrase."""
    words = ["cryptback", "passphrase", "home", action, "--passphrase-fd", "0", *CHEAP, *options]
    if len(lines) > 1:
        words += ["--new-passphrase-fd", "0"]
    given = "".join(f"{line}\n" for line in lines)
    return vm.run(words, given.encode(), check=check, timeout=180)


def plugged(vm: Machine) -> None:
    """The stick is in, and was backed up to."""
    since = now(vm)
    vm.stick("main").plug()
    assert ended(vm, since=since, timeout=180)["CRYPTBACK_OUTCOME"] == "done"


def opens(vm: Machine, passphrase: str) -> bool:
    """Whether the drive's own header is opened by it, as on any other computer."""
    script = BY_HAND.format(device=vm.stick("main").partition)
    return vm.run(script, passphrase.encode(), check=False).code == 0


def opens_here(vm: Machine, passphrase: str) -> bool:
    """Whether the stored header is opened by it."""
    words = ["cryptsetup", "open", "--test-passphrase", "--disable-external-tokens", HEADER]
    return vm.run(words, passphrase.encode(), check=False).code == 0


def same(vm: Machine) -> bool:
    """Whether the drive has the stored header, byte for byte."""
    script = SAME.format(device=vm.stick("main").partition, header=HEADER)
    return vm.run(script, check=False).code == 0


def header(vm: Machine) -> str:
    """A hash of the stored header, and what else lies beside it."""
    return vm.run(f"sha256sum {HEADER}; ls -A /var/lib/cryptbackd/headers").out


def backs_up(vm: Machine, passphrase: str) -> None:
    """The next plug opens the drive with this passphrase."""
    credential(vm, "home", passphrase)
    succeeds_next(vm)


# Passphrases


def test_an_added_passphrase_opens_the_drive_here_and_elsewhere(enrolled: Machine) -> None:
    vm = enrolled
    plugged(vm)
    done = change(vm, "add", PASSPHRASE, NEW)
    assert "A passphrase was added." in done.out
    assert "You may unplug home now." in done.out
    assert NEW not in done.out + done.err
    for passphrase in (PASSPHRASE, NEW):
        assert opens(vm, passphrase)
        assert opens_here(vm, passphrase)
    assert same(vm)
    assert vm.run("ls -A /var/lib/cryptbackd/headers").out == "home\n"
    assert vm.run(["stat", "-c", "%a %U", HEADER]).out == "600 root\n"
    run = history(vm)[0]
    assert (run["job"], run["outcome"], run["safe"]) == ("passphrase", "done", True)
    backs_up(vm, NEW)


def test_a_changed_passphrase_is_the_only_one(enrolled: Machine) -> None:
    vm = enrolled
    plugged(vm)
    done = change(vm, "change", PASSPHRASE, NEW)
    assert "The passphrase was changed." in done.out
    assert "cryptback passphrase home remember" in done.out  # what is stored is the old one
    assert (opens(vm, PASSPHRASE), opens(vm, NEW)) == (False, True)
    assert (opens_here(vm, PASSPHRASE), opens_here(vm, NEW)) == (False, True)
    backs_up(vm, NEW)


def test_a_removed_passphrase_opens_nothing_and_the_last_is_not_removed(enrolled: Machine) -> None:
    vm = enrolled
    plugged(vm)
    before = header(vm)
    refused = change(vm, "remove", PASSPHRASE, check=False)
    assert refused.code == 1
    assert "That is the last passphrase of the drive; nothing was changed." in refused.err
    assert header(vm) == before
    assert opens(vm, PASSPHRASE)
    change(vm, "add", PASSPHRASE, NEW)
    change(vm, "remove", PASSPHRASE)
    assert (opens(vm, PASSPHRASE), opens(vm, NEW)) == (False, True)
    assert change(vm, "remove", NEW, check=False).code == 1
    backs_up(vm, NEW)


@pytest.mark.slow
@pytest.mark.parametrize("action", ["add", "change", "remove", "recovery-key"])
def test_a_wrong_passphrase_changes_nothing(enrolled: Machine, action: str) -> None:
    vm = enrolled
    plugged(vm)
    before = header(vm)
    lines = ["not it", NEW] if action in ("add", "change") else ["not it"]
    refused = change(vm, action, *lines, check=False)
    assert refused.code == 12
    assert "does not open the drive; nothing was changed." in refused.err
    assert header(vm) == before
    assert same(vm)


def test_on_a_terminal_the_new_one_is_typed_twice(enrolled: Machine) -> None:
    vm = enrolled
    plugged(vm)
    words = ["cryptback", "passphrase", "home", "add", *CHEAP]
    asked = ("A passphrase of the drive", PASSPHRASE), ("The new passphrase", NEW)
    differ = on_terminal(vm, words, *asked, ("The same again", "other"))
    assert differ.code == 1
    assert "The two are not the same; nothing was changed." in differ.out
    done = on_terminal(vm, words, *asked, ("The same again", NEW))
    assert done.code == 0
    assert PASSPHRASE not in done.out
    assert NEW not in done.out
    assert opens(vm, NEW)


def test_nobody_types_for_a_drive_that_is_not_here(enrolled: Machine) -> None:
    refused = change(enrolled, "add", PASSPHRASE, NEW, check=False)
    assert refused.code == 75
    assert change(enrolled, "change", PASSPHRASE, NEW, check=False).code == 75
    unknown = ["cryptback", "passphrase", "work", "add", "--passphrase-fd", "0"]
    shown = enrolled.run([*unknown, "--new-passphrase-fd", "0"], b"a\nb\n", check=False)
    assert shown.code == 10


def test_pulled_between_the_two_headers_it_is_finished_at_the_next_plug(enrolled: Machine) -> None:
    """The stored header has the change, the drive hangs before it has it, and is pulled."""
    vm = enrolled
    stick = vm.stick("main")
    plugged(vm)
    vm.run(f"cp {HEADER} /root/before")
    hold = Hold(vm, "/usr/sbin/cryptsetup", "luksChangeKey")
    words = ["cryptback", "passphrase", "home", "change", "--passphrase-fd", "0"]
    given = f"{PASSPHRASE}\n{NEW}\n".encode()
    changing = vm.spawn([*words, "--new-passphrase-fd", "0", *CHEAP], given)
    held = hold.wait()
    stick.throttle(1)
    held.go_on()
    vm.run(f"until [ -e {HEADER}.pending ]; do sleep 0.1; done")
    vm.expect_journal(KERNEL_MISSES_IT)
    stick.pull()
    failed = changing.wait(check=False, timeout=120)
    assert failed.code == 75
    assert "what was begun is finished at the next plug" in failed.err
    nothing_left(vm)
    assert opens_here(vm, NEW)
    vm.run(f"cmp /root/before {HEADER}.pending")

    credential(vm, "home", NEW)
    since = now(vm)
    succeeds_next(vm)
    finished = vm.journal(since=since, MESSAGE_ID=message_id(vm, "has the last change now"))
    assert len(finished) == 1
    assert "it is finished now" in finished[0]["MESSAGE"]
    assert same(vm)
    assert (opens(vm, PASSPHRASE), opens(vm, NEW)) == (False, True)
    assert vm.run("ls -A /var/lib/cryptbackd/headers").out == "home\n"


# Recovery keys


def test_a_recovery_key_is_shown_once_and_opens_the_drive_anywhere(enrolled: Machine) -> None:
    vm = enrolled
    plugged(vm)
    words = ["cryptback", "passphrase", "home", "recovery-key"]
    shown = on_terminal(vm, words, ("A passphrase of the drive", PASSPHRASE))
    assert shown.code == 0, shown.out
    (key,) = re.findall(r"\b(?:[cbdefghijklnrtuv]{8}-){7}[cbdefghijklnrtuv]{8}\b", shown.out)
    assert "It is shown only now" in shown.out
    assert "\u2588" in shown.out or "\u2584" in shown.out  # the picture
    assert opens(vm, key)
    assert key not in told(vm)
    assert vm.run(f"grep -rs {key[:17]} /var/lib/cryptbackd /run/cryptbackd", check=False).out == ""
    # It counts as something that opens the drive, and can be the only thing.
    change(vm, "remove", PASSPHRASE)
    assert (opens(vm, PASSPHRASE), opens(vm, key)) == (False, True)
    change(vm, "add", key, NEW)
    change(vm, "remove", NEW, options=("--what", "recovery-key"))
    assert (opens(vm, NEW), opens(vm, key)) == (True, False)
    backs_up(vm, NEW)


def test_a_recovery_key_for_programs(enrolled: Machine) -> None:
    vm = enrolled
    plugged(vm)
    shown = change(vm, "recovery-key", PASSPHRASE, options=("--json",))
    events = [json.loads(line) for line in shown.out.splitlines()]
    (key,) = [event["key"] for event in events if event["event"] == "recovery-key"]
    assert opens(vm, key)


def test_a_recovery_key_is_shown_though_the_service_was_killed(enrolled: Machine) -> None:
    """The stored header has it, the drive's own gets it at the next plug."""
    vm = enrolled
    stick = vm.stick("main")
    plugged(vm)
    stick.throttle(64 << 10)
    words = ["cryptback", "passphrase", "home", "recovery-key", "--passphrase-fd", "0"]
    making = vm.spawn(words, f"{PASSPHRASE}\n".encode())
    vm.run(f"until [ -e {HEADER}.pending ]; do sleep 0.1; done", timeout=120)
    vm.expect_journal("^systemd: cryptbackd.service: .*(Killing|Failed|failed)")
    vm.expect_journal("^cryptbackd: home: failed: The service was killed in the middle")
    since = now(vm)
    vm.run(["systemctl", "kill", "--signal=KILL", "cryptbackd"])
    stick.throttle(0)
    failed = making.wait(check=False, timeout=120)
    assert failed.code == 1
    assert "ended in the middle" in failed.err
    (key,) = re.findall(r"\b(?:[cbdefghijklnrtuv]{8}-){7}[cbdefghijklnrtuv]{8}\b", failed.out)
    assert "may open the drive" in failed.out
    assert opens_here(vm, key)
    ended(vm, since=since)
    succeeds_next(vm)
    assert opens(vm, key)


# Tokens that are not here


@pytest.mark.parametrize("action", ["enroll-tpm2", "enroll-fido2"])
def test_a_token_that_is_not_here_is_refused(enrolled: Machine, action: str) -> None:
    vm = enrolled
    plugged(vm)
    before = header(vm)
    refused = change(vm, action, PASSPHRASE, check=False)
    assert refused.code == 1
    assert re.search("no TPM2|no FIDO2 token|No FIDO", refused.err)
    assert "nothing was changed." in refused.err
    assert header(vm) == before
    assert same(vm)


# Changed elsewhere, damaged, forged


def test_a_passphrase_changed_elsewhere_is_told_and_adopted(enrolled: Machine) -> None:
    vm = enrolled
    tamper(vm, CHANGE_ELSEWHERE)
    vm.run(["systemctl", "start", "cryptbackd"])
    end = ended(vm)
    assert end["CRYPTBACK_OUTCOME"] == "warnings"
    assert "the passphrase may have been changed on another computer" in end["MESSAGE"]
    words = ["cryptback", "passphrase", "home", "--adopt", "--passphrase-fd", "0"]
    before = header(vm)
    assert vm.run(words, NEW.encode(), check=False).code == 1  # nobody said yes
    assert vm.run([*words, "--yes"], PASSPHRASE.encode(), check=False).code == 12
    assert header(vm) == before
    done = vm.run([*words, "--yes"], NEW.encode())
    assert "It is of the same volume key" in done.out
    assert "is the stored one from now on." in done.out
    assert same(vm)
    assert (opens_here(vm, PASSPHRASE), opens_here(vm, NEW)) == (False, True)
    kept = vm.run("ls -A /var/lib/cryptbackd/headers").out
    assert re.fullmatch(r"home\nhome\.until-\d+\n", kept)
    backs_up(vm, NEW)


def test_a_header_of_another_volume_key_is_not_adopted(enrolled: Machine) -> None:
    vm = enrolled
    tamper(vm, OTHER_KEY)
    vm.run(["systemctl", "start", "cryptbackd"])
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "warnings"
    before = header(vm)
    words = ["cryptback", "passphrase", "home", "--adopt", "--passphrase-fd", "0", "--yes"]
    refused = vm.run(words, PASSPHRASE.encode(), check=False)
    assert refused.code == 1
    assert "belongs to another volume key" in refused.out
    assert "It can't be adopted" in refused.err
    assert header(vm) == before


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (WIPE, "it has no LUKS2 magic"),
        pytest.param(OTHER_KEY, "another volume key", marks=pytest.mark.slow),
        pytest.param(CHANGE_ELSEWHERE, "another computer", marks=pytest.mark.slow),
    ],
    ids=["wiped", "forged", "changed"],
)
def test_the_stored_header_is_put_back(enrolled: Machine, damage: str, words: str) -> None:
    vm = enrolled
    files = listing(vm, "/home/me")
    tamper(vm, damage)
    vm.run(["systemctl", "start", "cryptbackd"])
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "warnings"
    assert not same(vm)
    asked = on_terminal(vm, ["cryptback", "doctor", "--repair", "home"], ("Go on?", "n"))
    assert asked.code == 1
    assert words in asked.out.split("Go on?")[0]
    assert not same(vm)
    done = vm.run(["cryptback", "doctor", "--repair", "home", "--yes"], timeout=120)
    assert "The stored header is on the drive again." in done.out
    assert "You may unplug home now." in done.out
    assert same(vm)
    assert opens(vm, PASSPHRASE)
    kept = vm.run("ls -A /var/lib/cryptbackd/headers").out
    assert re.fullmatch(r"home\nhome\.drive-\d+\n", kept)
    again = vm.run(["cryptback", "doctor", "--repair", "home"])
    assert "nothing is wrong" in again.out
    succeeds_next(vm)
    assert len(first_is_whole(vm, files)) == 3


def test_a_repair_goes_to_no_other_drive(enrolled: Machine) -> None:
    """Not to one that was named by mistake, whose file may be called the same."""
    vm = enrolled
    other = vm.stick("other", fs="ext4", partitioned=True)
    other.plug()
    vm.run(
        f"mount {other.partition} /mnt && truncate -s 32M /mnt/backup.luks && echo theirs"
        " | cryptsetup luksFormat --batch-mode --pbkdf pbkdf2 --pbkdf-force-iterations 1000"
        " /mnt/backup.luks; umount /mnt"
    )
    other.pull()
    with untouched(other):
        words = ["cryptback", "doctor", "--repair", "home", "--device", other.partition, "--yes"]
        refused = vm.run(words, check=False, timeout=120)
        assert refused.code == 1
        assert "which is not the drive; nothing was changed." in refused.err
    plugged(vm)
    assert same(vm)


def test_the_computer_lost_all_and_the_drive_is_enrolled_again(enrolled: Machine) -> None:
    vm = enrolled
    files = listing(vm, "/home/me")
    vm.run(["systemctl", "stop", "cryptbackd"])
    vm.run("rm -r /var/lib/cryptbackd/* /etc/cryptback/drives.d/*")
    vm.run(["systemctl", "start", "cryptbackd"])
    stick = vm.stick("main")
    stick.plug()
    words = ["cryptback", "init", stick.partition, "--name", "home", "--adopt"]
    words += ["--include", "/home/me", "--include", "/etc"]
    seen = on_terminal(vm, words, ("Go on?", "n"))
    assert seen.code == 1
    (fingerprint,) = re.findall(r"\b[0-9a-f]{64}\b", seen.out)
    assert vm.run("ls -A /etc/cryptback/drives.d /var/lib/cryptbackd/headers", check=False).out in (
        "",
        "/etc/cryptback/drives.d:\n",
    )
    script = [*words, "--yes", "--passphrase-fd", "0"]
    assert vm.run(script, b"wrong\n", check=False, timeout=120).code == 12
    assert not vm.run("ls -A /etc/cryptback/drives.d").out
    done = vm.run(script, PASSPHRASE.encode(), timeout=300)
    assert fingerprint in done.out
    assert "what is on it is as it was" in done.out
    assert "You may unplug home now." in done.out
    assert same(vm)
    assert len(first_is_whole(vm, files)) == 2


# What this computer remembers


def test_remembered_nobody_is_asked_and_forgotten_it_is_gone(enrolled: Machine) -> None:
    vm = enrolled
    vm.run(["rm", PLAIN])
    words = ["cryptback", "passphrase", "home", "remember", "--passphrase-fd", "0"]
    wrong = vm.run(words, b"not it\n", check=False)
    assert wrong.code == 12
    assert "nothing was stored" in wrong.err
    assert vm.run(f"ls {CREDENTIAL}", check=False).code != 0
    vm.run(words, PASSPHRASE.encode() + b"\n")
    assert vm.run(["stat", "-c", "%a %U", CREDENTIAL]).out == "600 root\n"
    plugged(vm)
    assert "unlocked with the passphrase from encrypted credential." in told(vm)
    shown = vm.run(["cryptback", "passphrase", "home", "forget"])
    assert CREDENTIAL in shown.out
    assert vm.run(f"ls {CREDENTIAL}", check=False).code != 0
    assert vm.run(["cryptback", "passphrase", "home", "forget"]).code == 0


def test_a_person_is_asked_what_to_remember(enrolled: Machine) -> None:
    vm = enrolled
    words = ["cryptback", "passphrase", "home", "remember"]
    done = on_terminal(vm, words, ("Passphrase of the drive home", PASSPHRASE))
    assert done.code == 0, done.out
    assert PASSPHRASE not in done.out
    vm.run(["rm", PLAIN])
    plugged(vm)


@pytest.mark.slow
@pytest.mark.timeout(600, func_only=True)
def test_nobody_but_the_tools_reads_what_is_changed_or_remembered(enrolled: Machine) -> None:
    """Neither the daemon nor its workers read a passphrase, nor `remember` the one it stores."""
    vm = enrolled
    plugged(vm)
    calls = "--trace=execve,read,pread64,readv,recvmsg"
    watching = trace(vm, calls)
    change(vm, "add", PASSPHRASE, NEW)
    text = traced(vm, watching)
    watch = f"strace --follow-forks --string-limit=4096 {calls} --output=/run/trace2"
    remember = "cryptback passphrase home remember --passphrase-fd 0"
    vm.run(f"{watch} {remember}", PASSPHRASE.encode(), timeout=300)
    text += vm.pull("/run/trace2").decode(errors="replace")
    found = readers(text, PASSPHRASE, NEW)
    assert "/usr/sbin/cryptsetup" in found
    assert found <= {"/usr/sbin/cryptsetup", "/usr/bin/systemd-creds"}
