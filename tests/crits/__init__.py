"""Tests of `crits`."""
