"""Trains two stages on simulated devices in a separate process, and saves the final state.

python tests/devices.py NUM_DEVICES OUT.npz WORKDIR [KEY=VALUE ...]

NUM_DEVICES is the number of devices of this process. Several processes find each other by
environment variables, see `parallel.start_processes`. Values are JSON.
"""

import json
import os
import sys

import jax
import numpy as np
from absl import flags, logging
from tiny import tiny_config

from simcis_jax.runtime import parallel
from simcis_jax.settings.validated import from_config
from simcis_jax.training.trainer import Trainer
from simcis_jax.training.workdir import Workdir


def main(num_devices, out, folder, *changes):
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', int(num_devices))
    if 'JAX_NUM_PROCESSES' in os.environ:
        parallel.start_processes()
    flags.FLAGS.mark_as_parsed()
    logging.set_verbosity(logging.WARNING)
    values = {key: json.loads(value) for key, value in (c.split('=') for c in changes)}
    config = tiny_config(**values).to_dict()
    with Workdir(folder, config, writes=parallel.is_main()) as workdir:
        trainer = Trainer(from_config(config), workdir)
        programs = record_programs(trainer)
        inherited = trainer.start()
        state = trainer.states.finished(trainer.stages[inherited - 1]) if inherited else None
        for stage in trainer.stages[inherited : inherited + 2]:
            state = trainer.train_stage(stage, state)
    for array in jax.tree.leaves((state.params, state.memory)):
        first, *others = (np.asarray(shard.data) for shard in array.addressable_shards)
        for other in others:
            np.testing.assert_array_equal(other, first)
    if parallel.is_main():
        leaves = jax.tree_util.tree_leaves_with_path((state.params, state.memory))
        arrays = {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}
        np.savez(out, program=programs[-1], **arrays)


def record_programs(trainer):
    """Compiles the train step ahead of time; returns the list that receives the HLO texts."""
    programs, compiled, jitted = [], {}, trainer.train_steps[0]

    def step(state, teacher, batch, arrays):
        arguments = state, teacher, batch, arrays
        if (teacher is None) not in compiled:
            compiled[teacher is None] = jitted.lower(*arguments).compile()
            programs.append(compiled[teacher is None].as_text())
        return compiled[teacher is None](*arguments)

    trainer.train_steps = [step] * len(trainer.stages)
    return programs


if __name__ == '__main__':
    main(*sys.argv[1:])
