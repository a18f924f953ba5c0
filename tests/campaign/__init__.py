"""Thousands of ways to interrupt a backup, and a judge who looks what became of it.

`python -m tests.campaign` runs cases and writes a line of JSON for each; `report` makes
docs/reliability.md of them.  Nothing here shares code with the program under test.
"""
