"""Exits as data: record them, read other tools' recordings, store, attribute, compare, and plan the shadow VMCS.

Importing this package loads neither numpy nor Polars; the submodules do when they are used.
"""
