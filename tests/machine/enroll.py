"""What the third layer has beyond the installed package: a user's files, an enrolled stick.

The passphrase comes from a plain credential, so that a plug needs nobody.  The key derivation
is made cheap at enrolment: under emulation the real one takes many seconds.
"""

from __future__ import annotations

from tests.machine.machine import Machine

PASSPHRASE = "correct horse battery staple"
CHEAP = ["--pbkdf-memory", "1", "--pbkdf-iterations", "4"]

FILES = r"""
set -e
cd /home/me
mkdir -p documents/letters photos .cache/thumbnails private
echo "Dear reader" > documents/letters/first.txt
ln documents/letters/first.txt documents/letters/same.txt
ln -s ../photos documents/pictures
head -c 300000 /dev/urandom > photos/one.jpg
head -c 50000 /dev/urandom > photos/two.jpg
truncate -s 20M sparse.img
printf end >> sparse.img
echo cached > .cache/thumbnails/x
echo secret > private/diary
chmod 0700 private
chmod 0640 private/diary
echo tagged > tagged
setfattr -n user.comment -v "an attribute" tagged
setfacl -m u:daemon:r documents/letters/first.txt
mkfifo pipe
touch -d "2001-02-03 04:05:06.789" documents/old
: > "$(printf 'odd \n name \377')"
cp /bin/true setgid-program
chown -R me:me /home/me
chmod 2755 setgid-program
"""


def make_files(vm: Machine) -> None:
    """Give the user `me` some files of every kind."""
    vm.run(FILES)


def init(
    vm: Machine, device: str, name: str, *options: str, include: tuple[str, ...] = ("/home/me",)
) -> str:
    """`cryptback init` as a script calls it; returns what it printed."""
    sources = [word for path in include for word in ("--include", path)]
    command = ["cryptback", "init", device, "--name", name, *sources, "--passphrase-fd", "0"]
    told = vm.run(
        [*command, "--yes", *CHEAP, *options], input=PASSPHRASE.encode() + b"\n", timeout=300
    )
    return told.out


def credential(vm: Machine, name: str, passphrase: str = PASSPHRASE) -> None:
    """Store the passphrase where the daemon finds it without anybody's help."""
    vm.push(f"/etc/credstore/cryptback.{name}", passphrase + "\n", 0o600)


def enroll(vm: Machine, filesystem: str = "btrfs") -> None:
    """Make the layer. Its sticks belong to it: a test's `vm.stick(NAME)` is a copy of one."""
    make_files(vm)
    credential(vm, "home")
    stick = vm.stick("main", size=448 << 20, fs="ext4", partitioned=True)
    stick.plug()
    options = ("--size", "320M", "--filesystem", filesystem)
    init(vm, stick.partition, "home", *options, include=("/home/me", "/etc"))
    vm.run(["systemctl", "is-active", "cryptbackd"])
