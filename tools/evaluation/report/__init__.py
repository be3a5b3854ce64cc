"""The report of an evaluation: `document` is its results.json, `figures` its pictures, `page` the HTML of both."""

from .document import assemble, write
from .page import render

__all__ = ["assemble", "render", "write"]
