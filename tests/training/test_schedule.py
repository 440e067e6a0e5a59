"""The learning rate: warm-up and a cosine to zero, in each phase anew."""

import pytest
import torch

from certiqa.training.schedule import warm_cosine


def rates(phases, warmup, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = warm_cosine(optimizer, phases, warmup)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_one_phase_rises_in_a_line_and_falls_to_zero():
    found = rates([12], 2, 13)
    assert found[:3] == [0.5, 1.0, 1.0]
    assert found[7] == pytest.approx(0.5)  # half way down
    assert found[12] == 0


def test_each_phase_starts_again():
    assert rates([12, 8], 2, 20) == rates([12], 2, 12) + rates([8], 2, 8)
    assert rates([12, 8], 100, 20)[12:14] == [0.5, 1.0]  # the warm-up takes at most a quarter of a phase


def test_a_phase_without_steps_is_left_out():
    assert rates([0, 12, 0], 2, 13) == rates([12], 2, 13)


def test_nothing_is_learnt_after_the_last_step():
    assert rates([2], 0, 4)[2:] == [0, 0]
