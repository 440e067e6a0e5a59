"""The batches of a set attack: what may stand in them, and that they are the same every time."""

import pytest
import torch

from certiqa.attacks.set_batches import again, set_batches
from certiqa.errors import UserError

CPU = torch.device("cpu")


def of(count):
    return torch.zeros(count, 3, 4, 4)


def test_tensors_are_numbered_through_and_empty_batches_left():
    found = list(set_batches([of(2), of(0), {"image": of(1)}, of(2)], CPU))
    assert [names for _, names, _ in found] == [["0", "1"], ["2"], ["3", "4"]]
    assert [len(images) for images, _, _ in found] == [2, 1, 2]
    assert all(mos is None for _, _, mos in found)


def test_opinion_scores_brought_to_higher_is_better_come_before_those_of_the_set():
    batch = {"image": of(2), "image_id": [7, "b"], "mos": [1.0, 2.0]}
    ((_, names, mos),) = set_batches([batch], CPU)
    assert names == ["7", "b"]
    assert mos.tolist() == [1.0, 2.0]
    ((_, _, mos),) = set_batches([batch | {"mos_normalised": torch.tensor([4.0, 3.0])}], CPU)
    assert mos.tolist() == [4.0, 3.0]


@pytest.mark.parametrize(
    ("second", "handed_on"),
    [
        ([of(2)], [["0", "1"]]),
        ([of(2), of(1), of(1)], [["0", "1"], ["2"]]),
        ([of(1), {"image": of(1), "image_id": ["x"]}], [["0"]]),
        ([of(2), {"image": of(1), "image_id": ["x"]}], [["0", "1"]]),
        ([of(2), {"image": of(1), "image_id": ["1"]}], [["0", "1"]]),
        ([{"image": of(2), "image_id": ["1", "1"]}], []),
    ],
    ids=["fewer", "more", "another", "another, as many", "one again", "one twice"],
)
def test_images_that_are_others_the_second_time_are_refused(second, handed_on):
    places = {"0": 0, "1": 1, "2": 2}
    assert [names for _, names, _ in again([of(1), of(2)], CPU, places)] == [["0"], ["1", "2"]]
    given = []
    with pytest.raises(UserError, match="a later pass over the set"):
        given.extend(names for _, names, _ in again(second, CPU, places))
    assert given == handed_on
