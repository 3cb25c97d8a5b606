"""What a finished stage leaves on the device."""

import gc

import jax
import jax.numpy as jnp
import pytest
from tiny import tiny_config

from simcis_jax import main
from simcis_jax.runtime import parallel
from simcis_jax.training import programs, trainer
from simcis_jax.training.stage_evaluation import StageEvaluation


def make_quick_step(model, method, mesh, **_):
    """A step that changes the parameters without a forward pass, and donates its state."""

    def step(state, teacher, batch, stage):
        params = jax.tree.map(lambda x: x + 1, state.params)
        metrics = {'total': 0.0, 'skipped_steps': jnp.int32(0)}
        return state.replace(step=state.step + 1, params=params), metrics

    everywhere, split = parallel.REPLICATED, parallel.SPLIT
    return parallel.map_over_devices(
        step,
        mesh,
        in_specs=(everywhere, everywhere, split, everywhere),
        out_specs=(everywhere, everywhere),
        donate=(0,),
    )


def live_bytes():
    gc.collect()
    # Several arrays may share a buffer.
    return sum({x.unsafe_buffer_pointer(): x.nbytes for x in jax.live_arrays()}.values())


class Stopped(Exception):
    """Ends a run from within."""


@pytest.mark.slow
def test_a_stage_leaves_only_its_parameters_and_memory_on_the_device(monkeypatch, tmp_path):
    run_steps, live, params = trainer.run_steps, [], []

    def count(steps, state, *arguments):
        live.append(live_bytes())
        params.append(sum(x.nbytes for x in jax.tree.leaves(state.params)))
        if steps.stage == 2:
            raise Stopped
        return run_steps(steps, state, *arguments)

    monkeypatch.setattr(trainer, 'run_steps', count)
    monkeypatch.setattr(programs, 'make_train_step', make_quick_step)
    monkeypatch.setattr(programs, 'make_statistics_step', lambda *_, **__: lambda *_: jnp.zeros(12))
    monkeypatch.setattr(StageEvaluation, 'at_end', lambda *_: {})
    monkeypatch.setattr(trainer.Trainer, 'write_results', lambda *_: {})
    with pytest.raises(Stopped):
        main.run(tiny_config(), str(tmp_path / 'run'))
    # Stage 1 has the parameters, their two moments and the bank; stage 2 has the teacher as well.
    assert 0.9 * params[0] < live[1] - live[0] < 1.1 * params[0]
