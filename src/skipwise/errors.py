"""All errors that skipwise raises deliberately.

    SkipwiseError
    |-- ConfigError            a setting is unknown, missing, out of range, or contradicts another
    |-- DataError              a document, corpus or stored token file cannot be used
    |-- PositionError          the lengths of a window contradict each other, or positions are out of range
    |-- UnsupportedModelError  the model cannot be extended by position ids
    `-- CheckpointError        a checkpoint cannot be read, written, resumed or trusted

Each message is one line: what was given, what is allowed, what to do. The command line prints it and exits with 2.
Each kind of error also has a page in the documentation (`skipwise.pages`): by default that of its class, otherwise the
one that the raising line names.
"""


class SkipwiseError(Exception):
    """Base class of all errors that the caller can fix.

    Args:
        message: one line.
        page: name of the page about this kind of error; by default that of the class.
    """

    page = "invalid-setting"

    def __init__(self, message: str, *, page: str | None = None) -> None:
        super().__init__(message)
        self.page = page or self.page


class ConfigError(SkipwiseError):
    """A setting is unknown, missing, out of range, or contradicts another."""


class DataError(SkipwiseError):
    """A document, corpus or stored token file cannot be used."""

    page = "unreadable-documents"


class PositionError(SkipwiseError):
    """The lengths of a window contradict each other, or positions are out of range."""

    page = "invalid-positions"


class UnsupportedModelError(SkipwiseError):
    """The model cannot be extended by position ids."""

    page = "unsupported-model"


class CheckpointError(SkipwiseError):
    """A checkpoint cannot be read, written, resumed or trusted."""

    page = "damaged-checkpoint"
