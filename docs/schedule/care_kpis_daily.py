"""An Airflow DAG that runs `care-kpis daily` every morning: copy it into Airflow's folder of DAGs.

Airflow stays in an environment of its own: the task starts the program, it does not import it.
"""

from __future__ import annotations

import os
import subprocess
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import CronTriggerTimetable, Param, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException

PROGRAM = os.environ.get("CARE_KPIS_PROGRAM", "/opt/care-kpis/.venv/bin/care-kpis")
FOLDER = os.environ.get("CARE_KPIS_FOLDER", "/srv/care")
OPTIONS = ("--input", "data/{date}*.parquet", "--output", "output", "--reports", "reports", "--config", "care.toml")

FOR_A_PERSON = (2, 3)
"""Exit codes that no time mends: something in the settings or the input, and the audit.

All else may pass, and is tried again: another run is at work, the report was not delivered, or (with --require-files)
no file has come yet.
"""


@task(retries=8, retry_delay=timedelta(minutes=15))
def daily() -> None:
    """Takes the new files, publishes the result and writes the report; what was missed, too."""
    date = get_current_context()["params"]["date"]
    chosen = ("--date", date) if date else ()
    code = subprocess.run([PROGRAM, "daily", *OPTIONS, *chosen], cwd=FOLDER, check=False).returncode
    if code in FOR_A_PERSON:
        raise AirflowFailException(f"care-kpis daily ended with {code}; what it printed says what to do.")
    if code:
        raise AirflowException(f"care-kpis daily ended with {code}; it is tried again.")


@dag(
    schedule=CronTriggerTimetable("10 5 * * *", timezone="Europe/Berlin"),
    start_date=datetime(2026, 1, 1),
    # A run catches up by itself, and no two may run at a time.
    catchup=False,
    max_active_runs=1,
    params={"date": Param(None, type=["null", "string"], format="date", description="A day to make anew.")},
    tags=["care-kpis"],
)
def care_kpis_daily() -> Any:
    """Customer-care KPIs of the day before."""
    return daily()


care_kpis_daily()
