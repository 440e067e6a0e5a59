"""The engine: however draws are batched, threaded or compiled, the scores are the same."""

import itertools
import threading

import pytest
import torch

from certiqa.defenses import MedianSmoothing, load_purifier
from certiqa.defenses.engine import GPU_LIMIT, GPU_START, BatchSize, DrawEngine, add_images
from certiqa.defenses.precision import full_float32
from certiqa.denoisers import load_denoiser
from certiqa.errors import UserError
from certiqa.metrics import QualityMetric, load_metric

SIGMA = 0.12
IDS = ["a.png", "b.png", "c.png", "d.png"]


class Watched(QualityMetric):
    """Remembers which threads called it, and how many threads their operators had."""

    def __init__(self, thread_safe):
        super().__init__()
        self.thread_safe = thread_safe
        self.threads = set()
        self.operators = set()

    def forward(self, images, **_):
        self.threads.add(threading.get_ident())
        self.operators.add(torch.get_num_threads())
        return images.flatten(1).mean(1)


def test_threads_do_not_change_the_scores():
    metric, denoiser = load_metric("mini"), load_denoiser("unet", weights="mini_dms")
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    draws = [
        MedianSmoothing(metric, SIGMA, 10, denoiser, workers=workers, batch_size=size).sample_scores(
            images, image_ids=IDS[:3]
        )
        for workers, size in ((1, None), (2, None), (3, 1), (2, 7))
    ]
    for other in draws[1:]:
        torch.testing.assert_close(other, draws[0], rtol=0, atol=4e-4 * 0.1)
    assert draws[0].std(dim=1).min() > 1e-3


def test_only_a_thread_safe_metric_is_called_by_threads(images):
    before = torch.get_num_threads()
    safe, unsafe = Watched(True), Watched(False)
    for metric in (safe, unsafe):
        MedianSmoothing(metric, SIGMA, 40, workers=2 if metric is safe else None).sample_scores(images, image_ids=IDS)
    assert threading.get_ident() not in safe.threads
    assert safe.operators == {1}
    assert unsafe.threads == {threading.get_ident()}
    assert torch.get_num_threads() == before, "the caller keeps its threads"

    class Denoiser(torch.nn.Identity):
        pass

    smooth = MedianSmoothing(Watched(True), SIGMA, 40, Denoiser())
    smooth.sample_scores(images, image_ids=IDS)
    assert smooth.metric.threads == {threading.get_ident()}, "a denoiser of unknown safety is not shared either"


def test_a_metric_may_return_a_view_of_its_input(images):
    class Corner(Watched):
        def forward(self, images, **_):
            return images[:, 0, 0, 0]

    alone, threaded = (
        MedianSmoothing(Corner(True), SIGMA, 200, clip=False, workers=workers).sample_scores(images, image_ids=IDS)
        for workers in (1, 3)
    )
    assert torch.equal(alone, threaded)
    assert alone.unique().numel() == alone.numel()


def test_an_error_in_a_worker_reaches_the_caller(images):
    class Broken(Watched):
        def forward(self, images, **_):
            raise RuntimeError("broken on purpose")

    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="broken on purpose"):
        MedianSmoothing(Broken(True), SIGMA, 40, workers=2).sample_scores(images, image_ids=IDS)
    assert torch.get_num_threads() == before


def engine(batch, job=None):
    return DrawEngine(
        job or (lambda noisy, pairs: noisy[:, 0, 0, 0].clone()), SIGMA, workers=1, batch=batch, chunk=None
    )


def pairs_of(rows, draws):
    left = iter([(row, draw) for row in range(rows) for draw in range(draws)])
    return lambda size: list(itertools.islice(left, size))


def test_a_full_memory_halves_the_batch_and_loses_nothing():
    batch, asked = BatchSize(64), []

    def job(pairs):
        asked.append(len(pairs))
        if len(pairs) > 10:
            raise torch.OutOfMemoryError("full")
        return torch.tensor([100.0 * row + draw for row, draw in pairs])

    seen = list(engine(batch)._on_device(job, pairs_of(3, 50), torch.device("cpu")))
    assert batch.size == 8
    assert [pair for pairs, _ in seen for pair in pairs] == [(row, draw) for row in range(3) for draw in range(50)]
    assert torch.cat([scores for _, scores in seen]).tolist() == [100.0 * r + d for r in range(3) for d in range(50)]
    assert sum(size > 10 for size in asked) == 3, "64, 32, 16, and never again"

    def hopeless(pairs):
        raise torch.OutOfMemoryError("full")

    with pytest.raises(UserError, match="out of memory on one noisy image"):
        list(engine(BatchSize(2))._on_device(hopeless, pairs_of(1, 5), torch.device("cpu")))


def test_the_batch_grows_while_that_pays():
    def settle(seconds_of):
        batch = BatchSize()
        for _ in range(100):
            if batch.settled:
                break
            batch.report(seconds_of(batch.size), batch.size)
            batch.report(1e9, batch.size - 1)  # a batch that was not full says nothing
        assert batch.settled
        return batch.size

    assert settle(lambda size: 1.0 + size / 64) == 1024, "another doubling would gain less than five per cent"
    assert settle(lambda size: float(size)) == GPU_START, "nothing to gain"
    assert settle(lambda size: 1.0) == GPU_LIMIT
    assert BatchSize(48).settled


