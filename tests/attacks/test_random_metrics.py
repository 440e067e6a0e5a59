"""What attacks ask of a metric that is random: how many draws, which ones, and what they may conclude from them."""

import hashlib

import pytest
import torch

from certiqa.attacks import ATTACKS, BlackBox, Noise, SetAttack, Suite, Target, UniversalAttack, load_attack
from certiqa.attacks.target import UNPUBLISHED_DRAWS
from certiqa.defenses import MedianSmoothing
from certiqa.metrics import QualityMetric

SIDE, EPS = 6, 8 / 255


class Jittery(QualityMetric):
    """A linear metric whose every draw adds noise to its weights: what suits one draw need not suit another.

    It remembers the names of its draws, those with a gradient apart.
    """

    name = "jittery"
    score_range = (-1, 1)
    is_random = True

    def __init__(self, noise=4.0, num_samples=None):
        super().__init__()
        self.weight = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
        self.noise = noise
        self.scored, self.differentiated = [], []
        if num_samples is not None:
            self.num_samples = num_samples

    def forward(self, images, *, image_ids=None, generator=None):
        (self.differentiated if images.requires_grad else self.scored).extend(image_ids)
        seeds = [int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "big") for name in image_ids]
        draws = [torch.randn(self.weight.shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return ((self.weight + self.noise * torch.stack(draws)) * images).flatten(1).mean(1)

    def expected(self, images):
        """Return the mean over all randomness ``(N,)``."""
        return (self.weight * images).flatten(1).mean(1)


def photos(count=4):
    return 0.3 + 0.4 * torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


def gain(attack, metric=None, images=None):
    """Return the mean share of the greatest gain there is that an attack makes under all randomness."""
    metric, images = metric or Jittery(), photos(8) if images is None else images
    attacked = attack.craft(metric, images).unrounded
    return float((metric.expected(attacked) - metric.expected(images)).mean() / (EPS * metric.weight.abs().mean()))


def test_black_box_attacks_ask_for_as_many_draws_as_a_published_score_takes():
    for num_samples, draws in ((7, 7), (None, UNPUBLISHED_DRAWS)):
        metric = Jittery(num_samples=num_samples)
        result = load_attack("square", eps=EPS, queries=5).craft(metric, photos())
        assert len(set(metric.scored)) == 4 * draws, "every query sees the same draws"
        assert len(metric.scored) == 4 * 5 * draws == result.forward_calls
    smoothed = MedianSmoothing(Jittery(), 0.1, 9)
    assert Target(smoothed, photos(), eot_samples=None).draws == 9
    assert Target(smoothed, photos(), eot_samples=3, through="median").draws == 9
    assert Target(smoothed, photos(), eot_samples=3).draws == 3


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if issubclass(attack, BlackBox)])
def test_every_black_box_attack_does_so_by_default_and_pays_the_look_of_away(name):
    options = {"onepixel": {"members": 3}, "nes": {"pairs": 1}, "patch_rs": {"side": 2}}.get(name, {})
    assert load_attack(name).eot_samples is None
    metric = Jittery(num_samples=3)
    result = load_attack(name, queries=9, **options).craft(metric, photos(2), "away")
    assert len(metric.scored) == result.forward_calls <= 2 * 9 * 3
    assert result.forward_calls >= 2 * (9 - 2 * (name == "nes")) * 3  # two are too few for an estimate and a step
    assert len(set(metric.scored)) == 2 * 3


def test_a_black_box_search_among_published_draws_carries_over_to_others():
    options = {"eps": EPS, "queries": 300, "p_init": 0.3}
    one = gain(load_attack("square", eot_samples=1, **options))
    published = gain(load_attack("square", **options), Jittery(num_samples=40))
    assert published > 0.5
    assert published > 1.5 * one


def test_a_gradient_averages_fresh_draws_at_every_step():
    metric = Jittery()
    result = load_attack("ifgsm", eps=EPS, steps=3, eot_samples=5).craft(metric, photos())
    assert len(set(metric.differentiated)) == len(metric.differentiated) == 3 * 5 * 4 == result.gradient_calls


