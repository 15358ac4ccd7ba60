"""Interrupt controllers: the 8259A pair, the I/O APIC, the local APIC with its timer."""
