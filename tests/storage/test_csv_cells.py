"""No csv that is written for people holds a formula, and reading it gives back what was written."""

import csv
import io

import pandas as pd
import pytest

from certiqa.storage.csv_cells import plain_cell, safe_cell

TEXTS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''@x", "-photo.png"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_formula_becomes_a_text_and_comes_back(text):
    assert safe_cell(text)[0] == "'"
    assert plain_cell(safe_cell(text)) == text


@pytest.mark.parametrize("cell", ["-1.5", "+3", "-inf", "-1e-05", "nan", "ms", "'tis", "", "a=b", -0.5, 3, None, True])
def test_numbers_and_other_cells_stay_as_they_are(cell):
    assert safe_cell(cell) is cell
    assert plain_cell(cell) is cell


def test_a_table_of_both_comes_back():
    texts = [text for text in TEXTS if "\r" not in text]  # of which csv itself makes a new line
    table = pd.DataFrame({"name": texts, "value": [-1.5 * place for place in range(len(texts))]})
    written = table.map(safe_cell).to_csv(index=False, lineterminator="\n")
    assert all(row[0][0] == "'" for row in list(csv.reader(io.StringIO(written, newline="")))[1:])
    assert pd.read_csv(io.StringIO(written, newline="")).map(plain_cell).equals(table)