def test_more_draws_find_more_of_the_mean_gradient():
    one, many = (gain(load_attack("ifgsm", eps=EPS, steps=1, eot_samples=draws)) for draws in (1, 30))
    assert many > one + 0.2


def test_a_gradient_through_the_median_counts_the_draws_that_it_ranks():
    smoothed = MedianSmoothing(Jittery(), 0.1, 9)
    result = load_attack("ifgsm", eps=EPS, steps=2, best=False, through="median").craft(smoothed, photos())
    assert (result.forward_calls, result.gradient_calls) == (4 * 2 * 9, 4 * 2)


def test_a_suite_judges_its_members_by_more_than_one_draw():
    strong, weak = load_attack("fgsm", eps=EPS, eot_samples=150), Noise(EPS)
    metric, images = Jittery(noise=10.0, num_samples=150), photos(8)
    chosen = Suite({"strong": strong, "weak": weak}).craft(metric, images)
    assert chosen.forward_calls == len(metric.scored) == 3 * 8 * 150
    assert torch.equal(chosen.images, strong(metric, images))


def batches(images):
    return [{"image": images[:3], "image_id": ["a", "b", "c"]}, {"image": images[3:], "image_id": ["d", "e", "f"]}]


def distinct(images=6):
    """Images whose expected scores are far apart."""
    shares = torch.linspace(-0.1, 0.1, images)[[3, 0, 5, 1, 4, 2]].view(-1, 1, 1, 1)
    return 0.5 + shares * Jittery().weight.sign()


@pytest.mark.parametrize("name", ["sma", "rank_inversion"])
def test_set_attacks_compare_scores_of_many_draws_and_differentiate_fresh_ones(name):
    metric = Jittery(noise=0.5)
    attack = load_attack(name, eps=EPS, steps=3, score_samples=11, eot_samples=2)
    shares = list(attack.craft_set(metric, batches(distinct())))
    assert len(set(metric.differentiated)) == len(metric.differentiated) == 6 * 3 * 2
    first = metric.scored[: 6 * 11]
    assert len(set(first)) == 6 * 11, "the survey averages score_samples draws of every image"
    assert sum(share.result.forward_calls for share in shares) == len(metric.scored)
    assert sum(share.result.gradient_calls for share in shares) == len(metric.differentiated)


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if issubclass(attack, SetAttack)])
def test_set_attacks_in_l2_use_their_radius_on_a_smoothed_metric(name, linear_metric):
    if ATTACKS[name].norm != "l2":
        pytest.skip("of l_inf")
    smoothed = MedianSmoothing(linear_metric(SIDE), 0.3, 9)
    images = 0.5 + 0.05 * torch.randn(12, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4))
    for plan in ("paper", "reverse") if name == "sma_l2" else (None,):  # targets far off, and among the scores
        options = {} if plan is None else {"plan": plan}
        attacked = load_attack(name, eps=0.06, steps=6, **options)(smoothed, images)
        lengths = (attacked - images).flatten(1).norm(dim=1)
        assert bool((lengths >= 0.9 * 0.06).all())
        assert bool((lengths <= 0.06 + 1e-6).all())


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if issubclass(attack, UniversalAttack)])
def test_training_a_pattern_sees_fresh_draws_at_every_step(name):
    metric = Jittery()
    metric.weight = torch.randn(3, 1, 1)
    options = {"size": 256, "width": 1} if name == "generative_uap" else {"size": 4, "lr": 1.0}
    attack = load_attack(name, epochs=3, eot_samples=2, **options)
    attack.fit(metric, [{"image": photos(2)[..., :1, :1].repeat(1, 1, SIDE, SIDE), "image_id": ["a", "b"]}])
    assert len(set(metric.differentiated)) == len(metric.differentiated) == 3 * 2 * 2
