"""Translate the SDK's credential failures into an error that all callers of the SDK expect.

The source of credentials is a service that can fail like any other. But the SDK raises arbitrary errors for that:
RuntimeError for credentials that have already expired when they are fetched, KeyError if one of their fields is
missing. All users of credentials, every client included, get them from the session's one provider on every call. So
errors are translated there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import isawaitable
from typing import Any

from aiobotocore.session import AioSession

from worker.aws.errors import SDK_ERRORS
from worker.ports import DependencyError


class UnusableCredentials(DependencyError):
    """The SDK received no credentials that it can use; the argument says why."""


def translate_errors(session: AioSession) -> None:
    """Make this session and all its clients raise only what the SDK documents, or UnusableCredentials."""
    session.register_component("credential_provider", _Provider(session.get_component("credential_provider")))


class _Delegate:
    """Forwards every attribute that it does not define itself."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


class _Provider(_Delegate):
    async def load_credentials(self) -> "_Credentials | None":
        with _translated():
            found = await self._target.load_credentials()
        if found is None:
            return None
        credentials = _Credentials(found)
        await credentials.get_frozen_credentials()  # unusable credentials must not be cached until they expire
        return credentials


class _Credentials(_Delegate):
    """Both methods refresh credentials that are about to expire."""

    async def get_frozen_credentials(self) -> Any:
        with _translated():
            frozen = await self._target.get_frozen_credentials()
            if not (isinstance(frozen.access_key, str) and isinstance(frozen.secret_key, str)):
                raise TypeError("the keys are no strings")
            return frozen

    async def get_account_id(self) -> Any:
        with _translated():
            found = self._target.get_account_id()
            return await found if isawaitable(found) else found  # a coroutine for refreshable credentials only


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except SDK_ERRORS:
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and "expired" in str(error):
            reason = "had already expired when they were fetched"
        else:
            reason = f"cannot be read ({type(error).__name__})"
        raise UnusableCredentials(f"credentials {reason}") from error
