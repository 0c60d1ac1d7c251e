"""Encoded bytes <-> pixels.

decode.py     encoded bytes -> upright RGB pixels, or a reason why not
reduced.py    the same, several times smaller
oversize.py   of more pixels than are allowed: made smaller while it is decoded
deep.py       samples of more than eight bits -> bytes, or sixteen bits
channels.py   images of so many channels at sixteen bits; instruments.py: TIFF, 16-bit colour and DICOM
rules.py      what a process takes for an image, and which range it gives to deep samples
budget.py     memory that decoding threads reserve before they take it
jpeg.py       size, orientation and chroma of a JPEG without a decoder
planes.py     pixels as luma and half the chroma
jpegxl.py     JPEG XL for Pillow
formats.py    which suffixes are images, and what is said of files that are passed over
encode.py     what sharding does to an image: keep its bytes, or write a smaller JPEG
"""
