"""The benchmarks measure what they claim, and RESULTS.md holds the numbers they wrote."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import curves, process, products, profile, row, speed, workload
from benchmarks.scene import make_scene

ROOT = process.ROOT
TINY = row.Settings(size=128, classes=8, targets=5, slots=6, points=64, bank_size=3)
NAMES = [name for name, sides in row.ROWS.items() if row.OURS in sides]


@pytest.fixture(scope='module')
def tiny():
    return workload.Workload(TINY)


ROWS = [
    pytest.param(name, marks=[] if name.startswith('matching') else [pytest.mark.slow])
    for name in NAMES
]


@pytest.mark.parametrize('name', ROWS)
def test_every_row_can_be_traced(tiny, name):
    assert set(tiny.rows()) == set(NAMES)
    function, arguments, carries = tiny.rows()[name]()
    result = jax.eval_shape(function, *arguments)
    if carries:
        assert jax.tree.map(jnp.shape, result[0]) == jax.tree.map(jnp.shape, arguments[0])


def test_operations_of_products_are_counted():
    def convolve(x, kernel, stride):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )

    def count(function, *arguments):
        return products.count(jax.make_jaxpr(function)(*arguments).jaxpr)

    x, kernel, square = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5)), jnp.ones((4, 4))
    for stride, pixels in (1, 64), (2, 16):
        once = 2 * 2 * pixels * 5 * 27
        assert count(lambda x, k, s=stride: convolve(x, k, s), x, kernel) == once
        pull_back = jax.vjp(lambda x, k, s=stride: convolve(x, k, s), x, kernel)
        assert count(pull_back[1], pull_back[0]) == 2 * once
    assert count(jnp.matmul, jnp.ones((6, 3, 4)), jnp.ones((4, 5))) == 2 * 6 * 3 * 4 * 5

    assert count(lambda a: (a @ a, a)[1], square) == 0  # Dead code.

    def loop(a):
        return jax.lax.map(jax.jit(lambda b: jax.lax.cond(b[0] > 0, lambda: a @ b, lambda: b)), a)

    assert count(loop, square) == 4 * 2 * 4 * 4


def test_segments_tile_the_image():
    scene = make_scene(TINY)
    for k, (cx, cy, w, h) in enumerate(scene.boxes):
        y, x = (scene.segment_map == k + 1).nonzero()
        assert x.size == TINY.size**2 // 8
        assert [(x.max() + 1 + x.min()) / 2, (y.max() + 1 + y.min()) / 2] == [128 * cx, 128 * cy]
        assert [x.max() + 1 - x.min(), y.max() + 1 - y.min()] == [128 * w, 128 * h]
    assert (scene.segment_map == 0).sum() == 3 * TINY.size**2 // 8
    assert scene.labels.tolist() == [4, 5, 6, 7, 4]


@pytest.mark.slow
def test_the_command_adds_rows_to_its_file(tmp_path):
    out = tmp_path / 'speed.json'

    def run(rows, size=128):
        command = [sys.executable, '-m', 'benchmarks.speed', f'--rows={rows}', f'--out={out}']
        return subprocess.run(
            [*command, f'--size={size}', '--repeats=2'], cwd=ROOT, capture_output=True, text=True
        )

    assert run('^matrix').returncode == 0
    result = run('bank')
    assert result.returncode == 0, result.stderr
    matrix, bank = json.loads(out.read_text())['measurements']
    assert (matrix['row'], bank['row']) == ('matrix product', 'query bank')
    assert matrix['gflop'] == pytest.approx(2 * 4096**3 / 1e9)
    assert len(bank['seconds']) >= 2 and min(bank['seconds']) > 0
    # The bank is donated, so only one copy is in memory.
    assert 150 * 80 * 256 * 4 / 2**20 < bank['planned_mib'] < 2 * 150 * 80 * 256 * 4 / 2**20
    lines = result.stdout.splitlines()
    assert lines[-2].startswith('| matrix product |') and lines[-1].startswith('| query bank |')
    refused = run('bank', size=256)
    assert refused.returncode and 'give another --out' in refused.stderr


def test_tables_in_results_md_equal_the_json_files():
    text = (ROOT / 'benchmarks/RESULTS.md').read_text()
    files = sorted((ROOT / 'benchmarks/results').glob('speed*.json'))
    assert files
    for file in files:
        found = json.loads(file.read_text())
        assert speed.table([row.Measurement(**m) for m in found['measurements']]) in text, file
        assert found['machine'] in text and found['date'] in text


def test_every_curve_has_a_panel_and_curves_share_points():
    found = {
        curves.key_of(settings): row.Measurement(
            curves.ROW, row.OURS, 'cpu', {}, 1.0, [1.0, 1.5, 1.2], 0.0, 100.0, 50.0, 1.0
        )
        for curve in curves.CURVES
        for settings in curve.settings()
    }
    assert len(found) < sum(len(curve.values) for curve in curves.CURVES)
    figure = curves.draw(found)
    assert len(figure.findall('g')) == len(curves.CURVES)
    assert len(figure.findall('.//circle')) == sum(len(curve.values) for curve in curves.CURVES)
    titles = {text.text for text in figure.iter('text')}
    assert {curve.title for curve in curves.CURVES} | {'10k', '1280', '640'} <= titles


def test_a_profile_adds_up_by_parts(tmp_path):
    events = [('a', 0, 100), ('b', 10, 30), ('c', 20, 10), ('b', 50, 20), ('a', 200, 5)]
    seconds = profile.self_times(events)
    assert {name: round(1e9 * value) for name, value in seconds.items()} == {
        'a': 55,
        'b': 40,
        'c': 10,
    }
    stack = 'jit(step)/transpose(jvp(Net))/decoder/layers_3/attention/while/body/mul'
    assert profile.part_of(stack) == 'backward, Net/decoder/layers_*'
    assert profile.part_of('jit(step)/jvp(jit(_where))/select_n') == 'forward, other'

    @jax.named_scope('outer')
    def function(x):
        return jnp.sin(x @ x).sum()

    work = jax.jit(function), (jnp.ones((300, 300)),), False
    seconds, found = profile.profile(work, tmp_path)
    assert seconds > 0 and found['forward, outer'] > 0
    assert 'forward, outer' in profile.table(found, 3)
    assert list(tmp_path.rglob('*.xplane.pb'))
