"""Rules hold for what they are about, and for nothing else."""

import numpy as np
import pytest

from headrace.pipelines.measure.groups import kept_of, members
from headrace.pipelines.measure.measure import MEASURED
from headrace.tools.know.rules import rules_for

USUAL = {"readable": True, "width": 400, "height": 300, "bytes": 9000, "aspect": 4 / 3, "brightness": 0.5}
USUAL |= {"contrast": 0.2, "sharpness": 500, "commonest": 0.1, "border": 0, "jpeg_quality": 90}
UNUSUAL = {
    "small": {"width": 60, "height": 120},
    "narrow": {"aspect": 0.2},
    "wide": {"aspect": 5},
    "dark": {"brightness": 0.02},
    "bright": {"brightness": 0.97},
    "flat": {"contrast": 0.01},
    "one colour": {"commonest": 0.9},
    "blurred": {"sharpness": 3},
    "bars": {"border": 0.3},
    "text": {"text": 0.8},
    "coarse JPEG": {"jpeg_quality": 10},
}


def columns_of(*changes):
    rows = np.zeros(len(changes), MEASURED)
    for row, change in zip(rows, changes):
        for name, value in (USUAL | change).items():
            row[name] = value
    return {name: rows[name] for name in MEASURED.names}


@pytest.mark.parametrize("name", UNUSUAL)
def test_a_rule(name):
    columns = columns_of({}, {}, UNUSUAL[name], {}, {"jpeg_quality": np.nan})
    found = {rule.name: rule.rows(columns).tolist() for rule in rules_for(columns)}
    assert found == {other: [2] if other == name else [] for other in UNUSUAL}


def test_the_worst_come_first():
    columns = columns_of({}, {"brightness": 0.05}, {"brightness": 0.01}, {"aspect": 4}, {"aspect": 9}, {})
    found = {rule.name: rule.rows(columns).tolist() for rule in rules_for(columns)}
    assert (found["dark"], found["wide"]) == ([2, 1], [4, 3])


def test_of_a_group_one_is_kept():
    columns = columns_of({}, {"width": 500}, {"bytes": 9001}, {}, {"width": 500, "bytes": 8000})
    groups = np.array([0, -1, 0, 1, 1])
    assert kept_of(groups, columns).tolist() == [False, True, True, False, True]
    assert [group.tolist() for group in members(groups)] == [[0, 2], [3, 4]]
