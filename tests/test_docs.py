"""Links, commands, config keys and messages in README and docs/ exist."""

import ast
import importlib.util
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from simcis_jax import settings

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
    known = {
        f'{group}.{key}' for group, keys in settings.default_config().items() for key in keys
    } | {'method.distillation_weight'}  # Defined by the example in methods.md.
    text = path.read_text()
    groups = '|'.join(settings.default_config())
    keys = set(re.findall(r'--config\.(\w+\.\w+)', text))
    keys |= set(re.findall(rf'`((?:{groups})\.\w+)[`=]', text))
    assert {key for key in keys if key not in ('GROUP.KEY', 'evaluation.json')} <= known


@pytest.mark.parametrize('path', TEXTS, ids=relative)
def test_configs_and_modules_in_commands_exist(path):
    text = path.read_text()
    for name in re.findall(r'--config=(?:configs/)?([a-z]\w*)\b(?!/)', text):
        assert (ROOT / 'configs' / f'{name}.py').exists(), name
    for module in re.findall(
        r'python -m ((?:simcis_jax|experiments|benchmarks|tests)\.[a-z]\w*)', text
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


def test_the_example_of_a_method_computes_its_loss():
    page = (ROOT / 'docs' / 'methods.md').read_text()
    (code,) = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
    namespace = {'__name__': 'example'}
    exec(compile(code, 'methods.md', 'exec'), namespace)
    method = namespace['LogitDistillation'](distillation_weight=2.0)

    class Outputs:
        def __init__(self, logits):
            self.class_logits = jnp.asarray([logits])

    logits = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    same = method.losses(Outputs(logits), None, Outputs(logits))['distillation']
    other = method.losses(Outputs(logits[::-1]), None, Outputs(logits))['distillation']
    np.testing.assert_allclose(same, 0, atol=1e-5)
    assert other > 0.1
    readme = (ROOT / 'README.md').read_text()
    assert code[code.index('@dataclasses') :] in readme  # README and page show the same example.


def test_the_hooks_of_a_method_are_all_in_the_page():
    tree = ast.parse((ROOT / 'simcis_jax' / 'methods' / 'base.py').read_text())
    (method,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    hooks = [node.name for node in method.body if isinstance(node, ast.FunctionDef)]
    page = (ROOT / 'docs' / 'methods.md').read_text()
    assert [hook for hook in hooks if f'`{hook}`' not in page] == []
