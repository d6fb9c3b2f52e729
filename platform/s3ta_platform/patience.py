"""A storage that waits: a full disk or a store that is away stops nothing, it only takes time."""

import errno
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from s3ta_platform.storage import NotStored, Storage, StoreAwayError
from s3ta_platform.storage_names import AWAY, Names

T = TypeVar("T")

TELL_EVERY_S = 60.0
BEAT_S = 1.0
_PASSING = AWAY.keys() | {errno.EBUSY, errno.ENETDOWN, errno.ENETUNREACH, errno.ENOBUFS}


def patient(
    storage: Storage, patience_s: float, tell: Callable[[str], None], alive: Callable[[], None]
) -> Storage:
    """The same storage, in which every operation waits up to patience_s for the store.

    tell: is given a line when the waiting begins, then about every minute, and when the store is
    back. alive: called at least every second of a pause (not during a call to the store), so that
    who waits is not taken for hung.
    """
    return Patient(storage, patience_s, tell, alive)


@dataclass(frozen=True)
class Patient:
    """A Storage that tries again, after 0.5, 1, 2, ... at most 30 s, what may pass by itself.

    Then it raises StoreAwayError with the last reason. Can be pickled if its functions can.
    """

    storage: Storage
    patience_s: float
    tell: Callable[[str], None]
    alive: Callable[[], None]
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    @property
    def root(self) -> str:
        return self.storage.root

    def uri(self, name: str) -> str:
        return self.storage.uri(name)

    def put_new(self, name: str, data: bytes) -> bool:
        """As a Storage's. After an error, bytes that are there and equal count as this call's own:
        it may have created them, and only its reply was lost."""
        return self._patiently(
            lambda: self.storage.put_new(name, data),
            lambda: self.storage.put_new(name, data) or self._holds(name, data),
        )

    def get(self, name: str) -> bytes:
        return self._patiently(lambda: self.storage.get(name))

    def exists(self, name: str) -> bool:
        return self._patiently(lambda: self.storage.exists(name))

    def list(self, prefix: str = "") -> Names:
        return self._patiently(lambda: self.storage.list(prefix))

    def used(self, prefix: str = "") -> int:
        return self._patiently(lambda: self.storage.used(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        return self._patiently(lambda: self.storage.sizes(prefix))

    def temporaries(self, older_than_s: float = 86400.0) -> dict[str, int]:
        return self._patiently(lambda: self.storage.temporaries(older_than_s))

    def delete(self, name: str) -> None:
        self._patiently(lambda: self.storage.delete(name))

    def clear_temporaries(self, prefix: str, older_than_s: float = 86400.0) -> int:
        return self._patiently(lambda: self.storage.clear_temporaries(prefix, older_than_s))

    def check_writable(self) -> None:
        """Does not wait: it is asked before any work, by somebody who can act on the answer."""
        self.storage.check_writable()

    def _holds(self, name: str, data: bytes) -> bool:
        try:
            return self.storage.get(name) == data
        except NotStored:
            return False

    def _patiently(self, call: Callable[[], T], again: Callable[[], T] | None = None) -> T:
        try:
            return call()
        except OSError as error:
            return _Wait(self, _passing(error)).until_done(again or call)


class _Wait:
    """One operation's wait for the store."""

    def __init__(self, patient: Patient, error: OSError) -> None:
        self.patient, self.error = patient, error
        self.begun = self.told = patient.clock()
        patient.tell(f"waiting for the store: {error}")

    def until_done(self, call: Callable[[], T]) -> T:
        for tries in itertools.count(1):
            self._pause(min(30.0, 0.5 * 2.0 ** min(tries - 1, 10)))
            try:
                answer = call()
            except NotStored:  # that is an answer
                self._say_back()
                raise
            except OSError as error:
                self.error = _passing(error)
            else:
                self._say_back()
                return answer
        raise AssertionError("unreachable")

    def _pause(self, seconds: float) -> None:
        """Raises the error when the patience is over; the last try is made just then."""
        patient = self.patient
        left = self.begun + patient.patience_s - patient.clock()
        if left <= 0:
            raise self._too_long() from self.error
        end = patient.clock() + min(seconds, left)
        while (rest := end - patient.clock()) > 0:
            patient.alive()
            self._say_still_away()
            patient.sleep(min(BEAT_S, rest))
        patient.alive()

    def _waited_s(self) -> float:
        return self.patient.clock() - self.begun

    def _say_still_away(self) -> None:
        if self.patient.clock() - self.told >= TELL_EVERY_S:
            self.told = self.patient.clock()
            minutes = f"{self._waited_s() / 60:.0f} of {self.patient.patience_s / 60:.0f} minutes"
            self.patient.tell(f"still waiting for the store ({minutes}): {self.error}")

    def _say_back(self) -> None:
        self.patient.tell(f"{self.patient.root} is back after {self._waited_s():.0f} s")

    def _too_long(self) -> StoreAwayError:
        waited = f"waited {round(self._waited_s() / 60, 1):g} minutes for it"
        return StoreAwayError(f"{self.error} ({waited}, setting `cluster.store_patience_s`)")


def _passing(error: OSError) -> OSError:
    """The error itself, if another try may help; else it is raised."""
    if isinstance(error, StoreAwayError | ConnectionError | TimeoutError):
        return error
    if error.errno in _PASSING:
        return error
    raise error
