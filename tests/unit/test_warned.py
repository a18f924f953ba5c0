"""Warnings of which there are very many."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cryptbackd import catalogue, protocol
from cryptbackd.errors import Refused
from cryptbackd.model import Outcome, RunResult
from cryptbackd.warned import MOST, Warnings
from cryptbackd.worker.versions import record

FILES = 150_000


def of_files(name: str) -> Warnings:
    warned = Warnings()
    for number in range(FILES):
        warned.add(f'"/home/{name}/{number}" could not be read: Permission denied.', many=True)
    return warned


def test_few_are_all_told() -> None:
    warned = Warnings()
    warned.add("One.")
    warned.add("Two.", many=True)
    assert warned.told == ["One.", "Two."]
    assert (warned.number, warned.more) == (2, 0)


@pytest.mark.parametrize("name", ["x", "é" * 180, "\N{GRINNING FACE}" * 180])
def test_of_very_many_some_are_named_and_the_rest_counted(name: str) -> None:
    warned = of_files(name)
    assert warned.number == FILES
    assert warned.told[-1] == f"… and {FILES - len(warned):,} more."
    warned.add("The drive is old.")
    assert warned[-1] == "The drive is old."
    for number in range(FILES):
        warned.add(f"Another {number}.")
    assert len(json.dumps(warned)) <= MOST + len("[]")


def test_they_fit_into_a_record_and_into_a_packet(tmp_path: Path) -> None:
    warned = of_files("\N{GRINNING FACE}" * 180)
    fields = {"sequence": 1, "warnings": warned.told, "doubts": warned.told}
    version = record.write(tmp_path, "v1", fields)
    version.path.mkdir()
    (found,) = record.versions(tmp_path)
    assert found.record["warnings"] == warned.told
    told = RunResult(Outcome.WARNINGS, "s" * 4000, "h" * 4000, warnings=warned.told)
    told.data = {"damaged_files": ["x" * (64 << 10)]}
    assert len(protocol.encode(protocol.Finished(told))) < protocol.MAX_PACKET


def test_a_record_that_nothing_would_read_is_not_written(tmp_path: Path) -> None:
    sources = {f"/{number:0100}": "ext4" for number in range(200_000)}
    with pytest.raises(Refused, match=r"would have .* MiB"):
        record.write(tmp_path, "v1", {"sequence": 1, "sources": sources})
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_is_too_long_is_told_from_one_that_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "v1.json"
    with path.open("wb") as file:
        file.truncate(catalogue.LARGEST)
        assert len(catalogue.raw_record(path)) == catalogue.LARGEST
        file.truncate(catalogue.LARGEST + 1)
    with pytest.raises(OSError, match="longer than 16"):
        catalogue.raw_record(path)
