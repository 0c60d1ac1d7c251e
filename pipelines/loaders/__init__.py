"""A source, an `InputSpec` and an `Order` -> batches on the device; one file for each way to get at pixels.

epochs.py         `headrace.loader`: the data path for a loop of one's own
arguments.py      what it is given, checked
choose.py         which loader serves a source, and why
base.py           what every loader does alike: position, plan, substitution, faults, finishing
cpu.py            decoding and whole views in our own threads
dali.py           decode and crop in DALI
memory.py         images held in memory: on the device, or for the threads of cpu.py
stream.py         shards behind an address, through the webdataset library
ffcv_file.py      .beton files with the pixels that FFCV makes of them
quarantine.py     images that are set aside, and what stands in for them
sound.py          bytes that our own decoder has proven, for software that damage may end
device.py         ways to a GPU: crops on a stream of their own, small tensors in one copy
packed.py         images or rows of them in one buffer, and crops that a device cuts out of it
"""
