"""What a data set holds, and what of it to read.

know.py        the command: one pass over the images, then all that follows from it
findings.py    measurements -> near duplicates, outliers, images that are in other sets: what goes into table and JSON
neighbours.py  the same of an encoder's features: what means the same, what is far from all, doubtful labels
rules.py       when an image is unusual: filters with numbers of the set's own
know_page.py   the same as a page    encoder_page.py   its sections by an encoder
cards.py       pictures side by side on it    histograms.py   how many images have which value
curate.py      the other command: a balanced choice, by an encoder
hierarchy.py   clusters of clusters, and what is drawn evenly from them    kmeans.py   clusters
"""
