"""Tests of cryptbackd."""
