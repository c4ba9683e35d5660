"""Values between steps: what JSON holds comes back as it was, and all else is refused with its place."""

from __future__ import annotations

import datetime
import decimal
import json
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_batchwrap.engine import protocol, values
from airflow_batchwrap.engine.errors import Unusable

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30)


class Point(NamedTuple):
    x: int
    y: int


@given(JSON)
def test_json_comes_back_as_it_was(value: Any) -> None:
    assert repr(json.loads(values.dumps(value, "1_a.py"))) == repr(value)


@given(JSON)
def test_a_value_crosses_the_protocol_both_ways(value: Any) -> None:
    call = protocol.Call("1_a.py", [protocol.Argument("list", items=[protocol.Argument("value", value=value)])])
    assert repr(protocol.Call.loads(call.dumps())) == repr(call)
    result = protocol.Result(
        protocol.DONE,
        "2026-01-01T00:00:00+00:00",
        "2026-01-01T00:00:01+00:00",
        value=value if protocol.fits_xcom(value) else None,
        files=[protocol.ResultFile(".a", "dot.a", 1, "00")],
        error=protocol.StepError("E", "m"),
    )
    assert repr(protocol.Result.loads(result.dumps())) == repr(result)


@given(JSON | st.text(st.characters()))
def test_what_fits_an_xcom_is_what_airflow_can_send(value: Any) -> None:
    try:
        sent = msgspec.msgpack.decode(msgspec.msgpack.encode(value))
    except (OverflowError, UnicodeEncodeError):
        assert not protocol.fits_xcom(value)
        return
    if protocol.fits_xcom(value):
        assert repr(sent) == repr(value)
    else:  # of 64 bits without a sign, or a NUL, which databases do not take
        assert "\\u0000" in json.dumps(value) or re.search("[0-9]{19}", json.dumps(value))


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        ({"a": [2**63 - 1, -(2**63), 1e300, "\u6f22", True, None]}, True),
        ([{"a": 2**63}], False),
        (-(2**63) - 1, False),
        ({"a\0": 1}, False),
        (["caf\udce9.txt"], False),
        ([1e999], False),
        # Keys that Airflow's serialization refuses, or reads as another object; and our own.
        ([{"__classname__": "a.B", "__version__": 1}], False),
        ({"a": {"__id__": 1}}, False),
        ({"__type": "datetime", "__var": 5}, False),
        ({"__type": "datetime", "__data__": 5, "__version__": 1}, True),
        ({"batchwrap_reference": {"container": "c", "blob": "b", "size": 1, "sha256": "00"}}, False),
    ],
)
def test_what_fits_an_xcom(value: Any, fits: bool) -> None:
    assert protocol.fits_xcom(value) is fits


def test_subclasses_travel_as_the_plain_type() -> None:
    assert values.dumps({"a": OrderedDict(b=Point(1, 2)), "c": (3,)}, "1_a.py") == '{"a":{"b":[1,2]},"c":[3]}'


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"rows": [1, 2, 3, datetime.datetime(2026, 1, 1)]}, "value['rows'][3] is a `datetime`; return value.isof"),  # noqa: DTZ001
        (decimal.Decimal(1), "value is a `Decimal`"),
        ([b"x"], "value[0] is a `bytes`; write it to a file"),
        ({"a": {1}}, "value['a'] is a `set`; return sorted(value)"),
        (Path("x"), "value is a `PosixPath`; return str(value)"),
        ([float("inf")], "value[0] is inf"),
        ([[float("nan")]], "value[0][0] is nan"),
        ({"a": {(1, 2): 3}}, "value['a'] has the key (1, 2) of type `tuple`"),
        ({None: 3}, "value has the key None of type `NoneType`"),
        ((x for x in "ab"), "value is a `generator`"),
        (object(), "value is a `object`; return str, int"),
    ],
)
def test_what_is_not_json_is_refused_with_its_place(value: Any, said: str) -> None:
    with pytest.raises(Unusable) as caught:
        values.dumps(value, "what do_action of 1_a.py returned")
    assert said in str(caught.value)
    assert str(caught.value).startswith("what do_action of 1_a.py returned cannot be passed on as JSON: value")


def test_a_value_that_holds_itself_or_is_too_deep_is_refused() -> None:
    own: list[Any] = []
    own += [own, own]
    deep: list[Any] = []
    for _ in range(protocol.DEPTH_LIMIT):
        deep = [deep]
    for value in (own, deep):
        with pytest.raises(Unusable, match="nested deeper than 200 levels, or holds itself"):
            values.dumps(value, "1_a.py")
    assert values.dumps(deep[0], "1_a.py")


@pytest.mark.parametrize(
    "text",
    [
        '{"protocol": 1, "step": "a", "arguments": [{}]}',
        '{"protocol": 1, "step": "a", "arguments": [{"kind": "file", "path": "x"}]}',
        '{"protocol": 1, "step": "a", "arguments": [{"kind": "pickle"}]}',
        '{"protocol": 1, "step": "a", "arguments": [3]}',
        '{"protocol": 1, "step": "a", "arguments": 3}',
        '{"protocol": 1}',
        "[]",
        "",
    ],
)
def test_a_malformed_call_is_a_protocol_error(text: str) -> None:
    with pytest.raises(protocol.ProtocolError):
        protocol.Call.loads(text)


FILE = {"path": "a", "stored": "a", "size": 1, "sha256": "00"}
DEEP: list[Any] = []
for _ in range(protocol.DEPTH_LIMIT):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "changed",
    [
        {"outcome": None},
        {"outcome": "well"},
        {"outcome": {"no": 1}},
        {"started": 5},
        {"files": [{}]},
        {"files": {"a": 1}},
        {"files": [{**FILE, "path": 5}]},
        {"files": [{**FILE, "size": "1"}]},
        {"value_file": {"path": "../../e1-a1/value.json", "size": 1, "sha256": "00"}},
        {"value_file": {"path": "value.json", "size": "huge", "sha256": "00"}},
        {"error": {"type": 5, "message": "m"}},
        {"value": float("nan")},
        {"value": "x" * protocol.INLINE_VALUE_LIMIT},
        {"value": DEEP},
        {"value": ["a\0"]},
        {"value": {"batchwrap_reference": {"container": "others", "blob": "b", "size": 1, "sha256": "00"}}},
    ],
    ids=lambda changed: str(changed)[:40],
)
def test_a_malformed_record_is_a_protocol_error(changed: dict[str, Any]) -> None:
    fine = {"protocol": 1, "outcome": "done", "started": "", "ended": "", "files": [FILE]}
    protocol.Result.loads(json.dumps(fine))
    with pytest.raises(protocol.ProtocolError, match="result record is malformed"):
        protocol.Result.loads(json.dumps({**fine, **changed}))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"protocol": 1}', "[]", ""])
def test_what_is_no_record_is_a_protocol_error(text: str) -> None:
    with pytest.raises(protocol.ProtocolError):
        protocol.Result.loads(text)
