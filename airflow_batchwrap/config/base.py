"""What the configuration models share: late values, readable errors, old names of keys."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from airflow_batchwrap.config.files import caller_folder, read_json_object, resolve_path, write_json
from airflow_batchwrap.exceptions import ConfigError

_SECRET = re.compile(r"key$|password|secret|token|(^|_)sas$|connection_string|environment|url", re.IGNORECASE)
_LONGEST_VALUE = 80  # characters of a value that an error shows

# pydantic's error type -> what to do about it; others keep pydantic's own words.
_REMEDIES = {
    "bool_parsing": "use true or false",
    "bool_type": "use true or false",
    "dict_type": "use a JSON object: {...}",
    "float_parsing": "use a number",
    "float_type": "use a number",
    "int_from_float": "use a whole number",
    "int_parsing": "use a whole number",
    "int_type": "use a whole number",
    "list_type": "use a JSON array: [...]",
    "string_type": 'use text in double quotes: "..."',
    "tuple_type": "use a JSON array: [...]",
}


class ConfigModel(BaseModel):
    """A frozen group of keys, such as a start task within a pool."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, str_strip_whitespace=True, validate_default=False
    )


class ConfigFile(ConfigModel):
    """A frozen configuration whose values may be known only when a task runs.

    A value with a Jinja template in it, or one of Airflow's own references, is *late*: it is kept as given, its field
    holds the default until :meth:`rendered` makes a new configuration of the rendered values, and only then is it
    validated.
    """

    # Shown in errors where the values come from no file.
    noun: ClassVar[str] = "configuration"
    # Old or other name (upper-cased, without a leading underscore where it is one of the old ones) -> key.
    aliases: ClassVar[Mapping[str, str]] = {}
    # Names that belong somewhere else, or nowhere -> what to do.
    elsewhere: ClassVar[Mapping[str, str]] = {}
    # Names that an old file may hold and that nothing here needs.
    ignored: ClassVar[frozenset[str]] = frozenset()

    _late: dict[str, Any] = PrivateAttr(default_factory=dict)

    # Not one typed keyword for each field: values may be templates, and keys have other names.
    def __init__(self, /, **data: Any) -> None:
        source = data.pop("__source__", None) or f"{type(self).__name__}(...)"
        values, problems = type(self)._canonical(data)
        late = {key: _plain(value) for key, value in values.items() if is_late(value) and key in self._fields()}
        try:
            super().__init__(**{key: value for key, value in values.items() if key not in late})
        except ValidationError as error:
            problems += explain(error, known=self._known())
        else:
            self._late = late
            problems += self._problems()
        if problems:
            raise ConfigError(describe(source, problems)) from None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str | None = None) -> Self:
        """Build a configuration from a mapping, with new and old names of keys.

        :param source: what an error names; a file's path, where the mapping comes from one.
        :raises ConfigError: with all that is wrong in it.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"A {cls.noun} is a mapping of keys and values, not a {type(data).__name__}.")
        return cls(**{**{str(key): value for key, value in data.items()}, "__source__": source})

    @classmethod
    def from_json(cls, path: str | os.PathLike[str], **overrides: Any) -> Self:
        """Read a file.

        :param path: a relative one is looked for beside the file of the caller (the DAG file), then in the working
            directory.
        :param overrides: keys that replace those of the file, by any of their names.
        :raises ConfigError: it cannot be read, or holds wrong keys or values: all of them are named.
        """
        file = resolve_path(path, caller_folder())
        data = cls._own_part(read_json_object(file), str(file))
        if overrides:
            # Checked apart from each other, so that an error in the file is not blamed on the keywords.
            data, problems = cls._canonical(data)
            if problems:
                raise ConfigError(describe(str(file), problems))
            changes, problems = cls._canonical(overrides)
            if problems:
                raise ConfigError(describe(f"{cls.__name__}.from_json({str(path)!r}, ...)", problems))
            return cls.from_dict({**data, **changes}, source=f"{file}, with {', '.join(sorted(overrides))} overridden")
        return cls.from_dict(data, source=str(file))

    def override(self, **changes: Any) -> Self:
        """Return a copy with other values, by any of the keys' names; what this one left at its default stays so.

        :raises ConfigError: the result is not a valid configuration.
        """
        values, problems = self._canonical(changes)
        source = f"{type(self).__name__}.override({', '.join(sorted(changes))})"
        if problems:
            raise ConfigError(describe(source, problems))
        return type(self).from_dict({**self.to_dict(), **values}, source=source)

    def to_dict(self, *, defaults: bool = False) -> dict[str, Any]:
        """Return plain JSON values that :meth:`from_dict` reads back, late ones as they were given.

        Secret values, such as a start task's environment, are in it: hand it to no log and no XCom.

        :param defaults: also the keys that were not given.
        """
        return {**self.model_dump(mode="json", exclude_unset=not defaults), **self._late}

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write what :meth:`to_dict` returns, in one step, and keep the part of the file that is another's.

        :param path: a relative one is under the folder of the caller's file.
        :raises ConfigError: it cannot be written, or a value cannot be JSON, such as a reference to a task's output.
        """
        file = resolve_path(path, caller_folder())
        odd = [key for key, value in self._late.items() if not isinstance(value, (str, list, dict))]
        if odd:
            raise ConfigError(f"{', '.join(odd)}: an Airflow reference cannot be written to {file}. Use a template.")
        before = read_json_object(file) if file.exists() else {}
        write_json(file, self._merged(before), private=self._holds_secrets())

    @property
    def is_templated(self) -> bool:
        """Whether a value is known only when a task runs."""
        return bool(self._late)

    @property
    def late_keys(self) -> tuple[str, ...]:
        """The keys whose values are known only when a task runs."""
        return tuple(sorted(self._late))

    def rendered(self, render: Callable[[Any], Any]) -> Self:
        """Return the configuration with its late values rendered and validated.

        :param render: such as ``lambda value: operator.render_template(value, context)``.
        :raises ConfigError: a rendered value is not valid for its key.
        """
        if not self._late:
            return self
        values = {key: _render(value, render) for key, value in self._late.items()}
        again = [key for key, value in values.items() if is_late(value)]
        if again:
            raise ConfigError(f"{', '.join(again)} of the {self.noun} is still a template after it was rendered.")
        source = f"{self.noun}, with {', '.join(self.late_keys)} rendered"
        return type(self).from_dict({**self.to_dict(), **values}, source=source)

    def resolve(self, context: Any) -> Self:
        """Render with a task's context: Airflow calls this where the configuration is a template field."""
        return self.rendered(lambda value: context["task"].render_template(value, context))

    def __repr__(self) -> str:
        given = self.model_fields_set - set(self._late)
        fields = [f"{key}={value!r}" for key, value in self.__repr_args__() if key in given]
        return f"{type(self).__name__}({', '.join([*fields, *(f'{key}=<late>' for key in self.late_keys)])})"

    __str__ = __repr__

    # --- for the subclasses

    @classmethod
    def _own_part(cls, data: dict[str, Any], source: str) -> dict[str, Any]:
        """Return the part of a file that this configuration reads."""
        return data

    def _merged(self, before: dict[str, Any]) -> dict[str, Any]:
        """Return what a file holds once this configuration is written to it."""
        return self.to_dict()

    @classmethod
    def _old_value(cls, key: str, value: Any) -> Any:
        """Return the value of an old key as the new one has it."""
        return value

    def _problems(self) -> list[str]:
        """Return what is wrong between keys that are each right alone; late ones are not judged yet."""
        return []

    def _holds_secrets(self) -> bool:
        return False

    @classmethod
    def _fields(cls) -> list[str]:
        return list(cls.model_fields)

    @classmethod
    def _known(cls) -> list[str]:
        return [*cls._fields(), *cls.aliases]

    @classmethod
    def _canonical(cls, data: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Give each key its own name, and say what is given twice or belongs elsewhere."""
        values: dict[str, Any] = {}
        named: dict[str, str] = {}
        problems: list[str] = []
        for name, given in data.items():
            old = name.upper().lstrip("_") if name.upper() == name else name
            if name in cls.ignored or old in cls.ignored:
                continue
            if name in cls.elsewhere or old in cls.elsewhere:
                problems.append(f"{name}: {cls.elsewhere.get(name) or cls.elsewhere[old]}")
                continue
            key = cls.aliases.get(name) or cls.aliases.get(old) or name
            value = given if key == name else cls._old_value(key, given)
            if key in values and not same(values[key], value):
                problems.append(f"{named[key]} and {name} are two names of one key with different values: keep one.")
                continue
            values[key], named[key] = value, name
        return values, problems


def same(one: object, other: object) -> bool:
    """Return whether two values mean the same: ``2`` and ``"2"`` do."""
    return one == other or str(one) == str(other)


def is_late(value: object) -> bool:
    """Return whether a value is known only when a task runs: a Jinja template, or an Airflow reference, in it."""
    if isinstance(value, str):
        return "{{" in value or "{%" in value
    value = _plain(value)
    if isinstance(value, Mapping):
        return any(is_late(item) for item in value.values())
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return any(is_late(item) for item in value)
    # DagParam, XComArg and the like, without importing Airflow for it.
    return hasattr(value, "iter_references") and hasattr(value, "resolve")


def _plain(value: object) -> object:
    return value.model_dump(exclude_unset=True) if isinstance(value, ConfigModel) else value


def _render(value: Any, render: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _render(item, render) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_render(item, render) for item in value]
    return render(value) if is_late(value) else value


def explain(error: ValidationError, known: Sequence[str] = ()) -> list[str]:
    """Return one line for each problem: key, value unless it may be secret, what is wrong and what to do."""
    return list(_lines(error, known))


def _lines(error: ValidationError, known: Sequence[str]) -> Iterator[str]:
    for detail in error.errors(include_url=False, include_context=True):
        place = [str(part) for part in detail["loc"]]
        key = ".".join(place)
        kind = detail["type"]
        if kind == "extra_forbidden":
            yield f"{key} is not a key{_hint(place[-1], known if len(place) == 1 else ())}"
            continue
        if kind == "missing":
            yield f"{key} is missing: add it."
            continue
        context = detail.get("ctx", {})
        wrong = (
            str(context["error"])
            if kind == "value_error"
            else _REMEDIES.get(kind, detail["msg"][:1].lower() + detail["msg"][1:])
        )
        shown = "" if any(_SECRET.search(part) for part in place) else f" = {_short(detail.get('input'))}"
        yield f"{key}{shown}: {wrong}."


def _hint(name: str, known: Sequence[str]) -> str:
    snake = re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower() if name != name.upper() else name
    exact = [item for item in (snake, name.lower()) if item in known]
    near = exact or difflib.get_close_matches(snake, known, n=1, cutoff=0.7)
    return f": did you mean {near[0]}?" if near else ": remove it, or see docs/configuration.md for those there are."


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "..."


def describe(source: str, problems: Sequence[str]) -> str:
    """Return the message of an error with all that is wrong in one place."""
    if len(problems) == 1:
        return f"{source}: {problems[0]}"
    return f"{source}: {len(problems)} problems:\n" + "\n".join(f"  - {problem}" for problem in problems)
