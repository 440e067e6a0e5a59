"""Several data sets as one."""

import pytest
import torch

from certiqa.data import load_dataset
from certiqa.data.datamodule import QualityDataModule
from certiqa.data.published import ENVIRONMENT
from certiqa.errors import UserError
from certiqa.training.objective import DenoisingObjective


@pytest.fixture
def sets(tmp_path, mini_cache):
    """A set of one's own, whose scores are better the lower they are, beside the embedded one."""
    lines = ["image,dmos"]
    images = load_dataset("mini", "validation", cache=mini_cache)
    for row, record in enumerate(images.records[:20]):
        (tmp_path / f"{row}.png").symlink_to(record.path)
        lines.append(f"{row}.png,{5 * row}")
    (tmp_path / "scores.csv").write_text("\n".join(lines) + "\n")
    return {"folder": {"root": tmp_path, "mos_range": (0, 100), "lower_better": True}, "mini": {"guises": 0}}


def test_images_keep_their_scores_on_the_common_scale_and_say_where_they_are_of(sets, mini_cache):
    union = load_dataset("union", "train", sets=sets, cache=mini_cache, mos_range=(0, 10))
    one = load_dataset("folder", "train", **sets["folder"])
    assert union.sources == {"folder": len(one), "mini": 1750}
    assert union.mos_kind == "MOS and pseudo-MOS"
    by_id = {record.image_id: record for record in union.records}
    for record in one.records:
        assert by_id[f"folder/{record.image_id}"].mos == pytest.approx(10 - record.mos / 10)
    first = load_dataset("mini", "train", cache=mini_cache).records[0]
    assert by_id[f"mini/{first.image_id}"].mos == pytest.approx(10 * (first.mos - 1) / 4)
    assert by_id[f"mini/{first.image_id}"].reference_id == f"mini/{first.reference_id}"
    assert any("compare images of different sets" in note for note in union.notes)
    other = load_dataset("union", "train", sets={"mini": {}}, cache=mini_cache)
    assert other.fingerprint != union.fingerprint
    assert other.notes == ()


def test_a_batch_holds_equally_many_of_each(sets, mini_cache):
    data = QualityDataModule("union", sets=sets, cache=mini_cache, batch_size=4, crop=32)
    loader = data.train_dataloader()
    assert len(loader) == 2 * data.train_set.sources["folder"] // 4
    for batch in loader:
        assert batch["source"] == ["folder", "mini"] * 2
        assert torch.equal(batch["mos_normalised"], (batch["mos"] - 1) / 4)


def test_opinion_scores_of_several_sets_are_not_ranked_together(sets, mini_cache):
    union = load_dataset("union", "train", sets=sets, cache=mini_cache)
    ranking = DenoisingObjective(ranking_weight=1, target_weight=1)
    with pytest.raises(UserError, match="those of folder and mini are not comparable.*objective.ranking_weight=0"):
        ranking.check_opinions(union.has_opinions, union.sources)
    ranking.check_opinions(True, load_dataset("mini", "train", cache=mini_cache).sources)
    DenoisingObjective(target_weight=1).check_opinions(union.has_opinions, union.sources)


def test_wrong_sets_are_refused(sets, mini_cache, monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"no data set 'minni'.*Did you mean 'mini'"):
        load_dataset("union", sets={"minni": {}})
    with pytest.raises(UserError, match=r"'mini' has no option 'guise'.*Did you mean 'guises'"):
        load_dataset("union", sets={"mini": {"guise": 1}})
    with pytest.raises(UserError, match=r"data.sets must name data sets, and no union among them, got \['union'\]"):
        load_dataset("union", sets={"union": {"sets": {}}})
    with pytest.raises(UserError, match=r"data.sets must name data sets.*got \[\]"):
        load_dataset("union", sets={"mini": None})
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    with pytest.raises(UserError, match="livec"):
        load_dataset("union", sets={"livec": {}})
