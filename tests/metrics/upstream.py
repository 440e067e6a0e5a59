"""Files as upstream publishes them, with random weights, and independent forwards of the same networks."""

import hashlib
import itertools
import warnings
from unittest import mock

import torch
import torchvision
from torch import nn
from torchvision.transforms.functional import normalize, resize

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def shake(network, seed=0):
    """Give BatchNorms statistics and the rest a spread, so that a key loaded to the wrong place shows."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.3, 0.3, generator=generator)
            module.running_mean.uniform_(-0.3, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
        elif isinstance(module, nn.PReLU):
            module.weight.data.uniform_(0.1, 0.4, generator=generator)
    return network.eval()


def dbcnn(path):
    """pyiqa's checkpoint (``params``, and DataParallel's prefix), and its own model."""
    from pyiqa.archs import dbcnn_arch

    bare = torchvision.models.vgg16(weights=None)
    with (
        mock.patch.object(torchvision.models, "vgg16", return_value=bare),
        mock.patch.object(dbcnn_arch, "load_pretrained_network"),
    ):
        torch.manual_seed(1)
        network = shake(dbcnn_arch.DBCNN(pretrained=False))
    torch.save({"params": {f"module.{key}": value for key, value in network.state_dict().items()}}, path)
    return lambda images: network(images).squeeze(1)


def metaiqa(path, seed=1):
    """The authors' keys (``net.`` for the head), and pyiqa's own model."""
    from pyiqa.archs.metaiqa_arch import MetaIQA

    torch.manual_seed(seed)
    network = shake(MetaIQA(pretrained=False), seed)
    state = {key.replace("head.", "net."): value for key, value in network.state_dict().items()}
    torch.save({key: value for key, value in state.items() if key not in ("mean", "std")}, path)
    return lambda images: network(images).squeeze(1)


def clipiqa_plus(prompts_path, archive_path):
    """OpenAI's container (TorchScript, half precision) and the learned context alone, and pyiqa's own model of both."""
    from pyiqa.archs import clip_model, clipiqa_arch

    torch.manual_seed(1)
    clip = clip_model.CLIP(1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12)
    shake(clip)
    clip_model.convert_weights(clip)
    clip.float()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive = torch.jit.trace(clip, (torch.rand(1, 3, 64, 64), torch.randint(1, 99, (1, 77))), check_trace=False)
        archive.save(str(archive_path))
    context = torch.randn(2, 16, 512) * 0.1
    torch.save(context, prompts_path)
    with mock.patch.object(clipiqa_arch, "load", return_value=clip_model.load(str(archive_path), "cpu")):
        network = clipiqa_arch.CLIPIQA("clipiqa+", pretrained=False).eval()
    network.prompt_learner.ctx.data = context
    return lambda images: network(images).squeeze(1)


def linearity(path):
    """The authors' checkpoint (model, k, b), and a plain torchvision assembly."""
    torch.manual_seed(1)
    backbone = torchvision.models.resnext101_32x8d(weights=None)
    features = nn.Sequential(*list(backbone.children())[:-2])

    def reduce(channels):
        sizes = (channels, 1024, 256, 64)
        layers = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after)]
        return nn.Sequential(*layers, nn.ReLU())

    parts = nn.ModuleDict(
        {"features": features, "dr6": reduce(1024), "dr7": reduce(2048), "regr6": nn.Linear(64, 1)}
        | {"regr7": nn.Linear(64, 1), "regression": nn.Linear(128, 1)}
    )
    shake(parts)
    torch.save({"model": parts.state_dict(), "k": [31.5, 1.0, 2.0], "b": [48.25, 3.0, 4.0]}, path)

    def score(images, size=(498, 664)):
        x = normalize(resize(images, list(size), antialias=True), *IMAGENET)
        layers = dict(backbone.named_children())
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3"):
            x = layers[name](x)
        sixth = parts["dr6"](x.mean((2, 3)))
        seventh = parts["dr7"](layers["layer4"](x).mean((2, 3)))
        return parts["regression"](torch.cat([sixth, seventh], 1)).squeeze(1) * 31.5 + 48.25

    return score


def spaq(path):
    """The authors' checkpoint, and torchvision's network on one patch after another."""
    torch.manual_seed(1)
    backbone = torchvision.models.resnet50(weights=None)
    backbone.fc = nn.Linear(2048, 1)
    shake(backbone)
    torch.save({"state_dict": {f"backbone.{key}": value for key, value in backbone.state_dict().items()}}, path)

    def score(images):
        if min(images.shape[-2:]) >= 512:
            images = resize(images, 512, antialias=True)
        height, width = images.shape[-2:]
        tops = sorted({*range(0, height - 223, 112), height - 224})
        lefts = sorted({*range(0, width - 223, 112), width - 224})
        patches = [images[..., top : top + 224, left : left + 224] for top in tops for left in lefts]
        return torch.stack([backbone(patch) for patch in patches]).mean(0).squeeze(1)

    return score


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()
