"""Evaluate any defended metric without training: `python evaluate.py --help`."""

from certiqa.entry.evaluate import main

if __name__ == "__main__":
    main()
