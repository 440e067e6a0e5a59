"""The data module: an order and crops that depend on (seed, epoch, image) alone."""

import pytest
import torch

from certiqa.data.batches import CheckedLoader, collate_crops
from certiqa.data.datamodule import EpochOrder, QualityDataModule, TrainingCrops, collect_images
from certiqa.errors import UserError


def batches(data, epoch=0):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [next(iter(loader))]


def test_crops_do_not_depend_on_workers_and_change_with_seed_and_epoch(mini_cache):
    options = {"crop": 64, "batch_size": 4, "cache": mini_cache}
    first = batches(QualityDataModule(**options))[0]
    again = batches(QualityDataModule(num_workers=1, **options))[0]
    assert first["image_id"] == again["image_id"]
    assert torch.equal(first["image"], again["image"])
    assert first["image"].shape == (4, 3, 64, 64)
    other_epoch = batches(QualityDataModule(**options), epoch=1)[0]
    other_seed = batches(QualityDataModule(seed=1, **options))[0]
    assert first["image_id"] != other_epoch["image_id"]
    assert first["image_id"] != other_seed["image_id"]


def test_an_epoch_visits_every_image_once():
    order = EpochOrder([50], seed=3)
    order.set_epoch(7)
    assert sorted(order) == [(7, index) for index in range(50)]


def test_an_epoch_of_a_union_shows_equally_many_of_each_and_all_of_the_larger_one_over_several():
    order = EpochOrder([3, 8], seed=3)
    passes = []
    for epoch in range(4):
        order.set_epoch(epoch)
        rows = [row for _, row in order]
        assert len(rows) == len(order) == 6
        assert sorted(rows[::2]) == [0, 1, 2]
        assert all(3 <= row < 11 for row in rows[1::2])
        passes.append(rows[1::2])
    assert len({*passes[0], *passes[1]}) == 6  # none twice before the list is begun again
    assert passes[0] != passes[2]


def test_a_crop_larger_than_the_image_is_refused_by_name(mini_cache):
    for workers in (0, 1):
        data = QualityDataModule(crop=300, num_workers=workers, cache=mini_cache)
        with pytest.raises(UserError, match=r"^image .* is 224x224, smaller than the training crop of 300; set"):
            data.train_dataloader()
        with pytest.raises(UserError, match=r"^image .* is 224x224, smaller than the training crop of 300; set"):
            next(iter(CheckedLoader(TrainingCrops(data.train_set, 300, 0), sampler=[(0, 1)], collate_fn=collate_crops)))


def test_crops_lie_inside_the_image(mini_cache):
    images = QualityDataModule(cache=mini_cache).train_set
    item = TrainingCrops(images, 100, 0)[0, 5]
    windows = images[5]["image"].unfold(1, 100, 1).unfold(2, 100, 1)
    assert (windows == item["image"][:, None, None]).flatten(3).all(3).all(0).any()


def test_validation_spreads_over_its_list_and_test_can_be_limited(mini_cache):
    data = QualityDataModule(validation_images=25, limit_test=25, cache=mini_cache)
    for chosen in (data.validation_set, data.test_set):
        kinds = {record.image_id.split("/")[1].split("_")[0] for record in chosen.records}
        assert len(chosen) == 25
        assert len(kinds) >= 20
    assert len(QualityDataModule(limit_test=1, cache=mini_cache).test_set) == 1
    assert len(QualityDataModule(limit_test=124, cache=mini_cache).test_set) == 124
    assert len(QualityDataModule(limit_test=126, cache=mini_cache).test_set) == 125
    assert len(QualityDataModule(test="all", cache=mini_cache).test_set) == 625


def test_validation_takes_as_many_as_are_asked_for(mini_cache):
    found = {number: QualityDataModule(validation_images=number, cache=mini_cache) for number in (125, 126, 375, None)}
    assert [len(data.validation_set) for data in found.values()] == [125, 126, 375, 375]  # the short list has 125


def test_wrong_options_are_named():
    with pytest.raises(UserError, match=r"data.test must be quick or all, got 'some'"):
        QualityDataModule(test="some")
    with pytest.raises(UserError, match="batch sizes"):
        QualityDataModule(batch_size=0)


def test_collect_images_keeps_the_asked_order(mini_cache):
    images = QualityDataModule(cache=mini_cache).test_set
    ids = [images.records[3].image_id, images.records[0].image_id]
    batch = collect_images(images, ids)
    assert torch.equal(batch[0], images[3]["image"])
    assert torch.equal(batch[1], images[0]["image"])


def test_images_of_several_sizes_make_batches_of_one_size(tmp_path, miniatures):
    root = miniatures.spaq(tmp_path)
    data = QualityDataModule("spaq", root=root, test="all", crop=64, batch_size=4, eval_batch_size=4, splits="random")
    crops = next(iter(data.train_dataloader()))
    assert crops["image"].shape == (4, 3, 64, 64)
    shapes = [tuple(batch["image"].shape[1:]) for batch in data.test_dataloader()]
    assert len(set(shapes)) == len(set(data.test_set.sizes()))
    seen = [name for batch in data.test_dataloader() for name in batch["image_id"]]
    assert sorted(seen) == [record.image_id for record in data.test_set.records]
    limited = QualityDataModule("spaq", root=root, limit_test=1, validation_images=1)
    assert (len(limited.test_set), len(limited.validation_set)) == (1, 1)


def test_crops_that_do_not_fit_are_refused_before_any_step(tmp_path, miniatures):
    root = miniatures.spaq(tmp_path)
    with pytest.raises(UserError, match=r"\(the smallest of \d+ such images\) is 64x80, .* of 70; set data.crop=64"):
        QualityDataModule("spaq", root=root, crop=70).train_dataloader()
    with pytest.raises(UserError, match=r"have 3 sizes, a batch needs one; train on crops with data.crop=64"):
        QualityDataModule("spaq", root=root).train_dataloader()
    single = QualityDataModule("spaq", root=root, batch_size=1).train_dataloader()
    assert min(next(iter(single))["image"].shape[2:]) >= 64


def test_options_are_checked_where_they_are_given():
    with pytest.raises(UserError, match="data set 'koniq' has no option 'variant'"):
        QualityDataModule("koniq", variant="x")


@pytest.mark.parametrize(
    "wrong",
    [
        *({"limit_test": -1}, {"limit_test": 0}, {"limit_test": "5"}, {"validation_images": -2}, {"num_workers": -1}),
        *({"crop": 0}, {"crop": -5}),
    ],
    ids=str,
)
def test_numbers_that_are_no_counts_are_refused(wrong):
    ((key, value),) = wrong.items()
    with pytest.raises(UserError, match=rf"data\.{key} must be a whole number of at least \d.* got {value!r}"):
        QualityDataModule(**wrong)
