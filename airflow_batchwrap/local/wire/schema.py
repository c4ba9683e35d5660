"""The shapes of the API's bodies, read from schema.json, and the check of what a client sends.

schema.json is data: each model's properties with their types, derived from the 2025-06-01 data plane. In a type, ``=X``
is an enumeration, ``@X`` a model, ``[]`` a list, ``!`` marks a required property and ``~`` one that clients only read;
``int64`` stands for an integer that goes over the wire as a string. Enumerations have their values as the real service
was recorded to write them, with capitals (``Spread``, ``TaskSuccess``) or without.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from airflow_batchwrap.local.wire import times
from airflow_batchwrap.local.wire.errors import BatchError


class Property(NamedTuple):
    """One property of a model."""

    kind: str
    name: str
    many: bool
    required: bool
    read_only: bool


def _property(text: str) -> Property:
    read_only, text = text.endswith("~"), text.rstrip("~")
    required, text = text.endswith("!"), text.rstrip("!")
    many, text = text.endswith("[]"), text.removesuffix("[]")
    kind, name = (text[0], text[1:]) if text[0] in "=@" else (text, "")
    return Property(kind, name, many, required, read_only)


_RAW = json.loads((Path(__file__).parent / "schema.json").read_text())
API_VERSION: str = _RAW["api_version"]
#: What older clients speak (azure-batch from 7.0, the Azure CLI, @azure/batch); what is unknown of it is ignored.
OLDER_VERSIONS = frozenset(
    {
        "2019-08-01.10.0",
        "2020-03-01.11.0",
        "2020-09-01.12.0",
        "2021-06-01.14.0",
        "2022-01-01.15.0",
        "2022-06-01.15.0",
        "2022-10-01.16.0",
        "2023-05-01.17.0",
        "2023-11-01.18.0",
        "2024-02-01.19.0",
        "2024-07-01.20.0",
    }
)
#: Properties that older versions have, with the first version that no longer has them. They are kept as they come and
#: given back; they do nothing.
OLDER = {
    "applicationLicenses": "2025",
    "authenticationTokenSettings": "2025",
    "certificateReferences": "2025",
    # Pools of it are refused, but only once the rest of their body is checked.
    "cloudServiceConfiguration": "2024-07",
    "resourceTags": "2025",
    "targetNodeCommunicationMode": "2025",
}
#: Where they may stand: in pools, tasks and managers of jobs.
_OLDER_OF_POOLS = frozenset(OLDER) - {"authenticationTokenSettings"}
_OLDER_OF = {
    **dict.fromkeys(
        ("BatchPoolCreateOptions", "BatchPoolSpecification", "BatchPoolUpdateOptions", "BatchPoolReplaceOptions"),
        _OLDER_OF_POOLS,
    ),
    **dict.fromkeys(("BatchTaskCreateOptions", "BatchJobManagerTask"), frozenset({"authenticationTokenSettings"})),
}
#: What older versions call differently: the model, the name, and the name of today.
_RENAMED = {
    ("BatchPoolCreateOptions", "maxTasksPerNode"): "taskSlotsPerNode",
    ("BatchPoolSpecification", "maxTasksPerNode"): "taskSlotsPerNode",
}
MODELS: dict[str, dict[str, Property]] = {
    model: {name: _property(text) for name, text in properties.items()} for model, properties in _RAW["models"].items()
}
#: Values of the enumerations by their lower-case form: Batch does not mind the case of what it is sent.
ENUMS: dict[str, dict[str, str]] = {
    name: {value.lower(): value for value in values} for name, values in _RAW["enums"].items()
}
#: What the service puts before the names of its types, which are those of the models without their "Batch".
TYPES = "Microsoft.Azure.Batch.Protocol.Entities."
#: Properties that may have so many characters and no more, as their own documentation says; those of user accounts
#: have another length (https://learn.microsoft.com/rest/api/batchservice). Ids are checked with their letters.
LONGEST = {"displayName": 1024}
LONGEST_ACCOUNT = 20
#: What Batch takes and never gives back ("omitted from any response", say the properties' own documentation of keys and
#: passwords). Nothing here needs any of it, so it is checked and then dropped: the one place that keeps secrets out of
#: the state, the answers and the page.
SECRETS = frozenset({"accountKey", "password", "protectedSettings", "sasKey", "sshPrivateKey"})
#: How deep what has no shape of its own (an extension's settings) may be nested: whatever handles it later recurses.
DEEPEST = 64


def check(model: str, body: Any, path: str = "", *, lenient: bool = False) -> dict[str, Any]:
    """Check a body against a model, with numbers and enumerations brought to their usual form.

    :param model: the model's name.
    :param body: the parsed JSON.
    :param path: where in the request it stands, for the message.
    :param lenient: leave out unknown properties instead of refusing them.
    :return: the body to keep; null properties are left out, as if they had not been sent, and so are `SECRETS`.
    :raises BatchError: a property is unknown, missing or of the wrong type.
    """
    if not isinstance(body, dict):
        raise BatchError("InvalidRequestBody", f"{path or 'The request body'} must be a JSON object.")
    properties = MODELS[model]
    kept: dict[str, Any] = {}
    if lenient:
        body = _today(model, body)
    for name, value in body.items():
        if name.startswith("odata.") or name == "@odata.type":
            continue
        known = properties.get(name)
        where = f"{path}.{name}" if path else name
        if known is None and lenient and "_" not in name:
            if name in _OLDER_OF.get(model, ()) and value is not None:
                kept[name] = value
            continue
        if known is None:
            # No property of any version has an underscore: that is a Python name, sent by mistake.
            raise BatchError(
                "InvalidRequestBody",
                f"The property '{name}' does not exist on type '{TYPES}{model.removeprefix('Batch')}'. "
                "Make sure to only use property names that are defined by the type.",
            )
        if value is None or known.read_only:
            continue
        if not known.many:
            kept[name] = _value(known, value, where, lenient)
        elif isinstance(value, list):
            kept[name] = [_value(known, item, f"{where}[{index}]", lenient) for index, item in enumerate(value)]
        else:
            raise _wrong(where, "a list")
        if name in LONGEST or (model == "UserAccount" and name == "name"):
            _short(kept[name], LONGEST.get(name, LONGEST_ACCOUNT), where)
    for name, known in properties.items():
        if known.required and not known.read_only and name not in kept:
            where = f"{path}.{name}" if path else name
            raise BatchError(
                "MissingRequiredProperty", f"The required property {where} is missing.", values={"PropertyName": where}
            )
    for name in SECRETS & kept.keys():
        del kept[name]
    return kept


def without_secrets(kept: Any) -> Any:
    """What an earlier version has kept, without the secrets in it.

    :param kept: a body, or a part of it.
    :return: a copy.
    """
    if isinstance(kept, dict):
        return {name: without_secrets(value) for name, value in kept.items() if name not in SECRETS}
    return [without_secrets(value) for value in kept] if isinstance(kept, list) else kept


def _today(model: str, body: dict[str, Any]) -> dict[str, Any]:
    """Give the properties of older versions the names and places that they have today."""
    body = {_RENAMED.get((model, name), name): value for name, value in body.items()}
    if model == "DataDisk" and "storageAccountType" in body:
        body.setdefault("managedDisk", {"storageAccountType": body.pop("storageAccountType")})
    return body


def _wrong(where: str, wanted: str) -> BatchError:
    return BatchError("InvalidRequestBody", f"The property {where} must be {wanted}.")


def _short(value: str, longest: int, where: str) -> None:
    if len(value) > longest:
        raise BatchError(
            "InvalidPropertyValue",
            f"The property {where} has {len(value)} characters. It cannot be more than {longest} characters",
            values={"PropertyName": where},
        )


def _value(known: Property, value: Any, where: str, lenient: bool) -> Any:
    kind = known.kind
    if kind == "@":
        return check(known.name, value, where, lenient=lenient)
    if kind == "str":
        if not isinstance(value, str):
            raise _wrong(where, "a string")
        return value
    if kind in ("int", "int64"):
        return _integer(value, where)
    if kind == "=":
        return _enumerated(known.name, value, where)
    return _other(kind, value, where)


def _integer(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str | float):
        raise _wrong(where, "an integer")
    try:
        number = int(value)
    except (ValueError, OverflowError):
        raise _wrong(where, "an integer") from None
    if isinstance(value, float) and number != value:
        raise _wrong(where, "an integer")
    return number


def _enumerated(name: str, value: Any, where: str) -> str:
    values = ENUMS[name]
    found = values.get(value.lower()) if isinstance(value, str) else None
    if found is None:
        allowed = ", ".join(values.values())
        raise BatchError(
            "InvalidPropertyValue",
            f"The property {where} must be one of {allowed}.",
            values={"PropertyName": where, "PropertyValue": str(value)[:80]},
        )
    return found


def _other(kind: str, value: Any, where: str) -> Any:
    if kind == "bool":
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if not isinstance(value, bool):
            raise _wrong(where, "true or false")
    elif kind == "float":
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
            raise _wrong(where, "a number")
    elif kind == "dict":
        if not isinstance(value, dict):
            raise _wrong(where, "an object")
        if _is_deep(value):
            raise _wrong(where, f"an object that is nested at most {DEEPEST} deep")
    else:
        parse = times.parse_duration if kind == "duration" else times.parse_iso
        try:
            if not isinstance(value, str):
                raise ValueError
            parse(value)
        except (OverflowError, ValueError):
            wanted = "an ISO 8601 " + ("duration" if kind == "duration" else "time")
            raise BatchError(
                "InvalidPropertyValue",
                f"The property {where} must be {wanted}.",
                values={"PropertyName": where, "PropertyValue": str(value)[:80]},
            ) from None
        return times.shortest(value) if kind == "duration" else value
    return value


def _is_deep(value: dict[str, Any]) -> bool:
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        inner = (child for each in level for child in (each.values() if isinstance(each, dict) else each))
        level = [child for child in inner if isinstance(child, dict | list)]
        if not level:
            return False
    return True
