"""certiqa trains, certifies and attacks no-reference image quality (NR-IQA) metrics."""

__version__ = "0.1.0"
