"""The `lzero` command."""
