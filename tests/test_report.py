"""The report of a run: complete, self-contained, escaped, and available for unfinished runs."""

import copy
import html.parser
import json
import re
import shutil
import subprocess

import cv2
import numpy as np
import pytest

from simcis_jax import report
from simcis_jax.settings.keys import default_config
from simcis_jax.training.checkpointing import StageCheckpoints

HOSTILE = '<script>alert("1")</script>&amp;\'"><img src=http://x.org/a.png>'
STAGES = [
    {'sky': 80.25, HOSTILE: 41.5},
    {'sky': 71.5, HOSTILE: 20.0, 'car': 50.0},
    {'sky': 75.0, HOSTILE: 0.0, 'car': 63.5, 'dog': 30.125},
]
VOID = {'meta', 'img', 'br'}


def evaluation(stage):
    scores = STAGES[stage - 1]
    values = list(scores.values())
    groups = {'base': values[:2], 'novel': values[2:], 'past': values[:-1], 'current': values[-1:]}
    if stage == 1:
        groups |= {'past': [], 'current': values}
    groups['all'] = values
    pq = {name: sum(v) / len(v) if v else None for name, v in groups.items()}
    per_class = {name: {'pq': score, 'sq': 90.0, 'tp': 1} for name, score in scores.items()}
    return {'stage': stage, 'pq': pq, 'sq': {'all': 90.0}, 'per_class': per_class}


def write_run(root, stages=(1, 2, 3), *, log=True, bank=True, pictures=True):
    root.mkdir()
    config = copy.deepcopy(default_config())
    config['protocol'] |= {'base': 2, 'increment': 1, 'order': [3, 1, 0, 2]}
    config['training'] |= {'init_backbone': HOSTILE, 'batch_size': 8}
    (root / 'config.json').write_text(json.dumps(config))
    for stage in stages:
        folder = root / f'stage_{stage}'
        folder.mkdir()
        (folder / 'evaluation.json').write_text(json.dumps(evaluation(stage)))
        if pictures:
            cv2.imwrite(str(folder / 'predictions.png'), np.full((40, 60, 3), 90, np.uint8))
    if log:
        records = [
            {'stage': stage, 'step': step, 'steps_per_second': 2.5, 'total': 30.0 / step + stage,
             'learning_rate': 10.0**-stage / step, 'nonfinite_costs': 0.0}
            for stage, last in ((1, 40), (2, 20), (3, 20)) for step in range(10, last + 1, 10)
        ]  # fmt: skip
        lines = [json.dumps(record) for record in records]
        (root / 'metrics.jsonl').write_text('\n'.join(lines) + '\n{"stage": 3, "st')
    if bank:
        names = ['car', HOSTILE, 'dog', 'sky']  # By label; the order of learning differs.
        entries = [{'id': i, 'name': name, 'isthing': 1} for i, name in enumerate(names)]
        (root / 'categories.json').write_text(json.dumps(entries))
        memory = {
            'queries': np.random.default_rng(0).normal(size=(4, 6, 5)).astype(np.float32),
            'written': np.array([9, 3, 0, 6], np.int32),
            'counts': np.array([17.0, 0.0, 0.0, 1234.0], np.float32),
        }
        with StageCheckpoints(root / f'stage_{max(stages)}' / 'checkpoints') as checkpoints:
            checkpoints.save_weights(20, {'weight': np.zeros(2, np.float32)}, memory)
    return root


class Page(html.parser.HTMLParser):
    """A strict parser: every element must be closed, in order."""

    def __init__(self, text):
        super().__init__()
        self.text = text
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def rows(self, section):
        """The texts of the rows of a section's tables."""
        content = re.search(f'<section[^>]* id="{section}".*?</section>', self.text, re.S)
        rows = re.findall('<tr>(.*?)</tr>', content[0], re.S)
        texts = [[re.sub('<[^>]*>', '', c) for c in re.split('</t[hd]>', row)] for row in rows]
        return [[html.unescape(cell) for cell in row[:-1]] for row in texts]


def page_of(root):
    return Page(report.write_report(root).read_text())


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp('report') / 'run <b>')


@pytest.fixture(scope='module')
def page(root):
    return page_of(root)


