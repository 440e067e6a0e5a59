"""What every defense keeps: it says of itself what the metric inside says, stays frozen, and has what it states."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from certiqa.attacks import load_attack
from certiqa.certification import certify
from certiqa.defenses import (
    Defense,
    Flip,
    MedianSmoothing,
    PurifiedMetric,
    PurifierEnsemble,
    RandomRotate,
    Resize,
    undefended,
)
from certiqa.denoisers import UNet
from certiqa.entry import identity
from certiqa.entry.agreement import kind_of
from certiqa.entry.build import build_defense
from certiqa.errors import UserError
from certiqa.metrics import QualityMetric
from certiqa.training import DefenseModule, DenoisingObjective
from certiqa.training.corruption import Attacked

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "defense").glob("*.yaml"))
SMOOTHED = {"ms", "dms", "dms_iqa", "chain"}
WITH_DENOISER = {"dms", "dms_iqa"}
RESTORERS = {"dncnn", "drunet", "scunet", "nafnet", "swinir", "real_esrgan", "mprnet", "restoration", "disco"}
WITH_NETWORK = {"fcn", "diffpure", "diffpure_unsharp", *RESTORERS}
FACTS = ("score_range", "lower_better", "hard_bounds", "weights_source")


class Inside(QualityMetric):
    """A metric with facts of its own, that a training mode would change and that protects itself from nothing."""

    name = "inside"
    score_range = (-2.0, 5.0)
    lower_better = True
    hard_bounds = (-2.0, 5.0)
    min_size = 11
    weights_source = "inside.safetensors"

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Dropout())

    def forward(self, images, *, image_ids=None, generator=None):
        self.check_images(images)
        return self.layers(images.float()).mean(dim=(1, 2, 3)).tanh() * 3.5 + 1.5


class OnesOwn(Defense):
    """The least that a defense of one's own is."""

    def forward(self, images, *, image_ids=None, generator=None):
        return self.metric(images, image_ids=image_ids, generator=generator)


def inside():
    torch.manual_seed(0)
    return Inside()


def of_classes():
    """Return defenses that no config names, by what they are."""
    torch.manual_seed(0)
    smooth = MedianSmoothing(inside(), 0.1, 5, UNet((4, 4)), before=Resize(scale=0.5))
    ensemble = PurifierEnsemble(inside(), ["flip", RandomRotate(10)], draws=2)
    return {
        "one's own": OnesOwn(inside(), "one's own"),
        "smoothed behind a resize": smooth,
        "smoothed purified": MedianSmoothing(PurifiedMetric(inside(), Flip()), 0.1, 5),
        "purified smoothed": PurifiedMetric(smooth, Flip()),
        "purified twice": PurifiedMetric(PurifiedMetric(inside(), Resize(scale=0.5)), Flip()),
        "ensemble": ensemble,
        "purified ensemble": PurifiedMetric(ensemble, Flip()),
    }


CLASSES = sorted(of_classes())


@pytest.fixture(scope="module")
def make_named(tmp_path_factory, networks):
    """Make the defense of a config around a metric: ``make_named("jpeg")`` returns config and defense."""
    identity.register_resolvers()

    def make(name):
        folder = tmp_path_factory.mktemp(name)
        options = [f"defense={name}", f"paths.run={folder}", "num_samples=5", "certification.radii=[0.02]"]
        if name == "disco":
            options.append(f"defense.weights={networks.write_disco(folder)[0]}")
        elif name in RESTORERS:
            # any network is one that the general restorer loads
            options.append(f"defense.weights={networks.write('dncnn' if name == 'restoration' else name, folder)[1]}")
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("train", options)
        return config, build_defense(config, inside(), trained=False)

    return make


@pytest.fixture(scope="module", params=[*NAMES, *CLASSES], ids=lambda name: name.replace(" ", "-"))
def case(request, make_named):
    """The name and the defense, one after the other."""
    if request.param in CLASSES:
        return request.param, of_classes()[request.param]
    return request.param, make_named(request.param)[1]


def picture(defense, less=0):
    side = max(*defense.min_sides, *undefended(defense).min_sides) - less
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_a_defense_says_what_the_metric_inside_says(case):
    name, defense = case
    assert isinstance(undefended(defense), Inside)
    if name == "none":
        assert undefended(defense) is defense
        return
    assert isinstance(defense, Defense)
    assert isinstance(defense.metric, QualityMetric)
    assert {fact: getattr(defense, fact) for fact in FACTS} == {fact: getattr(Inside, fact) for fact in FACTS}
    assert (defense.range_width, defense.quality_sign) == (7.0, -1)
    assert defense.name == name or name in CLASSES
    assert next(iter(defense.state_dict())).startswith("metric.")


