"""The folder of the compilation cache, and its size."""

import os
import platform

import jax
import pytest

from simcis_jax.runtime.compilation import delete_least_used, enable_compilation_cache


@pytest.fixture
def unset():
    before = jax.config.jax_compilation_cache_dir
    jax.config.update('jax_compilation_cache_dir', None)
    yield
    jax.config.update('jax_compilation_cache_dir', before)


def test_the_default_is_the_users_cache_folder(unset, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    enable_compilation_cache()
    folder = tmp_path / 'simcis_jax' / platform.node()
    assert jax.config.jax_compilation_cache_dir == str(folder)


def test_a_configured_folder_is_kept(unset):
    jax.config.update('jax_compilation_cache_dir', 'elsewhere')
    enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == 'elsewhere'


def test_programs_that_were_used_long_ago_make_room(tmp_path):
    for age, name in enumerate(('new-cache', 'used-cache', 'old-cache', 'oldest-cache')):
        path = tmp_path / name
        path.write_bytes(bytes(10))
        os.utime(path, (1000 - age, 500 if name == 'used-cache' else 1000 - age))
    (tmp_path / 'other').write_bytes(bytes(100))
    delete_least_used(tmp_path, 40)
    assert len(list(tmp_path.iterdir())) == 5
    delete_least_used(tmp_path, 25)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['new-cache', 'other', 'used-cache']
    delete_least_used(tmp_path / 'absent', 0)


def test_only_the_default_folder_is_kept_small(unset, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr('simcis_jax.runtime.compilation.CACHE_SIZE', 5)
    program = tmp_path / 'simcis_jax' / platform.node() / 'a-cache'
    program.parent.mkdir(parents=True)
    program.write_bytes(bytes(10))
    jax.config.update('jax_compilation_cache_dir', str(program.parent))
    enable_compilation_cache()
    assert program.exists()
    jax.config.update('jax_compilation_cache_dir', None)
    enable_compilation_cache()
    assert not program.exists()
