"""Score tables of every dialect, names that differ from the files, and what is refused."""

import os
import tracemalloc

import numpy as np
import openpyxl
import pandas as pd
import pytest

from certiqa.data import tables
from certiqa.data.matching import match_rows, row_list
from certiqa.data.tables import find_column, numbers, read_table
from certiqa.errors import UserError

PLAIN = "image_name,MOS\n1.jpg,3.5\n2.jpg,4.25\n"


def written(folder, text, name="scores.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        b"\xef\xbb\xbf" + PLAIN.encode(),
        PLAIN.encode("utf-16"),
        PLAIN.replace(",", ";"),
        "image_name;MOS\n1.jpg;3,5\n2.jpg;4,25\n",
        PLAIN.replace(",", "\t"),
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        '"image_name","MOS"\n"1.jpg","3.5"\n"2.jpg","4.25"\n',
        "\n\nimage_name, MOS\n1.jpg , 3.5\n\n2.jpg, 4.25\n\n",
        "image_name,MOS,\n1.jpg,3.5,\n2.jpg,4.25,\n",
        PLAIN.rstrip("\n"),
    ],
    ids=["plain", "mark", "utf16", "semicolons", "decimal commas", "tabs", "windows", "mac", "quotes", "blanks",
         "trailing", "no last line end"],
)  # fmt: skip
def test_every_dialect_gives_the_same_table(tmp_path, text):
    path = written(tmp_path, text)
    table = read_table(path)
    assert list(table.columns) == ["image_name", "MOS"]
    assert list(table["image_name"]) == ["1.jpg", "2.jpg"]
    assert numbers(table, path, "MOS") == [3.5, 4.25]


def test_xlsx_and_names_made_of_digits(tmp_path):
    path = tmp_path / "scores.xlsx"
    pd.DataFrame({"Image name": [10004473376, 7], "MOS": [61.5, np.nan]}).to_excel(path, index=False)
    table = read_table(path)
    assert list(table["Image name"]) == ["10004473376", "7"]
    with pytest.raises(UserError, match=r"1 of 2 cells of column 'MOS' .* are not numbers: '' in line 3"):
        numbers(table, path, "MOS")
    with pytest.raises(UserError, match="as an xlsx file"):
        read_table(written(tmp_path, "no zip", "broken.xlsx"))


@pytest.mark.parametrize("place", [(3000, 16384), (1, 16384), (3000, 1)])
def test_one_far_cell_of_an_xlsx_costs_no_table_of_that_size(tmp_path, place):
    book = openpyxl.Workbook()
    for row in (["image", "mos"], ["1.jpg", 3.5], ["2.jpg", 4]):
        book.active.append(row)
    book.active.cell(*place, "far")
    book.save(tmp_path / "scores.xlsx")
    tracemalloc.start()
    try:
        if place == (3000, 16384):
            with pytest.raises(UserError, match=r"line 3000 of '.*scores.xlsx' has 16384 cells, its header 2"):
                read_table(tmp_path / "scores.xlsx")
        else:
            assert list(read_table(tmp_path / "scores.xlsx")["image"])[:2] == ["1.jpg", "2.jpg"]
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()


def test_a_table_that_unpacks_to_gigabytes_is_refused_unread(tmp_path, monkeypatch):
    pd.DataFrame({"image": ["1.jpg"] * 5000, "mos": 3}).to_excel(tmp_path / "scores.xlsx", index=False)
    monkeypatch.setattr(tables, "LARGEST_TABLE", 100_000)
    assert (tmp_path / "scores.xlsx").stat().st_size < 100_000
    for path in (tmp_path / "scores.xlsx", written(tmp_path, PLAIN * 5000)):
        with pytest.raises(UserError, match=r"holds .* more than the 100 kB that a table of images may have"):
            read_table(path)


def test_a_pipe_or_folder_is_no_table(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    for name in ("pipe.csv", "folder.csv"):
        with pytest.raises(UserError, match=rf"{name}' is a folder or a device"):
            read_table(tmp_path / name)


def test_separators_inside_quotes_are_part_of_the_name(tmp_path):
    table = read_table(written(tmp_path, 'name;"a;b,c,d"\n"x;y,1.png";3\n'))
    assert list(table.columns) == ["name", "a;b,c,d"]
    assert list(table["name"]) == ["x;y,1.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("image,mos\n", r"has a header \(image, mos\) and no rows"),
        ("image,mos,MOS\na,1,2\n", "has the column 'mos' twice"),
        ("image,mos\na.png,1,2\n", "line 2 of .* has 3 cells, its header 2"),
        (b"image,mos\n\x00\x01,1\n", "is not a text table"),
    ],
)
def test_what_is_no_table_is_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_table(written(tmp_path, text))


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the table '.*gone.csv'"):
        read_table(tmp_path / "gone.csv")


