"""The check of an accelerator loses no result, keeps to its time and computes what it reports."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import parity as errors
import pytest

from benchmarks import accelerator_check, row
from benchmarks.accelerator import (
    alternatives,
    builtin_run,
    kernels,
    parity,
    report,
    worker,
)
from benchmarks.accelerator.schedule import Result
from benchmarks.process import ROOT

TINY = row.Settings(size=64, points=16, targets=3, slots=4, queries=10, repeats=1)


def test_every_measurement_can_be_started_and_has_a_budget():
    for small in (True, False):
        chosen = accelerator_check.measurements(small, peer_python='')
        assert {m.part for m in chosen} == {'machine', *accelerator_check.PARTS}
        assert len({(m.part, m.name) for m in chosen}) == len(chosen)
        for m in chosen:
            for command in filter(None, (m.command, m.preparation)):
                if command[0] == 'env':  # XLA reads its flags from the environment.
                    command = command[2:]
                _, _, module, *arguments = command
                if module == 'benchmarks.torch_peer':
                    name, side, settings = arguments
                    assert side in row.ROWS[name] and m.needs == accelerator_check.PEER
                    row.Settings(**json.loads(settings))
                else:
                    kind, text = arguments
                    assert kind in worker.KINDS and isinstance(json.loads(text), dict)
    assert sum(accelerator_check.PARTS.values()) == pytest.approx(1)


def test_idle_time_and_largest_kernels():
    # Two streams overlap; the device is idle from 30 to 50 and from 60 to 80.
    events = [('a', 'x', 10, 25), ('b', 'y', 20, 30), ('a', 'x', 50, 60), ('c', 'z', 80, 90)]
    found = kernels.summary(events, steps=2)
    assert found['kernels'] == 2 and found['ms'] == pytest.approx(40 / 1e6)
    assert found['idle'] == pytest.approx(0.5)
    assert found['largest'][0] == {'kernel': 'a', 'ms': 12.5 / 1e6, 'calls': 1}
    assert kernels.summary([], 2)['kernels'] == 0
    stacks = {'x': 'jit(f)/Net/decoder/dot', 'y': 'jit(f)/transpose(jvp(Net))/decoder/dot'}
    assert kernels.parts(events, stacks, 1)[0] == {'part': 'forward, Net/decoder', 'ms': 25 / 1e6}


def test_kernels_are_those_of_the_device():
    def event(name, start, stats=()):
        return SimpleNamespace(name=name, start_ns=start, duration_ns=5, stats=stats)

    def plane(name, **lines):
        made = [SimpleNamespace(name=k.replace('_', ' '), events=v) for k, v in lines.items()]
        return SimpleNamespace(name=name, lines=made)

    host = plane('/host:CPU', thread=[event('python', 0), event('dot', 1, [('hlo_op', 'dot.1')])])
    gpu = plane(
        '/device:GPU:0',
        Stream_7=[event('kernel', 2, [('hlo_op', 'fusion.3')]), event('memcpy', 9)],
        Steps=[event('1', 0)],
    )
    tpu = plane('/device:TPU:0', XLA_Modules=[event('jit_step', 0)], XLA_Ops=[event('fusion', 4)])
    assert kernels.device_events([host]) == [('dot', 'dot.1', 1, 6)]
    assert kernels.device_events([host, gpu]) == [
        ('kernel', 'fusion.3', 2, 7),
        ('memcpy', 'memcpy', 9, 14),
    ]
    assert kernels.device_events([tpu, host]) == [('fusion', 'fusion', 4, 9)]


def test_errors_are_summed_up():
    ones = np.ones(100, np.float32)
    found = parity.summary(
        {
            'same': (ones, ones),
            'near': (ones, ones * np.float32(1 + 5e-5)),
            'far': (ones, ones * np.float32(1.5)),
            'labels': (np.arange(3), np.arange(3)),
            'positions': (np.arange(3), np.array([0, 2, 1])),
        },
        errors.relative_error,
    )
    assert (found['arrays'], found['within']) == (3, 2)
    assert found['worst'] == ['far', pytest.approx(0.5)]
    assert (found['integer_arrays'], found['identical']) == (2, 1)


def test_the_report_shows_every_part_and_every_status():
    def timed(seconds, gflop):
        return dict(seconds=[seconds], gflop=gflop, resident_mib=2048.0, planned_mib=None)

    size = 'batch 8, bfloat16'
    group = dict(arrays=3, within=2, worst=['far', 0.5], median=1e-6, integer_arrays=2, identical=1)
    results = [
        Result('machine', 'versions', 'measured', found={'device': 'H100'}),
        Result('parity', 'highest', 'measured', found={'forward': group}),
        Result('speed', 'matrix product', 'measured', found={'bfloat16': 500.0}),
        Result(
            'speed',
            report.key('train step', row.OURS, size),
            'measured',
            preparation_seconds=80.0,
            found=timed(0.02, 4000.0),
        ),
        Result(
            'speed',
            report.key('train step', row.EAGER, size),
            'measured',
            found=timed(0.08, 4000.0),
        ),
        Result('speed', report.key('train step', row.COMPILED, size), 'failed', error='a\nb'),
        Result(
            'alternatives',
            'assignment',
            'measured',
            found=[{'name': 'x', 'ms': 1.5}, {'name': 'y', 'error': 'out of memory'}],
        ),
        Result('profile', 'train step', 'not reached'),
        Result('run', '300 steps', 'skipped', error='not installed: grain'),
        Result(
            'run',
            '6 steps',
            'measured',
            found=dict(seconds=9.0, steps_per_second=2.5, loss=[9.0, 8.0], scores={'pq': 0.5}),
        ),
    ]
    text = report.markdown({'date': 'today'}, results)
    assert '| highest | forward | 2 of 3 | 1.0e-06 | 5.0e-01 far | 1 of 2 |' in text
    ours, eager = (
        re.search(rf'\| train step \| {side} \|.*', text)[0] for side in (row.OURS, row.EAGER)
    )
    assert '| 20.00 ms | 400.0 |  | 40 % | 2.0 |  | 80 s |' in ours
    assert '| 80.00 ms | 100.0 | 4.00 | 10 % |' in eager
    assert '- train step, torch compile, batch 8, bfloat16: **failed**: a b' in text
    assert '| assignment | y | out of memory |' in text
    assert '- train step: **not reached**' in text
    assert '- 300 steps: **skipped**: not installed: grain' in text
    assert '6 steps and an evaluation in 9 s, 2.5 steps/s at the end, loss 9 to 8; pq 0.5' in text


@pytest.mark.parametrize('family', alternatives.FAMILIES)
def test_alternatives_run_and_agree(family):
    found = [x for x in alternatives.FAMILIES[family](TINY) if not x[0].startswith('pallas')]
    results = {name: function(*arguments) for name, function, arguments in found}
    if family == 'assignment':
        for costs in ('random', 'clustered'):
            ours = np.asarray(results[f'compiled, {costs} costs'][0])[:, : TINY.targets]
            np.testing.assert_array_equal(ours, results[f'SciPy on the host, {costs} costs'])
    if family == 'choice of points':
        chosen = {name: np.sort(x, axis=-1) for name, x in results.items()}
        exact = chosen['search for the threshold']
        np.testing.assert_array_equal(exact, chosen['lax.top_k'])
    if family == 'samples of masks':
        first, *others = results.values()
        for other in others:
            for a, b in zip(first, other, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    if family == 'deformable attention':
        first, *others = [x for name, x in results.items() if name.endswith(', forward')]
        for other in others:
            np.testing.assert_allclose(first, other, rtol=1e-4, atol=1e-4)


def test_a_result_of_another_form_stays_in_the_report():
    text = report.markdown({}, [Result('run', '300 steps', 'measured', found=1)])
    assert 'these results are in check.json only: TypeError' in text


def test_an_alternative_that_fails_leaves_the_others(monkeypatch):
    def family(settings):
        def fail():
            raise MemoryError('too large')

        yield 'bad', fail, ()
        yield 'good', lambda: 1, ()

    monkeypatch.setitem(alternatives.FAMILIES, 'made up', family)
    bad, good = alternatives.measure('made up', TINY)
    assert 'too large' in bad['error'] and good['ms'] > 0


def test_peaks_are_those_of_the_products():
    found = worker.peak(size=64, repeats=1)
    assert set(found) == {'bfloat16', 'float32', 'float32, highest'} and min(found.values()) > 0


def test_all_but_the_run_do_without_the_libraries_of_the_data_pipeline():
    code = f"""
import sys
sys.modules |= dict.fromkeys({builtin_run.NEEDS})  # None: the import fails.
sys.path.insert(0, 'tests')
import benchmarks.accelerator_check, benchmarks.accelerator.worker
import recorded_steps, recorded_updates
"""
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


@pytest.mark.slow
def test_the_command_writes_both_files(tmp_path):
    command = [sys.executable, '-m', 'benchmarks.accelerator_check', f'--out={tmp_path}']
    result = subprocess.run(
        [*command, '--small', '--parts=alternatives,run', '--minutes=20'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    stored = json.loads((tmp_path / 'check.json').read_text())['results']
    assert [x['status'] for x in stored] == ['measured'] * 6, stored
    assert 'steps/s' in (tmp_path / 'check.md').read_text()
