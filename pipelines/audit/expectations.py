"""The suites in Great Expectations: the only module that knows it, for it takes seconds to import.

A context of its own is made for each audit, in a folder that is thrown away, so that nothing is left to go stale. What
stays are the Data Docs.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.audit.pages import make_self_contained
from pipelines.audit.results import Severity
from pipelines.audit.rules import Rule
from transforms.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

_SITE: Any = {
    "class_name": "SiteBuilder",
    "show_how_to_buttons": False,
    "store_backend": {
        "class_name": "TupleFilesystemStoreBackend",
        "base_directory": "uncommitted/data_docs/local_site/",
    },
    "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
}


@dataclass(frozen=True)
class Expected:
    """One expectation.

    Attributes:
      name: of the check.
      sentence: what has to hold.
      severity: critical, or warning.
      rule: of a column; None for the others.
      columns: the columns of the frame in their order; None for the others.
      column: whose every value is "ok"; None for the others.
      pair: a column whose values are not below those of the other one, where both are known; None for the others.
    """

    name: str
    sentence: str
    severity: Severity = "critical"
    rule: Rule | None = None
    columns: tuple[str, ...] | None = None
    column: str | None = None
    pair: tuple[str, str] | None = None


@dataclass(frozen=True)
class Suite:
    """Expectations of one frame."""

    name: str
    about: str
    expected: Sequence[Expected]


@dataclass(frozen=True)
class Judged:
    """What came of an expectation: whether it is met, and the places in the frame of the rows that break it."""

    expected: Expected
    is_met: bool
    places: tuple[int, ...]


def require_great_expectations() -> None:
    """Refuses to begin an audit that could not be made.

    Raises:
      UserError: the package is not installed.
    """
    from importlib.util import find_spec

    if find_spec("great_expectations") is None:
        raise UserError(
            "Expected the package great_expectations for the audit, but it is not installed: "
            "pip install 'care-kpis[audit]', or leave --audit out."
        )


def judge(suites: Sequence[Suite], frames: Mapping[str, pd.DataFrame], root: Path) -> dict[str, list[Judged]]:
    """Runs suites over their frames and writes Data Docs.

    Args:
      suites: what is expected.
      frames: what there is, by the name of the suite.
      root: an empty folder; its folder `docs` is made.

    Returns:
      What came of each expectation, by suite.
    """
    # Before the import: no word leaves this machine.
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = gx.get_context(mode="file", project_root_dir=root)
        context.enable_analytics(False)
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        context.update_data_docs_site("local_site", _SITE)
        source = context.data_sources.add_pandas("care-kpis")
        found = {suite.name: _run(context, source, suite, frames[suite.name]) for suite in suites}
        context.build_data_docs()
    docs = root / "docs"
    shutil.move(root / "gx" / "uncommitted" / "data_docs" / "local_site", docs)
    make_self_contained(docs)
    shutil.rmtree(root / "gx")
    return found


def _run(context: Any, source: Any, suite: Suite, frame: pd.DataFrame) -> list[Judged]:
    import great_expectations as gx

    batch = source.add_dataframe_asset(suite.name).add_batch_definition_whole_dataframe("whole")
    expectations = [_expectation(place, expected) for place, expected in enumerate(suite.expected)]
    stored = context.suites.add(gx.ExpectationSuite(name=suite.name, expectations=expectations, notes=suite.about))
    validation = context.validation_definitions.add(gx.ValidationDefinition(name=suite.name, data=batch, suite=stored))
    result = validation.run(batch_parameters={"dataframe": frame}, result_format="COMPLETE")
    judged = {}
    for one in result.results:
        # What raised an error (a column is not there) is not met either.
        places = one.result.get("unexpected_index_list") or ()
        judged[one.expectation_config.meta["place"]] = bool(one.success), tuple(map(int, places))
    return [Judged(expected, *judged[place]) for place, expected in enumerate(suite.expected)]


def _expectation(place: int, expected: Expected) -> Any:
    import great_expectations.expectations as gxe

    shared: dict[str, Any] = {
        "severity": expected.severity,
        "notes": f"{expected.sentence} ({expected.severity})",
        "meta": {"place": place},
    }
    if expected.columns is not None:
        return gxe.ExpectTableColumnsToMatchOrderedList(column_list=list(expected.columns), **shared)
    if expected.column is not None:
        return gxe.ExpectColumnValuesToBeInSet(column=expected.column, value_set=["ok"], **shared)
    if expected.pair is not None:
        high, low = expected.pair
        return gxe.ExpectColumnPairValuesAToBeGreaterThanB(
            column_A=high, column_B=low, or_equal=True, ignore_row_if="either_value_is_missing", **shared
        )
    rule = expected.rule
    assert rule is not None
    if rule.kind == "known":
        return gxe.ExpectColumnValuesToNotBeNull(column=rule.column, **shared)
    if rule.kind == "set":
        return gxe.ExpectColumnValuesToBeInSet(column=rule.column, value_set=list(rule.values), **shared)
    return gxe.ExpectColumnValuesToBeBetween(column=rule.column, min_value=rule.low, max_value=rule.high, **shared)
