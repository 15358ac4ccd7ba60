"""pytest plugin: run a guest in a test and assert on its exits."""
