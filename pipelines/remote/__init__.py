"""Folders behind an address: read and written, kept on this machine, fetched ahead of who reads.

stores.py     what every store can do, how it fails, and which store an address belongs to
web.py        http(s), and Hugging Face's data sets, with the standard library
objects.py    S3, Google Cloud Storage, Azure, with obstore
backoff.py    how often and how long something is tried again
cache.py      shards kept on this machine's disk, for all of its processes, under a bound
fetcher.py    fetches shards in the background; walk.py: which ones, along a known order
"""
