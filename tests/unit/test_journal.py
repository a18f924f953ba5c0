"""The journal and its catalog."""

import re
from pathlib import Path

from cryptbackd.daemon import journal

CATALOG = Path(__file__).parents[2] / "systemd" / "catalog" / "cryptbackd.catalog"


def test_code_and_catalog_know_the_same_messages() -> None:
    entries = re.findall(r"^# (\w+)\n-- ([0-9a-f]{32})$", CATALOG.read_text(), re.MULTILINE)
    assert dict(entries) == journal.MESSAGES


def test_no_id_is_used_twice() -> None:
    assert len(set(journal.MESSAGES.values())) == len(journal.MESSAGES)
