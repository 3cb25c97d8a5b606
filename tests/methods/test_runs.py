"""Every method trains three tiny stages with replayed images, also if the run is interrupted."""

import json

import pytest
import runs
from tiny import SMALLEST, plain_config, tiny_config

from simcis_jax import main
from simcis_jax.methods import METHODS

SELECTED = {'simcis', 'futcr'}  # Methods for queries that are selected.


def config_of(name):
    replay = {'protocol.replay_images': 5}
    if name in SELECTED:
        return tiny_config(**{'method.name': name}, **SMALLEST, **replay)
    return plain_config(name, **replay)


@pytest.mark.slow
@pytest.mark.parametrize('name', METHODS)
def test_an_interrupted_run_ends_with_the_same_numbers(name, tmp_path, monkeypatch):
    def crash(_):
        raise RuntimeError('the machine is gone')

    config, whole, interrupted = config_of(name), tmp_path / 'whole', tmp_path / 'interrupted'
    results = main.run(config, str(whole))
    assert len(results['stages']) == 3
    for stage in (2, 3):
        replayed = json.loads((whole / f'stage_{stage}' / 'replay.json').read_text())
        assert replayed['num_images'] == 5
    for batch in (9, 5):  # In stage 2, then in stage 3.
        with monkeypatch.context() as patch:
            runs.at_step(patch, batch, crash)
            with pytest.raises(RuntimeError):
                main.run(config, str(interrupted))
    assert main.run(config, str(interrupted)) == results
    runs.assert_same(interrupted, whole)
