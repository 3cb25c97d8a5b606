"""Links, commands, config keys and messages in README and docs/ exist."""

import ast
import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest
from tiny import tiny_config

from simcis_jax.losses.weights import LossWeights
from simcis_jax.settings.keys import DECLARED, GROUPS, default_config
from simcis_jax.settings.validated import from_config
from simcis_jax.training.metrics_log import read_metrics
from simcis_jax.training.trainer import Trainer
from simcis_jax.training.workdir import Workdir

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / 'docs').glob('*.md'))
TEXTS = [
    ROOT / 'README.md',
    ROOT / 'CONTRIBUTING.md',
    ROOT / 'experiments' / 'README.md',
    ROOT / 'benchmarks' / 'RESULTS.md',
    *PAGES,
]


def load_hooks():
    """docs/hooks.py, which MkDocs loads by its path."""
    spec = importlib.util.spec_from_file_location('hooks', ROOT / 'docs' / 'hooks.py')
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    return hooks


def relative(path):
    return path.relative_to(ROOT).as_posix()


def anchors(path):
    """The anchors of the headings of a Markdown file."""
    text = re.sub(r'^```.*?^```', '', path.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r'^#+ (.+)$', text, re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def test_readme_has_at_most_150_lines():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 150


@pytest.mark.parametrize('path', TEXTS, ids=relative)
def test_relative_links_lead_to_files_and_headings(path):
    links = re.findall(r'\]\((?!https?://)([^)#\s]*)(?:#([^)\s]*))?\)', path.read_text())
    for file, anchor in links:
        target = path.parent / file if file else path
        assert target.exists(), f'{relative(path)} links to {file}'
        if anchor:
            assert anchor in anchors(target), f'{relative(path)} links to {file}#{anchor}'


def test_every_page_is_in_the_navigation_and_readme_leads_to_most():
    navigation = re.findall(r': ([\w-]+\.md)$', (ROOT / 'mkdocs.yml').read_text(), re.MULTILINE)
    assert set(navigation) == {page.name for page in PAGES} | set(load_hooks().PAGES)
    linked = re.findall(r'\(docs/([\w-]+\.md)\)', (ROOT / 'README.md').read_text())
    assert len(set(linked)) >= 10


@pytest.mark.parametrize('path', TEXTS, ids=relative)
def test_config_keys_in_texts_exist(path):
    # The second is defined by the example in methods.md.
    known = {*DECLARED, 'method.logit_distillation.distillation_weight'}
    text = path.read_text()
    groups = '|'.join(default_config())
    keys = set(re.findall(r'--config\.(\w+\.[\w.]*\w)', text))
    keys |= set(re.findall(rf'`((?:{groups})\.[\w.]+)[`=]', text))
    placeholders = {'GROUP.KEY', 'evaluation.json', 'method.NAME', *GROUPS}
    assert keys - placeholders <= known


@pytest.mark.parametrize('path', TEXTS, ids=relative)
def test_configs_and_modules_in_commands_exist(path):
    text = path.read_text()
    for name in re.findall(r'--config=(?:configs/)?([a-z]\w*)\b(?!/)', text):
        assert (ROOT / 'configs' / f'{name}.py').exists(), name
    for module in re.findall(
        r'python -m ((?:simcis_jax|experiments|benchmarks|tests)(?:\.[a-z]\w*)+)', text
    ):
        assert (ROOT / f'{module.replace(".", "/")}.py').exists(), module


@pytest.mark.parametrize('path', [ROOT / 'README.md', ROOT / 'docs' / 'architecture.md'])
def test_every_folder_of_the_package_is_in_the_layout(path):
    folders = [folder.name for folder in (ROOT / 'simcis_jax').iterdir() if folder.is_dir()]
    text = path.read_text()
    for name in folders:
        assert name == '__pycache__' or f'{name}/`' in text, name


def quoted_messages():
    """The messages quoted in the tables of docs/troubleshooting.md."""
    page = (ROOT / 'docs' / 'troubleshooting.md').read_text()
    tables = page.split('| message | cause and way out |\n|---|---|\n')[1:]
    return [quote for table in tables for quote in re.findall(r'^\| `(.+?)` \|', table, re.M)]


def test_quoted_messages_are_those_of_the_code():
    quotes, hooks = quoted_messages(), load_hooks()
    assert len(quotes) > 50
    texts = [
        hooks.text_of(node)
        for path in (ROOT / 'simcis_jax').rglob('*.py')
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.JoinedStr | ast.Constant)
    ]
    for quote in quotes:
        pattern = re.compile('.*'.join(map(re.escape, quote.split('…'))), re.DOTALL)
        assert any(map(pattern.search, texts)), quote


