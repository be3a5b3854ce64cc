"""Tests of `tools/runtime`."""
