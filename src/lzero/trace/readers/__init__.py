"""Readers of the recordings that other tools make."""
