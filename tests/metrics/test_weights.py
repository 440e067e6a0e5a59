"""Weights are read whole, safely and strictly, or refused with a sentence that says why."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from certiqa.errors import UserError
from certiqa.metrics.weights import fingerprint, load_strictly, read_weights

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([1.0, 2.0])}


class Foreign:
    """Unpickling this would run code of its author's choice."""

    def __reduce__(self):
        return (pytest.fail, ("a foreign class was unpickled",))


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_safetensors_come_with_their_metadata(tmp_path):
    save_file(STATE, tmp_path / "w.safetensors", metadata={"sigma": "0.12"})
    state, metadata = read_weights(tmp_path / "w.safetensors")
    assert equal(state, STATE)
    assert metadata == {"sigma": "0.12"}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"params": STATE},
        {"model": {f"module.{key}": value for key, value in STATE.items()}, "k": [1.0]},
    ],
)
def test_checkpoints_are_read_with_or_without_nesting(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    state, metadata = read_weights(str(tmp_path / "w.pt"))
    assert equal(state, STATE)
    assert metadata == {}


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "old.pt"])
def test_a_file_cut_anywhere_is_a_user_error(tmp_path, name):
    whole, cut = tmp_path / name, tmp_path / f"cut-{name}"
    if name.endswith("safetensors"):
        save_file(STATE, whole)
    else:
        torch.save(STATE, whole, _use_new_zipfile_serialization=name == "w.pt")
    content = whole.read_bytes()
    for length in range(0, len(content) - 1, len(content) // 40):
        cut.write_bytes(content[:length])
        with pytest.raises(UserError, match="cut-"):
            read_weights(cut)


@pytest.mark.parametrize("name", ["page.pt", "page.safetensors"])
def test_a_file_of_another_kind_is_a_user_error(tmp_path, name):
    (tmp_path / name).write_text("hello, this is a text")
    with pytest.raises(UserError, match="page"):
        read_weights(tmp_path / name)
    (tmp_path / name).write_text("\n<!DOCTYPE html><html>Sign in to continue</html>")
    with pytest.raises(UserError, match="is a web page, not weights"):
        read_weights(tmp_path / name)


def test_missing_files_and_contents_that_are_no_state_dict_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no weights at '.*nowhere\.pt'"):
        read_weights(tmp_path / "nowhere.pt")
    torch.save({"weights": STATE, "k": [1.0]}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="no state dict"):
        read_weights(tmp_path / "w.pt")


def test_a_foreign_class_is_refused_and_never_run(tmp_path):
    torch.save({"state_dict": STATE, "config": Foreign()}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="plain tensors"):
        read_weights(tmp_path / "w.pt")


def test_load_strictly_loads_what_fits():
    module = nn.Linear(3, 2)
    load_strictly(module, STATE, "here")
    assert equal(module.state_dict(), STATE)


def test_load_strictly_names_missing_unexpected_and_misshapen_keys_and_changes_nothing():
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    before = fingerprint(module)
    state = {
        "0.weight": torch.zeros(2, 3),
        "0.bias": torch.zeros(5),
        "1.weight": torch.zeros(1, 2),
        "head.bias": torch.zeros(1),
    }
    with pytest.raises(UserError) as caught:
        load_strictly(module, state, "file.pt")
    text = str(caught.value)
    assert "'file.pt' do not fit Sequential" in text
    assert "1 missing, first: 1.bias" in text
    assert "1 unexpected, first: head.bias" in text
    assert "1 of another shape, first: 0.bias (5,) for (2,)" in text
    assert fingerprint(module) == before


def test_the_fingerprint_changes_with_any_parameter_or_buffer_only():
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))
    before = fingerprint(module)
    assert len(before) == 16
    assert fingerprint(module.to(memory_format=torch.channels_last)) == before
    for tensor in module.state_dict().values():
        kept = tensor.clone()
        tensor[(0,) * tensor.ndim] += 1
        assert fingerprint(module) != before
        tensor.copy_(kept)
        assert fingerprint(module) == before
