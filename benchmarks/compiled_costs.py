"""What the text of compiled HLO says about a program: operations, loops, collectives, lookups.

An operation is an instruction that the device executes on its own: on a GPU a kernel, on a TPU a
fusion or a copy. Instructions inside a fusion are part of it.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# Instructions that take no time themselves.
FREE = frozenset(
    'parameter constant tuple get-tuple-element bitcast while conditional call after-all'.split()
)
# Instructions that read only some of their first operand.
PARTIAL_READS = ('dynamic-slice', 'slice', 'gather')
COLLECTIVE = re.compile('all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter')

HEADER = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\{$')
INSTRUCTION = re.compile(r'\s+(ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)')
NAME = r'%?([\w.\-]+)'
OPERANDS = re.compile(r'%([\w.\-]+)')
BODY, CONDITION = re.compile(f'body={NAME}'), re.compile(f'condition={NAME}')
CALLS = re.compile(f'calls={NAME}')
CALLED = re.compile(f'(?:to_apply|true_computation|false_computation)={NAME}')
BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
CYCLES = re.compile(r'estimated_cycles":"(\d+)"')
NO_ESTIMATE = 2**63 - 1  # Cycles, where the compiler gives up.
ORIGIN = re.compile(r'op_name="([^"]*)"')
TARGET = re.compile('custom_call_target="([^"]*)"')
WORKSPACE = re.compile(r', s8\[\d+\](\{[^}]*\})?\)$')
INDEX_DIM = re.compile(r'index_vector_dim=(\d+)')
# An array: bits, dimensions, their order, first tile, memory space if it is not the large one.
ARRAY = re.compile(
    r'\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]'
    r'(?:\{([\d,]*)(?::T\(([\d,]+)\))?[^}]*?(S\(\d\))?[^}]*\})?'
)


class Instruction(NamedTuple):
    """One line of HLO."""

    name: str
    shape: str
    opcode: str
    rest: str  # Operands and attributes.
    is_root: bool

    @property
    def origin(self) -> str:
        """The name stack that the instruction was traced under."""
        found = ORIGIN.search(self.rest)
        return found[1] if found else ''

    @property
    def target(self) -> str:
        """What a custom call calls; empty for other instructions."""
        found = TARGET.search(self.rest) if self.opcode == 'custom-call' else None
        return found[1] if found else ''

    @property
    def cycles(self) -> int:
        """The compiler's estimate of a single run; 0 = none."""
        found = CYCLES.search(self.rest)
        return int(found[1]) if found and int(found[1]) != NO_ESTIMATE else 0

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        return OPERANDS.findall(self.rest.split('), ')[0])


class Operation(NamedTuple):
    """An operation, and its cost in all trips of the loops around it."""

    name: str
    opcode: str  # Of a custom call, what it calls.
    shape: str
    origin: str
    trips: int  # Product over the loops around it; a loop of data-dependent length counts once.
    unknown_trips: bool  # Whether there is a loop of data-dependent length around it.
    in_loop: bool
    moved: float  # Bytes of operands and results, with padding.
    cycles: int  # By the compiler; 0 where it does not estimate them.

    def seconds(self, clock: float, bandwidth: float) -> float:
        """The longer of the estimated cycles and of the memory traffic at its peak."""
        return max(self.cycles / clock, self.moved / bandwidth)


class Loop(NamedTuple):
    """A while loop."""

    origin: str
    trips: int | None  # None = depends on data.
    around: int  # Trips of the loops around it.
    num_operations: int  # Of one trip, without those of inner loops.


class Lookup(NamedTuple):
    """A gather or scatter."""

    opcode: str
    num_indices: int
    origin: str


