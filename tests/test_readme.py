"""What the README shows works as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs(mini_cache):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(code, names)
    bounds = names["bounds"]
    assert bounds.lower.shape == (5, 2)
    assert np.isfinite(bounds.upper).all()
    assert (bounds.lower[:, 1] <= bounds.score).all()


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_links_lead_to_files(target):
    assert (ROOT / target).exists()


def test_no_text_names_a_registry_host():
    for path in [ROOT / "constraints.txt", ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        assert not re.search(r"pypi\.org|pythonhosted|npmjs|debian\.org", path.read_text()), path