def test_the_page_has_every_section_and_links_to_it(page):
    sections = [s['id'] for s in page.all('section')]
    assert sections == [
        'scores-pq', 'forgetting-pq', 'classes-pq', 'pictures', 'curves', 'memory', 'timing',
        'settings',
    ]  # fmt: skip
    assert [a['href'] for a in page.all('a')] == [f'#{name}' for name in sections]
    ids = [a['id'] for _, a in page.tags if 'id' in a]
    assert len(ids) == len(set(ids))


def test_numbers_of_the_run_appear(page):
    assert page.rows('scores-pq')[3][:5] == ['3', '42.2', '37.5', '46.8', '46.2']
    assert page.rows('scores-pq')[4][:2] == ['average', '50.1']
    cells = [row[1:] for row in page.rows('forgetting-pq')]
    assert cells[1:] == [
        ['60.9', '45.8', '37.5', '−23.4'], ['', '50.0', '63.5', '+13.5'], ['', '', '30.1', '–'],
    ]  # fmt: skip
    assert [row[:5] for row in page.rows('classes-pq')[1:]] == [
        [HOSTILE, '1', '41.5', '0.0', '−41.5'],
        ['sky', '1', '80.2', '75.0', '−5.2'],
        ['car', '2', '50.0', '63.5', '+13.5'],
        ['dog', '3', '30.1', '30.1', 'new'],
    ]
    assert page.rows('timing')[1:] == [
        ['1', '40', '2.5', '20', '0:16'], ['2', '20', '2.5', '20', '0:08'],
        ['3', '20', '2.5', '20', '0:08'], ['all', '', '', '', '0:32'],
    ]  # fmt: skip


@pytest.mark.parametrize('stages', [(1, 2, 3), (1,)])
def test_the_bank_is_shown_with_class_names_also_of_unscored_classes(tmp_path, stages):
    page = page_of(write_run(tmp_path / 'run', stages, log=False, pictures=False))
    rows = {row[0]: row[1:3] for row in page.rows('memory')[1:]}  # No query of the dog is stored.
    assert rows == {'sky': ['6 of 6', '1234'], HOSTILE: ['3 of 6', '0'], 'car': ['6 of 6', '17']}


def test_settings_that_differ_come_first(page):
    rows = page.rows('settings')
    assert ['protocol.base', '2', '100'] in rows and [
        'protocol.order',
        '[3, 1, 0, 2]',
        'origin',
    ] in rows
    assert not any(row[0] == 'training.seed' for row in rows)
    assert 'training.seed' in page.texts


def test_text_of_a_run_is_escaped(page):
    assert not page.all('script')
    assert ''.join(page.texts).count(HOSTILE) >= 3  # Forgetting, classes, settings.
    assert 'run <b>' in page.texts


def test_the_page_loads_no_external_resource(page):
    for _, attributes in page.tags:
        for name in ('src', 'href', 'srcset', 'data', 'action', 'poster'):
            value = attributes.get(name, '#')
            assert value.startswith(('#', 'data:image/')), value
    assert not {tag for tag, _ in page.tags} & {'link', 'iframe', 'object', 'base', 'embed'}
    style = ''.join(re.findall('<style>(.*?)</style>', page.text, re.S))
    assert 'url(' not in style and '@import' not in style


def test_the_page_is_accessible_to_screen_readers(page):
    assert page.all('html')[0]['lang'] == 'en'
    images = page.all('img')
    assert len(images) == 3 and all('After stage' in image['alt'] for image in images)
    assert all(svg['role'] == 'img' and svg['aria-label'] for svg in page.all('svg'))
    assert all(header['scope'] in ('row', 'col') for header in page.all('th'))
    assert len(page.all('caption')) == len(page.all('table'))


def test_the_page_is_the_same_in_every_encoding(root):
    assert (root / 'report.html').read_bytes().isascii()


def test_steps_that_were_scored_with_other_settings_are_named(tmp_path):
    root = write_run(tmp_path / 'run', (1,), bank=False, pictures=False)
    assert 'Not all scores' not in page_of(root).text
    with (root / 'metrics.jsonl').open('w') as log:
        for step, side in ((1, 640), (2, 640), (3, 512), (4, 512)):
            settings = {'short_side': side, 'tasks': ['panoptic']}
            record = {'stage': 1, 'step': step, 'val_pq': float(step), 'settings': settings}
            log.write(json.dumps(record) + '\n')
    page = page_of(root)
    assert (
        'Not all scores can be compared: stage 1 step 1, 2 was scored with '
        'evaluation.short_side=640 (stage 1 step 4: 512).'
    ) in page.texts


