"""Signals are for this project to answer, at a time that loses nothing."""

import os
import signal

import pytest
from omegaconf import OmegaConf

from certiqa.callbacks import DurableCheckpointIO
from certiqa.entry.build import build_trainer
from certiqa.entry.preemption import Requeue, stopping_on_signals


def test_a_trainer_leaves_signals_alone_and_checkpoints_are_written_here(tmp_path):
    options = {"_target_": "pytorch_lightning.Trainer", "accelerator": "cpu"}
    trainer = build_trainer(OmegaConf.create({"paths": {"run": str(tmp_path)}, "trainer": options}), [], [])
    assert isinstance(trainer.strategy.checkpoint_io, DurableCheckpointIO)
    with stopping_on_signals() as preemption:
        trainer._signal_connector.register_signal_handlers()
        assert signal.getsignal(signal.SIGTERM) == preemption.stop


def test_a_signal_is_noted_while_it_is_deferred_and_ends_the_run_after():
    with stopping_on_signals() as preemption:
        preemption.deferred = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.received == signal.SIGTERM, "and nothing was raised"
    with pytest.raises(Requeue, match="SIGTERM"):
        preemption.check()
