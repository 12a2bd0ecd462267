"""Bearer tokens of an identity provider (OpenID Connect), in place of keys."""

from __future__ import annotations

from typing import cast

import jwt

from ratchet.core.access import ROLES, Actor, Role
from ratchet.core.errors import BadRequest, WorldFailure
from ratchet.settings import Settings
from ratchet.storage.keys import TENANT

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA")
"""Signatures by a private key only: with a shared secret, whoever can check a token could also make one."""

SKEW_SECONDS = 60.0
"""How far clocks may be apart."""


class Tokens:
    """Checks tokens.

    Args:
        settings: Name the issuer, the audience, the keys, and the claims for role and tenant.

    Raises:
        BadRequest: a part of the configuration is missing.
    """

    def __init__(self, settings: Settings) -> None:
        for name in ("oidc_audience", "oidc_jwks"):
            if not getattr(settings, name):
                raise BadRequest(f"RATCHET_OIDC_ISSUER is set, and RATCHET_{name.upper()} is not; give both")
        self._settings = settings
        self._keys = jwt.PyJWKClient(settings.oidc_jwks, timeout=10, cooldown_duration=1)

    def actor(self, text: str, *, origin: str) -> Actor | None:
        """Whoever the token is for; None when it does not hold, or gives no role here.

        Raises:
            WorldFailure: the provider does not tell its keys.
        """
        try:
            claims = jwt.decode(
                text,
                self._keys.get_signing_key_from_jwt(text),
                algorithms=ALGORITHMS,
                audience=self._settings.oidc_audience,
                issuer=self._settings.oidc_issuer,
                leeway=SKEW_SECONDS,
                options={"require": ["exp", "iat", "sub"]},
            )
        except jwt.PyJWKClientConnectionError as error:
            raise WorldFailure(f"the keys of {self._settings.oidc_issuer} cannot be had: {error}") from error
        except jwt.PyJWTError:
            return None
        given = claims.get(self._settings.oidc_role_claim)
        roles = [role for role in (given if isinstance(given, list) else [given]) if role in ROLES]
        tenant = claims.get(self._settings.oidc_tenant_claim)
        if not roles or not isinstance(tenant, str) or not TENANT.fullmatch(tenant):
            return None
        role = cast(Role, max(roles, key=ROLES.index))
        return Actor(name=f"token {claims['sub']}"[:200], tenant=tenant, role=role, origin=origin)
