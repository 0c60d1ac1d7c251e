"""What a run is.

recipe.py        a recipe's sections, --smoke
channels.py      views and networks for images of so many channels
listing.py       `headrace recipes`
settings.py      the sections that belong to training: data, train, optim
schedules.py     rates and decays as arrays
sizes.py         views of other sizes in other steps
config.py        YAML recipes -> checked dataclasses, by `schema/`
"""
