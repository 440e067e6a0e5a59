"""Chains keep the certificate's rules, and ensembles are medians."""

from pathlib import Path

import pytest
import torch
import yaml

from certiqa.attacks import load_attack
from certiqa.attacks.target import Target
from certiqa.certification import certify
from certiqa.defenses import (
    PURIFIERS,
    MedianSmoothing,
    PurifiedMetric,
    PurifierEnsemble,
    RandomNoise,
    Resize,
    build_chain,
    load_purifier,
    purified_images,
    undefended,
)
from certiqa.errors import UserError
from certiqa.metrics import check_metric

SIGMA = 0.1


def ms(metric, **more):
    return MedianSmoothing(metric, SIGMA, 12, **more)


def chain_of(metric, *steps, **options):
    return build_chain(metric, steps, **{"ms": ms, **options})


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(2, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(24, 32), mode="bilinear")


def test_before_the_noise_only_what_is_known_may_stand(curved_metric, pictures):
    for name, purifier in PURIFIERS.items():
        if name not in ("flip", "resize", "upscale", "gaussian_blur", "median_blur", "unsharp"):
            kind = "it is random" if purifier.is_random else "no bound on its Lipschitz constant"
            with pytest.raises(UserError, match=rf"{name} before the noise voids the certificate: {kind}"):
                chain_of(curved_metric, name, "ms")
    chain = chain_of(curved_metric, "median_blur", "resize", "gaussian_blur", "ms", resize={"scale": 0.5})
    known = load_purifier("resize", scale=0.5).lipschitz((24, 32)) * load_purifier("gaussian_blur").lipschitz((12, 16))
    assert chain.lipschitz((24, 32)) == pytest.approx(3 * known)
    bounds = certify(chain, pictures, [0.002], confidence=0.9, image_ids=["a", "b"])
    assert bounds.lipschitz[0] == pytest.approx(3 * known)
    with pytest.raises(UserError, match=r"random_crop before the noise.*defense.steps=\[ms,random_crop\]"):
        MedianSmoothing(curved_metric, SIGMA, before=load_purifier("random_crop"))


def test_behind_the_noise_anything_is_part_of_what_is_smoothed(curved_metric, pictures):
    chain = chain_of(curved_metric, "ms", "random_rotate", "jpeg", jpeg={"quality": 40})
    assert isinstance(chain, MedianSmoothing)
    assert (chain.name, chain.lipschitz((24, 32))) == ("chain", 1)
    assert undefended(chain) is curved_metric
    by_hand = PurifiedMetric(curved_metric, load_purifier("jpeg", quality=40), place=2)
    by_hand = ms(PurifiedMetric(by_hand, load_purifier("random_rotate"), place=1))
    ids = ["a", "b"]
    assert torch.equal(chain.sample_scores(pictures, image_ids=ids), by_hand.sample_scores(pictures, image_ids=ids))
    plain = ms(curved_metric)
    draws = torch.stack([chain.sample_scores(pictures, image_ids=ids), plain.sample_scores(pictures, image_ids=ids)])
    assert not torch.allclose(draws[0], draws[1])
    # at a noise that moves nothing, draws differ by the randomness behind it alone: it is fresh in every draw
    still = MedianSmoothing(PurifiedMetric(curved_metric, load_purifier("random_rotate", degrees=90)), 1e-9, 12)
    assert len(still.sample_scores(pictures[:1], image_ids=["a"]).unique()) == 12
    bounds = certify(chain, pictures, [0.01], confidence=0.9, image_ids=ids)
    assert (bounds.lower[:, 0] <= bounds.score).all()
    assert (bounds.score <= bounds.upper[:, 0]).all()


def test_a_chain_of_purifiers_alone(curved_metric, pictures):
    chain = chain_of(curved_metric, "resize", "flip", "jpeg", resize={"scale": 0.5})
    ids = ["a", "b"]
    expected = load_purifier("jpeg")(load_purifier("flip")(Resize(scale=0.5)(pictures)))
    assert torch.allclose(chain(pictures, image_ids=ids), curved_metric(expected), atol=1e-6)
    assert torch.equal(purified_images(chain, pictures, ids), expected)
    assert (chain.name, undefended(chain)) == ("chain", curved_metric)
    assert not isinstance(chain, MedianSmoothing)
    probe = pictures.clone().requires_grad_(True)
    chain(probe, image_ids=ids).sum().backward()
    assert probe.grad.abs().max() > 0, "jpeg has a stand-in by default"
    with pytest.raises(UserError, match="step 'resize' stops it"):
        load_attack("ifgsm")(chain_of(curved_metric, "resize", backward="none"), pictures)
    # two random steps of one chain do not share their draws
    twice = chain_of(curved_metric, "one", "two", one=RandomNoise(0.1), two=RandomNoise(0.1))
    grey = torch.full((1, 3, 64, 64), 0.5)
    assert float((purified_images(twice, grey, ["a"]) - grey).std()) == pytest.approx(0.1 * 2**0.5, rel=0.03)
    assert check_metric(twice, size=32, defended=True).ok
    assert purified_images(ms(curved_metric), pictures) is None
    assert purified_images(curved_metric, pictures) is None


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["resise", "ms"], r"no step 'resise'.*Did you mean 'resize'"),
        ([], "defense.steps is empty"),
        (["ms", "ms"], "smooths 2 times"),
        (["random_noise", "ms"], "random_noise before the noise voids the certificate: it is random"),
    ],
)
def test_bad_chains_are_refused(curved_metric, steps, message):
    with pytest.raises(UserError, match=message):
        chain_of(curved_metric, *steps)
    with pytest.raises(UserError, match="has no smoothing, so that nothing would use the denoiser"):
        chain_of(curved_metric, "flip", denoiser=torch.nn.Identity())


