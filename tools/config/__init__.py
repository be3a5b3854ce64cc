"""Configurations: fields that are flags and keys of a recipe."""
