import io
import os
import pickle
import pickletools

import numpy as np
import pytest

from simcis_jax.port import pickles
from simcis_jax.port.pickles import Call, Global, Outside


class Hostile:
    """Runs a command when it is unpickled the usual way."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f'touch {self.proof}',)


def load(data, **kwargs):
    file = io.BytesIO(data)
    file.name = 'FILE'
    return pickles.load(file, **kwargs)


@pytest.mark.parametrize('protocol', range(6))
def test_a_hostile_pickle_is_refused_by_name_and_does_not_run(protocol, tmp_path):
    data = pickle.dumps({'model': Hostile(tmp_path / 'proof')}, protocol)
    with pytest.raises(ValueError, match=r'FILE is refused: it wants to use posix.system'):
        load(data, allowed={})
    assert not (tmp_path / 'proof').exists()
    pickle.loads(data)
    assert (tmp_path / 'proof').exists()  # So the file was dangerous.


@pytest.mark.parametrize('name', ['builtins.eval', 'builtins.getattr', 'numpy.load', 'a.b.c.d'])
def test_every_other_name_is_refused(name):
    data = pickles.dumps(Call(Global(*name.rsplit('.', 1)), ('1',)))
    with pytest.raises(ValueError, match=f'wants to use {name},'):
        load(data, allowed={'collections.OrderedDict': dict})


def test_a_name_on_the_list_stands_for_what_the_list_says():
    data = pickles.dumps(Call(Global('os', 'system'), ('harm',)))
    assert load(data, allowed={'os.system': str.upper}) == 'HARM'


@pytest.mark.parametrize(
    'data', [b'', b'\x80', b'no pickle', pickle.dumps([1, 2])[:-3], b'\x80\x02R.']
)
def test_a_broken_pickle_is_one_error(data):
    with pytest.raises(ValueError, match='FILE cannot be read, it is broken or no pickle'):
        load(data, allowed={})


def test_plain_values_come_back_from_pythons_own_unpickler():
    value = {
        'a': [1, -1, 0, 255, 256, -(2**40), 2**70, 0.1, float('inf'), True, False, None],
        'ü': ((), (1,), [], {}, ''),
    }
    again = pickle.loads(pickles.dumps(value))
    assert again == value
    assert [type(x) for x in again['a']] == [type(x) for x in value['a']]


def test_a_vector_becomes_a_list_of_floats():
    vector = np.array([0.1, -2, 3e-40], np.float32)
    again = pickle.loads(pickles.dumps(vector))
    assert type(again[0]) is float and again == vector.tolist()


def test_names_that_do_not_exist_here_can_be_written():
    call = Call(Global('no.such', 'thing'), (1,), state={'x': 2}, elements=[3], items={4: 5})
    opcodes = [op.name for op, *_ in pickletools.genops(pickles.dumps([call, Outside(('id',))]))]
    for name in ('GLOBAL', 'REDUCE', 'APPENDS', 'SETITEMS', 'BUILD', 'BINPERSID'):
        assert name in opcodes


def test_data_outside_of_the_pickle_is_asked_for_by_id():
    data = pickles.dumps([Outside(('storage', 7))])
    assert load(data, allowed={}, persistent_load=lambda id: id) == [('storage', 7)]
    with pytest.raises(ValueError, match='refers to data outside'):
        load(data, allowed={})
