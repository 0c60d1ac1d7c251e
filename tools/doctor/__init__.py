"""Where the time goes between disk and model, and what would help.

doctor.py          the command
measure.py         measures each stage
advice.py          concludes
packages.py        what is installed
"""
