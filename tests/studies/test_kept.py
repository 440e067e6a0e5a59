"""What a study keeps on disk: attacked images that were damaged are made again, never replayed."""

import numpy as np
import pytest
import torch

from certiqa.studies.kept import all_kept, file_of, is_kept, keep, mark_complete, replayed

IDS = ["a/1.png", "b.png"]


@pytest.fixture
def folder(tmp_path):
    keep(tmp_path, IDS, torch.arange(96, dtype=torch.uint8).view(2, 3, 4, 4))
    mark_complete(tmp_path)
    return tmp_path


def test_attacked_images_come_back_by_id(folder):
    assert all_kept(folder)
    back = replayed(folder, IDS[::-1], torch.zeros(2, 3, 4, 4))
    torch.testing.assert_close(back.flip(0) * 255, torch.arange(96.0).view(2, 3, 4, 4))


@pytest.mark.parametrize("damage", ["pixel", "cut", "empty", "shape", "deleted"])
def test_a_damaged_image_counts_as_not_made(folder, damage):
    path = file_of(folder, IDS[0])
    content = bytearray(path.read_bytes())
    if damage == "pixel":
        content[-9] ^= 1
    if damage == "shape":
        np.save(path, np.zeros((3, 2, 2), np.uint8))
    elif damage == "deleted":
        path.unlink()
    else:
        path.write_bytes({"pixel": content, "cut": content[:-9], "empty": b""}[damage])
    assert not is_kept(path)
    assert not all_kept(folder)
    assert is_kept(file_of(folder, IDS[1]))
