"""Tests of `tools/data`."""
