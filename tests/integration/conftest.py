"""The case that `over` names, and its pipeline; a file with one list of cases has its own `case`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.families import Case, quiet


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def pipe(case: Case) -> Any:
    return quiet(case.build())
