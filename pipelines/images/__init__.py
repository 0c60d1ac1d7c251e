"""Encoded bytes <-> pixels.

decode.py     encoded bytes -> upright RGB pixels, or a reason why not
jpeg.py       size and orientation of a JPEG without a decoder
encode.py     what sharding does to an image: keep its bytes, or write a smaller JPEG
"""
