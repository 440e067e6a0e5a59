"""What purifiers cost over the library calls they rest on, as ratios in one run.

    python benchmarks/purifiers.py [--device cuda] [--size 512 384] [--count 32]

"bare" is the call itself with everything prepared; the bar is 1.5. jpeg and jpeg2000 are compared with a loop over the
images in one thread, where a ratio below 1 is what threads save; their "one thread" column is the purifier so held.
Prints a table and writes the numbers to outputs/bench/purifiers.json.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path

import kornia
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomCrop

from certification import pictures, show
from certiqa.defenses import load_purifier
from metrics import together

BAR = 1.5


def rotated(images: Tensor) -> Tensor:
    """Rotate by torch's own two calls, the same angle for all."""
    matrix = torch.tensor([[0.98, -0.2, 0.0], [0.2, 0.98, 0.0]], device=images.device).expand(len(images), -1, -1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def cropped(images: Tensor) -> Tensor:
    """Cut a window at a random place out of every image, as torchvision does."""
    crop = RandomCrop(128)
    return torch.stack([crop(image) for image in images])


def resized(images: Tensor, scale: float, back: bool) -> Tensor:
    """Resize, and back where asked."""
    height, width = images.shape[-2:]
    small = F.interpolate(images, size=(int(height * scale), int(width * scale)), mode="bilinear", antialias=True)
    return F.interpolate(small, size=(height, width), mode="bilinear", antialias=True) if back else small


def compressed(images: Tensor, file_format: str, **options: object) -> Tensor:
    """Compress and decompress one image after another."""
    results = []
    for pixels in (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, file_format, **options)
        results.append(torch.from_numpy(np.array(Image.open(file))))
    return torch.stack(results).permute(0, 3, 1, 2).to(images.device) / 255


def bare_calls(device: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the library call behind each purifier's defaults."""
    quality = torch.tensor([50.0], device=device)
    return {
        "flip": lambda x: x.flip(2, 3),
        "random_rotate": rotated,
        "random_crop": cropped,
        "resize": lambda x: resized(x, 0.5, back=False),
        "upscale": lambda x: resized(x, 0.5, back=True),
        "random_noise": lambda x: (x + 0.01 * torch.randn_like(x)).clamp(0, 1),
        "gaussian_blur": lambda x: kornia.filters.gaussian_blur2d(x, 3, (0.8, 0.8)),
        "median_blur": lambda x: kornia.filters.median_blur(x, 3),
        "bilateral": lambda x: kornia.filters.bilateral_blur(x, 5, 0.1, (1.5, 1.5)),
        "unsharp": lambda x: kornia.filters.unsharp_mask(x, 3, (1.0, 1.0)).clamp(0, 1),
        "color_quantization": lambda x: (x.clamp(0, 1) * 15).round() / 15,
        "jpeg": lambda x: compressed(x, "JPEG", quality=50, subsampling="4:2:0"),
        "diff_jpeg": lambda x: kornia.enhance.jpeg_codec_differentiable(x, quality),
        "jpeg2000": lambda x: compressed(
            x, "JPEG2000", quality_mode="rates", quality_layers=[20.0], irreversible=True, mct=1
        ),
    }


def waiting(function: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], None]:
    """Return a job that ends when the device is done."""

    def job() -> None:
        function(images)
        if images.is_cuda:
            torch.cuda.synchronize()

    return job


@torch.inference_mode()
def compare(name: str, bare: Callable[[Tensor], Tensor], images: Tensor, repeats: int) -> dict[str, object]:
    """Measure one purifier and its call on the same images."""
    purifier = load_purifier(name)
    generators = [torch.Generator().manual_seed(row) for row in range(len(images))] if purifier.is_random else None
    times = together([waiting(lambda x: purifier(x, generators), images), waiting(bare, images)], repeats)
    row: dict[str, object] = {
        "purifier": name,
        "ms an image": 1000 * times[0] / len(images),
        "purifier / bare time": times[0] / times[1],
        "one thread / bare time": "-",
    }
    if name in ("jpeg", "jpeg2000"):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        serial = together([waiting(purifier, images), waiting(bare, images)], repeats)
        torch.set_num_threads(threads)
        row["one thread / bare time"] = serial[0] / serial[1]
    row["within the bar"] = "yes" if times[0] <= BAR * times[1] else "no"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 384), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="names of purifiers; default all")
    options = parser.parse_args()
    width, height = options.size
    images = pictures(options.count, (height, width), options.device)
    size = f"{options.count} images of {width}x{height} on {options.device}, {torch.get_num_threads()} threads"
    print(size)
    rows: list[dict[str, object]] = []
    for name, bare in bare_calls(options.device).items():
        if not options.only or name in options.only:
            rows.append(compare(name, bare, images, options.repeats))
            show(rows[-1:], header=len(rows) == 1)
    path = Path("outputs/bench/purifiers.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"torch": torch.__version__, "kornia": kornia.__version__, "device": options.device, "what": size}
    path.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
