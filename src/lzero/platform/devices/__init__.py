"""The devices on the bus, one file each: timers, clock, console, power, reset, and what test kernels expect."""
