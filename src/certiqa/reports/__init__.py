"""What a run found: the terminal's table and one self-contained HTML page."""

from certiqa.reports.comparison import write_comparison
from certiqa.reports.html import write_report
from certiqa.reports.tables import comparison_table
from certiqa.reports.terminal import print_summary

__all__ = ["comparison_table", "print_summary", "write_comparison", "write_report"]