class Sizes(QualityMetric):
    """Remembers how many pixels each call had, channels aside."""

    def __init__(self, thread_safe):
        super().__init__()
        self.thread_safe = thread_safe
        self.pixels = []

    def forward(self, images, **_):
        self.pixels.append(images[:, 0].numel())
        return images.flatten(1).mean(1)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("size", "at_once"), [((24, 24), 4), ((512, 384), 4), ((700, 600), 1), ((1500, 2000), 1)], ids=str
)
def test_a_worker_holds_fewer_draws_of_large_images(size, at_once, workers):
    metric = Sizes(thread_safe=True)
    smooth = MedianSmoothing(metric, SIGMA, 4, workers=workers)
    smooth(torch.full((1, 3, *size), 0.5))
    assert max(metric.pixels) == at_once * size[0] * size[1]
    assert smooth.batch_sizes_used == [at_once]


def test_the_gradient_of_a_large_image_takes_one_draw_at_a_time():
    metric = Sizes(thread_safe=False)
    images = torch.full((1, 3, 700, 600), 0.5, requires_grad=True)
    MedianSmoothing(metric, SIGMA, 2)(images).sum().backward()
    assert set(metric.pixels) == {700 * 600}
    assert images.grad.abs().sum() > 0


def test_images_are_added_to_their_own_noise():
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    pairs = [(2, 0), (2, 1), (0, 5), (1, 0), (1, 1), (2, 7)]
    total = add_images(torch.zeros(6, 3, 2, 2), images, pairs)
    assert total[:, 0, 0, 0].tolist() == [2, 2, 0, 1, 1, 2]


def test_a_callers_autocast_reaches_neither_the_step_before_the_noise_nor_an_fp32_metric():
    metric = load_metric("mini")
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    blur = load_purifier("gaussian_blur", kernel=5)
    for workers in (1, 2):
        smooth = MedianSmoothing(metric, SIGMA, 10, before=blur, workers=workers)
        exact, plain = smooth.prepared(images), smooth.sample_scores(images, image_ids=IDS[:1])
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(smooth.prepared(images), exact)
            assert not torch.equal(blur(images), exact), "autocast would have reached it"
            torch.testing.assert_close(smooth.sample_scores(images, image_ids=IDS[:1]), plain, rtol=0, atol=1e-6)


PRECISIONS = ("conv", "rnn", "matmul")
ALL = ("generic", "cudnn", *PRECISIONS, "mkldnn")


def owner_of(name):
    backends = torch.backends
    owners = {"generic": backends, "cudnn": backends.cudnn, "matmul": backends.cuda.matmul}
    return owners.get(name) or (backends.mkldnn.matmul if name == "mkldnn" else getattr(backends.cudnn, name))


def flags():
    """Every flag of float32's precision, as text; "mixed" where torch refuses to read an older one."""

    def read(get):
        try:
            return str(get())
        except RuntimeError:
            return "mixed"

    new = {name: owner_of(name).fp32_precision for name in ALL}
    return new | {
        "cudnn.allow_tf32": read(lambda: torch.backends.cudnn.allow_tf32),
        "matmul.allow_tf32": read(lambda: torch.backends.cuda.matmul.allow_tf32),
        "float32_matmul_precision": read(torch.get_float32_matmul_precision),
    }


@pytest.fixture
def fresh_flags():
    """Put all flags back to what torch starts with."""
    first = flags()
    yield
    torch.set_float32_matmul_precision(first["float32_matmul_precision"])
    torch.backends.cudnn.allow_tf32 = first["cudnn.allow_tf32"] == "True"
    for name in ALL:
        owner_of(name).fp32_precision = first[name]
    assert flags() == first


SETTINGS = {
    "as torch starts": lambda: None,
    "matmul, older": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "cudnn off, older": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    **{
        f"{name} {value}": lambda name=name, value=value: setattr(owner_of(name), "fp32_precision", value)
        for name in ("generic", "cudnn", "conv", "matmul")
        for value in ("tf32", "ieee")
    },
}


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch < 2.9 has the older flags alone")
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_full_float32_lets_no_tf32_in_and_puts_every_flag_back(fresh_flags, setting):
    SETTINGS[setting]()
    before = flags()
    for _ in range(2):
        with full_float32(torch.device("cuda")):
            assert [flags()[name] for name in PRECISIONS] == ["ieee"] * 3
            if before["cudnn.allow_tf32"] != "mixed":
                assert flags()["cudnn.allow_tf32"] == "False", "torch.backends.cudnn.flags() can be used inside"
        assert flags() == before
    with pytest.raises(KeyError), full_float32(torch.device("cuda")):
        raise KeyError
    assert flags() == before
    with full_float32(torch.device("cpu")):
        assert flags() == before


def test_low_precision_is_another_function_with_the_head_in_fp32():
    metric = load_metric("mini")
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    full = MedianSmoothing(metric, SIGMA, 100).sample_scores(images, image_ids=IDS[:1])
    low = MedianSmoothing(load_metric("mini"), SIGMA, 100, precision="bf16").sample_scores(images, image_ids=IDS[:1])
    assert low.dtype == torch.float32
    assert low.unique().numel() >= 90, "a bfloat16 head leaves a few dozen distinct scores"
    assert 1e-5 < float((low - full).abs().max()) < 0.2
    assert MedianSmoothing(metric, SIGMA, 100).precision == "fp32"
    with pytest.raises(UserError, match="precision must be one of fp32, bf16, fp16, got 'half'"):
        MedianSmoothing(metric, SIGMA, precision="half")
    with pytest.raises(UserError, match="workers must be at least 1"):
        MedianSmoothing(metric, SIGMA, workers=0)


@pytest.mark.full
def test_a_compiled_base_function_is_the_same_function():
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    plain, compiled = (
        MedianSmoothing(load_metric("mini"), SIGMA, 12, load_denoiser("unet", weights="mini_dms"), compile=flag)
        for flag in (False, True)
    )
    scores = [smooth.sample_scores(images, image_ids=IDS[:1]) for smooth in (plain, compiled)]
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=4e-4)
