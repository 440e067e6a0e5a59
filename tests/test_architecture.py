"""The floors of the house: each may import only what is below it."""

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "certiqa"
FLOORS = (
    "storage",
    "data",
    "metrics",
    "denoisers",
    "defenses",
    "certification",
    "attacks",
    "evaluation",
    "studies",
    "training",
    "callbacks",
    "reports",
    "entry",
)
# attacks see metrics and nothing else; reports read what runs wrote; data and metrics know nothing of each other
FORBIDDEN = {
    "metrics": {"data"},
    "denoisers": {"data"},
    "defenses": {"data"},
    "certification": {"data"},
    "attacks": {"data", "denoisers", "defenses", "certification"},
    "evaluation": {"data"},
    "studies": {"data"},
    "reports": {"studies", "training", "callbacks", "denoisers", "defenses"},
}
LIGHTNING = {"training", "callbacks", "entry"}
FILES = sorted(SOURCE.rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield node.module


def floor_of(path):
    parts = path.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else None


def test_every_folder_is_a_known_floor():
    folders = {path.name for path in SOURCE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders <= set(FLOORS)
    assert len(FILES) > 40


def test_the_page_on_architecture_lists_the_floors():
    page = (SOURCE.parents[1] / "docs" / "architecture.md").read_text()
    assert tuple(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == FLOORS[::-1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_downwards(path):
    floor = floor_of(path)
    for name in imports(path):
        parts = name.split(".")
        if floor is not None and parts[0] == "certiqa" and len(parts) > 1 and parts[1] in FLOORS:
            assert FLOORS.index(parts[1]) <= FLOORS.index(floor), f"{floor} imports {name} from a floor above it"
            assert parts[1] not in FORBIDDEN.get(floor, set()), f"{floor} must not know {name}"
        if parts[0] == "pytorch_lightning":
            assert floor in LIGHTNING or path.name == "datamodule.py", f"{path} imports Lightning"
        if parts[0] == "hydra":
            assert floor == "entry", f"{path} imports Hydra"


@pytest.mark.parametrize("path", sorted(SOURCE.glob("storage/*.py")), ids=lambda path: path.name)
def test_storage_loads_neither_torch_nor_frameworks(path):
    assert not {name for name in imports(path) if name.split(".")[0] in ("torch", "pytorch_lightning", "hydra")}


def test_bounds_and_measures_know_no_network():
    for path in ("certification/ranks.py", "certification/guarantees.py", "evaluation/measures.py"):
        assert not {"torch", "pytorch_lightning"} & {name.split(".")[0] for name in imports(SOURCE / path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_reads_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 350
