"""The plan of a program for an accelerator reads compiled HLO right and gives the right advice."""

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from tiny import plain_config, tiny_config

from benchmarks import advice, chips, plan
from benchmarks.compiled_costs import Program, padded_bytes
from benchmarks.process import ROOT
from benchmarks.programs import FIRST, LATER, Programs, bytes_per_device
from simcis_jax.errors import InputError
from simcis_jax.settings.validated import from_config

GIB = 2**30
# The compiled form of a function on two devices: a gather, a loop of 5 trips, a loop whose trips
# are an argument with one of 3 trips inside, a sum over devices, a scatter.
RECORDED = ('v5e', 'h100')


@pytest.fixture(params=RECORDED)
def recorded(request):
    return request.param, Program((Path(__file__).parent / f'hlo/{request.param}.txt').read_text())


def test_loops_have_their_trips(recorded):
    _, program = recorded
    operations, loops = program.costs()
    found = {x.origin.removeprefix('jit(f)/shard_map/'): (x.trips, x.around) for x in loops}
    assert found == {
        'known/while': (5, 1),
        'bound/while': (None, 1),
        'bound/while/body/while': (3, 1),
    }
    costs = {x.origin.removeprefix('jit(f)/shard_map/'): x for x in operations}
    for name, trips, unknown in (
        ('known/while/body/closed_call/dot_general', 5, False),
        ('bound/while/cond/lt', 1, True),
        ('bound/while/body/while/body/closed_call/dot_general', 3, True),
    ):
        found = costs[name]
        assert (found.trips, found.unknown_trips, found.in_loop) == (trips, unknown, True)
    assert not any(x.in_loop for x in operations if x.origin.endswith(('psum', 'scatter-add')))


def test_collectives_and_lookups_are_found(recorded):
    _, program = recorded
    operations, _ = program.costs()
    count, line = plan.describe_collectives(operations)
    assert count == '1 collectives, 0 of them in loops'
    assert 'all-reduce' in line and '0.0625 MiB' in line and line.endswith('psum')
    moved = [x._replace(in_loop=True) for x in operations]
    assert 'IN A LOOP' in plan.describe_collectives(moved)[1]
    found = {(x.opcode, x.num_indices) for x in program.lookups()}
    assert found == {('gather', 256), ('scatter', 256)}
    assert plan.describe_lookups(program.lookups()) == [
        '0 gathers and scatters with more than a million indices'
    ]


def test_bytes_and_cycles_of_operations():
    v5e, h100 = (
        {x.name: x for x in Program((ROOT / f'tests/hlo/{name}.txt').read_text()).costs()[0]}
        for name in RECORDED
    )
    assert v5e['fusion.18'].cycles == 5 * 629
    # Columns of 1000 numbers, padded; the result is in the fast memory.
    assert v5e['copy.6'].moved == 136 * 1024 * 4
    product = h100['custom-call.1']
    assert product.moved == 5 * 3 * 128 * 128 * 4  # Two operands and the result, no workspace.
    assert product.seconds(1e9, 1e9) == product.moved / 1e9


def test_copies_and_slices_that_run_beside_others_move_each_byte_once():
    operations, _ = Program(
        """
ENTRY %main (x: f32[64,8,128]) -> f32[64,8,128] {
  %x = f32[64,8,128]{2,1,0:T(8,128)} parameter(0)
  %fetch = (f32[64,8,128]{2,1,0:T(8,128)S(1)}, f32[64,8,128]{2,1,0:T(8,128)}, u32[]{:S(2)}) \
copy-start(%x)
  %slice = ((f32[64,8,128]{2,1,0:T(8,128)}), f32[16,8,128]{2,1,0:T(8,128)S(1)}, s32[]{:S(2)}) \
slice-start(%x), slice={[0:16], [0:8], [0:128]}
}
"""
    ).costs()
    moved = {x.name: x.moved for x in operations}
    assert moved == {'fetch': 64 * 8 * 128 * 4, 'slice': 16 * 8 * 128 * 4}


def test_an_operation_whose_cycles_the_compiler_cannot_estimate_counts_by_its_bytes():
    text = (ROOT / 'tests/hlo/v5e.txt').read_text()
    assert '"estimated_cycles":"629"' in text
    largest = text.replace('"estimated_cycles":"629"', f'"estimated_cycles":"{2**63 - 1}"')
    operations = {x.name: x for x in Program(largest).costs()[0]}
    assert operations['fusion.18'].cycles == 0
    assert operations['fusion.18'].seconds(1e9, 1e9) == operations['fusion.18'].moved / 1e9


