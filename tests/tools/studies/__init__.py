"""Tests of `tools/studies`."""