@pytest.mark.parametrize(
    "build",
    [lambda metric, step, **options: build_chain(metric, [step], **options),
     lambda metric, step, **options: PurifierEnsemble(metric, [step], **options)],
    ids=["chain", "ensemble"],
)  # fmt: skip
def test_options_are_of_a_step_or_of_a_purifier(build, curved_metric):
    for given in ({"quality": 20}, None, load_purifier("jpeg")):
        with pytest.raises(UserError, match=r"defense.jpge gives options to 'jpge'.*Did you mean 'jpeg'\?"):
            build(curved_metric, "flip", jpge=given)
    build(curved_metric, "flip", jpeg={"quality": 20}, fcn={"weights": None})
    assert build(curved_metric, "fcn", fcn={"weights": "mini_fcn"})
    for options in ({}, {"fcn": {}}, {"fcn": {"weights": "???"}}):
        with pytest.raises(UserError, match=r"'fcn' needs weights \(fcn_mse.pth.*defense\.fcn\.weights=path"):
            build(curved_metric, "fcn", **options)


def test_the_shipped_chain_holds_options_of_steps_that_are_not_used(curved_metric):
    options = yaml.safe_load((Path(__file__).parents[2] / "conf/defense/chain.yaml").read_text())["defense"]
    options = {key: value for key, value in options.items() if key not in ("_target_", "steps", "seed")}
    assert build_chain(curved_metric, ["flip", "jpeg"], **options).name == "chain"


def test_a_denoiser_comes_before_the_purifiers(curved_metric, pictures):
    class Grey(torch.nn.Module):
        def forward(self, images):
            return torch.full_like(images, 0.5)

    chain = chain_of(curved_metric, "ms", "color_quantization", denoiser=Grey(), color_quantization={"levels": 2})
    black = curved_metric(torch.zeros_like(pictures))
    assert torch.allclose(chain(pictures), black), "0.5 is rounded to the even level, 0"


def test_an_ensemble_is_the_median_of_its_members(curved_metric, pictures):
    ids = ["a", "b"]
    names = ["flip", "jpeg", "median_blur"]
    ensemble = PurifierEnsemble(curved_metric, names, jpeg={"quality": 20})
    scores = [
        curved_metric(load_purifier(name, **({"quality": 20} if name == "jpeg" else {}))(pictures)) for name in names
    ]
    assert torch.allclose(ensemble(pictures, image_ids=ids), torch.stack(scores).median(dim=0).values, atol=1e-6)
    assert not ensemble.is_random
    drawn = PurifierEnsemble(curved_metric, ["random_rotate", "flip"], draws=5, random_rotate={"degrees": 60}, seed=3)
    assert len(drawn.members) == 6
    singles = [member(pictures, image_ids=ids) for member in drawn.members]
    assert len(torch.stack(singles)[:, 0].unique()) == 6
    assert torch.allclose(drawn(pictures, image_ids=ids), torch.stack(singles).sort(0).values[2:4].mean(0))
    assert check_metric(drawn, size=32, defended=True).ok
    assert undefended(drawn) is curved_metric
    assert sum(key.endswith("features.weight") for key in drawn.state_dict()) == 1
    one = PurifierEnsemble(curved_metric, ["random_rotate"], draws=25)
    other = [PurifierEnsemble(curved_metric, ["random_rotate"], draws=25, seed=seed)(pictures) for seed in range(8)]
    lone = [PurifiedMetric(curved_metric, load_purifier("random_rotate"), seed=seed)(pictures) for seed in range(8)]
    assert torch.stack(other).std(0).mean() < torch.stack(lone).std(0).mean(), "a median varies less than one draw"
    assert one.stops_gradient() is None
    assert PurifierEnsemble(curved_metric, ["flip", "jpeg"], backward="none").stops_gradient() == "flip"
    for wrong in ({"purifiers": []}, {"purifiers": ["flip"], "draws": 0}):
        with pytest.raises(UserError, match="at least one purifier and one draw"):
            PurifierEnsemble(curved_metric, **wrong)


@pytest.mark.parametrize("kind", ["purifier", "ensemble"])
def test_an_attack_averages_over_fresh_draws_and_scores_share_theirs(kind, curved_metric, pictures):
    if kind == "purifier":
        metric = PurifiedMetric(curved_metric, load_purifier("random_rotate", degrees=60))
    else:
        metric = PurifierEnsemble(curved_metric, ["random_rotate"], draws=2, random_rotate={"degrees": 60})
    ids = ["a", "b"]
    target = Target(metric, pictures, image_ids=ids)
    gradients = [target.gradient(pictures)[1] for _ in range(3)]
    assert not torch.allclose(gradients[0], gradients[1])
    assert not torch.allclose(gradients[1], gradients[2])
    # one average over two draws is not one draw counted twice
    averaged = Target(metric, pictures, image_ids=ids, eot_samples=2).gradient(pictures)[1]
    single = Target(metric, pictures, image_ids=ids, eot_samples=1).gradient(pictures)[1]
    assert not torch.allclose(averaged, single)
    assert torch.equal(target.values(pictures), target.values(pictures)), "values can be compared"
    attack_scores = target.scores(pictures)
    assert not torch.allclose(attack_scores, metric(pictures, image_ids=ids)), "an attack never sees the score's draws"
    # an image that did not change scores the same whether it is called clean or attacked, alone or in a batch
    assert torch.equal(metric(pictures, image_ids=ids), metric(pictures.clone(), image_ids=ids))
    assert torch.allclose(metric(pictures[1:], image_ids=["b"]), metric(pictures, image_ids=ids)[1:], atol=1e-6)
