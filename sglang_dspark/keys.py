"""SGLang's two API keys: which of its routes asks for which, and which one was refused."""

from __future__ import annotations

import os
from dataclasses import dataclass

ADMIN_VARIABLE = "SGLANG_ADMIN_API_KEY"

_ADMIN_ROUTES = ("/dspark/policy", "/set_internal_state", "/abort_request")
"""Of the routes that this package calls, those that SGLang guards with its --admin-api-key where it has one."""


@dataclass(frozen=True)
class Keys:
    """api: SGLang's --api-key. admin: its --admin-api-key. Each serves for both where the other is not given."""

    api: str | None = None
    admin: str | None = None

    @classmethod
    def given(cls, api: str | None = None, admin: str | None = None) -> Keys:
        """From a command line; the admin key is SGLANG_ADMIN_API_KEY unless it was given."""
        return cls(api, admin or os.environ.get(ADMIN_VARIABLE))

    def headers(self, path: str) -> dict[str, str]:
        """The header that authorises a call of `path`."""
        key = (self.admin or self.api) if is_admin(path) else (self.api or self.admin)
        return {"Authorization": f"Bearer {key}"} if key else {}


def is_admin(path: str) -> bool:
    """Whether a route asks for the admin key."""
    return path.startswith(_ADMIN_ROUTES)


def refused(path: str) -> str:
    """What to do about a 401 or 403 from `path`."""
    if is_admin(path):
        return f"the admin key was refused: give the server's --admin-api-key (or set {ADMIN_VARIABLE})"
    return "the API key was refused: give the server's --api-key"
