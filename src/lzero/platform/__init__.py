"""The PC around the processor: memory, bus, clock, devices, loaders.

:class:`~lzero.platform.pc.Pc` builds the board; :func:`~lzero.platform.loaders.load` puts a guest's image into its
memory.
"""
