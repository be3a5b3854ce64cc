"""Tests of `models.interop`, next to the libraries themselves."""
