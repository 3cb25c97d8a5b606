"""The HTML report of a run: one file without scripts or external resources."""

from __future__ import annotations

from pathlib import Path

from simcis_jax.reporting import contents, scores, statistics, training
from simcis_jax.reporting.elements import Element, element, to_html
from simcis_jax.reporting.run_folder import RunFolder
from simcis_jax.reporting.scores import Kind
from simcis_jax.settings.keys import default_config

STYLE = Path(__file__).with_name('style.css')


def make_page(run: RunFolder) -> str:
    """The report as HTML, with a section for everything that the run has written so far.

    Raises:
        FileError: a picture cannot be read.
    """
    parts, kinds = [], scores.kinds(run.reports)
    for kind in kinds:
        sections = (scores.by_group, scores.forgetting, scores.by_class)
        parts += [make(run, kind) for make in sections]
    parts += [contents.pictures(run), training.curves(run)]
    parts += [contents.memory(run.memory) if run.memory else None, training.timing(run)]
    parts.append(contents.settings(run.config, default_config()))
    parts = [part for part in parts if part is not None]
    links = [element('a', part[0].text, href=f'#{part.get("id")}') for part in parts]
    return to_html(
        element(
            'html',
            element(
                'head',
                element('meta', charset='utf-8'),
                element('meta', name='viewport', content='width=device-width, initial-scale=1'),
                element('meta', name='color-scheme', content='light dark'),
                element('title', f'{run.name} · simcis_jax'),
                element('style', STYLE.read_text('utf-8')),
            ),
            element(
                'body',
                element(
                    'header',
                    element('h1', run.name),
                    element('p', _facts(run)),
                    *(_tiles(run, kind) for kind in kinds),
                ),
                element('nav', *links, aria_label='Sections'),
                element('main', *parts),
            ),
            lang='en',
        )
    )


def _facts(run: RunFolder) -> str:
    """One line: method, data set, protocol, seed and progress."""

    def value(group: str, key: str) -> str:
        return str(run.config.get(group, {}).get(key, '?'))

    protocol = f'{value("protocol", "base")}-{value("protocol", "increment")}'
    facts = [value('method', 'name'), value('data', 'name'), f'protocol {protocol}']
    facts.append(f'seed {value("training", "seed")}')
    finished = [report['stage'] for report in run.reports]
    facts.append(f'stage {finished[-1]} finished' if finished else 'no stage finished yet')
    last = run.records[-1] if run.records else None
    if last and last['stage'] not in finished:
        facts.append(f'stage {last["stage"]} at step {last["step"]}')
    return ' · '.join(facts)


def _tiles(run: RunFolder, kind: Kind) -> Element:
    """The main scores in large type."""
    newest = run.reports[-1].get(kind.metric, {})
    tiles = {
        f'{kind.title} {group}': scores.score_text(newest[group])
        for group in ('all', 'base', 'novel')
        if newest.get(group) is not None
    }
    groups = statistics.groups_by_first_report(run.reports)
    matrix = statistics.forgetting_matrix(run.reports, groups, kind.class_metric)
    transfer = statistics.mean(statistics.changes(matrix, groups))
    if transfer is not None:
        average = statistics.mean(
            [report.get(kind.metric, {}).get('all') for report in run.reports]
        )
        tiles[f'average {kind.title}'] = scores.score_text(average)
        tiles['backward transfer'] = scores.change_text(transfer)
    made = (element('div', element('dt', n), element('dd', text)) for n, text in tiles.items())
    return element('dl', *made, class_='tiles')
