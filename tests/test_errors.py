import ast
import inspect

import pytest

from skipwise import errors

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value)]


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_is_caught_as_the_base(error: type[Exception]) -> None:
    assert issubclass(error, errors.SkipwiseError)


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    assert errors.__doc__ is not None
    drawn = {line.split()[1] for line in errors.__doc__.splitlines() if "-- " in line}
    assert drawn == {error.__name__ for error in CLASSES} - {"SkipwiseError"}


def test_the_file_holds_nothing_but_errors() -> None:
    body = ast.parse(inspect.getsource(errors)).body
    assert all(isinstance(node, ast.ClassDef) for node in body[1:])
