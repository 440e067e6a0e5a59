"""Networks that remove Gaussian noise in front of a frozen metric."""

from certiqa.denoisers.checkpoints import DENOISERS, load_denoiser, name_of, save_denoiser, shipped_denoisers
from certiqa.denoisers.dncnn import DnCNN
from certiqa.denoisers.unet import UNet

__all__ = ["DENOISERS", "DnCNN", "UNet", "load_denoiser", "name_of", "save_denoiser", "shipped_denoisers"]
