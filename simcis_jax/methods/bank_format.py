"""The query bank of SimCIS outside of training: its files, its table in the report."""

from __future__ import annotations

from simcis_jax.continual import bank_table
from simcis_jax.port import published_bank
from simcis_jax.types import MemoryFormat

BANK = MemoryFormat(
    flags={
        'bank': 'Query bank, fake_query.pkl.',
        'counts': 'Pseudo-label counts, psd_distribution.json.',
    },
    read=published_bank.read_memory,
    write=published_bank.write_memory,
    fields=lambda bank: {'bank_size': bank.queries.shape[1]},
    table=bank_table.make_table,
)