def test_what_is_read_and_written_in_slices_counts_as_slices():
    # A loop over the first axis of an array [64, 1000, 128], which writes the result in place.
    operations, _ = Program((ROOT / 'tests/hlo/h100_slices.txt').read_text()).costs()
    (found,) = [x for x in operations if x.name == 'loop_dynamic_update_slice_fusion']
    assert found.trips == 64
    assert found.moved == 64 * (2 * 1000 * 128 * 4 + 4)  # The index too.


def test_what_a_fusion_inside_a_fusion_reads_and_writes_in_slices_counts_as_slices():
    operations, _ = Program(
        """
%slice_of (x: f32[6,64,128], i: s32[]) -> f32[1,64,128] {
  %x.1 = f32[6,64,128]{2,1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  ROOT %slice.1 = f32[1,64,128]{2,1,0} dynamic-slice(%x.1, %i.1), dynamic_slice_sizes={1,64,128}
}

%update (y: f32[6,64,128], z: f32[1,64,128], j: s32[]) -> f32[6,64,128] {
  %z.2 = f32[1,64,128]{2,1,0} parameter(1)
  %y.2 = f32[6,64,128]{2,1,0} parameter(0)
  %j.2 = s32[] parameter(2)
  ROOT %update.2 = f32[6,64,128]{2,1,0} dynamic-update-slice(%y.2, %z.2, %j.2)
}

%both (x: f32[6,64,128], y: f32[6,64,128], k: s32[]) -> f32[6,64,128] {
  %x.3 = f32[6,64,128]{2,1,0} parameter(0)
  %y.3 = f32[6,64,128]{2,1,0} parameter(1)
  %k.3 = s32[] parameter(2)
  %read.3 = f32[1,64,128]{2,1,0} fusion(%x.3, %k.3), kind=kLoop, calls=%slice_of
  %sum.3 = f32[1,64,128]{2,1,0} add(%read.3, %read.3)
  ROOT %write.3 = f32[6,64,128]{2,1,0} fusion(%y.3, %sum.3, %k.3), kind=kLoop, calls=%update
}

ENTRY %main (x: f32[6,64,128], y: f32[6,64,128], k: s32[]) -> f32[6,64,128] {
  %x = f32[6,64,128]{2,1,0} parameter(0)
  %y = f32[6,64,128]{2,1,0} parameter(1)
  %k = s32[] parameter(2)
  ROOT %outer = f32[6,64,128]{2,1,0} fusion(%x, %y, %k), kind=kOutput, calls=%both
}
"""
    ).costs()
    (outer,) = operations
    assert outer.moved == 2 * 64 * 128 * 4 + 4  # The index too.


@pytest.mark.parametrize(
    'shape, size',
    [
        ('f32[10,3]{1,0}', 120),
        ('f32[10,3]{1,0:T(8,128)}', 16 * 128 * 4),
        ('f32[10,3]{0,1:T(8,128)}', 8 * 128 * 4),
        ('bf16[16,128]{1,0:T(8,128)(2,1)}', 16 * 128 * 2),
        ('f32[10,3]{1,0:T(8,128)S(1)}', 0),
        ('(pred[7]{0}, s32[])', 7 + 4),
    ],
)
def test_padding_is_counted(shape, size):
    assert padded_bytes(shape) == size


def settings(**changes):
    return from_config(tiny_config(**changes).to_dict())


CHIP = dataclasses.replace(chips.CHIPS['v5e'], memory=16 * GIB)


@pytest.mark.parametrize(
    'arguments, temporaries, changes, expected',
    [
        (2, 10, {}, {}),
        (2, 20, {}, {'training.microbatch_size': 4}),
        (2, 50, {}, {'training.microbatch_size': 2}),
        (2, 20, {'training.microbatch_size': 2}, {'training.microbatch_size': 1}),
        (17, 1, {}, None),
        (
            2,
            500,
            {},
            {
                'training.microbatch_size': 1,
                'model.dtype': 'bfloat16',
                'model.rematerialize': True,
            },
        ),
        (
            2,
            30,
            {'training.microbatch_size': 1, 'model.dtype': 'bfloat16'},
            {'model.rematerialize': True},
        ),
        (
            2,
            30,
            {
                'training.microbatch_size': 1,
                'model.dtype': 'bfloat16',
                'model.rematerialize': True,
            },
            None,
        ),
    ],
)
def test_advice_for_a_step(arguments, temporaries, changes, expected):
    memory = advice.Memory(arguments * GIB, temporaries * GIB)
    chosen = settings(**{'training.batch_size': 8} | changes)
    assert advice.smaller_step(memory, CHIP, chosen, images=8) == expected


def test_advice_offers_no_bfloat16_where_the_hardware_has_none():
    memory = advice.Memory(2 * GIB, 500 * GIB)
    assert 'model.dtype' not in advice.smaller_step(memory, chips.CHIPS['t4'], settings(), 4)


