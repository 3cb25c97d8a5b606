"""The schedule of the accelerator check loses no result and keeps to its time."""

import json
import sys
import time

import pytest

from benchmarks.accelerator import report, schedule
from benchmarks.accelerator.schedule import Measurement, Schedule


def python(code):
    return [sys.executable, '-c', code]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs measurements; returns the results and the number of results of every report."""
    monkeypatch.setattr(schedule, 'SHORTEST', 0.0)

    def run(*measurements, seconds=60.0, budgets=None, preparation_seconds=30.0):
        reports = []

        def write(results):
            report.write(tmp_path, {'date': 'today'}, results)
            stored = json.loads((tmp_path / 'check.json').read_text())['results']
            reports.append([x['name'] for x in stored if x['status'] != schedule.NOT_REACHED])

        found = Schedule(
            measurements,
            budgets=budgets or {m.part: seconds for m in measurements},
            seconds=seconds,
            preparation_seconds=preparation_seconds,
            workers=2,
            environment={'FOR_ALL': '1'},
            shared={'FOR_SHARED': '1'},
            report=write,
        ).run()
        return {r.name: r for r in found}, reports

    return run


def test_a_failure_does_not_stop_the_others(run):
    found, reports = run(
        Measurement('machine', 'works', python('print("noise"); print(\'{"a": 1}\')'), 20),
        Measurement('machine', 'fails', python('raise MemoryError("too large")'), 20),
        Measurement('machine', 'silent', python('pass'), 20),
        Measurement('machine', 'absent', python('print(1)'), 20, needs=('no_such_module',)),
        Measurement('machine', 'last', python('print(2)'), 20),
    )
    assert found['works'].found == {'a': 1} and found['last'].found == 2
    assert found['fails'].status == schedule.FAILED and 'too large' in found['fails'].error
    assert found['silent'].status == schedule.FAILED and 'not JSON' in found['silent'].error
    assert found['absent'].status == schedule.SKIPPED and 'no_such_module' in found['absent'].error
    # Everything that is known is on disk after each.
    assert reports == [list(found)[: n + 1] for n in range(5)]


def test_a_measurement_is_ended_with_its_own_processes(run, tmp_path):
    file = tmp_path / 'child'
    child = f'import time; time.sleep(4); open({str(file)!r}, "w")'
    code = f'import subprocess, sys; subprocess.run([sys.executable, "-c", {child!r}])'
    found, _ = run(Measurement('machine', 'hangs', python(code), 1.0))
    assert found['hangs'].status == schedule.TIMED_OUT and 1 <= found['hangs'].seconds < 3
    time.sleep(4)
    assert not file.exists()


def test_time_that_is_left_goes_to_what_a_part_did_not_reach(run):
    slow = python('import time; time.sleep(1); print(1)')
    found, reports = run(
        Measurement('parity', 'first', slow, 20),
        Measurement('parity', 'second', slow, 20),
        Measurement('run', 'third', slow, 20),
        budgets={'parity': 0.5, 'run': 20},
    )
    assert [r.status for r in found.values()] == [schedule.MEASURED] * 3
    assert reports[1] == ['first', 'third'] and reports[2] == ['first', 'second', 'third']


def test_what_is_not_reached_says_so(run):
    slow = python('import time; time.sleep(1.5); print(1)')
    found, _ = run(
        Measurement('parity', 'first', slow, 20), Measurement('run', 'second', slow, 20), seconds=1
    )
    assert found['first'].status == schedule.TIMED_OUT
    assert found['second'].status == schedule.NOT_REACHED


def test_timed_measurements_wait_for_preparations(run, tmp_path):
    file = tmp_path / 'prepared'
    show = (
        'import json, os; print(json.dumps(["FOR_ALL" in os.environ, "FOR_SHARED" in os.environ, '
    )
    show += f'os.path.exists({str(file)!r})]))'
    prepare = f'import time; time.sleep(1.5); open({str(file)!r}, "w"); print(1)'
    found, reports = run(
        Measurement('parity', 'beside', python(show), 20, untimed=True),
        Measurement(
            'parity', 'slow', python('import time; time.sleep(1); print(1)'), 20, untimed=True
        ),
        Measurement('speed', 'timed', python(show), 20, preparation=python(prepare)),
    )
    assert found['beside'].found == [True, True, False]
    assert found['timed'].found == [True, False, True]
    assert list(reports[0]) == ['beside']  # Though the slow one started as well.
    assert found['timed'].preparation_seconds >= 1.5


def test_a_preparation_that_takes_too_long_is_given_up(run):
    found, _ = run(
        Measurement(
            'run',
            'timed',
            python('print(1)'),
            20,
            preparation=python('import time; time.sleep(30)'),
        ),
        preparation_seconds=1.0,
    )
    assert found['timed'].status == schedule.MEASURED and found['timed'].seconds < 10
    assert found['timed'].preparation_seconds is None
