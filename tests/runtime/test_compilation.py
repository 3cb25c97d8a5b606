"""The folder of the compilation cache."""

import platform

import jax
import pytest

from simcis_jax.runtime.compilation import enable_compilation_cache


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
