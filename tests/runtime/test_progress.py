"""The line that tells how far some work is and how long it will take."""

import pytest

from simcis_jax.runtime import progress
from simcis_jax.runtime.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets, in seconds."""
    now = [0.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    return now


def test_the_time_left_is_that_of_the_units_at_the_latest_rate(clock, capsys):
    work = Progress('stage 1 step', 100, 'steps', interval=5)
    clock[0] = 10
    work.advance(20)
    assert capsys.readouterr().out == 'stage 1 step 20/100  2.0 steps/s  left 0:40\n'


def test_on_a_terminal_a_shorter_line_covers_the_longer_one_before(clock, capsys, monkeypatch):
    monkeypatch.setattr('sys.stdout.isatty', lambda: True)
    work = Progress('step', 1000, 'steps')
    lines = []
    for now, done in ((10, 10), (11, 90), (12, 900)):
        clock[0] = now
        work.advance(done)
        lines.append(capsys.readouterr().out)
    long, short, last = (line.rstrip('\r\n') for line in lines)
    assert long.endswith('left 16:30') and short.startswith('step 100/1000  9.1 steps/s  left 1:39')
    assert len(long) == len(short) <= len(last.rstrip()) + 10
    assert [line[-1] for line in lines] == ['\r', '\r', '\n']


@pytest.mark.parametrize(
    'after, seconds, left', [(200, 0, '2:20'), (200, 60, '3:20'), (0, 5, '0:45')]
)
def test_the_time_of_the_run_includes_later_units_and_other_work(
    clock, capsys, after, seconds, left
):
    work = Progress('step', 100, 'steps', after=after, interval=5, seconds_after=seconds)
    clock[0] = 10
    work.advance(20)
    assert capsys.readouterr().out == f'step 20/100  2.0 steps/s  left 0:40  run left {left}\n'
    work.seconds_after = 3600
    work.advance(0, numbers={'total': 1.0})
    whole = '1:02:20' if after else '1:00:40'
    assert f'left 0:40  run left {whole}  total 1' in capsys.readouterr().out
