"""Tests of `tools/perturb`."""
