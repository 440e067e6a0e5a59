"""The contract of a quality metric: what check_metric lets pass, and what it names."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v2

from certiqa.errors import UserError
from certiqa.metrics import (
    FrozenMetric,
    MiniMetric,
    QualityMetric,
    as_metric,
    check_metric,
    load_metric,
    require_metric,
)
from certiqa.metrics.folding import fold_batch_norms
from certiqa.metrics.weights import SHIPPED


class Brightness(QualityMetric):
    """A metric that keeps the contract; each class below breaks one clause of it."""

    name = "brightness"
    score_range = (0.0, 1.0)
    hard_bounds = (0.0, 1.0)

    def __init__(self):
        super().__init__()
        self.eval()

    def forward(self, images, *, image_ids=None, generator=None):
        return images.flatten(1).mean(1)

    def train(self, mode=True):
        return super().train(False)


class Trainable(Brightness):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.9))

    def forward(self, images, **_):
        return self.scale * super().forward(images)


class Unseeded(Brightness):
    def forward(self, images, **_):
        return super().forward(images) * torch.rand(len(images))


class BatchNormalised(Brightness):
    def forward(self, images, **_):
        score = super().forward(images)
        return 0.8 * score - 0.1 * score.mean() + 0.1


class OrderDependent(Brightness):
    def forward(self, images, **_):
        return super().forward(images) * torch.linspace(0.5, 1, len(images))


class Detached(Brightness):
    def forward(self, images, **_):
        return super().forward(images.detach())


class Stepwise(Brightness):
    def forward(self, images, **_):
        return super().forward(0 * images + (images.detach() * 255).round() / 255)


class ExplodingGradient(Brightness):
    def forward(self, images, **_):
        return super().forward(images) + (images.flatten(1)[:, 0] * 0).sqrt()


class NotANumber(Brightness):
    def forward(self, images, **_):
        return super().forward(images) * torch.nan


class OneColumn(Brightness):
    def forward(self, images, **_):
        return super().forward(images)[:, None]


class OutOfBounds(Brightness):
    def forward(self, images, **_):
        return 1.2 * super().forward(images)  # only the white probe leaves [0, 1]


class Awakening(Brightness):
    def train(self, mode=True):
        return nn.Module.train(self, mode)


class Seeded(Brightness):
    """Random, but the same image id always gets the same number."""

    is_random = True

    def forward(self, images, *, image_ids=None, generator=None):
        shift = [torch.rand((), generator=torch.Generator().manual_seed(sum(name.encode()))) for name in image_ids]
        return super().forward(images) * torch.stack(shift)


VIOLATIONS = [
    (Trainable, {"frozen"}),
    (Unseeded, {"deterministic", "independent of the batch"}),
    (BatchNormalised, {"independent of the batch"}),
    (OrderDependent, {"independent of the batch"}),
    (Detached, {"differentiable"}),
    (Stepwise, {"differentiable"}),
    (ExplodingGradient, {"differentiable"}),
    (OneColumn, {"one score per image"}),
    (OutOfBounds, {"hard bounds"}),
    (Awakening, {"eval mode"}),
    (Seeded, {"not random"}),
]


def test_good_metrics_pass_every_check(linear_metric, curved_metric):
    for metric, size in ((Brightness(), None), (linear_metric(), 8), (curved_metric, 16)):
        report = check_metric(metric, size=size)
        assert report.ok, report.failures
        assert {"finite", "deterministic", "independent of the batch", "differentiable", "frozen"} <= set(report.passed)


@pytest.mark.parametrize(("broken", "named"), VIOLATIONS)
def test_each_violation_is_named_and_nothing_else(broken, named):
    report = check_metric(broken(), size=16)
    assert set(report.failures) == named
    assert not named & set(report.passed)
    with pytest.raises(UserError, match=next(iter(named))):
        report.raise_on_failure()


def test_nan_scores_are_named():
    failures = check_metric(NotANumber(), size=16).failures
    assert "nan" in failures["finite"]


class OneSize(nn.Module):
    """Takes images of 224x224 pixels alone, as networks with a fully connected end do."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3 * 224 * 224, 1)

    def forward(self, images):
        return self.head(images.flatten(1))