class Program:
    """The computations of a compiled program."""

    def __init__(self, hlo: str):
        self.computations: dict[str, dict[str, Instruction]] = collections.defaultdict(dict)
        self.entry = here = ''
        for line in hlo.splitlines():
            if header := HEADER.match(line):
                here = header[2]
                self.entry = here if header[1] else self.entry
            elif match := INSTRUCTION.match(line):
                root, name, shape, opcode, rest = match.groups()
                self.computations[here][name] = Instruction(name, shape, opcode, rest, bool(root))

    def costs(self) -> tuple[list[Operation], list[Loop]]:
        """All operations, and all loops, from the outermost to the innermost."""
        rows, loops = [], []
        queue = [(self.entry, 1, False, False)]
        for here, trips, unknown_trips, in_loop in queue:
            for found in self.computations[here].values():
                if found.opcode == 'while':
                    own = self._trips(found)
                    body, condition = BODY.search(found.rest)[1], CONDITION.search(found.rest)[1]
                    loops.append(Loop(found.origin, own, trips, len(self._timed(body))))
                    inside = trips * (own or 1), unknown_trips or own is None, True
                    queue += [(body, *inside), (condition, *inside)]
                for name in self._called(found):
                    queue.append((name, trips, unknown_trips, in_loop))
            for found in self._timed(here):
                rows.append(
                    Operation(
                        found.name,
                        found.target or found.opcode,
                        found.shape,
                        found.origin,
                        trips,
                        unknown_trips,
                        in_loop,
                        moved=trips * self._bytes(here, found),
                        cycles=trips * found.cycles,
                    )
                )
        return rows, loops

    def lookups(self) -> list[Lookup]:
        """All gathers and scatters, also those inside fusions."""
        found = []
        for computation in self.computations.values():
            for x in computation.values():
                index_dim = INDEX_DIM.search(x.rest)
                if x.opcode not in ('gather', 'scatter') or not index_dim:
                    continue
                # A scatter of k arrays has k arrays, the indices, k updates.
                indices = computation.get(x.operands[len(x.operands) // 2])
                dims = _dimensions(indices.shape) if indices else []
                size = math.prod(n for i, n in enumerate(dims) if i != int(index_dim[1]))
                found.append(Lookup(x.opcode, size, x.origin))
        return found

    def _timed(self, computation: str) -> list[Instruction]:
        return [
            x
            for x in self.computations[computation].values()
            if x.opcode not in FREE
            and not x.opcode.endswith('-done')
            and x.target != 'AllocateBuffer'
        ]

    def _called(self, x: Instruction) -> list[str]:
        """Computations that run once when the instruction does, besides fusions."""
        if x.opcode not in ('call', 'conditional'):
            return []
        branches = BRANCHES.search(x.rest)
        return CALLED.findall(x.rest) + (OPERANDS.findall(branches[1]) if branches else [])

    def _trips(self, loop: Instruction) -> int | None:
        if known := TRIPS.search(loop.rest):
            return int(known[1])
        # Counts up to a constant: the condition is one comparison with it.
        condition = self.computations[CONDITION.search(loop.rest)[1]].values()
        compare = [x for x in condition if x.is_root and 'direction=LT' in x.rest]
        limits = [x.rest.split(')')[0] for x in condition if x.opcode == 'constant']
        return int(limits[0]) if compare and len(limits) == 1 and limits[0].isdigit() else None

    def _bytes(self, computation: str, x: Instruction) -> float:
        operands = map(self.computations[computation].get, x.operands)
        sizes = [padded_bytes(o.shape) if o else 0.0 for o in operands]
        if x.opcode == 'fusion':
            return self._fusion_bytes(x, sizes)
        if x.opcode == 'dynamic-update-slice':  # In place: reads the update and writes it.
            return 2 * sizes[1]
        if x.opcode in PARTIAL_READS:
            return 2 * padded_bytes(x.shape) + sum(sizes[1:])
        if x.opcode == 'copy-start':  # Its result names the source again.
            return padded_bytes(ARRAY.search(x.shape)[0]) + sum(sizes)
        if x.opcode == 'slice-start':  # Its result names the source, the slice and a context.
            _, part, _ = (found[0] for found in ARRAY.finditer(x.shape))
            return padded_bytes(part) + (padded_bytes(part.replace('S(1)', '')) if sizes[0] else 0)
        # The workspace of a library call is a result that nobody reads.
        result = WORKSPACE.sub(')', x.shape) if x.target.startswith('__cu') else x.shape
        return padded_bytes(result) + sum(sizes)

    def _fusion_bytes(self, x: Instruction, sizes: Sequence[float]) -> float:
        """Bytes of a fusion, which may read and write only parts of its operands and result."""
        body = self.computations[CALLS.search(x.rest)[1]]
        reads = sum(
            self._read(body, _parameter(body, i), size) for i, size in enumerate(sizes) if size
        )
        is_fast = not padded_bytes(x.shape)  # The result stays in the fast memory.
        return reads + (0.0 if is_fast else self._written(body, _root(body)))

    def _read(self, body: Mapping[str, Instruction], name: str, size: float) -> float:
        """Bytes that the computation reads of one of its values."""
        total = 0.0
        for user in body.values():
            for position in (i for i, operand in enumerate(user.operands) if operand == name):
                if user.opcode == 'bitcast':
                    total += self._read(body, user.name, size)
                elif user.opcode == 'fusion':
                    inner = self.computations[CALLS.search(user.rest)[1]]
                    total += self._read(inner, _parameter(inner, position), size)
                elif user.opcode in PARTIAL_READS and position == 0:
                    total += padded_bytes(user.shape)
                elif user.opcode != 'dynamic-update-slice' or position > 0:
                    return size
        return min(total, size)

    def _written(self, body: Mapping[str, Instruction], name: str) -> float:
        """Bytes that the computation writes of its result, or of a part of it."""
        result = body[name]
        if result.opcode == 'bitcast':
            return self._written(body, result.operands[0])
        if result.opcode == 'tuple':
            return sum(self._written(body, part) for part in result.operands)
        if result.opcode == 'fusion':
            inner = self.computations[CALLS.search(result.rest)[1]]
            return self._written(inner, _root(inner))
        in_place = result.opcode == 'dynamic-update-slice'
        return padded_bytes(body[result.operands[1]].shape if in_place else result.shape)


def _parameter(computation: Mapping[str, Instruction], position: int) -> str:
    """The name of a parameter."""
    start = f'{position})'
    (name,) = (
        x.name for x in computation.values() if x.opcode == 'parameter' and x.rest.startswith(start)
    )
    return name


def _root(computation: Mapping[str, Instruction]) -> str:
    """The name of the result."""
    (name,) = (x.name for x in computation.values() if x.is_root)
    return name


def _dimensions(shape: str) -> list[int]:
    return [int(n) for n in ARRAY.search(shape)[2].split(',') if n]


def padded_bytes(shape: str) -> float:
    """Bytes of an HLO shape in the device's large memory, with the padding of its tiles."""
    total = 0.0
    for bits, dims, order, tile, elsewhere in ARRAY.findall(shape):
        if elsewhere:
            continue
        dims = [int(n) for n in dims.split(',') if n]
        inner_first = [dims[int(i)] for i in order.split(',') if i] or dims[::-1]
        tile = [int(n) for n in tile.split(',')[::-1] if n] + [1] * len(dims)
        sizes = (-(-n // t) * t for n, t in zip(inner_first, tile, strict=False))
        total += math.prod(sizes) * int(bits or 8) / 8
    return total
