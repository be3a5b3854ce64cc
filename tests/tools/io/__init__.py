"""Tests of `tools/io`."""
