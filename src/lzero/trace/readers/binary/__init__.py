"""What the readers of binary recordings (perf.data, trace.dat) share: event formats, fields, walking, ordering."""
