"""What firmware leaves in memory for an operating system: ACPI tables, MP table, BIOS data."""
