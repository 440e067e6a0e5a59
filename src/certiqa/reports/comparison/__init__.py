"""Many runs beside each other: gathered, made comparable, drawn, tested, and written as a static site."""

from certiqa.reports.comparison.site import Site, write_comparison

__all__ = ["Site", "write_comparison"]
