"""Tests, in the layout of what they test."""
