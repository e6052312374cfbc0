"""All errors that skipwise raises deliberately.

    SkipwiseError
    |-- ConfigError            a setting is unknown, missing, out of range, or contradicts another
    |-- DataError              a document, corpus or stored token file cannot be used
    |-- PositionError          a position sample or window breaks its own rules
    |-- UnsupportedModelError  the model cannot be extended by position ids
    `-- CheckpointError        a checkpoint cannot be read, written, resumed or trusted

Each message is one line: what was given, what is allowed, what to do. The command line prints it and exits with 2.
"""


class SkipwiseError(Exception):
    """Base class of all errors that the caller can fix."""


class ConfigError(SkipwiseError):
    """A setting is unknown, missing, out of range, or contradicts another."""


class DataError(SkipwiseError):
    """A document, corpus or stored token file cannot be used."""


class PositionError(SkipwiseError):
    """A position sample or window breaks its own rules."""


class UnsupportedModelError(SkipwiseError):
    """The model cannot be extended by position ids."""


class CheckpointError(SkipwiseError):
    """A checkpoint cannot be read, written, resumed or trusted."""
