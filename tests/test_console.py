"""The terminal shows text as it stands, and whatever its encoding is, it never stops a run."""

import ast
import io
import sys
from pathlib import Path

import pytest

from certiqa.callbacks.progress import Progress, side_bar
from certiqa.console import accept_any_text, plain_column, plain_console
from certiqa.reports import print_summary

SOURCE = Path(__file__).parents[1] / "src"
ODD = "runs[bold]x/[/y]:smile:"


def test_no_text_is_taken_for_markup(capsys):
    plain_console().print(ODD)
    assert capsys.readouterr().out == f"{ODD}\n"


def test_names_with_brackets_stand_in_the_tables_of_a_run(capsys):
    facts = {"name": ODD, "defense": "[/z]", "srocc": 0.5, "srocc_undefended": 0.6, "num_images": 5}
    print_summary(facts)
    said = capsys.readouterr().out
    assert ODD in said
    assert "[/z]" in said


def test_progress_bars_take_names_as_they_are():
    class Bars:
        tasks = ()

        def add_task(self, description, total):
            self.description = description
            return 0

        def remove_task(self, task):
            pass

    from rich.text import Text

    bar = Progress()
    bar.progress = Bars()
    trainer = type("Trainer", (), {"callbacks": [bar]})
    with side_bar(trainer, "an [bold] attack [/y]", 3):
        assert Text.from_markup(bar.progress.description).plain == "an [bold] attack [/y]"
    assert plain_column().markup is False


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_text_beyond_the_encoding_is_replaced_and_boxes_are_drawn_in_ascii(encoding, monkeypatch):
    from rich.table import Table

    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    accept_any_text()
    print("SROCC ≥ .5, a name that is no text: \udcff")
    plain_console().print(Table("metric", title="Größe"))
    stream.flush()
    said = stream.buffer.getvalue().decode(encoding)
    assert ("SROCC ≥ .5" if encoding == "utf-8" else "SROCC ? .5") in said
    assert ("┃ metric ┃" if encoding == "utf-8" else "| metric |") in said


def test_every_console_is_a_plain_one():
    """A console of rich's own reads markup: in a path of the user's it changes the text, or raises."""
    for path in SOURCE.rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        made = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Console"]
        assert not made or path.name == "console.py", path
