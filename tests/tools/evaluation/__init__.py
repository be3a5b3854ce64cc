"""Tests of `tools/evaluation`."""
