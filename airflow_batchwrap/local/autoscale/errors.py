"""What can be wrong with a formula: its text (`FormulaSyntaxError`) or its evaluation (`AutoScaleError`)."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_batchwrap.local.autoscale.syntax import Position

#: Codes of AutoScaleRun.error. The first is documented; the second is what the real service answered in the recorded
#: tests of Azure's JavaScript client.
INSUFFICIENT_SAMPLE_DATA = "InsufficientSampleData"
EVALUATION_ERROR = "AutoScalingFormulaEvaluationError"

_MESSAGES = {
    INSUFFICIENT_SAMPLE_DATA: "The formula asks for more samples than there are",
    EVALUATION_ERROR: "The formula could not be evaluated",
}


class FormulaSyntaxError(Exception):
    """The text of a formula cannot be read; the service answers 400 with `code`.

    :param at: where reading failed.
    :param expected: what could have stood there.
    :param found: what stands there.
    """

    code = "AutoScalingFormulaSyntaxError"

    def __init__(self, at: Position, expected: str, found: str) -> None:
        super().__init__(f"{at}: expected {expected}, found {found}")
        self.line = at.line
        self.column = at.column
        self.expected = expected
        self.found = found


class FormulaTooLong(FormulaSyntaxError):
    """The formula has more than 8,192 characters (the limit in Azure's clients' list of error codes)."""

    code = "AutoScaleFormulaTooLong"


@dataclass(frozen=True, slots=True)
class AutoScaleError:
    """Why an evaluation ended early, as it stands in ``AutoScaleRun.error``.

    :param code: `INSUFFICIENT_SAMPLE_DATA` or `EVALUATION_ERROR`.
    :param message: the kind of failure, for people.
    :param values: pairs of name and value; one pair, ``Message``, tells line, column and cause.
    """

    code: str
    message: str
    values: tuple[tuple[str, str], ...]

    def as_wire(self) -> dict[str, object]:
        """The error as JSON.

        :return: an object with code, message and values.
        """
        return {
            "code": self.code,
            "message": self.message,
            "values": [{"name": name, "value": value} for name, value in self.values],
        }


class Fault(Exception):
    """Evaluation cannot go on; the evaluator adds the place and makes an `AutoScaleError` of it.

    :param text: the cause.
    :param code: the code to report.
    """

    def __init__(self, text: str, code: str = EVALUATION_ERROR) -> None:
        super().__init__(text)
        self.code = code
        self.at: Position | None = None

    def report(self) -> AutoScaleError:
        """The fault as the caller sees it.

        :return: the error.
        """
        text = f"{self.at}: {self}" if self.at else str(self)
        return AutoScaleError(self.code, _MESSAGES[self.code], (("Message", text),))
