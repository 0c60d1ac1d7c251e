"""Data and encoders, as pictures.

samples.py         what an algorithm sees of the first samples of an epoch, and what was drawn for it
browse.py          a contact sheet and a page of them; browse_page.py: the page
page.py            the HTML skeleton that all pages share         pictures.py   small pictures on them, side by side
plots.py           sheets of samples and of rows of images     figures.py   how they are written
tsne.py            features in two dimensions
attention.py       where an encoder looks        pca.py   what its features tell apart     maps.py   both
reconstruct.py     what a masked autoencoder restores
shape_bias.py      shape or texture, of cue-conflict images
"""
