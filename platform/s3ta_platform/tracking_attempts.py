"""Calls to a tracking store that may be away: what fails is said and remembered, never raised."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from s3ta_platform.tracking_ui import public

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Attempts:
    """Of one driver, at one store. forget: called after a failure, part of which may have arrived.

    A failure that took t seconds is followed by 10 t without trying, so that a store that is away
    takes at most about a tenth of the driver's time.
    """

    def __init__(self, address: str, forget: Callable[[], None]) -> None:
        self.missing: list[str] = []
        self._address, self._forget = address, forget
        self._away = False
        self._closed_until = 0.0

    def make(self, what: str, call: Callable[[], T]) -> T | None:
        """The call's result, or None if the store failed; then it is logged and remembered."""
        start = time.monotonic()
        if start < self._closed_until:
            self.miss(f"{what}: not tried again yet")
            return None
        try:
            result = call()
        except Exception as error:
            end = time.monotonic()
            self._closed_until = end + 10 * (end - start) if end - start > 1 else 0.0
            self._forget()
            self.miss(f"{what}: {type(error).__name__}: {reason(error, self._address)}")
            return None
        self._away = False
        return result

    def miss(self, what: str) -> None:
        """The store lacks this."""
        if not self._away:
            _log.warning(
                "MLflow at %s lacks %s. Work goes on; start the same command again to fill it in.",
                public(self._address),
                what,
            )
        self._away = True
        if what not in self.missing:
            self.missing.append(what)


def reason(error: Exception, address: str) -> str:
    """The first line of an error, without the address's password, which mlflow prints."""
    text = str(error).replace(address, public(address)).strip()
    return next(iter(text.splitlines()), "no message")
