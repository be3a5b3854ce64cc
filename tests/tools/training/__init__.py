"""Tests of `tools/training`."""
