"""Tests of `tools/attacks`."""
