"""The documents name what is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import by_hand

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


def test_each_promise_has_a_test() -> None:
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", (ROOT / "docs" / "promises.md").read_text())
    assert len(named) > 50
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / "vm" / file).read_text(), f"{file}::{name}"


def test_tests_of_the_campaign_exist() -> None:
    lines = (ROOT / "tests" / "vm" / "campaign.txt").read_text().splitlines()[1:]
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/vm"]
    found = subprocess.run(collect, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    names = {line.partition("::")[2] for line in found.splitlines()}
    assert lines == sorted(set(lines) & names)
    promises = (ROOT / "docs" / "promises.md").read_text()
    marked = set(re.findall(r"::(\w+)` \(campaign\) \|$", promises, re.MULTILINE))
    sooner = {name.partition("[")[0] for name in names - set(lines)}
    alone = {line.partition("[")[0] for line in lines} - sooner
    assert marked == {test for test in alone if f"::{test}`" in promises}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        path, _, _heading = target.partition("#")
        assert target.startswith("https://") or (document.parent / path).exists(), target


def test_the_readme_has_the_commands_that_are_proven() -> None:
    programs = [command.split()[0] for command in by_hand.commands(by_hand.OPEN)]
    assert programs == ["loop=$(losetup", "cryptsetup", "mount"]
    assert len(by_hand.commands(by_hand.OPEN_PARTITION)) == 2