def test_a_metric_that_takes_one_size_is_told_to_say_so():
    report = check_metric(OneSize())
    assert list(report.failures) == ["one score per image"]
    reason = report.failures["one score per image"]
    assert reason.startswith("could not score 64x64 probe images: ")
    assert "shapes cannot be multiplied" in reason
    assert reason.endswith("set min_size to the smallest side that it takes")
    assert check_metric(OneSize(), sizes=[(224, 224)]).ok
    network = OneSize()
    network.min_size = 224
    reason = check_metric(network).failures["one score per image"]
    assert reason.startswith("could not score 256x320 probe images: ")
    assert reason.endswith("where it takes no such images, give the sizes that you test")


def test_a_plain_module_of_two_outputs_per_image_is_named():
    class TwoOutputs(nn.Module):
        def forward(self, images):
            return images.mean(dim=(2, 3))[:, :2]

    report = check_metric(TwoOutputs(), size=16)
    assert list(report.failures) == ["one score per image"]
    assert "(2, 2)" in report.failures["one score per image"]


def test_a_defended_metric_may_be_random_if_it_is_keyed_by_image():
    report = check_metric(Seeded(), size=16, defended=True)
    assert report.ok, report.failures
    assert set(check_metric(Unseeded(), size=16, defended=True).failures) >= {"deterministic"}
    assert check_metric(Trainable(), size=16, defended=True).ok  # a defense may hold what is being trained


def test_checking_leaves_the_mode_as_it_was():
    metric = Awakening()
    check_metric(metric, size=16)
    assert not metric.training


def test_require_metric_raises_all_failures_at_once():
    class Twice(Detached, Awakening):
        pass

    with pytest.raises(UserError, match=r"(?s)'brightness'.*differentiable.*eval mode"):
        require_metric(Twice())
    assert require_metric(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1))).name == "sequential"


class HalfBounded(QualityMetric):
    score_range = (0.0, float("inf"))


@pytest.mark.parametrize(
    "score_range", [(0, float("inf")), (float("nan"), 1), (5, 1), (1, 1), (1,)], ids=lambda value: str(value)
)
def test_a_range_that_is_none_is_refused_where_the_metric_is_built(linear_metric, score_range):
    with pytest.raises(UserError, match=r"score_range=.* of metric 'linear' must be \(low, high\).*None where there"):
        linear_metric(score_range=score_range)
    assert linear_metric(score_range=(5, 10)).score_range == (5.0, 10.0)


def test_a_metric_class_of_the_users_own_is_held_to_it_too():
    with pytest.raises(UserError, match=r"score_range=\(0\.0, inf\)"):
        as_metric(HalfBounded())


def test_as_metric_wraps_and_freezes_a_plain_module(images):
    class Mine(nn.Module):
        score_range = (0, 10)
        lower_better = True
        min_size = 4
        weights_source = "random (seed 0)"

        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 1))

        def forward(self, images):
            return self.layers(images)

    network = Mine()
    metric = as_metric(network)
    assert isinstance(metric, FrozenMetric)
    assert (metric.name, metric.score_range, metric.lower_better, metric.min_size) == ("mine", (0.0, 10.0), True, 4)
    assert metric.range_width == 10
    assert metric.quality_sign == -1
    assert metric.weights_source == "random (seed 0)"
    assert not any(parameter.requires_grad for parameter in network.parameters())
    metric.train()
    assert not any(module.training for module in metric.modules())
    probe = images.clone().requires_grad_(True)
    scores = metric(probe, image_ids=list("abcd"), generator=None)
    torch.testing.assert_close(scores, network.layers[2](images.flatten(1)).squeeze(1))
    assert torch.autograd.grad(scores.sum(), probe)[0].abs().max() > 0

    assert as_metric(metric) is metric
    with pytest.raises(UserError, match="function"):
        as_metric(lambda images: images.mean(dim=(1, 2, 3)))