def test_a_table_that_changed_is_read_again(tmp_path):
    assert len(read_table(written(tmp_path, PLAIN))) == 2
    assert len(read_table(written(tmp_path, PLAIN + "3.jpg,1\n"))) == 3


def test_cells_that_are_no_numbers_are_counted_with_their_lines(tmp_path):
    path = written(tmp_path, "image,mos\na,1\nb,nan\nc,good\nd,\ne,inf\n")
    with pytest.raises(UserError, match=r"4 of 5 cells .*: 'nan' in line 3, 'good' in line 4, '' in line 5, \.\.\."):
        numbers(read_table(path), path, "mos")


def test_columns_are_found_by_any_spelling(tmp_path):
    table = read_table(written(tmp_path, "Image Name,mos\na,1\n"))
    assert find_column(table, ["image_name"]) == "Image Name"
    assert find_column(table, ["MOS"]) == "mos"
    assert find_column(table, ["dmos"]) is None


def matched(names, files, tmp_path, **options):
    rows = row_list(names, [float(place) for place in range(len(names))])
    return match_rows(rows, files, table=tmp_path / "t.csv", folder=tmp_path, **options)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a.png", "a.png"),
        ("A.PNG", "a.png"),
        ("a", "a.png"),
        ("a.b", "a.b.png"),
        ("koniq10k/512x384/a.png", "a.png"),
        ("a.png", "deep/er/a.png"),
        (r"deep\a.png", "deep/a.png"),
        ("./a.png", "a.png"),
        ("DEEP/A", "deep/a.png"),
    ],
)
def test_names_find_their_files(name, file, tmp_path):
    assert list(matched([name], [file], tmp_path)) == [file]


def test_paths_that_disagree_are_not_brought_together(tmp_path):
    with pytest.raises(UserError, match="1 rows of .*: c/a.png; 1 images in .*: b/a.png"):
        matched(["c/a.png"], ["b/a.png"], tmp_path)


def test_case_tells_files_apart_where_it_must(tmp_path):
    assert list(matched(["a.png", "A.png"], ["A.png", "a.png"], tmp_path)) == ["A.png", "a.png"]
    with pytest.raises(UserError, match=r"'a.PNG' in .* may be any of 2 images: A.png, a.png"):
        matched(["a.PNG"], ["A.png", "a.png"], tmp_path)
    with pytest.raises(UserError, match=r"'a' in .* may be any of 2 images: a.jpg, a.png"):
        matched(["a"], ["a.jpg", "a.png"], tmp_path)


def test_rows_without_images_and_images_without_rows_are_counted(tmp_path):
    names, files = [f"{index}.png" for index in range(9)], [f"{index}.png" for index in range(5, 20)]
    told = r"5 rows of .* have no image in .*: 0.png, 1.png, 2.png, \.\.\.; 11 images in .* have no row in .*: 9.png"
    with pytest.raises(UserError, match=told):
        matched(names, files, tmp_path)
    assert list(matched(names, files, tmp_path, ignore=True)) == ["5.png", "6.png", "7.png", "8.png"]
    assert len(matched(names[5:], files, tmp_path, spare=files[4:])) == 4
    with pytest.raises(UserError, match="no images in"):
        matched(names, [], tmp_path)
    with pytest.raises(UserError, match="no row of .* names an image"):
        matched(["x.png"], ["y.png"], tmp_path, ignore=True)


def test_equal_rows_count_once_and_others_contradict(tmp_path, caplog):
    rows = row_list(["a.png", "A", "b.png"], [1.0, 1.0, 2.0])
    found = match_rows(rows, ["a.png", "b.png"], table=tmp_path / "t.csv", folder=tmp_path)
    assert [row.mos for row in found.values()] == [1.0, 2.0]
    assert "1 rows of t.csv stand there more than once" in caplog.text
    rows = row_list(["a.png", "A.png"], [1.0, 1.5])
    with pytest.raises(UserError, match=r"contradict each other about 'a.png': 'a.png' \(score 1.0\) and 'A.png'"):
        match_rows(rows, ["a.png"], table=tmp_path / "t.csv", folder=tmp_path)
