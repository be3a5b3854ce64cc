"""Tests of `tools/data/events`."""
