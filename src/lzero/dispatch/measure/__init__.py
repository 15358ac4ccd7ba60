"""Measurement: dispatchers built for each compiler and mitigation, and timed on this machine in pairs.

``mitigations`` how indirect branches are built, ``build`` programs with every candidate in several layouts, ``run``
them, ``stats`` paired ratios, ``calibrate`` the model's prices, ``cachegrind`` a repeatable metric, ``bench`` all
together, ``results`` tables and files.
"""
