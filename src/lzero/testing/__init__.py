"""Tests of a hypervisor's exits: a pytest plugin and budgets."""
