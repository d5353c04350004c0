"""Who may ask: a token, or a signature of AWS."""

from __future__ import annotations

from wdstools.serve import s3, sigv4
from wdstools.serve.request import Request
from wdstools.serve.response import Response, text
from wdstools.serve.settings import Settings


class Guard:
    """Checks requests where a token or an access key is set: one of them is enough."""

    def __init__(self, settings: Settings) -> None:
        self._token = settings.token
        self._keys = (settings.access_key, settings.secret_key)

    def refusal(self, request: Request) -> Response | None:
        """The answer to a request that proves nothing, or None: it may go on."""
        if s3.is_signed(request) and self._keys[0] is not None:
            code = sigv4.verify(request, self._keys[0], self._keys[1] or "")
            return None if code is None else s3.error(code)
        if self._token is not None:
            given = request.header(b"authorization")
            scheme, _, value = given.partition(" ")
            if not given and b"token=" in request.raw_query:
                scheme, value = "bearer", request.query.get("token", "")
            if sigv4.same(value.strip(), self._token) and scheme.lower() == "bearer":
                return None
        if s3.is_spoken(request):
            return s3.error("AccessDenied")
        return text(401, "a token or a signature is needed", b'WWW-Authenticate: Bearer realm="wds-serve"\r\n')
