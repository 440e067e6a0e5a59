"""Scoring many noisy copies as fast as the device allows.

Nothing here decides what is computed: the noise of a draw is a function of (seed, stream, image id, draw), and batches,
threads and compilation change a score by rounding only.

On a CPU one worker thread per core takes a few draws at a time, each with single-threaded operators: that beats
operators spread over the cores, and makes the noise in parallel. On a GPU batches grow until memory or throughput
stops improving, and the host never waits for a score inside the loop.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby

import torch
from torch import Tensor

from certiqa.defenses.noise import fill_noise, noise_key
from certiqa.errors import UserError

Pair = tuple[int, int]
"""(row of the image in its batch, number of the draw)."""
Take = Callable[[int], Sequence[Pair]]
"""Returns up to so many pairs that should be scored next; none where it first needs scores that are under way."""
Score = Callable[[Tensor, Sequence[Pair]], Tensor]
"""Scores noisy images ``(K, 3, H, W)`` that belong to K pairs, ``(K,)``."""

CPU_BATCH = 4  # draws at a time of each worker; more overflow a core's caches
CPU_PIXELS = CPU_BATCH * 512 * 384  # of them together: maps of large images would fill the memory
GPU_START, GPU_LIMIT = 16, 4096
WORTHWHILE = 1.05  # a doubled batch must be so much faster per draw to be kept


def cpu_batch(size: Sequence[int]) -> int:
    """Return the draws at a time of a worker on a CPU for images of (height, width): fewer where they are large."""
    return max(1, min(CPU_BATCH, CPU_PIXELS // (size[0] * size[1])))


class BatchSize:
    """Draws per forward pass on a GPU: doubles while that pays, halves when memory runs out.

    Args:
        fixed: a size the user chose, which only running out of memory changes; None to find one.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self.size = fixed or GPU_START
        self.settled = fixed is not None
        self._times: dict[int, list[float]] = {}

    def report(self, seconds: float, count: int) -> None:
        """Tell how long a full batch took; the first of a size is a warm-up and does not count."""
        if self.settled or count != self.size:
            return
        times = self._times.setdefault(self.size, [])
        times.append(seconds / count)
        if len(times) < 3:
            return
        half = self._times.get(self.size // 2)
        if half is not None and min(times[1:]) * WORTHWHILE > min(half[1:]):
            self.size //= 2
            self.settled = True
        elif self.size * 2 > GPU_LIMIT:
            self.settled = True
        else:
            self.size *= 2

    def halve(self) -> None:
        """Give way to a full memory; raises UserError where one draw alone does not fit."""
        if self.size == 1:
            raise UserError("the device runs out of memory on one noisy image; use smaller images or another device")
        self.size //= 2
        self.settled = True


class DrawEngine:
    """Scores draws of a batch of images, in the order they are taken.

    Args:
        score: the base function on a chunk of noisy images; must not keep them: their memory is used again.
        sigma: standard deviation of the noise.
        workers: threads on a CPU, each with single-threaded operators; 1 leaves the cores to the operators. More
            than one needs a ``score`` that several threads may call at once.
        batch: draws per forward pass on a GPU.
        chunk: draws per forward pass of a CPU worker.
    """

    def __init__(self, score: Score, sigma: float, *, workers: int, batch: BatchSize, chunk: int) -> None:
        self.score = score
        self.sigma = sigma
        self.workers = workers
        self.batch = batch
        self.chunk = chunk

    def run(
        self, images: Tensor, ids: Sequence[str], seed: int, stream: str, take: Take
    ) -> Iterator[tuple[Sequence[Pair], Tensor]]:
        """Yield (pairs, their scores) until ``take`` returns nothing and nothing is under way.

        ``take`` and the code that consumes the scores run in the calling thread, so that what to do next may depend
        on the scores so far.
        """
        local = threading.local()

        def job(pairs: Sequence[Pair]) -> Tensor:
            with torch.inference_mode():
                noise = getattr(local, "noise", None)
                if noise is None or len(noise) < len(pairs):
                    noise = torch.empty((len(pairs), *images.shape[1:]), dtype=torch.float32, device=images.device)
                    local.noise = noise
                noisy = noise[: len(pairs)]
                fill_noise(noisy, [noise_key(seed, stream, ids[row], draw) for row, draw in pairs])
                add_images(noisy.mul_(self.sigma), images, pairs)
                # a copy: a metric may return a view of its input, whose memory is used again
                return self.score(noisy, pairs).clone()

        if images.device.type == "cpu":
            return self._threaded(job, take) if self.workers > 1 else self._in_turn(job, take)
        return self._on_device(job, take, images.device)

    def _in_turn(self, job: Callable[[Sequence[Pair]], Tensor], take: Take) -> Iterator[tuple[Sequence[Pair], Tensor]]:
        while pairs := take(self.chunk):
            yield pairs, job(pairs)

    def _threaded(self, job: Callable[[Sequence[Pair]], Tensor], take: Take) -> Iterator[tuple[Sequence[Pair], Tensor]]:
        threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(self.workers, initializer=torch.set_num_threads, initargs=(1,))
        pending: deque[tuple[Sequence[Pair], Future[Tensor]]] = deque()
        try:
            while True:
                # one chunk more than workers, so that none waits for the consumer
                while len(pending) <= self.workers and (pairs := take(self.chunk)):
                    pending.append((pairs, pool.submit(job, pairs)))
                if not pending:
                    return
                pairs, future = pending.popleft()
                yield pairs, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)

    def _on_device(
        self, job: Callable[[Sequence[Pair]], Tensor], take: Take, device: torch.device
    ) -> Iterator[tuple[Sequence[Pair], Tensor]]:
        while todo := list(take(self.batch.size)):
            while todo:
                pairs, rest = todo[: self.batch.size], todo[self.batch.size :]
                started = time.perf_counter()
                try:
                    scores = job(pairs)
                    if not self.batch.settled:
                        torch.cuda.synchronize(device)
                except torch.OutOfMemoryError:
                    self.batch.halve()
                    torch.cuda.empty_cache()
                    continue
                self.batch.report(time.perf_counter() - started, len(pairs))
                todo = rest
                yield pairs, scores


def add_images(noise: Tensor, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """Add to each row of ``noise`` its image, in place: neighbours mostly share one."""
    start = 0
    for row, group in groupby(row for row, _ in pairs):
        stop = start + len(list(group))
        noise[start:stop] += images[row]
        start = stop
    return noise