@pytest.mark.parametrize(
    'stages, parts, sections',
    [
        ((), {'log': False, 'bank': False}, ['settings']),
        ((), {'log': True, 'bank': False}, ['curves', 'timing', 'settings']),
        ((1,), {'log': False, 'bank': False, 'pictures': False},
         ['scores-pq', 'forgetting-pq', 'classes-pq', 'settings']),
    ],
)  # fmt: skip
def test_the_report_of_an_unfinished_run_has_the_available_sections(
    tmp_path, stages, parts, sections
):
    page = page_of(write_run(tmp_path / 'run', stages, **parts))
    assert [s['id'] for s in page.all('section')] == sections
    progress = 'stage 1 finished' if stages else 'no stage finished yet'
    assert any(progress in text for text in page.texts)


def test_several_kinds_of_results_have_their_own_sections(tmp_path):
    root = write_run(tmp_path / 'run', (1, 2), log=False, bank=False, pictures=False)
    for stage in (1, 2):
        path = root / f'stage_{stage}' / 'evaluation.json'
        scores = json.loads(path.read_text())
        scores |= {'miou': scores['pq'], 'ap': dict.fromkeys(scores['pq'])}
        for number in scores['per_class'].values():
            number |= {'iou': number['pq'] / 2, 'ap': None}
        path.write_text(json.dumps(scores))
    page = page_of(root)
    assert [s['id'] for s in page.all('section')][::3] == [
        'scores-pq',
        'scores-miou',
        'scores-ap',
        'settings',
    ]
    assert page.rows('classes-miou')[1][2:5] == ['20.8', '10.0', '−10.8']
    assert len(page.rows('classes-ap')) == 1  # No class has a score.


@pytest.mark.parametrize(
    'content, message',
    [
        (None, 'has no config.json; give the --workdir'),
        ('{"a', 'is not JSON'),
        ('[1]', 'holds a list; a JSON object is needed'),
        ('{"data": 1}', 'is not the config of a run'),
    ],
)
def test_a_folder_that_is_not_a_run_is_a_one_line_error(tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / 'config.json').write_text(content)
    with pytest.raises(SystemExit) as stopped:
        report.main([f'--workdir={tmp_path}'])
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and error.startswith('error: ')
    assert message in error and str(tmp_path) in error and error.count('\n') == 1


DAMAGED = ('config.json', 'metrics.jsonl', 'stage_2/evaluation.json', 'stage_2/predictions.png')


@pytest.mark.parametrize('name', DAMAGED)
@pytest.mark.parametrize(
    'content', [b'', b'[]', b'"x"', b'{"per_class": 1}', b'{"a": [\n{"b": {}}', b'\xff\n}']
)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, capsys, name, content):
    path = write_run(tmp_path / 'run', bank=False) / name
    more = b'\n{}' if name == 'metrics.jsonl' else b''  # An incomplete last line is allowed.
    path.write_bytes(content + more)
    with pytest.raises(SystemExit) as stopped:
        report.main([f'--workdir={tmp_path}/run'])
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and error.startswith(f'error: {path}')
    assert error.count('\n') == 1


CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')


@pytest.mark.skipif(CHROMIUM is None, reason='needs chromium')
@pytest.mark.parametrize('width', [390, 1280])
def test_a_browser_shows_the_page_without_scrolling_sideways(root, page, tmp_path, width):
    frame = (
        tmp_path / 'frame.html'
    )  # The window of a browser has a minimum width; a frame has none.
    frame.write_text(
        f'<title></title><iframe style="width: {width}px; border: 0" onload="document.title = '
        "['scrollWidth', 'clientWidth'].map(k => this.contentDocument.documentElement[k])\" "
        f'srcdoc="{html.escape(page.text)}"></iframe>'
    )
    options = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-background-networking']
    options += ['--disable-component-update', '--disable-sync', '--no-first-run', '--dump-dom']
    shown = subprocess.run(
        [CHROMIUM, *options, f'--user-data-dir={tmp_path / "profile"}', frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
    )
    content, window = map(int, re.search(r'<title>(\d+),(\d+)', shown.stdout).groups())
    assert content <= window <= width and window > 0.9 * width
