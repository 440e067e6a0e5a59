"""What is said of overrides that Hydra's grammar does not take: one sentence with what to type."""

import re
import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from certiqa.entry import app
from certiqa.entry.quoting import advice_on


def said_of(typed, *before):
    with pytest.raises(OverrideParseException) as caught:
        OverridesParser.create().parse_overrides([typed])
    return advice_on(caught.value, [*before, typed])


@pytest.mark.parametrize(
    "value",
    [
        "ckpts/epoch=3-step=40.ckpt",
        "/data/my photos (1)",
        "~/runs",
        "/data/Größe, 2. Hälfte (ä)",
        'it\'s (a) "name"',
        "back\\slash (1)",
        "'half quoted (1)",
    ],
)
def test_what_is_to_be_typed_gives_the_value_that_was_meant(value):
    said = said_of(f"data.root={value}")
    assert "\n" not in said
    assert "must be quoted; type " in said
    (typed,) = shlex.split(said.rpartition("; type ")[2])
    (override,) = OverridesParser.create().parse_overrides([typed])
    assert (override.key_or_group, override.value()) == ("data.root", value)


def test_a_blank_after_the_sign_is_said():
    said = said_of("/data/photos", "seed=1", "data.root=")
    assert said.startswith("'/data/photos' is no option: there must be no blank around the = of an option; ")
    assert said.endswith("type 'data.root=\"/data/photos\"'")
    assert said_of("/data/photos").endswith("; write key=value")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("größe=3", "'größe' is no key"),
        ("certification.radii=[0.1,(", r"""as in 'certification\.radii=\["a b","c"\]'"""),
        ("data.root=${oc.env:HOME", "cannot read the value of"),
    ],
)
def test_what_no_quotes_mend_is_said_too(typed, said):
    assert re.search(said, said_of(typed))


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("seed=0,1", "'seed=0,1' gives several values: -m runs each of them, 'seed=[0,1]' is a list of them, and "),
        ("seed=range(0,3)", "'seed=range(0,3)' gives several values: -m runs each of them"),
        ("data.root=a=b", "cannot read the value of 'data.root=a=b'"),
    ],
)
def test_the_command_says_it_in_one_line(sweep, argument, said):
    code, _, errors, _ = sweep("defense=none", argument, several=False)
    assert code == 1
    assert errors.startswith(f"certiqa: {said}")
    assert errors.count("\n") == 1


def test_what_lightning_refuses_is_one_message():
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    assert app.explain(MisconfigurationException("no such\n  plan")) == (
        "Lightning cannot run with these options: no such plan"
    )


@pytest.mark.parametrize(("full_error", "shown"), [("0", False), ("false", False), ("1", True)])
def test_a_traceback_is_shown_for_1_alone(sweep, full_error, shown):
    code, _, errors, _ = sweep("defense=none", "sigmma=1", several=False, full_error=full_error)
    assert code == 1
    assert ("Traceback" in errors) == shown
