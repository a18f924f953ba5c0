"""Nearly valid input for everything that reads what is not our own.

A file in ``kinds`` for each kind of input: a generator, and what must hold whatever comes.  Each
input is bytes, so that one which broke something is kept as a file: ``cases/KIND/NAME``.  `make
unit` tries those and a few hundred new ones; ``python -m tests.fuzz`` goes on for as long as it is
told to.
"""