def test_error_messages_are_found_in_the_code():
    messages = load_hooks().error_messages()
    assert 'simcis_jax/training/workdir.py' in messages
    assert any('data.name=… is unknown' in text for text in messages['simcis_jax/data/__init__.py'])


def test_links_that_leave_docs_are_rewritten_for_the_site():
    hooks = load_hooks()
    page, text = ROOT / 'docs' / 'methods.md', '[`main`](../simcis_jax/main.py#run)'
    rewrite = hooks.rewrite_links
    assert rewrite(text, page) == '`main`'
    assert rewrite(text, page, 'https://host/us/it/') == (
        '[`main`](https://host/us/it/blob/main/simcis_jax/main.py#run)'
    )
    assert rewrite('![x](../experiments/results/a.png)', page) == '![x](images/a.png)'
    assert rewrite('[a](../experiments/README.md#b)', page) == '[a](experiments.md#b)'
    assert rewrite('[a](api.md#b)', page) == '[a](api.md#b)'
    assert rewrite('[a](results/b.png)', ROOT / 'experiments' / 'README.md') == '[a](images/b.png)'


@pytest.fixture(scope='module')
def example():
    """The method in methods.md, and its code."""
    page = (ROOT / 'docs' / 'methods.md').read_text()
    (code,) = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
    namespace = {'__name__': 'example'}
    exec(compile(code, 'methods.md', 'exec'), namespace)
    return namespace['LogitDistillation'], code


def test_readme_shows_the_example_of_a_method(example):
    _, code = example
    assert code[code.index('@dataclasses') :] in (ROOT / 'README.md').read_text()


@pytest.mark.slow
def test_the_example_of_a_method_runs_through_three_stages(example, tmp_path):
    method, _ = example
    config = tiny_config(
        **{
            'method.name': 'pseudo_label',
            'model.encoder_layers': 0,
            'model.decoder_layers': 1,
            'evaluation.tasks': ('semantic',),
        }
    ).to_dict()
    values = dataclasses.replace(from_config(config), method=method(distillation_weight=0.5))
    with Workdir(tmp_path, config) as workdir:
        results = Trainer(values, workdir).run()
    assert [stage['stage'] for stage in results['stages']] == [1, 2, 3]
    records = read_metrics(tmp_path / 'metrics.jsonl')
    assert ['distillation' in record for record in records] == [
        record['stage'] > 1 for record in records
    ]
    later = [record for record in records if record['stage'] > 1]
    weights = LossWeights().by_term() | {'distillation': 0.5}
    assert len(later) > 1 and all(record['distillation'] > 0 for record in later)
    # The total is over both decoder outputs, the log of the basic terms over the last.
    for record in later:
        assert record['total'] > sum(w * record[name] for name, w in weights.items())


def test_the_hooks_of_a_method_are_all_in_the_page():
    tree = ast.parse((ROOT / 'simcis_jax' / 'methods' / 'base.py').read_text())
    (method,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    hooks = [node.name for node in method.body if isinstance(node, ast.FunctionDef)]
    page = (ROOT / 'docs' / 'methods.md').read_text()
    assert [hook for hook in hooks if f'`{hook}`' not in page] == []
