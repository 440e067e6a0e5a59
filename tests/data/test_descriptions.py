"""What is said of each published data set: runs and ``certiqa-data`` find it alike, and the docs say the same."""

from pathlib import Path

import pytest

from certiqa.data import DATASETS, load_dataset, verifying
from certiqa.data.registry import PUBLISHED
from certiqa.entry import data as cli

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
SPELLINGS = [
    (published.name, changed(name))
    for published in PUBLISHED.values()
    for name in (published.name, *published.spellings)
    for changed in (str, str.upper, lambda name: "-".join(name.replace("_", " ")))
]


@pytest.fixture(scope="module")
def originals(tmp_path_factory, miniatures):
    base = tmp_path_factory.mktemp("data")
    return {name: miniatures.WRITERS[name](base / f"the {name}") for name in PUBLISHED}


@pytest.fixture
def found(monkeypatch, capsys):
    """Return where a run and every command look for a data set."""
    monkeypatch.setattr(verifying, "verify_dataset", lambda published, root, **_: [])  # miniatures have faults

    def find(name, **root):
        folders = [folder for record in load_dataset(name, **root).records for folder in record.path.parents]
        cli.main(["verify", name, *(f"--{key}={value}" for key, value in root.items())])
        told = capsys.readouterr().out
        (folder,) = {folder for folder in folders if f" in {folder} is as published: " in told}
        return folder

    return find


@pytest.mark.parametrize(("name", "spelling"), SPELLINGS)
def test_every_spelling_is_found_by_runs_and_commands(name, spelling, originals, found, tmp_path, monkeypatch):
    folder = tmp_path / "data" / spelling
    folder.parent.mkdir()
    folder.symlink_to(originals[name])
    assert found(name, root=folder) == found(name, root=folder.parent) == folder
    for place in (folder, folder.parent):
        monkeypatch.setenv("CERTIQA_DATA", str(place))
        assert found(name) == folder
    assert PUBLISHED[name].destination(None) == folder, "a download goes where the rest is"
    (tmp_path / "images").mkdir()  # one of another data set's
    deeper = tmp_path / PUBLISHED[name].name / spelling
    deeper.parent.mkdir()
    folder.rename(deeper)
    assert found(name, root=tmp_path) == deeper


def test_a_download_goes_into_a_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("CERTIQA_DATA", str(tmp_path / "data"))
    for name, published in PUBLISHED.items():
        assert published.destination(None) == tmp_path / "data" / name
        (tmp_path / "data" / "images").mkdir(parents=True, exist_ok=True)  # of another data set
        assert published.destination(None) == tmp_path / "data" / name
        assert published.destination(tmp_path) == tmp_path


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_description_is_sound(name, originals):
    published = PUBLISHED[name]
    assert name in DATASETS
    assert published.parts or published.manual
    for part in published.parts:
        assert part.url.startswith("https://")
        assert part.max_bytes or len(part.lands) == 1
    for file in (*published.folders, *(file for group in published.needs for file in group)):
        assert file in published.tree
    images = sum(map(len, verifying.images_of(published, originals[name]).values()))
    (fault,) = (fault for fault in verifying.verify_dataset(published, originals[name], workers=1))
    assert f"has {images} images where {published.size + published.references} are expected" in fault


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_page_says_what_the_description_says(name):
    published = PUBLISHED[name]
    (row,) = (line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{name}` |"))
    said = row.translate(str.maketrans("", "", "[]`"))
    assert f"{published.size:,}" in said
    assert published.page in said
    assert published.licence.partition(" (")[0] in said
    assert (f"certiqa-data fetch {name}" if published.parts else "by hand") in said
    assert f"{name}/{published.folders[0]}/" in said
