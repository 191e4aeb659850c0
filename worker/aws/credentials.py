"""What goes wrong with the SDK's credentials, as an error that everybody who calls the SDK expects.

Where they come from is a service like others, and it can fail like others. But the SDK raises whatever its code happens
to come to: RuntimeError for credentials that have expired when they are handed out, KeyError where one of their fields
is missing. All that need credentials ask the session's one provider, every client among them, at every call. So that
is where errors are translated.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import isawaitable
from typing import Any

import aioboto3

from worker.aws.errors import SDK_ERRORS
from worker.ports import DependencyError


class UnusableCredentials(DependencyError):  # noqa: N818 - it says what is the case
    """The SDK was handed no credentials that it can use; the argument says why."""


def translate_errors(session: aioboto3.Session) -> None:
    """Of this session and of all its clients. They raise what the SDK documents, or UnusableCredentials."""
    core = session._session  # noqa: SLF001 - aioboto3 offers no other way to its components
    core.register_component("credential_provider", _Provider(core.get_component("credential_provider")))


class _Delegate:
    """What the SDK asks it for and it does not have, the other one has."""

    def __init__(self, to: Any) -> None:
        self._to = to

    def __getattr__(self, name: str) -> Any:
        return getattr(self._to, name)


class _Provider(_Delegate):
    async def load_credentials(self) -> "_Credentials | None":
        with _translated():
            found = await self._to.load_credentials()
        if found is None:
            return None
        credentials = _Credentials(found)
        await credentials.get_frozen_credentials()  # what cannot be used must not be kept until it expires
        return credentials


class _Credentials(_Delegate):
    """Both methods renew credentials that are about to expire."""

    async def get_frozen_credentials(self) -> Any:
        with _translated():
            frozen = await self._to.get_frozen_credentials()
            if not (isinstance(frozen.access_key, str) and isinstance(frozen.secret_key, str)):
                raise TypeError("the keys are no strings")
            return frozen

    async def get_account_id(self) -> Any:
        with _translated():
            found = self._to.get_account_id()
            return await found if isawaitable(found) else found  # only credentials that are renewed are asked


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except SDK_ERRORS:
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and "expired" in str(error):
            reason = "had expired when they were handed out"
        else:
            reason = f"cannot be read ({type(error).__name__})"
        raise UnusableCredentials(f"credentials {reason}") from error
