import dataclasses

import jax
import pytest

import simcis_jax
from simcis_jax.runtime import devices


@dataclasses.dataclass
class Device:
    platform: str
    device_kind: str


def find_files(*existing):
    return lambda pattern: [name for name in existing if name.startswith(pattern.split('[')[0])]


def test_the_first_line_names_versions_devices_and_precision():
    gpus = [Device('gpu', 'NVIDIA H100')] * 4
    assert devices.describe(gpus, 2, 'bfloat16') == (
        f'simcis_jax {simcis_jax.__version__}, JAX {jax.__version__}, backend gpu, '
        '4 devices (NVIDIA H100), 2 processes, precision bfloat16'
    )
    assert devices.describe([Device('cpu', 'cpu')], 1, None).endswith('backend cpu, 1 device (cpu)')


@pytest.mark.parametrize(
    ('files', 'environment', 'words'),
    [
        (['/dev/nvidia0'], {}, ('an NVIDIA GPU', "'simcis_jax[cuda]'")),
        (['/dev/nvidiactl'], {'CUDA_VISIBLE_DEVICES': '0'}, ('an NVIDIA GPU', '[cuda]')),
        (['/dev/accel0'], {}, ('a TPU', "'simcis_jax[tpu]'")),
        ([], {'TPU_ACCELERATOR_TYPE': 'v5litepod-8'}, ('a TPU', '[tpu]')),
    ],
)
def test_an_accelerator_that_is_not_used_is_named_with_the_way_out(files, environment, words):
    for platforms in ('', 'cuda,cpu'):
        text = devices.unused_accelerator('cpu', platforms, environment, find_files(*files))
        assert all(word in text for word in (*words, 'JAX_PLATFORMS=cpu'))


@pytest.mark.parametrize(
    ('backend', 'platforms', 'environment', 'files'),
    [
        ('cpu', '', {}, []),
        ('gpu', '', {}, ['/dev/nvidia0']),
        ('cpu', 'cpu', {}, ['/dev/nvidia0']),
        ('cpu', '', {'CUDA_VISIBLE_DEVICES': ''}, ['/dev/nvidia0']),
        ('cpu', '', {'CUDA_VISIBLE_DEVICES': '-1'}, ['/dev/nvidia0']),
    ],
)
def test_without_an_accelerator_or_on_purpose_there_is_no_warning(
    backend, platforms, environment, files
):
    found = devices.unused_accelerator(backend, platforms, environment, find_files(*files))
    assert found is None


def test_the_warning_follows_the_line(monkeypatch, capsys):
    monkeypatch.setattr(devices, 'unused_accelerator', lambda *_: 'look here')
    devices.print_devices('float32')
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith('precision float32') and second == 'warning: look here'


@pytest.mark.parametrize(
    ('platforms', 'found', 'expected'),
    [
        ('cpu', ('cuda', 'an NVIDIA GPU'), True),
        ('cuda,cpu', None, False),
        (None, ('cuda', 'an NVIDIA GPU'), False),
        (None, None, True),
    ],
)
def test_the_platform_is_known_before_a_backend_starts(monkeypatch, platforms, found, expected):
    monkeypatch.setattr(devices, 'find_accelerator', lambda *_: found)
    before = jax.config.jax_platforms
    jax.config.update('jax_platforms', platforms)
    try:
        assert devices.will_use_cpu() == expected
    finally:
        jax.config.update('jax_platforms', before)
