"""`python -m tests.machine build LAYER` and `python -m tests.machine shell [LAYER]`."""

from __future__ import annotations

import argparse

from tests.machine import layers, shell, slots


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.machine", description=__doc__)
    parser.add_argument("action", choices=["build", "shell"])
    parser.add_argument("layer", nargs="?", choices=layers.LAYERS, default="installed")
    arguments = parser.parse_args()
    layer = layers.LAYERS[arguments.layer]
    if arguments.action == "build":
        with slots.slot():  # a machine that boots takes as much as one in a test
            layers.ensure(layer)
    else:
        shell.shell(layer)


main()
