"""Configurations: dataclasses whose fields are command-line flags and keys of a recipe."""
