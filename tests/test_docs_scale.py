"""The page on scale shows the tables that the plan gives."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["held", "traffic", "time", "storage"])
def test_the_page_shows_the_table(name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import scale_plan

    assert "\n".join(scale_plan.TABLES[name]()) in (ROOT / "docs" / "scale.md").read_text()
    sys.modules.pop("scale_plan")
