"""What a run says of itself beyond its numbers: its time, its device, the figure that a search asked for."""

import pytest
import torch
from omegaconf import OmegaConf

from certiqa.entry import pipeline, slurm
from certiqa.entry.build import chosen_device
from certiqa.errors import UserError


def test_a_validation_figure_that_is_no_number_loses_nothing_and_is_said():
    class Trainer:
        def validate(self, module, data, verbose):
            return [{"val/srocc": float("nan"), "val/psnr": 24.0}]

    figures = pipeline.validate(Trainer(), None, None)
    assert figures == {"val_srocc": None, "val_psnr": 24.0}
    assert pipeline.optimised(OmegaConf.create({"optimise": "val_psnr"}), figures) == 24.0
    with pytest.raises(UserError, match=r"val_srocc of this run is not a number.*raise data.validation_images"):
        pipeline.optimised(OmegaConf.create({"optimise": "val_srocc"}), figures)


@pytest.mark.parametrize(
    ("asked", "there", "found"), [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu")]
)
def test_the_device_is_the_one_asked_for(monkeypatch, asked, there, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert chosen_device(OmegaConf.create({"trainer": {"accelerator": asked}})) == found
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds no GPU"):
        chosen_device(OmegaConf.create({"trainer": {"accelerator": "gpu"}}))


def test_an_unanswered_question_to_slurm_submits_nothing(monkeypatch):
    answers = [None, None, {"7_0": slurm.Standing("RUNNING", "None")}]
    monkeypatch.setattr(slurm, "standings", lambda jobs: answers.pop(0))
    assert slurm.standings_for_sure(["7_0"], pause=0)["7_0"].state == "RUNNING"
    monkeypatch.setattr(slurm, "standings", lambda jobs: None)
    with pytest.raises(UserError, match=r"squeue does not answer.*nothing was submitted"):
        slurm.standings_for_sure(["7_0"], tries=2, pause=0)