@pytest.mark.parametrize(
    ("shape", "dtype", "named"),
    [
        ((2, 3, 3, 9), torch.float32, "at least 4x4 pixels, got 3x9"),
        ((3, 8, 8), torch.float32, r"\(3, 8, 8\); add the batch axis"),
        ((2, 1, 8, 8), torch.float32, r"\(2, 1, 8, 8\); repeat a grey image's channel"),
        ((2, 8, 8, 3), torch.float32, r"\(2, 8, 8, 3\); put the channels first"),
        ((2, 3, 8, 8), torch.uint8, "uint8.*divide 8-bit images by 255"),
    ],
)
def test_images_a_metric_cannot_score_are_refused(linear_metric, shape, dtype, named):
    with pytest.raises(UserError, match=named):
        linear_metric(min_size=4)(torch.zeros(shape, dtype=dtype))


def test_a_scale_of_255_is_refused_and_noise_is_not(linear_metric):
    metric = linear_metric()
    with pytest.raises(UserError, match="a pixel of 200; divide"):
        metric(torch.full((1, 3, 8, 8), 200.0))
    assert metric(torch.randn(2, 3, 8, 8)).isfinite().all()


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (lambda images: [0.5] * len(images), "a list"),
        (lambda images: 0.5, "a float"),
        (lambda images: images.mean(), r"shape \(\)"),
        (lambda images: images.mean(dim=(2, 3)), r"shape \(2, 3\)"),
    ],
)
def test_answers_that_are_no_scores_are_named(answer, named):
    class Mine(nn.Module):
        def forward(self, images):
            return answer(images)

    class MineToo(Brightness):
        def forward(self, images, **_):
            return answer(images)

    assert list(check_metric(Mine(), size=16).failures) == ["one score per image"]
    assert list(check_metric(MineToo(), size=16).failures) == ["one score per image"]
    with pytest.raises(UserError, match=f"'mine' returned {named} for 2 images"):
        as_metric(Mine())(torch.rand(2, 3, 16, 16))


def test_a_column_of_scores_is_taken_from_a_plain_module():
    class Column(nn.Module):
        def forward(self, images):
            return images.mean(dim=(1, 2, 3))[:, None]

    assert check_metric(Column(), size=16).ok
    assert as_metric(Column())(torch.rand(3, 3, 16, 16)).shape == (3,)


def test_the_embedded_metric_keeps_the_contract():
    metric = load_metric("mini")
    assert isinstance(metric, MiniMetric)
    report = check_metric(metric)
    assert report.ok, report.failures
    assert "hard bounds" in report.passed
    with pytest.raises(UserError, match="at least 32x32"):
        metric(torch.zeros(1, 3, 31, 40))


def test_the_embedded_metric_says_where_its_weights_came_from(tmp_path):
    shipped = SHIPPED / "mini_metric.safetensors"
    assert load_metric("mini").weights_source == "shipped"
    (tmp_path / "mine.safetensors").symlink_to(shipped)
    assert load_metric("mini", weights=tmp_path / "mine.safetensors").weights_source == "mine.safetensors"


def test_an_unknown_metric_is_answered_with_the_nearest_name():
    with pytest.raises(UserError, match=r"no metric 'minni'.*Did you mean 'mini'\?"):
        load_metric("minni")


def test_fused_batch_norms_leave_the_function_unchanged():
    generator = torch.Generator().manual_seed(3)
    backbone = mobilenet_v2(weights=None).features[:14].eval()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.2, 2.0),
            ):
                tensor.uniform_(low, high, generator=generator)
    images = torch.rand(2, 3, 32, 32, generator=generator)
    with torch.no_grad():
        before = backbone(images)
        fold_batch_norms(backbone)
        after = backbone(images)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert before.std() > 0.01
    assert F.mse_loss(after, before).sqrt() < 1e-5 * before.std()
