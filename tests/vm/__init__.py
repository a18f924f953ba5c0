"""Tests in the machine: the installed package, and sticks that are plugged and pulled."""
