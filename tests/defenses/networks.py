"""Containers of upstream layouts, with small random networks, as the authors' files are laid out."""

import torch


def compact(scale=4, seed=0):
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(seed)
    return Compact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=2, upscale=scale)


def dncnn():
    from spandrel.architectures.DnCNN import DnCNN

    return DnCNN(in_nc=3, out_nc=3, nc=8, nb=9, act_mode="R", mode="DnCNN")


def drunet():
    from spandrel.architectures.DRUNet import DRUNet

    return DRUNet(in_nc=4, out_nc=3, nc=[4, 6, 8, 10], nb=3, act_mode="R")


def scunet():
    from spandrel.architectures.SCUNet import SCUNet

    return SCUNet(in_nc=3, config=[1] * 7, dim=64, drop_path_rate=0.0, input_resolution=256)


def nafnet():
    from spandrel.architectures.NAFNet import NAFNet

    network = NAFNet(img_channel=3, width=4, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1])
    for key, value in network.named_parameters():
        if key.endswith(("beta", "gamma")):
            value.data.uniform_(0.2, 0.6)  # zero before training: the blocks would do nothing
    return network


def swinir():
    from spandrel.architectures.SwinIR import SwinIR

    return SwinIR(
        img_size=16, in_chans=3, embed_dim=12, depths=[2], num_heads=[2], window_size=8, mlp_ratio=2.0, upsampler="",
        upscale=1, resi_connection="1conv",
    )  # fmt: skip


def mprnet():
    from spandrel_extra_arches.architectures.MPRNet import MPRNet

    return MPRNet(n_feat=8, scale_unetfeats=4, scale_orsnetfeats=4, num_cab=1, kernel_size=3, reduction=4, bias=False)


NETWORKS = {
    "dncnn": (dncnn, lambda network: network.state_dict()),
    "drunet": (drunet, lambda network: network.state_dict()),
    "scunet": (scunet, lambda network: network.state_dict()),
    "nafnet": (nafnet, lambda network: {"params": network.state_dict()}),
    "swinir": (swinir, lambda network: {"params": network.state_dict()}),
    "real_esrgan": (compact, lambda network: {"params": network.state_dict()}),
    "mprnet": (
        mprnet,
        lambda network: {
            "epoch": 3,
            "state_dict": {f"module.{key}": value for key, value in network.state_dict().items()},
        },
    ),
}
"""For each preset a small network, and how its authors wrap the weights."""


def write(name, folder, seed=0):
    """Write a container and return the bare network, in eval mode, and the file's path."""
    torch.manual_seed(seed)
    make, wrap = NETWORKS[name]
    network = make().eval()
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.data *= 0.7  # tame, so that outputs are mostly inside [0, 1]
    path = folder / f"{name}-{seed}.pth"
    torch.save(wrap(network), path)
    return network, path


def write_disco(folder, **changes):
    """Write a checkpoint of DISCO's layout; returns its path and its specification."""
    from certiqa.denoisers.implicit import build_liif

    torch.manual_seed(0)
    encoder = {"no_upsampling": True, "n_resblocks": 2, "n_feats": 6} | changes.pop("encoder", {})
    spec = {
        "name": "liif",
        "args": {
            "encoder_spec": {"name": "edsr-baseline", "args": encoder},
            "imnet_spec": {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [10, 12]}},
        },
    } | changes
    path = folder / "disco.pth"
    state = build_liif(spec, path, chunk=1000, checkpoint=False).state_dict() if spec["name"] == "liif" else {}
    torch.save({"model": spec | {"sd": state}, "optimizer": {"lr": 1e-4}, "epoch": 7}, path)
    return path, state


def write_diffusion(folder, out_channels=3, at_root=False, **changes):
    """Write a diffusers pipeline's folder with a small U-Net; returns the U-Net and the folder's path.

    Args:
        folder: where to.
        out_channels: of the U-Net; 6 for one with a learned variance.
        at_root: without subfolders, as google/ddpm-church-256 is laid out.
        changes: of the scheduler.
    """
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16, out_channels=out_channels, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, add_attention=False,
    )  # fmt: skip
    unet.save_pretrained(folder if at_root else folder / "unet")
    scheduler = DDPMScheduler(**{"num_train_timesteps": 1000, **changes})
    scheduler.save_pretrained(folder if at_root else folder / "scheduler")
    return unet.eval(), folder
