"""Tests of `tools/probes`."""