def test_it_takes_images_from_its_least_size_on(case):
    _, defense = case
    assert defense.min_size == max(defense.min_sides)
    with torch.no_grad():
        scores = defense(picture(defense), image_ids=["a"])
    assert scores.shape == (1,)
    assert -2 <= float(scores) <= 5
    with pytest.raises(UserError, match="needs images of at least"):
        defense(picture(defense, less=picture(defense).shape[-1] - defense.min_size + 1), image_ids=["a"])


def test_it_stays_frozen_and_in_eval_mode_whatever_is_asked(case):
    name, defense = case
    if name == "none":
        return  # a plain metric looks after itself
    for asked in (True, False, True):
        assert defense.train(asked) is defense
        assert not any(module.training for module in defense.modules())
    nn.Sequential(defense).train()
    assert not any(module.training for module in defense.modules()), "as part of a larger module"
    assert not any(parameter.requires_grad for parameter in defense.parameters())


def test_it_is_certifiable_where_it_can_be_certified(case):
    name, defense = case
    assert defense.certifiable == (name in SMOOTHED or name.startswith("smoothed"))
    images = picture(defense)
    if not defense.certifiable:
        with pytest.raises(UserError, match=f"'{defense.name}' cannot be certified"):
            certify(defense, images, 0.005)
        return
    certificate = certify(defense, images, 0.005, num_samples=100, confidence=0.9)
    assert certificate.score.shape == (1,)
    assert defense.num_samples == 5


def test_it_purifies_with_what_it_states(case):
    name, defense = case
    purified = name.startswith("purified") or name not in {*SMOOTHED, *CLASSES, "none", "ensemble"}
    assert (defense.purified_by is not None) == purified
    stages = defense.stages(picture(defense), ["a"])
    if purified and name not in {"purified smoothed", "purified ensemble"}:
        expected = ["purified"]
    elif defense.certifiable:
        expected = ["noisy"] if defense.trained_network is None else ["noisy", "denoised"]
    else:
        expected = []
    assert list(stages) == expected
    if purified:
        assert defense.purified_by is defense.purifier
        assert defense.kind == defense.purifier.name
        if "purified" in stages and name not in CLASSES:
            assert torch.equal(stages["purified"], defense.purify(picture(defense), ["a"]))


def test_what_it_trains_is_what_training_accepts(case):
    name, defense = case
    network = defense.trained_network
    assert (network is not None) == (name in {*WITH_DENOISER, *WITH_NETWORK, "smoothed behind a resize"})
    on_noise, on_attacks = None, Attacked(load_attack("fgsm"), undefended(defense))
    fit = on_noise if defense.purified_by is None else on_attacks
    for corruption in (on_noise, on_attacks):
        arguments = (defense, DenoisingObjective(), lambda own: torch.optim.Adam(own))
        if network is None or corruption is not fit:
            with pytest.raises(UserError, match="has none"):
                DefenseModule(*arguments, corruption=corruption)
            continue
        module = DefenseModule(*arguments, corruption=corruption)
        assert (module.denoiser, module.base_metric) == (network, undefended(defense))
        module.setup("fit")
        learning = {id(each) for each in defense.parameters() if each.requires_grad}
        assert learning == {id(each) for each in network.parameters()}
        network.train()
        assert {each for each in defense.modules() if each.training} == set(network.modules())
        module.on_fit_end()
        assert not any(each.training for each in defense.modules())
        assert not any(each.requires_grad for each in defense.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_config_builds_what_it_is_called(name, make_named):
    config, defense = make_named(name)
    assert kind_of(config, defense) == name


def test_what_every_image_leaves_too_small_is_refused():
    with pytest.raises(UserError, match=r"metric 'inside' is too small: .* 11x11 pixels; let resize keep more"):
        PurifiedMetric(inside(), Resize(size=10))
    with pytest.raises(UserError, match=r"metric 'inside' is too small: .* 11x11 pixels; let the step before it keep"):
        MedianSmoothing(inside(), 0.1, before=Resize(size=10))
    with pytest.raises(UserError, match=r"metric 'inside' is too small"):
        PurifierEnsemble(inside(), [Flip(), Resize(size=10)])


def test_a_defense_of_a_random_metric_is_random():
    around = PurifiedMetric(inside(), RandomRotate(10))
    assert OnesOwn(around, "own").is_random
    assert PurifiedMetric(around, Flip()).is_random
    assert PurifierEnsemble(around, [Flip()]).is_random
    assert not OnesOwn(inside(), "own").is_random
    assert OnesOwn(around, "own").num_samples is None, "its score is a single draw"
