"""The tests of what is pure, or nearly so: no drive, no root, no service manager."""
