"""CORE stands for the catalogue: no kind of program is left to ``make test-long`` alone."""

from __future__ import annotations

import pytest

from signconv.ir.nodes import Op, Ref, all_expressions, walk
from signconv.passes.base import parse
from signconv.pipeline.catalogue import GENERATED, Entry
from tests.support import generated_classes
from tests.support.entries import CORE, class_for, entry_of
from tests.support.runs import converted


def kinds(entry: Entry) -> set[str]:
    """What differs in how a program is converted, stored, lowered, printed and run."""
    p, program = class_for(entry).program, converted(entry.spec, entry.convert)
    read = [n for e in all_expressions(program) for n in walk(e)]
    found = {f"link {program.link}", f"noise {p.noise}", f"decay {p.decay}", f"math {p.precision}"}
    found |= {f"format {m.format}" for m in p.moments} | {f"pass {parse(x).name}" for x in p.passes}
    found |= {f"reduction {r.kind}" for r in p.reductions}
    found |= {f"over {r.over}" for r in p.reductions} | {f"kept over {k.over}" for k in p.kept}
    found |= {f"sums of {s.source}" for stage in p.stages for s in stage.sums}
    found |= {"derived values" for stage in p.stages if stage.derived} | {*p.shapes}
    found |= {f"moment {m.kind}, from {m.init}" for m in program.moments if m.init != "zero"}
    found |= {"moments come apart" for m in p.moments if m.apart}
    found |= {"a moment of few values" for m in p.moments if m.values}
    found |= {f"{min(len(p.moments), 2)} moments", f"{p.words} words", f"state {p.storage}"}
    found |= {"a floor"} if p.floors else set()
    found |= {"scalar states"} if {n for n, _ in p.scalar_states} - set(p.floors) else set()
    found |= {"hyperparameters removed"} if p.removed else set()
    found |= {"no denominator"} if program.denominator is None else set()
    found |= {"more than the update"} if program.new_param is not None else set()
    found |= {"another point of evaluation"} if program.eval_param is not None else set()
    found |= {f"an extra input per {x.per}" for x in p.extras}
    found |= {"masks" for n in read if isinstance(n, Op) and n.fn == "where"}
    found |= {"the last step's moment" for n in read if isinstance(n, Ref) and n.kind == "prev"}
    found |= {"the parameter" for n in read if isinstance(n, Ref) and n.kind == "param"}
    return found


def test_core_is_of_the_catalogue() -> None:
    assert set(CORE) <= set(GENERATED) == set(map(entry_of, generated_classes().values()))
    assert len(set(CORE)) == len(CORE) < len(GENERATED) / 2


@pytest.mark.parametrize("entry", [e for e in GENERATED if e not in CORE], ids=lambda e: e.label)
def test_core_has_every_kind(entry: Entry) -> None:
    covered = set().union(*map(kinds, CORE))
    assert kinds(entry) - covered == set()


def test_every_kind_is_looked_for() -> None:
    """Each of these is a kind of some entry: a misspelt question would find nothing and pass."""
    found = set().union(*map(kinds, GENERATED))
    wanted = "link ratio|link stosign|link sign|noise fresh|noise antithetic|noise golden|noise "
    wanted += "|decay decoupled|decay l2|decay |math fp32|math bf16|format e4m3|format e5m3"
    wanted += "|format e6m2|format e2m1|format e4m0|format e4m3-raw|format bf16|format fp32"
    wanted += "|reduction norm|reduction mean|moments come apart|a moment of few values|a floor"
    wanted += "|0 moments|1 moments|2 moments|scalar states|hyperparameters removed|masks"
    wanted += "|an extra input per element"
    wanted += "|more than the update|another point of evaluation|moment state, from param"
    assert set(wanted.split("|")) - found == set()
