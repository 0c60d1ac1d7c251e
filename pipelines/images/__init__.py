"""Encoded bytes <-> pixels.

decode.py     encoded bytes -> upright RGB pixels, or a reason why not
jpeg.py       size and orientation of a JPEG without a decoder
formats.py    which suffixes are images, and what is said of files that are passed over
encode.py     what sharding does to an image: keep its bytes, or write a smaller JPEG
"""
