"""Finding files and listing versions with the drive in a drawer."""

from __future__ import annotations

import json
from typing import Any

from tests.machine import Machine
from tests.vm.runs import PATIENCE, ended


def back_up(vm: Machine) -> None:
    vm.run(["cryptback", "run", "home"], timeout=PATIENCE)


def find(vm: Machine, pattern: str, user: str = "root") -> dict[str, list[dict[str, Any]]]:
    """The states of the files that are found, by their paths."""
    words = ["runuser", "-u", user, "--", "cryptback", "find", pattern, "--json"]
    told = json.loads(vm.run(words).out)
    (searched,) = told["drives"]
    assert not searched["more"]
    assert all(file["drive"] == "home" for file in told["files"])
    return {file["path"]: file["states"] for file in told["files"]}


def three_versions(vm: Machine) -> list[str]:
    """Make them, in which a file comes, changes and goes, and pull the stick; their names."""
    vm.run(
        "cd /home/me && chmod 755 . && echo 1 > report.txt && mkdir hidden && cp report.txt hidden"
        " && echo x > hidden/report-x && chown -R me: . && chmod 750 hidden"
        " && chmod 600 documents/old"
    )
    stick = vm.stick("main")
    stick.plug()
    ended(vm)
    vm.run("echo longer > /home/me/report.txt && echo new > /home/me/new")
    back_up(vm)
    vm.run("rm /home/me/report.txt && chmod 700 /home/me/private")
    back_up(vm)
    stick.pull()
    told = json.loads(vm.run(["cryptback", "versions", "home", "--json"]).out)["versions"]
    names = [str(version["version"]) for version in told[-3:]]
    assert [version["sequence"] for version in told] == [1, 2, 3, 4]
    changes = told[2]["changes"]
    assert (changes["added"], changes["changed"], changes["removed"]) == (1, 1, 0)
    assert changes["changed_bytes"] == len("longer\n")
    changes = told[3]["changes"]
    assert (changes["added"], changes["changed"], changes["removed"]) == (0, 0, 1)
    assert told[2]["only"] == len("longer\n")
    assert told[3]["only"] == 0
    return names


def test_find_and_versions_with_the_drive_in_a_drawer(enrolled: Machine) -> None:
    vm = enrolled
    first, second, third = three_versions(vm)
    states = find(vm, "REPORT.txt")["/home/me/report.txt"]
    assert [(s["first"], s["last"], s["size"]) for s in states] == [
        (first, first, 2), (second, second, 7),
    ]  # fmt: skip
    hidden = find(vm, "report*")["/home/me/hidden/report-x"]
    assert [(s["first"], s["last"]) for s in hidden] == [(first, third)]

    # Others see what they could read, and no more.
    assert set(find(vm, "report", "me")) == set(find(vm, "report"))
    assert set(find(vm, "report", "nobody")) == {"/home/me/report.txt"}
    old = set(find(vm, "old"))
    assert any(path.startswith("/home/me/") for path in old)
    seen = set(find(vm, "old", "nobody"))
    assert not any(path.startswith("/home/me/") for path in seen)
    diff = ["cryptback", "versions", "home", "--diff", second, third]
    shown = vm.run(diff).out.splitlines()
    assert shown[1:] == ["- /home/me/report.txt  7 B"]
    refused = vm.run(["runuser", "-u", "nobody", "--", "ls", "/var/lib/cryptbackd"], check=False)
    assert refused.code != 0

    # A list that is damaged is said to be, and is no end.
    vm.run(f"cd /var/lib/cryptbackd/catalogue/home && truncate -s -5 {second}.manifest")
    told = vm.run(["cryptback", "find", "report.txt"]).out
    assert f"could not be searched ({second}" in told
    assert "/home/me/report.txt" in told
