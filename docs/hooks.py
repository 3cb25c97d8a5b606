"""What the site adds to the Markdown files of docs/ while it is built.

The pages link to files of the repository by relative paths, which is what a reader on a repository
host needs. On the site, pictures are copied, the READMEs of experiments and benchmarks become
pages, and links to source files become plain names, or links into `repo_url` where it is set.
The reference of config keys and the list of error messages are generated from the code.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent

PAGES = {'experiments.md': 'experiments/README.md', 'benchmarks.md': 'benchmarks/RESULTS.md'}
PICTURES = ('experiments/results/*.png', 'benchmarks/results/*.svg')
LINK = re.compile(r'\]\((?!https?://|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)')
UNLINKED = ']()'  # What a link becomes whose brackets are to be removed.
MARKUP, BACKSLASHED = r'([\\`*_{}\[\]<>|])', r'\\\1'


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pictures and pages that lie outside of docs/."""
    from mkdocs.structure.files import File

    for pattern in PICTURES:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, f'images/{path.name}', abs_src_path=str(path)))
    for name, source in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills in the generated parts, then rewrites links that leave docs/."""
    name = page.file.src_uri
    source = ROOT / PAGES.get(name, f'docs/{name}')
    for marker, generate in GENERATED.items():
        if marker in markdown:
            markdown = markdown.replace(marker, generate())
    return rewrite_links(markdown, source, config.repo_url)


def rewrite_links(markdown: str, source: Path, repo_url: str | None = None) -> str:
    """The text of `source` with its links to files outside of docs/ as the site has them."""

    def rewrite(match: re.Match) -> str:
        path = os.path.relpath(source.parent / match[1], ROOT)
        anchor = match[2] or ''
        if path.startswith('docs/'):
            return f']({path.removeprefix("docs/")}{anchor})'
        if Path(path).suffix in ('.png', '.svg'):
            return f'](images/{Path(path).name})'
        for page, text in PAGES.items():
            if path == text:
                return f']({page}{anchor})'
        return f']({repo_url.rstrip("/")}/blob/main/{path}{anchor})' if repo_url else UNLINKED

    markdown = LINK.sub(rewrite, markdown)
    return re.sub(r'\[([^\[\]]*)' + re.escape(UNLINKED), r'\1', markdown)


def settings_reference() -> str:
    """The tables of the config keys."""
    sys.path.insert(0, str(ROOT))  # This checkout, not an installed package.
    from simcis_jax.settings.reference import markdown

    return markdown()


def messages_list() -> str:
    """One list for each module of the messages that it shows to users."""
    parts = []
    for path, messages in error_messages().items():
        lines = [f'- {re.sub(MARKUP, BACKSLASHED, message)}' for message in messages]
        parts.append('\n'.join([f'**`{path}`**', '', *lines]))
    return '\n\n'.join(parts)


def error_messages() -> dict[str, list[str]]:
    """The messages of user errors in each file of the package; `…` stands for values."""
    errors = ast.parse((ROOT / 'simcis_jax' / 'errors.py').read_text())
    names = {node.name for node in errors.body if isinstance(node, ast.ClassDef)}
    found = {}
    for path in sorted((ROOT / 'simcis_jax').rglob('*.py')):
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and getattr(node.func, 'id', '') in names and node.args
        ]
        messages = [text for call in calls if (text := text_of(call.args[0])).strip(' …')]
        if messages:
            found[path.relative_to(ROOT).as_posix()] = messages
    return found


def text_of(message: ast.expr) -> str:
    """The text of an expression, with `…` for what is only known when it is evaluated."""
    parts = message.values if isinstance(message, ast.JoinedStr) else [message]
    return ''.join(str(part.value) if isinstance(part, ast.Constant) else '…' for part in parts)


GENERATED = {'<!-- configuration -->': settings_reference, '<!-- messages -->': messages_list}
