"""What purifiers that are networks add to their bare network, as ratios of times in one run.

    python benchmarks/restoration.py

Random weights of the published sizes, for speed alone: what comes out of them means nothing. Sides that the network
takes, so that nothing is padded, and sides that it does not. Prints a table and writes the numbers to
outputs/bench/restoration.json. Needs certiqa[restoration,mprnet].
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from certification import pictures, show
from certiqa.defenses import load_purifier
from certiqa.denoisers.colour_filter import ColourFilter
from metrics import together

Call = Callable[[Tensor], Tensor]


def networks() -> dict[str, tuple[nn.Module, Callable[[nn.Module], Call]]]:
    """Return, by preset, a network of published size and how its authors call it."""
    from spandrel.architectures.Compact import Compact
    from spandrel.architectures.DnCNN import DnCNN
    from spandrel.architectures.DRUNet import DRUNet

    def plain(network: nn.Module) -> Call:
        return lambda images: network(images).clamp(0, 1)

    def told(network: nn.Module) -> Call:
        return lambda images: network(torch.cat([images, torch.full_like(images[:, :1], 15 / 255)], 1)).clamp(0, 1)

    return {
        "fcn": (ColourFilter(), plain),
        "dncnn": (DnCNN(in_nc=3, out_nc=3, nc=64, nb=20, act_mode="R", mode="DnCNN"), plain),
        "drunet": (DRUNet(in_nc=4, out_nc=3, nc=[64, 128, 256, 512], nb=4, act_mode="R"), told),
        "real_esrgan": (Compact(num_in_ch=3, num_out_ch=3, num_feat=64, num_conv=32, upscale=4), plain),
    }


@torch.inference_mode()
def compare(name: str, network: nn.Module, call: Call, size: tuple[int, int], repeats: int) -> dict[str, object]:
    """Measure purifier and bare network on the same image; both clip, the purifier also pads and resizes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(network.state_dict(), path)
        purifier = load_purifier(name, weights=path)
    images = pictures(1, size, "cpu")
    ours, bare = together([lambda: purifier(images), lambda: call(images)], repeats)
    return {"purifier": name, "size": f"{size[1]}x{size[0]}", "bare s": bare, "purifier / bare time": ours / bare}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=(192, 256), metavar=("HEIGHT", "WIDTH"))
    chosen = parser.parse_args()
    torch.manual_seed(0)
    rows: list[dict[str, object]] = []
    for name, (network, how) in networks().items():
        rows.append(compare(name, network.eval(), how(network.eval()), tuple(chosen.size), chosen.repeats))
        show([rows[-1]], header=len(rows) == 1)
    path = Path(__file__).resolve().parents[1] / "outputs" / "bench" / "restoration.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
