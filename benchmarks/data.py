"""Reading images: originals against prepared copies, and decoding against the metric.

    python benchmarks/data.py

Makes JPEGs of the size of SPAQ's photographs (4000x3000) and of 512x384 from the embedded photographs, enlarged and
with a little sensor noise, since an enlargement alone would decode too fast. Prints tables and writes the numbers
to outputs/bench/data.json.
"""

from __future__ import annotations

import io
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from certification import show
from certiqa.data import ImageDataset, ImageRecord, read_image
from certiqa.data.batches import ReadOrSay, collate_whole
from certiqa.data.datamodule import SizeBatches
from certiqa.data.mini import ASSETS
from certiqa.data.shrunk import prepare_shrunk, shrunken
from certiqa.metrics import load_metric

SIDE, FILTER = 512, "bilinear"
LARGE, SMALL = 16, 48
BATCH = 4


def make_photos(folder: Path, count: int, size: tuple[int, int]) -> ImageDataset:
    """Write JPEGs of this (width, height)."""
    folder.mkdir()
    sources = sorted((ASSETS / "photos").glob("*.png"))
    records = []
    for row in range(count):
        photo = Image.open(sources[row % len(sources)]).convert("RGB").resize(size, Image.Resampling.LANCZOS)
        noise = np.random.default_rng(row).normal(0, 3, (size[1], size[0], 1))
        pixels = (np.asarray(photo) + noise).clip(0, 255).astype(np.uint8)
        path = folder / f"{row:05d}.jpg"
        Image.fromarray(pixels).save(path, quality=92)
        records.append(ImageRecord(path.name, path, 3.0))
    return ImageDataset(records, mos_range=(1, 5), name=folder.name, fingerprint="")


def seconds_to_read(*sets: ImageDataset, repeats: int = 5) -> list[float]:
    """Return the time of reading each set: the best of each image, turn about, so that a slow moment hits all sets."""
    best = np.full((len(sets), len(sets[0])), np.inf)
    for _ in range(repeats):
        for row in range(len(sets[0])):
            for which, images in enumerate(sets):
                started = time.perf_counter()
                images[row]
                best[which, row] = min(best[which, row], time.perf_counter() - started)
    return best.sum(axis=1).tolist()


def distance(images: ImageDataset, **options: object) -> float:
    """Return the mean PSNR in dB between a resized image and what a lossy copy of it would be."""
    found = []
    for record in images.records[:6]:
        pixels = read_image(record.path, SIDE, FILTER)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, **options)  # type: ignore[arg-type]
        error = np.mean((pixels.astype(float) - np.asarray(Image.open(file))) ** 2)
        found.append(10 * np.log10(255**2 / error))
    return float(np.mean(found))


def copies(folder: Path) -> dict[str, object]:
    """Compare originals and copies at SPAQ's size."""
    originals = make_photos(folder / "large", LARGE, (4000, 3000)).reading(SIDE, FILTER)
    times = {}
    for workers in (1, 2):
        started = time.perf_counter()
        paths = [record.path for record in originals.records]
        prepare_shrunk(paths, folder / f"{workers}" / "resized", SIDE, FILTER, workers=workers)
        times[workers] = time.perf_counter() - started
    prepared = originals.with_records(shrunken(originals.records, folder / "1", SIDE, FILTER))
    assert all(record.prepared for record in prepared.records)
    assert torch.equal(originals[0]["image"], prepared[0]["image"])
    slow, fast = seconds_to_read(originals, prepared)
    return {
        "images": LARGE,
        "originals_per_s": LARGE / slow,
        "copies_per_s": LARGE / fast,
        "ratio": slow / fast,
        "prepared_per_s_1_worker": LARGE / times[1],
        "prepared_per_s_2_workers": LARGE / times[2],
        "kB_per_copy": sum(path.stat().st_size for path in (folder / "1").rglob("*.png")) / LARGE / 1000,
        "dB_of_jpeg_95": distance(originals, format="jpeg", quality=95, subsampling=0),
    }


def loader_of(images: ImageDataset, workers: int) -> DataLoader[dict[str, object]]:
    """Return the loader of a test."""
    batches = SizeBatches(images.sizes_or_none(), BATCH)
    return DataLoader(ReadOrSay(images), batch_sampler=batches, num_workers=workers, collate_fn=collate_whole)


@torch.inference_mode()
def waiting(images: ImageDataset, workers: int) -> dict[str, object]:
    """Score every image once with the mini metric, the least a test does, and see how long that waits for images."""
    metric = load_metric("mini")
    iterator = iter(loader_of(images, workers))
    batch = next(iterator)  # the start of the workers is not counted
    started, waited, count = time.perf_counter(), 0.0, 0
    while batch is not None:
        metric(batch["image"])
        count += len(batch["image_id"])
        asked = time.perf_counter()
        batch = next(iterator, None)
        waited += time.perf_counter() - asked
    total = time.perf_counter() - started
    return {"workers": workers, "images_per_s": count / total, "share_waiting": waited / total}


def decoding(images: ImageDataset, workers: int) -> float:
    """Return images per second of the loader alone."""
    iterator = iter(loader_of(images, workers))
    next(iterator)  # the start of the workers is not counted
    started = time.perf_counter()
    count = sum(len(batch["image_id"]) for batch in iterator)  # type: ignore[arg-type]
    return count / (time.perf_counter() - started)


@torch.inference_mode()
def forward_rate(images: ImageDataset) -> float:
    """Return images per second of the mini metric's forward at the images' size."""
    metric, batch = load_metric("mini"), torch.stack([images[row]["image"] for row in range(BATCH)])
    metric(batch)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        metric(batch)
        best = min(best, time.perf_counter() - started)
    return BATCH / best


def main() -> None:
    """Print all tables."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads")
    with tempfile.TemporaryDirectory() as temporary:
        result: dict[str, object] = {"torch": torch.__version__, "copies": (found := copies(Path(temporary)))}
        show([found], header=True)
        images = make_photos(Path(temporary) / "small", SMALL, (512, 384))
        rates = {"mini_forward_per_s": forward_rate(images)}
        rates |= {f"decoded_per_s_{workers}_workers": decoding(images, workers) for workers in (0, 1, 2)}
        show([rates], header=True)
        rows = []
        for workers in (0, 1, 2):
            rows.append(waiting(images, workers))
            show([rows[-1]], header=len(rows) == 1)
    path = Path(__file__).resolve().parents[1] / "outputs" / "bench" / "data.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result | {"rates": rates, "waiting": rows}, indent=1) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
