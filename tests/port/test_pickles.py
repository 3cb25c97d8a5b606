import io
import os
import pickle
import pickletools

import numpy as np
import pytest

from simcis_jax.port import pickles
from simcis_jax.port.pickles import Call, Global, Outside


class Malicious:
    """Runs a command when Python unpickles it."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f'touch {self.proof}',)


def load(data, **kwargs):
    file = io.BytesIO(data)
    file.name = 'FILE'
    return pickles.load(file, **kwargs)


@pytest.mark.parametrize('protocol', range(6))
def test_a_malicious_pickle_is_rejected_and_does_not_run(protocol, tmp_path):
    data = pickle.dumps({'model': Malicious(tmp_path / 'proof')}, protocol)
    with pytest.raises(ValueError, match=r'FILE is rejected: it uses posix.system'):
        load(data, allowed={})
    assert not (tmp_path / 'proof').exists()
    pickle.loads(data)
    assert (tmp_path / 'proof').exists()  # Python's own unpickler runs it.


@pytest.mark.parametrize('name', ['builtins.eval', 'builtins.getattr', 'numpy.load', 'a.b.c.d'])
def test_names_that_are_not_allowed_are_rejected(name):
    data = pickles.dumps(Call(Global(*name.rsplit('.', 1)), ('1',)))
    with pytest.raises(ValueError, match=f'it uses {name},'):
        load(data, allowed={'collections.OrderedDict': dict})


def test_an_allowed_name_is_replaced():
    data = pickles.dumps(Call(Global('os', 'system'), ('harm',)))
    assert load(data, allowed={'os.system': str.upper}) == 'HARM'


@pytest.mark.parametrize(
    'data', [b'', b'\x80', b'no pickle', pickle.dumps([1, 2])[:-3], b'\x80\x02R.']
)
def test_a_damaged_pickle_is_an_error(data):
    with pytest.raises(ValueError, match='FILE cannot be read, it is damaged or not a pickle'):
        load(data, allowed={})


def test_pythons_unpickler_reads_plain_values():
    value = {
        'a': [1, -1, 0, 255, 256, -(2**40), 2**70, 0.1, float('inf'), True, False, None],
        'ü': ((), (1,), [], {}, ''),
    }
    again = pickle.loads(pickles.dumps(value))
    assert again == value
    assert [type(x) for x in again['a']] == [type(x) for x in value['a']]


def test_a_vector_is_written_as_a_list_of_floats():
    vector = np.array([0.1, -2, 3e-40], np.float32)
    again = pickle.loads(pickles.dumps(vector))
    assert type(again[0]) is float and again == vector.tolist()


def test_names_that_cannot_be_imported_can_be_written():
    call = Call(Global('no.such', 'thing'), (1,), state={'x': 2}, elements=[3], items={4: 5})
    opcodes = [op.name for op, *_ in pickletools.genops(pickles.dumps([call, Outside(('id',))]))]
    for name in ('GLOBAL', 'REDUCE', 'APPENDS', 'SETITEMS', 'BUILD', 'BINPERSID'):
        assert name in opcodes


def test_objects_outside_the_pickle_are_loaded_by_id():
    data = pickles.dumps([Outside(('storage', 7))])
    assert load(data, allowed={}, persistent_load=lambda id: id) == [('storage', 7)]
    with pytest.raises(ValueError, match='refers to data outside'):
        load(data, allowed={})
