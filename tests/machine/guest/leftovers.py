"""Runs in the guest: prints what is left of backups, and complaints in the journal, as JSON.

Shares no code with the program under test. Its arguments are a cursor, where the journal begins,
and for how many seconds it is to wait until nothing is left.
"""

import glob
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator

UNIT = "cryptbackd.service"
DEVICE = re.compile(r"/dev/(sd|loop|dm-|mapper/)")
COOKIE = 0x0D4D  # the upper half of the keys of libdevmapper's semaphores


def read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read().strip()
    except OSError:  # gone meanwhile
        return ""


def mappings() -> Iterator[str]:
    for path in glob.glob("/sys/block/dm-*/dm/name"):
        yield f"mapping {read(path)}"


def loops() -> Iterator[str]:
    for path in glob.glob("/sys/block/loop*/loop/backing_file"):
        yield f"loop device {path.split('/')[3]} on {read(path)}"


def mounts() -> Iterator[str]:
    seen: dict[str, str] = {}
    for path in glob.glob("/proc/[0-9]*/mountinfo"):
        for line in read(path).splitlines():
            fields = line.split()
            place, source = fields[4], fields[fields.index("-") + 2]
            if DEVICE.match(source) or place.startswith("/run/cryptbackd/"):
                seen.setdefault(f"mount of {source} on {place}", path.split("/")[2])
    for what, pid in seen.items():
        yield f"{what} (seen by process {pid}: {read(f'/proc/{pid}/comm')})"


def cookies() -> Iterator[str]:
    for line in read("/proc/sysvipc/sem").splitlines()[1:]:
        key = int(line.split()[0]) & 0xFFFFFFFF
        if key >> 16 == COOKIE:
            yield f"udev cookie {key:#x}"


def processes() -> Iterator[str]:
    command = ["systemctl", "show", "--property=MainPID,ControlGroup", UNIT]
    shown = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    properties = dict(line.split("=", 1) for line in shown.splitlines())
    group = properties.get("ControlGroup")
    if not group:
        return
    for path in glob.glob(f"/sys/fs/cgroup{group}/**/cgroup.procs", recursive=True):
        for pid in read(path).split():
            if pid != properties.get("MainPID"):
                line = read(f"/proc/{pid}/cmdline").replace("\0", " ")
                yield f"process {pid} of {UNIT}: {line}"


def complaints(cursor: str) -> Iterator[str]:
    subprocess.run(["journalctl", "--sync"], check=False)
    command = ["journalctl", "--quiet", "--all", "--output=json"]
    if cursor:
        command.append(f"--after-cursor={cursor}")
    for line in subprocess.run(command, check=False, capture_output=True).stdout.splitlines():
        entry = json.loads(line)
        message = entry.get("MESSAGE") or ""
        if isinstance(message, list):
            message = (
                bytes(message).decode(errors="replace")
                if message and isinstance(message[0], int)
                else str(message)
            )
        if int(entry.get("PRIORITY", 6)) <= 3 or "Traceback (most recent call last)" in message:
            yield f"{entry.get('SYSLOG_IDENTIFIER', '?')}: {message}"


def main() -> None:
    cursor, patience = sys.argv[1], float(sys.argv[2])
    deadline = time.monotonic() + patience
    locked = 0.0
    while True:
        is_open = [*mappings(), *loops(), *mounts(), *cookies()]
        locked = 0.0 if is_open else locked or time.time()
        left = [*is_open, *processes()]
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    told = {"locked": locked, "left": left, "complaints": list(complaints(cursor))}
    print(json.dumps(told))


main()
