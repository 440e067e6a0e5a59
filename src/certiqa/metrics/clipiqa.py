"""CLIP-IQA+: Wang et al., "Exploring CLIP for Assessing the Look and Feel of Images", AAAI 2023.

CLIP and the prompt learner are pyiqa's. pyiqa keeps CLIP outside ``state_dict()`` and ``.to()`` and computes the text
features at every call; here CLIP's image tower is a submodule and the text features are computed once.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certiqa.errors import UserError
from certiqa.metrics.base import at_least_float32
from certiqa.metrics.published import NATIVE, RANDOM, Device, Preprocess, PublishedMetric, random_label, seeded
from certiqa.metrics.sources import RN50, files_of
from certiqa.metrics.weights import is_torchscript, load_strictly, read_content, read_weights, unwrap
from certiqa.storage.files import sha256

CLIP_RN50 = (1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12)
"""Sizes of CLIP RN50: embedding; image side, layers, width, patch; context, vocabulary; text width, heads, layers."""
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
CONTEXT_SHAPE = (2, 16, 512)  # two prompts (good, bad) of 16 learned tokens


def make_clip() -> Any:
    """Build CLIP RN50 with random weights, or none on the meta device."""
    from pyiqa.archs.clip_model import CLIP

    clip = CLIP(*CLIP_RN50)
    with torch.device("cpu"):  # the mask is neither parameter nor buffer, so loading would not fill it
        mask = clip.build_attention_mask()
    for block in clip.transformer.resblocks:
        block.attn_mask = mask
    return clip.eval()


def read_clip(path: Path, device: Device = "cpu") -> dict[str, Tensor]:
    """Read CLIP's state dict from a state dict, or from OpenAI's TorchScript archive.

    An archive holds code besides weights, so only the published file is opened, known by its digest.
    """
    if path.is_file() and is_torchscript(path) and sha256(path) == RN50:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the container is OpenAI's choice
            state = dict(torch.jit.load(str(path), map_location=device).state_dict())
    else:
        state, _ = read_weights(path, device=device)
    return {key: value for key, value in state.items() if key not in NOT_WEIGHTS}


def load_clip(weights: str | Path, device: Device = "cpu") -> Any:
    """Load CLIP RN50 in float32."""
    path = Path(weights).expanduser()
    state = read_clip(path, device)
    with torch.device("meta"):
        clip = make_clip()
    load_strictly(clip, state, path)
    return clip.to(device)


def read_prompts(path: Path, device: Device = "cpu") -> Tensor:
    """Read the learned context ``(2, 16, 512)``: upstream saves the tensor alone."""
    content, _ = read_content(path, device=device)
    if not isinstance(content, Tensor):
        state = unwrap(content, path)
        content = next((state[key] for key in ("ctx", "prompt_learner.ctx") if key in state), None)
    if content is None or tuple(content.shape) != CONTEXT_SHAPE:
        found = "there is none" if content is None else f"its shape is {tuple(content.shape)}"
        raise UserError(
            f"'{path}' does not hold the learned prompts of CLIP-IQA+, a tensor of shape {CONTEXT_SHAPE}: {found}; "
            f"give {files_of('clipiqa_plus')[1].filename}"
        )
    return content.detach().float()


@torch.no_grad()
def text_features(clip: Any, context: Tensor | None) -> Tensor:
    """Return the normalised features ``(2, 1024)`` of the good and the bad prompt, with the learned context."""
    from pyiqa.archs.clipiqa_arch import PromptLearner

    device = clip.positional_embedding.device
    with torch.device(device):
        learner = PromptLearner(clip)
    if context is not None:
        learner.ctx.data = context.to(device)
    return F.normalize(learner(clip).float(), dim=-1)


class ClipiqaPlusNetwork(nn.Module):
    """CLIP's image tower without positional embedding, against two constant text features."""

    features: Tensor
    scale: Tensor

    def __init__(self, clip: Any, context: Tensor | None) -> None:
        super().__init__()
        from pyiqa.archs.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

        self.preprocess = Preprocess(NATIVE, normalise=(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
        self.register_buffer("features", text_features(clip, context))
        self.register_buffer("scale", clip.logit_scale.detach().exp())
        self.visual = clip.visual

    def forward(self, images: Tensor) -> Tensor:
        """Return the softmax share of the good prompt ``(N,)``."""
        seen = self.visual(self.preprocess(images), pos_embedding=False)
        with torch.autocast(images.device.type, enabled=False):
            logits = self.scale * F.normalize(at_least_float32(seen), dim=-1) @ self.features.t()
            return logits.softmax(dim=-1)[:, 0]


class ClipiqaPlusMetric(PublishedMetric):
    """``clipiqa_plus``: 0 to 1, higher is better; images at their own size, sides of at least 32 pixels.

    Args:
        weights: the learned prompts (``CLIP-IQA+_learned_prompts-603f3273.pth``); "random"; None for the published
            ones, downloaded if need be.
        backbone_weights: CLIP RN50 (``RN50.pt``, or its state dict); None for the published one.
        device: where the weights are read to.
        seed: of random weights.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        *,
        backbone_weights: str | Path | None = None,
        device: Device = "cpu",
        seed: int = 0,
    ) -> None:
        if weights == RANDOM:
            clip, context, source = seeded(make_clip, seed), None, random_label(seed)
        else:
            backbone, prompts = files_of("clipiqa_plus")
            path = Path(weights).expanduser() if weights else prompts.locate()
            context, source = read_prompts(path, device), path.name
            clip = load_clip(backbone_weights or backbone.locate(), device)
        network = ClipiqaPlusNetwork(clip, context).to(device)
        super().__init__(
            network, name="clipiqa_plus", weights_source=source, score_range=(0, 1), hard_bounds=(0, 1), min_size=32
        )
