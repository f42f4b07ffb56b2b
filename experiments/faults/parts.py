"""The parts of the measurement: each is a list of jobs, whose rows are written as they come.

A repeated command does the jobs that are missing. A job that a kill interrupted starts anew, and its rows with it.
"""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from common.results import write_result
from experiments.run import is_done, open_result, row_provenance
from experiments.studies.jobs import Job

Row = dict[str, Any]
RUNNING = "running"  # the key of the job whose rows are not all in the file


def run_jobs(name: str, jobs: Iterable[Job], file: Path, seeds: list[int]) -> Iterator[Row]:
    """Run the jobs that a result file lacks; yield each row once it is in the file.

    Each row has the commit that made it, whether a tracked file differed from that, and its seconds.
    """
    result = open_result(name, file, seeds)
    if (interrupted := result.pop(RUNNING, None)) is not None:
        result["rows"] = [row for row in result["rows"] if not interrupted.items() <= row.items()]
    for job in jobs:
        if is_done(job, result["rows"]):
            continue
        result[RUNNING], started = job.key, time.monotonic()
        for row in job.run():
            seconds = round(time.monotonic() - started, 1)
            result["rows"].append({**row, **job.key, "seconds": seconds, **row_provenance()})
            result["seconds"] = round(result["seconds"] + seconds, 1)
            started = time.monotonic()
            write_result(file, result)
            yield result["rows"][-1]
        del result[RUNNING]
        write_result(file, result)
