"""Median smoothing: the median score of many noisy copies of an image, which is provably stable.

Chiang et al., "Detection as Regression: Certified Object Detection by Median Smoothing", NeurIPS 2020; with a
denoiser between noise and metric: Shumitskaya et al., "DMS-IQA", arXiv 2411.12575.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from certiqa.defenses.base import Defense
from certiqa.defenses.engine import BatchSize, DrawEngine, Pair, Take, cpu_batch
from certiqa.defenses.noise import fill_noise, noise_key
from certiqa.defenses.precision import full_float32, keep_heads_in_fp32
from certiqa.defenses.purified import LipschitzSteps, Purifier
from certiqa.denoisers.checkpoints import check_sigma
from certiqa.errors import UserError
from certiqa.metrics.base import as_floats_of
from certiqa.options import Budget, Choices, PositiveInt, Seed

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class MedianSmoothing(Defense):
    """A metric whose score is the median over draws of ``metric(denoiser(clip(x + sigma * z)))``.

    x + sigma * z is formed in float32; all that follows is the base function and leaves the certificate of
    ``certiqa.certification.certify`` untouched. MS has no denoiser, DMS one trained with MSE, DMS-IQA one
    trained with MSE and, through the frozen metric, to keep the order of its scores.

    Args:
        metric: the metric to defend; stays frozen.
        sigma: standard deviation of the noise, in [0, 1] pixel units.
        num_samples: draws behind one score of ``forward``.
        denoiser: module ``(N, 3, H, W)`` -> ``(N, 3, H, W)``, frozen here; None for plain MS. One that is known to be
            trained for another sigma is refused, unless ``load_denoiser`` was told ``allow_sigma_mismatch``.
        clip: clip noisy and denoised images to [0, 1], what metrics expect.
        seed: of the noise.
        batch_size: noisy images per forward pass, which changes scores by rounding only; None for what is fastest:
            a few on a CPU, whose caches larger batches overflow, and one of images beyond 0.4 megapixels, for the
            memory; found while scoring on a GPU.
        workers: threads that score on a CPU; None for one per core where metric and denoiser are ``thread_safe``.
        precision: of the base function: "fp32", or "bf16" or "fp16" by autocast, with the metric's head in fp32.
            Another precision is another base function: its certificates are as valid, and speak of that function.
        before: purifier between input and noise, none that is random or whose Lipschitz constant is unknown; radii
            are those at the input, and the constant is paid for at the noise.
        compile: compile the base function with ``torch.compile``, which takes a while and pays for long runs.
        name: what tables call it.
    """

    kind = "ms"
    is_random = True
    certifiable = True
    denoiser: nn.Module | None
    before: LipschitzSteps | None
    num_samples: int

    def __init__(
        self,
        metric: nn.Module,
        sigma: Budget,
        num_samples: PositiveInt = 100,
        denoiser: nn.Module | None = None,
        clip: bool = True,
        *,
        seed: Seed = 0,
        batch_size: PositiveInt | None = None,
        workers: PositiveInt | None = None,
        precision: Annotated[str, Choices("fp32", "bf16", "fp16")] = "fp32",
        before: Purifier | None = None,
        compile: bool = False,
        name: str | None = None,
    ) -> None:
        if not sigma > 0:
            raise UserError(f"sigma must be positive, in [0, 1] pixel units (e.g. 0.12), got {sigma}")
        if num_samples < 1 or num_samples % 1 or (batch_size is not None and batch_size < 1):
            raise UserError(
                f"num_samples and batch_size must be whole and at least 1, got {num_samples} and {batch_size}"
            )
        if workers is not None and workers < 1:
            raise UserError(f"workers must be at least 1, got {workers}")
        if precision not in PRECISIONS:
            raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, got '{precision}'")
        before = None if before is None else LipschitzSteps([before])
        if denoiser is not None:
            check_sigma(denoiser, float(sigma))
        name = name or ("dms" if denoiser is not None else "ms")
        super().__init__(metric, name, before=before, denoiser=denoiser)
        self.sigma = float(sigma)
        self.num_samples = int(num_samples)
        self.clip = clip
        self.seed = int(seed)
        self.batch_size = batch_size
        self.workers = workers
        self.precision = precision
        self._batches: dict[tuple[Any, ...], BatchSize] = {}
        self.compiles = bool(compile)
        self._compiled: Callable[[Tensor], Tensor] | None = None
        if precision != "fp32":
            keep_heads_in_fp32(self.metric)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is copied and pickled: not the compiled function, which holds the weights of this very object."""
        return {**self.__dict__, "_compiled": None}

    @property
    def trained_network(self) -> nn.Module | None:
        """The denoiser."""
        return self.denoiser

    @property
    def min_sides(self) -> tuple[int, int]:
        """What the step before the noise, if there is one, needs to leave the metric enough."""
        return self.metric.min_sides if self.before is None else self.before.least_size(self.metric.min_sides)

    def lipschitz(self, size: Sequence[int]) -> float:
        """Return the constant by which an l2 radius at an input of (height, width) becomes one at the noise."""
        return 1.0 if self.before is None else self.before.lipschitz(size)

    def prepared(self, images: Tensor) -> Tensor:
        """Return what the noise is added to, float32: the images after the step before it, if there is one."""
        if self.before is None:
            return images.float()
        with full_float32(images.device):  # its constant is of the map as it is, not of a rounded one
            return self.before(images.float())

    def base_function(
        self,
        noisy: Tensor,
        *,
        image_ids: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Score noisy images ``(K, 3, H, W)``: clip, denoise, clip, metric, in the chosen precision; ``(K,)``."""
        with self._autocast(noisy):
            if image_ids is None and generator is None:
                return self._plain_base(noisy)
            return self.metric(self.denoise(noisy), image_ids=image_ids, generator=generator)

    def _plain_base(self, noisy: Tensor) -> Tensor:
        return self.metric(self.denoise(noisy))

    def _autocast(self, noisy: Tensor) -> contextlib.AbstractContextManager[object]:
        dtype = PRECISIONS[self.precision]
        return full_float32(noisy.device) if dtype is None else torch.autocast(noisy.device.type, dtype)

    def denoise(self, noisy: Tensor) -> Tensor:
        """Return what the metric sees of noisy images ``(K, 3, H, W)``."""
        images = noisy.clamp(0, 1) if self.clip else noisy
        if self.denoiser is None:
            return images
        images = as_floats_of(self.denoiser, images)
        denoised = self.denoiser(images.contiguous(memory_format=torch.channels_last))
        return denoised.clamp(0, 1) if self.clip else denoised

    def noisy(self, images: Tensor, image_ids: Sequence[str], draws: Sequence[int], seed: int, stream: str) -> Tensor:
        """Return float32 ``x + sigma * z`` for paired ``images`` ``(K, 3, H, W)``, ids and draw numbers."""
        images = self.prepared(images)
        noise = torch.empty(images.shape, dtype=torch.float32, device=images.device)
        keys = (noise_key(seed, stream, name, draw) for name, draw in zip(image_ids, draws, strict=True))
        return images + self.sigma * fill_noise(noise, keys)

    def stages(self, images: Tensor, image_ids: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return the first draw's noisy images, and what the denoiser makes of them where there is one."""
        noisy = self.noisy(images, self._ids(images, image_ids), [0] * len(images), self.seed, "score")
        return {"noisy": noisy} | ({} if self.denoiser is None else {"denoised": self.denoise(noisy)})

    def sample_scores(
        self,
        images: Tensor,
        num_samples: int | None = None,
        *,
        image_ids: Sequence[str] | None = None,
        seed: int | None = None,
        stream: str = "score",
        first_draw: int = 0,
    ) -> Tensor:
        """Return the draws ``(N, n)``: score of image i under noise number ``first_draw + j``, without gradients.

        Args:
            images: ``(N, 3, H, W)`` in [0, 1].
            num_samples: n; default the defense's own.
            image_ids: names that key the noise; without them every image gets the same draws.
            seed: default the defense's own.
            stream: one of ``certiqa.defenses.noise.STREAMS``.
            first_draw: number of the first draw.
        """
        count = self.num_samples if num_samples is None else num_samples
        pairs = iter([(row, draw) for row in range(len(images)) for draw in range(count)])
        scores = torch.empty((len(images), count), device=images.device)

        def take(size: int) -> list[Pair]:
            return [(row, first_draw + draw) for row, draw in itertools.islice(pairs, size)]

        for chunk, values in self.stream_scores(images, take, image_ids=image_ids, seed=seed, stream=stream):
            rows, draws = zip(*chunk, strict=True)
            scores[list(rows), [draw - first_draw for draw in draws]] = values
        return scores

    def stream_scores(
        self,
        images: Tensor,
        take: Take,
        *,
        image_ids: Sequence[str] | None = None,
        seed: int | None = None,
        stream: str = "score",
    ) -> Iterator[tuple[Sequence[Pair], Tensor]]:
        """Yield (pairs, scores) of the draws that ``take(size)`` asks for, a chunk of (row, draw) pairs at a time.

        What is asked for may depend on the scores so far: this is what sequential certification runs on. Arguments
        as those of ``sample_scores``.
        """
        self.check_images(images)
        ids = self._ids(images, image_ids)
        with torch.no_grad():
            images = self.prepared(images)
        seed = self.seed if seed is None else seed

        def score(noisy: Tensor, pairs: Sequence[Pair]) -> Tensor:
            if not self.metric.is_random:
                if not self.compiles:
                    return self.base_function(noisy).float()
                if self._compiled is None:
                    self._compiled = torch.compile(self._plain_base)
                with self._autocast(noisy):
                    return self._compiled(noisy).float()
            # a random step behind the noise needs fresh randomness at every draw, or the draws are not independent
            inner = [f"{stream}|{seed}|{draw}|{ids[row]}" for row, draw in pairs]
            return self.base_function(noisy, image_ids=inner).float()

        chunk = self.batch_size or cpu_batch(images.shape[-2:])
        engine = DrawEngine(score, self.sigma, workers=self._num_workers, batch=self._batch(images), chunk=chunk)
        return engine.run(images, ids, seed, stream, take)

    @property
    def _num_workers(self) -> int:
        if self.workers is not None:
            return self.workers
        safe = self.metric.thread_safe and (self.denoiser is None or getattr(self.denoiser, "thread_safe", False))
        return torch.get_num_threads() if safe and not self.compiles else 1

    @property
    def batch_sizes_used(self) -> list[int]:
        """Return the draws per forward pass that scoring has come to, for each size of image."""
        return sorted(
            {
                (self.batch_size or cpu_batch(size)) if kind == "cpu" else batch.size
                for (kind, _, _, *size), batch in self._batches.items()
            }
        )

    def _batch(self, images: Tensor) -> BatchSize:
        """Return the batch size found so far for images of this size and device."""
        key = (images.device.type, images.device.index, *images.shape[1:])
        return self._batches.setdefault(key, BatchSize(self.batch_size))

    def forward(
        self,
        images: Tensor,
        *,
        image_ids: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
        stream: str = "score",
    ) -> Tensor:
        """Return the median of ``num_samples`` draws ``(N,)``, mean of the two middle ones for even n.

        Differentiable: the gradient of a sample median is that of its middle draws, so only those are
        computed again with gradients, and memory does not grow with ``num_samples``.
        """
        seed = self.seed
        if generator is not None:
            seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        ids = self._ids(images, image_ids)
        scores = self.sample_scores(images, image_ids=ids, seed=seed, stream=stream)
        if not (torch.is_grad_enabled() and images.requires_grad):
            return sample_median(scores)
        order = scores.argsort(dim=1, stable=True)
        middle = order[:, [(self.num_samples - 1) // 2, self.num_samples // 2]]
        pairs = [(row, int(draw)) for row, draws in enumerate(middle.tolist()) for draw in sorted(set(draws))]
        size = self.batch_size or (cpu_batch(images.shape[-2:]) if images.device.type == "cpu" else 64)
        starts = range(0, len(pairs), size)
        values = torch.cat([self._score_pairs(images, ids, pairs[at : at + size], seed, stream) for at in starts])
        median = values.view(len(ids), -1).mean(dim=1)
        return torch.where(scores.isnan().any(dim=1), torch.full_like(median, torch.nan), median)

    def expected_scores(
        self, images: Tensor, draws: int, *, image_ids: Sequence[str] | None = None, seed: int = 0, first: int = 0
    ) -> Tensor:
        """Return the mean of ``draws`` fresh draws ``(N,)``, differentiable: smoother than the median to follow."""
        ids = self._ids(images, image_ids)
        total = torch.zeros(len(images), device=images.device)
        for draw in range(first, first + draws):
            total = total + self._score_pairs(images, ids, [(row, draw) for row in range(len(ids))], seed, "attack")
        return total / draws

    def _score_pairs(self, images: Tensor, ids: Sequence[str], pairs: Sequence[Pair], seed: int, stream: str) -> Tensor:
        """Return the scores of (row, draw) pairs, with gradients."""
        rows = [row for row, _ in pairs]
        draws = [draw for _, draw in pairs]
        names = [ids[row] for row in rows]
        noisy = self.noisy(images[rows], names, draws, seed, stream)
        inner = (
            [f"{stream}|{seed}|{draw}|{name}" for name, draw in zip(names, draws, strict=True)]
            if self.metric.is_random
            else None
        )
        return self.base_function(noisy, image_ids=inner).float()

    def _ids(self, images: Tensor, image_ids: Sequence[str] | None) -> Sequence[str]:
        ids = [""] * len(images) if image_ids is None else list(image_ids)
        if len(ids) != len(images):
            raise UserError(f"{len(images)} images but {len(ids)} image ids; give one id per image")
        return ids


def sample_median(scores: Tensor) -> Tensor:
    """Return the median along the last axis, the mean of the two middle values for even n; NaN stays NaN."""
    ordered = scores.sort(dim=-1).values  # NaN sorts last, so it must be looked for
    count = scores.shape[-1]
    median = (ordered[..., (count - 1) // 2] + ordered[..., count // 2]) / 2
    return torch.where(scores.isnan().any(dim=-1), torch.full_like(median, torch.nan), median)
