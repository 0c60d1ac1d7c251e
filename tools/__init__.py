"""What people look through, and what comes in and goes out.

look/              at data and encoders: views, features, attention, reconstructions, as pictures
runs/              at runs: reports, comparisons, curves
know/              at a data set: near duplicates, leaks, outliers, and a balanced choice of it
doctor/            where the time goes between disk and model
exchange/          weights and configurations of other libraries, in and out
models_api.py      list_models, get_model
models_command.py  the table of models
plan.py            what a run will read
params.py          how large a model is, part by part        flops.py    multiply-adds of an encoder's parts
predict.py         classes of photos
parity.py          how far every way of making views is from the definition
proof.py           whole models on our kernels without a GPU
fake_cuda.py       a GPU that is not there: CUDA's autocast, launches, what it would refuse
demo.py            the whole journey on a small set
demo_images.py     the set: textured shapes on cluttered backgrounds
thumbnails.py      a user's own images made small for the demo
columns.py         tables for a terminal

Who knows whom: exchange -> nobody; look -> nobody; runs and know -> look; doctor -> nobody; the files here know them
all, and `columns.py` serves all.
"""
