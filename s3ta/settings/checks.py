"""Checks of single values, in words."""

from collections.abc import Sequence

from s3ta.errors import UserError


def require(good: bool, name: str, value: object, constraint: str) -> None:
    """Raise a UserError that names the value and the constraint unless `good`."""
    if not good:
        raise UserError(f"{name} is {value!r}: it must be {constraint}. Change that setting.")


def require_positive(name: str, values: Sequence[int]) -> None:
    require(
        bool(values) and all(v >= 1 for v in values),
        name,
        list(values),
        "a list of whole numbers of at least 1",
    )


def require_epsilon(name: str, value: float) -> None:
    require(0 < value <= 255, name, value, "above 0 and at most 255, in units of 1/255")
