"""Tests of `tools/analysis`."""
