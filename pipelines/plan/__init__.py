"""The data plan: several sets in one run, how much of each, which of their samples, and how often.

spec.py       SetSpec, MixSpec: what a recipe says
sets.py       sets opened, filtered and made one source
mixed.py      several sources as one
given.py      what people hand over in Python, as a source
mixture.py    the order of a run over them; order_of.py: that of any source
deal.py       shares of sets dealt out over batches
bijections.py keyed bijections of several sets at once
favour.py     samples that are given more often than others
columns.py    what is known of each sample, as columns
where.py      filters over columns
follow.py     sets whose filter or weights follow the ledger of their own run
facts.py      a plan in words and figures: what `headrace plan` prints and checkpoints keep

Random draws are the business of `views/`: it takes the pass of each sample where this room mixes passes in a batch.
"""
