"""Trees of values that know where they were written, and dataclasses they are checked against. Knows nobody.

yaml_nodes.py   YAML with positions
tree.py         values between YAML, dataclasses and plain ones
bounds.py       numbers of which only some make sense
check.py        what turns trees into dataclasses and notes every problem
"""
