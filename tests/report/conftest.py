"""One written study and its report, read by many tests."""

import pytest
from study_reports import build_report
from test_report import make_demo


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("results") / "demo")


@pytest.fixture(scope="session")
def report(demo):
    return build_report(demo)
