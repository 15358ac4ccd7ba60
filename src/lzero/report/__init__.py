"""Rendering: traces and comparisons as HTML pages and tables."""
