"""ema: against the formula in float64, at its ends, and where low precision would stand still."""

import pytest
import torch

from headrace.errors import UserError
from headrace.kernels.ema import ema


def draw(*shapes):
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_many_steps_are_the_geometric_sum():
    """After n steps towards the same student: m^n teacher + (1 - m^n) student."""
    teacher, student = draw((3, 4), (5,), ()), draw((3, 4), (5,), ())[::1]
    student = [x + 1 for x in student]
    expected = [0.99**50 * t.double() + (1 - 0.99**50) * s.double() for t, s in zip(teacher, student)]
    before = [x.clone() for x in student]
    for _ in range(50):
        ema(teacher, student, momentum=0.99)
    assert all(torch.allclose(t.double(), e, rtol=1e-5, atol=1e-6) for t, e in zip(teacher, expected))
    assert all(torch.equal(x, y) for x, y in zip(student, before))


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_the_ends_are_exact(momentum):
    teacher, student = draw((7,), (7,))
    expected = (student if momentum == 0 else teacher).clone()
    ema([teacher], [student], momentum=momentum)
    assert torch.equal(teacher, expected)


def test_parameters_are_changed_in_place():
    """Also such that require a gradient, and those that something else holds on to."""
    teacher, student = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    held = teacher.weight.detach()
    expected = 0.9 * teacher.weight.detach().clone() + 0.1 * student.weight.detach()
    ema(list(teacher.parameters()), list(student.parameters()), momentum=0.9)
    assert torch.allclose(held, expected) and teacher.weight.is_leaf


def test_a_coarse_teacher_is_refused_because_it_would_stand_still():
    teacher, student = torch.ones(1, dtype=torch.bfloat16), torch.full((1,), 2.0, dtype=torch.bfloat16)
    assert torch.equal(teacher.lerp(student, 1e-3), teacher)  # the step is lost
    with pytest.raises(UserError, match="too coarse for small steps"):
        ema([teacher], [student], momentum=0.999)


def test_lists_that_do_not_match_are_refused():
    a, b = draw((2, 3), (3, 2))
    for teacher, student in (([a], [b]), ([a], [a, b]), ([a], [a.double()])):
        with pytest.raises(UserError, match="differ in number, shape or dtype"):
            ema(teacher, student, momentum=0.9)
    with pytest.raises(UserError, match="momentum must be between 0 and 1, not 1.5"):
        ema([a], [a], momentum=1.5)
