"""Encoded bytes <-> pixels.

decode.py     encoded bytes -> upright RGB pixels, or a reason why not
deep.py       samples of more than eight bits -> bytes
rules.py      what a process takes for an image, and which range it gives to deep samples
budget.py     memory that decoding threads reserve before they take it
jpeg.py       size and orientation of a JPEG without a decoder
formats.py    which suffixes are images, and what is said of files that are passed over
encode.py     what sharding does to an image: keep its bytes, or write a smaller JPEG
"""
