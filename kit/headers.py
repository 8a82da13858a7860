"""The headers that answers may have, and what the document says of each."""

ANSWERS: dict[str, tuple[str, str]] = {  # by name: its type and its meaning
    "Allow": ("string", "The methods that this path has."),
    "Cache-Control": ("string", "`no-store`: each client must ask itself."),
    "ETag": ("string", "A tag that changes with the content, for `If-Match` and `If-None-Match`."),
    "Idempotent-Replayed": ("string", "`true`: this key was used before, so nothing was stored anew."),
    "Link": ("string", 'The URL of the next page, with `rel="next"` (RFC 8288); missing on the last page.'),
    "Location": ("string", "The path under which it can be read."),
    "Preference-Applied": ("string", "The preference that was honoured, such as `wait=5` (RFC 7240)."),
    "Retry-After": ("integer", "After how many seconds to try again."),
    "WWW-Authenticate": ("string", "`Bearer`: the API token is needed (RFC 6750)."),
    "X-Request-ID": ("string", "The id that the request gave, or a new one. The service logs it too."),
}
