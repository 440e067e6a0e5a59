import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from certiqa.attacks import ATTACKS, NES, BlackBox, OnePixel, Parsimonious, PatchRS, Square, load_attack
from certiqa.attacks.base import image_generator
from certiqa.attacks.parsimonious import blocks_of
from certiqa.attacks.registry import options_of
from certiqa.attacks.square import window_share
from certiqa.attacks.target import Target
from certiqa.errors import UserError
from certiqa.metrics import FrozenMetric, QualityMetric

NAMES = ("square", "ran", "nes", "parsimonious", "onepixel", "patch_rs")
QUERIES = 90
OPTIONS = {"nes": {"step_size": 1.0, "pairs": 8}, "parsimonious": {"blocks": 2}}  # which a small budget can feel


def make(name, queries=QUERIES, **options):
    return load_attack(name, queries=queries, **{**OPTIONS.get(name, {}), **options})


@pytest.fixture
def photos():
    """Three images of 40x56 pixels on the 8-bit grid, black and white included."""
    draws = torch.rand(3, 3, 40, 56, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return ((draws * 1.2 - 0.1).clamp(0, 1) * 255).round() / 255


@pytest.fixture
def metric(curved_metric):
    # in double precision rounding breaks no ties, which it may do otherwise in batches of another size
    return curved_metric.double()


class Counting(QualityMetric):
    """Not differentiable, fails where gradients are on, and remembers what it was asked."""

    name = "counting"
    score_range = (0, 1)

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.images = 0
        self.largest = 0

    def forward(self, images, *, image_ids=None, generator=None):
        assert not torch.is_grad_enabled()
        assert not images.requires_grad
        self.images += len(images)
        self.largest = max(self.largest, len(images))
        return torch.from_numpy(self.inner(images).numpy().copy())


@pytest.mark.parametrize("name", NAMES)
def test_queries_alone_and_as_many_as_allowed(name, metric, photos, monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("a black-box attack asked for a gradient")

    for method in ("objective", "gradient", "differentiate"):
        monkeypatch.setattr(Target, method, fail)
    attack = make(name, batch_size=16)
    counting = Counting(metric)
    result = attack.craft(counting, photos)
    assert not attack.uses_gradient
    assert counting.images == result.forward_calls
    assert counting.largest <= 16
    assert result.gradient_calls == 0
    spare = 2 if name == "nes" else 0  # one or two are too few for an estimate and a step
    assert 3 * (QUERIES - spare) <= result.forward_calls <= 3 * QUERIES


@pytest.mark.parametrize("name", NAMES)
def test_the_score_moves_inside_the_budget(name, metric, photos):
    attack = make(name)
    before = photos.clone()
    for direction, sign in (("raise", 1), ("lower", -1)):
        result = attack.craft(metric, photos, direction)
        change = result.unrounded - photos
        assert bool((sign * (metric(result.unrounded) - metric(photos)) > 0).all())
        assert 0 <= float(result.images.min()) <= float(result.images.max()) <= 1
        assert torch.equal((result.images * 255).round() / 255, result.images)
        if attack.norm == "linf":
            assert float(change.abs().max()) <= attack.eps + 1e-9
            assert float((result.images - photos).abs().max()) <= attack.eps + 1e-6
        else:
            allowed = attack.pixels if name == "onepixel" else attack.side**2
            assert int((change != 0).any(dim=1).flatten(1).sum(dim=1).max()) <= allowed
    assert torch.equal(before, photos)


@pytest.mark.parametrize("name", NAMES)
def test_a_function_of_seed_and_image_alone(name, metric, photos):
    attack = make(name)
    ids = ["a", "b", "c"]
    together = attack.craft(metric, photos, image_ids=ids).unrounded
    assert torch.equal(together, attack.craft(metric, photos, image_ids=ids).unrounded)
    assert not torch.equal(together, attack.craft(metric, photos, image_ids=ids, seed=1).unrounded)
    alone = [attack.craft(metric, photos[row : row + 1], image_ids=[ids[row]]).unrounded for row in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))
    split = make(name, batch_size=7).craft(metric, photos, image_ids=ids).unrounded
    torch.testing.assert_close(together, split)


@pytest.mark.parametrize("name", NAMES)
def test_lower_better_turns_the_direction(name, metric, photos):
    attack = make(name)
    lowered = attack.craft(metric, photos, "lower").unrounded
    metric.lower_better = True
    torch.testing.assert_close(attack.craft(metric, photos, "raise").unrounded, lowered)


@pytest.mark.parametrize("name", NAMES)
def test_more_queries_are_never_worse_than_none(name, metric, photos):
    for queries in (2, 3, 10):
        result = make(name, queries=queries).craft(metric, photos)
        assert result.forward_calls <= 3 * queries
        assert bool((metric(result.unrounded) >= metric(photos)).all())
    constant = FrozenMetric(Constant(), name="constant")
    assert torch.equal(make(name).craft(constant, photos).unrounded, photos)


class Constant(nn.Module):
    def forward(self, images):
        return images.flatten(1).mean(1) * 0 + 0.5


class Patchy(nn.Module):
    """The second image has no score."""

    def forward(self, images):
        scores = images.flatten(1).mean(1)
        return torch.where(images[:, 0, 0, 0] > 0.99, torch.nan, scores)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_without_score_is_marked_and_others_go_on(name):
    images = torch.full((3, 3, 20, 24), 0.5)
    images[1] = 1
    result = make(name).craft(FrozenMetric(Patchy(), name="patchy"), images)
    assert bool(result.failed[1])
    assert result.images.isfinite().all()
    assert bool((result.images[[0, 2]].mean(dim=(1, 2, 3)) > 0.5).all())


def best_of_linear(metric, images, eps):
    return metric((images + eps * metric.network.weight.sign()).clamp(0, 1)) - metric(images)


def test_square_nears_the_linear_optimum_from_below(linear_metric, images):
    metric = linear_metric()
    optimum = best_of_linear(metric, images, 0.1)
    shares = []
    for queries in (100, 2000):
        result = Square(0.1, queries=queries).craft(metric, images)
        gain = metric(result.unrounded) - metric(images)
        assert bool((gain <= optimum + 1e-6).all())
        shares.append(float((gain / optimum).min()))
    assert shares[1] > shares[0]
    assert shares[1] > 0.8


def test_parsimonious_reaches_the_linear_optimum(linear_metric, images):
    metric = linear_metric().double()
    images = images.double()
    result = Parsimonious(0.1, queries=5000).craft(metric, images)
    assert result.forward_calls < 4 * 5000  # it knows when it is done
    torch.testing.assert_close(metric(result.unrounded) - metric(images), best_of_linear(metric, images, 0.1))


def test_a_pass_of_parsimonious_finds_the_signs_of_block_sums(linear_metric):
    metric = linear_metric().double()
    image = torch.full((1, 3, 8, 8), 0.5, dtype=torch.float64)
    attack = Parsimonious(0.1, blocks=2, queries=5000)
    search = attack.search(image[0], float(metric(image)), torch.Generator().manual_seed(0))
    query = next(search)
    while query.count <= 12:  # until the pass over the finer grid begins
        query = search.send(metric(query.build(0, query.count)))
    corner = query.build(0, query.count).median(dim=0).values  # its candidates each try another block
    block_sums = metric.network.weight.view(3, 2, 4, 2, 4).sum(dim=(2, 4))
    signs = block_sums.sign().repeat_interleave(4, 1).repeat_interleave(4, 2)
    torch.testing.assert_close(corner, 0.5 + 0.1 * signs)


@pytest.mark.parametrize("size", [(8, 8), (40, 56), (7, 3)])
def test_blocks_cover_every_pixel_once_at_every_grid(size):
    image = torch.zeros(3, *size)
    for grid in (1, 2, 4, 8, 16, 64):
        seen = torch.zeros(3, *size)
        for channel, top, bottom, left, right in blocks_of(image, grid):
            assert bottom > top
            assert right > left
            seen[channel, top:bottom, left:right] += 1
        assert bool((seen == 1).all())


def test_nes_estimates_the_gradient_of_the_tile(linear_metric):
    metric = linear_metric(size=10).double()
    image = torch.rand(3, 10, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.6 + 0.2
    attack = NES(tile_size=4, pairs=500)
    search = attack.search(image, float(metric(image[None])), image_generator(0, "nes", "a"))
    query = next(search)
    assert query.count == 1000
    assert not query.kept
    moved = search.send(metric(query.build(0, query.count))).build(0, 1)[0] - image
    assert float(moved[:, :4, :4].norm()) == pytest.approx(0.1)
    torch.testing.assert_close(moved[:, 4:8, 4:8], moved[:, :4, :4])  # it repeats
    padded = torch.nn.functional.pad(metric.network.weight, (0, 2, 0, 2))
    tiled = padded.view(3, 3, 4, 3, 4).sum(dim=(1, 3))
    assert float(nn.functional.cosine_similarity(moved[:, :4, :4].flatten(), tiled.flatten(), dim=0)) > 0.9


def test_patch_stays_one_square_of_pure_colours(metric, photos):
    result = PatchRS(side=5, queries=200).craft(metric, photos)
    for image, clean in zip(result.images, photos, strict=True):
        rows, columns = (image != clean).any(dim=0).nonzero(as_tuple=True)
        assert int(rows.max() - rows.min()) < 5
        assert int(columns.max() - columns.min()) < 5
        colours = image[:, rows, columns]
        assert bool(((colours == 0) | (colours == 1)).all())


def test_the_schedule_halves_nine_times():
    shares = [window_share(0.8, step, 10_000) for step in range(10_000)]
    assert shares[0] == shares[10] == 0.8
    assert shares[11] == 0.4
    assert shares[-1] == 0.8 / 512
    assert [window_share(0.8, step, 500) for step in range(500)] == shares[::20]


def test_ran_leaves_its_own_score(metric, photos):
    attack = make("ran")
    assert attack.eps == pytest.approx(3 / 255)
    result = attack.craft(metric, photos, "away")
    assert result.forward_calls == 3 * QUERIES  # the look at the clean images is paid for

    class Mirrored(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = metric

        def forward(self, images):
            return 1 - self.inner(images)

    mirrored = attack.craft(FrozenMetric(Mirrored(), name="mirrored", score_range=(0, 1)), photos, "away")
    torch.testing.assert_close(mirrored.unrounded, result.unrounded)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (13, 13)])
def test_tiny_images(size, linear_metric):
    images = torch.rand(2, 3, *size)
    metric = FrozenMetric(Patchy(), name="mean")
    for name in NAMES:
        fitting = {"onepixel": {"pixels": 1}, "patch_rs": {"side": 1}}.get(name, {})
        assert make(name, queries=30, **fitting).craft(metric, images).images.shape == images.shape


@pytest.mark.parametrize(
    ("make_it", "words"),
    [
        (lambda: Square(queries=1), "attack.queries of square must be a whole number, at least 2"),
        (lambda: Square(2.0), "at most 1"),
        (lambda: Square(p_init=0), "attack.p_init"),
        (lambda: NES(sigma=0), "attack.sigma"),
        (lambda: NES(step_size=0), "attack.step_size"),
        (lambda: Parsimonious(blocks=0), "attack.blocks"),
        (lambda: OnePixel(members=2), "attack.members"),
        (lambda: load_attack("square", querys=5), "Did you mean 'queries'"),
    ],
)
def test_options_out_of_range_are_named(make_it, words):
    with pytest.raises(UserError, match=words):
        make_it()


def test_a_patch_larger_than_the_image_is_refused(metric, photos):
    with pytest.raises(UserError, match="attack.side=41 .* at most 40"):
        PatchRS(side=41)(metric, photos)
    with pytest.raises(UserError, match="more than 40x56 pixels"):
        OnePixel(pixels=40 * 56 + 1)(metric, photos)


@pytest.mark.parametrize("name", [*NAMES, "uap", "cumulative_uap", "generative_uap"])
def test_the_configuration_is_the_class_defaults(name, pytestconfig):
    OmegaConf.register_new_resolver("fraction", lambda text: eval(str(text)), replace=True)
    config = OmegaConf.load(pytestconfig.rootpath / "conf" / "attack" / f"{name}.yaml")
    values = OmegaConf.to_container(config, resolve=True)
    assert values.pop("_target_") == f"certiqa.attacks.{ATTACKS[name].__name__}"
    assert set(values) == set(options_of(ATTACKS[name])) - ({"eps"} - set(values))
    configured, default = ATTACKS[name](**values), ATTACKS[name]()
    assert vars(configured) == vars(default)
    assert issubclass(ATTACKS[name], BlackBox) == (name in NAMES)
