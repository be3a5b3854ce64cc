"""Tests of `tools/config`."""
