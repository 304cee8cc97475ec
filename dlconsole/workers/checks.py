"""What can be said of a body without decoding it: whether it is an image, whole, and the one meant."""

from __future__ import annotations

from collections.abc import Callable

from dlconsole.errors import BadPathError
from dlconsole.log import Logger
from dlconsole.model import Failure, FailureKind
from dlconsole.settings import Settings
from dlconsole.workers.attempt import Attempt, Picture
from dlconsole.workers.fetch.engine import Spill
from dlconsole.workers.hashes import digest_of, told_in, wanted_digest
from dlconsole.workers.image_size import examined
from dlconsole.workers.images import not_image, sniff
from dlconsole.workers.places import MISMATCHED, Place


class Checks:
    """Every check but decoding. `put` stores a body at a place; it raises BadPathError and StoreError."""

    def __init__(
        self, settings: Settings, log: Logger, put: Callable[[Place, bytearray | Spill], None]
    ) -> None:
        self._worker = settings.worker
        self._digests = settings.ledger.algorithms if settings.ledger.enabled else ()
        self._log = log
        self._put = put

    def check(self, attempt: Attempt, body: bytearray | Spill) -> Picture | Failure:
        """The picture, or why it is none. Raises StoreError, where a file cannot be read or kept."""
        data = body if isinstance(body, bytearray) else body.read()
        image_format = sniff(data)
        if image_format is None:
            return not_image(data)
        whole, (width, height) = examined(data, image_format)
        if not whole:
            return Failure(FailureKind.TRUNCATED, f"{image_format} without its end, {len(data)} bytes", 200)
        found = {algorithm: digest_of(data, algorithm) for algorithm in self._digests}
        attempt.sha256, attempt.md5 = found.get("sha256", ""), found.get("md5", "")
        algorithm = self._worker.verify_hash
        wanted = self._wanted_digest(attempt) if algorithm != "off" else None
        if wanted is not None:
            digest = found.get(algorithm) or digest_of(data, algorithm)
            if digest != wanted:
                return self._mismatch(attempt, body, f"its {algorithm} is {digest}")
        most = self._worker.max_pixels
        if self._worker.verify == "decode" and width * height > most:
            message = f"{width} by {height} pixels, above the limit of {most}"
            return Failure(FailureKind.NOT_IMAGE, message, 200)
        return Picture(attempt, body, image_format, width, height)

    def _wanted_digest(self, attempt: Attempt) -> str | None:
        wanted = wanted_digest(told_in(attempt.task.hash), self._worker.verify_hash)
        if wanted is None:
            self._log.debug("hash not verified: the task has none", field=attempt.claimed.field)
        return wanted

    def _mismatch(self, attempt: Attempt, body: bytearray | Spill, found: str) -> Failure:
        """The failure of a body that is not the one its task's hash names. Raises StoreError where it is to
        be kept and the store fails.
        """
        kept = ""
        if self._worker.keep_mismatched:
            place = Place(f"{MISMATCHED}/{attempt.place.folder}".rstrip("/"), attempt.place.name)
            try:
                self._put(place, body)
                kept = f"; kept as {place.path}"
            except BadPathError as error:
                kept = f"; not kept: {error}"
        return Failure(FailureKind.HASH_MISMATCH, f"{found}{kept}", 200)
