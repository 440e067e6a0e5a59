"""Metrics by name: what an option of the command line builds, the same call in Python builds."""

import pytest

from certiqa.errors import UserError
from certiqa.metrics import load_metric


def test_pyiqas_metrics_go_by_their_name_or_by_metric_name():
    by_option = load_metric("pyiqa", metric_name="cnniqa", weights="random")
    by_name = load_metric("cnniqa", weights="random")
    assert by_option.name == by_name.name == "cnniqa"
    assert by_option.score_range == by_name.score_range
    with pytest.raises(UserError, match="needs metric_name"):
        load_metric("pyiqa", weights="random")
    with pytest.raises(UserError, match="'cnniqa' has no option 'resize'; it has: .*min_size"):
        load_metric("cnniqa", weights="random", resize=224)