def test_advice_for_an_evaluation():
    chosen = settings(**{'evaluation.batch_size': 16})
    assert advice.smaller_evaluation(advice.Memory(GIB, GIB), CHIP, chosen, 4) == {}
    memory = advice.Memory(GIB, 25 * GIB)
    # 4 images on each of 4 devices; 2 fit.
    assert advice.smaller_evaluation(memory, CHIP, chosen, 4) == {'evaluation.batch_size': 8}
    assert advice.smaller_evaluation(advice.Memory(GIB, 99 * GIB), CHIP, chosen, 4) is None


def test_the_verdict_names_what_to_set():
    memory = advice.Memory(2 * GIB, 20 * GIB)
    text = advice.sentence(memory, CHIP, {'training.microbatch_size': 4})
    assert text == ('does not fit: 22.00 GiB of 16.00 GiB; try --config.training.microbatch_size=4')
    assert advice.sentence(memory, CHIP, {}) == 'fits: 22.00 GiB of 16.00 GiB'
    nearly = advice.Memory(2 * GIB, 10 * GIB)
    assert 'XLA_PYTHON_CLIENT_MEM_FRACTION' in advice.sentence(nearly, chips.CHIPS['t4'], None)


@pytest.mark.slow
def test_arguments_are_those_of_a_run_and_nothing_is_allocated():
    programs = Programs(settings(), 12, jax.devices()[:1])
    before = len(jax.live_arrays())
    first, later = (programs.makers()[name]() for name in (FIRST, LATER))
    assert len(jax.live_arrays()) <= before  # Garbage may be collected meanwhile.
    assert (first.images, first.side) == (4, 64)
    params = bytes_per_device(first.arguments[0].params, programs.mesh)
    more = bytes_per_device(later.arguments, programs.mesh)
    assert more - bytes_per_device(first.arguments, programs.mesh) == params
    state, metrics = jax.eval_shape(first.function, *first.arguments)
    assert jax.tree.map(lambda x: x.shape, state) == jax.tree.map(
        lambda x: x.shape, first.arguments[0]
    )
    assert 'total' in metrics


def test_later_stages_have_no_optimizer_state_of_frozen_parameters():
    frozen_network = from_config(plain_config('eclipse').to_dict())
    programs = Programs(frozen_network, 12, jax.devices()[:1])
    states = [programs.makers()[name]().arguments[0] for name in (FIRST, LATER)]
    first, later = (bytes_per_device(x.opt_state, programs.mesh) for x in states)
    assert later < first / 4
    assert jax.tree.structure(states[1].params) == jax.tree.structure(states[0].params)


def test_the_evaluation_is_traced_as_a_run_calls_it():
    evaluation = Programs(settings(), 12, jax.devices()[:1]).evaluation()
    logits, masks = jax.eval_shape(evaluation.function, *evaluation.arguments)
    assert logits.shape == (4, 12, 12) and masks.shape[0] == 4


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(InputError, match='--devices=3'):
        Programs(settings(), 12, [None] * 3)


@pytest.mark.parametrize(
    'name, count, missing, message',
    [
        ('v7', 1, (), '--chip=v7 is unknown; one of v5e, v6e, h100'),
        ('v5e', 1, ('libtpu',), r"simcis_jax\[tpu\]'.*the device itself is not needed"),
        ('h100', 1, chips.CUDA_PLUGINS, r"simcis_jax\[cuda\]'"),
        ('v5e', 3, (), '--devices=3: TPU v5e chips form grids of 1, 2, 4'),
    ],
)
def test_faults_of_the_command_line(name, count, missing, message, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda x, *a: None if x in missing else find(x, *a)
    )
    with pytest.raises(InputError, match=message):
        chips.devices(name, count)


def test_classes_are_those_of_the_data_set():
    assert plan.count_classes(settings(), 0) == (12, '')
    assert plan.count_classes(settings(), 7) == (7, '')
    absent = settings(**{'data.name': 'prepared', 'data.root': 'absent'})
    count, source = plan.count_classes(absent, 0)
    assert count == 150 and '--classes' in source


@pytest.mark.slow
@pytest.mark.parametrize('chip, packages', [('v5e', ('libtpu',)), ('h100', chips.CUDA_PLUGINS)])
def test_the_small_config_compiles(chip, packages):
    if not any(map(importlib.util.find_spec, packages)):
        pytest.skip(f'The compiler of {chip} is not installed.')
    command = [sys.executable, '-m', 'benchmarks.plan', '--config=tests/tiny.py', f'--chip={chip}']
    result = subprocess.run(
        [*command, '--devices=2'], cwd=ROOT, capture_output=True, text=True, timeout=3000
    )
    assert result.returncode == 0, result.stderr
    found = result.stdout
    assert found.count('fits: ') == 3 and found.count('\ncompiled in') == 3
    assert 'all-reduce' in found and 'IN A LOOP' not in found
