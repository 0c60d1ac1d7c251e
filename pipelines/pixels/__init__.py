"""Decoded pixels beside the tars they were decoded from: ``train-000000.tar`` -> ``train-000000.pixels``.

layout.py         the file, byte by byte; what ties it to its tar; reading it strictly
writer.py         a source of tars -> a sidecar beside each
command.py        ``headrace pixels``
sidecars.py       a source -> the pixels of its samples, out of maps
check.py          whether a sidecar is that of its tar, to the last pixel
"""
