"""Train a denoiser in front of a frozen metric, smooth it, certify it: `python train.py --help`."""

from certiqa.entry.train import main

if __name__ == "__main__":
    main()
