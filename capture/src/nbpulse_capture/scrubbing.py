"""What looks secret in an error's text is masked before it touches the outbox: mask_secrets().

Masked: passwords and keys that are named as such, tokens in the forms that well-known services give them,
`Authorization` headers, passwords in addresses, private keys, e-mail addresses, long random-looking strings, and the
value of any environment variable whose name says that it is secret. Masking twice changes nothing.

It is a net, not a proof: a password in a sentence ("mine is hanako") looks like any other word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

MASK = "[masked]"
SHORTEST_SECRET_CHARS = 6

_SECRET_NAME = (
    r"(?:pass(?:word|wd|phrase|code)?|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credentials?)"
)
_SECRET_VARIABLE = re.compile(r"PASS|PWD$|SECRET|TOKEN|KEY|CREDENTIAL|AUTH|DSN$|_URL$", re.IGNORECASE)
_NAMED_VALUE = re.compile(
    # `DB_PASSWORD=...`, `"apiKey": "..."`, `token='...'`; an already masked value is left as it is.
    rf"(?P<name>\b[\w-]{{0,40}}{_SECRET_NAME}[\w-]{{0,20}}['\"]?\s{{0,3}}(?:=>|:=|=|:)\s{{0,3}})"
    rf"(?:(?P<quote>['\"])(?!\[masked\])[^'\"\n]{{1,500}}(?P=quote)?|(?!\[masked\])[^\s'\",;&)\]}}]{{1,500}})",
    re.IGNORECASE,
)
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,30}-----|\Z)")
_AUTHORIZATION = re.compile(r"\b(Bearer|Basic|Token)\s+(?!\[masked\])[\w.~+/=-]{6,}", re.IGNORECASE)
_ADDRESS_PASSWORD = re.compile(r"\b([a-z][a-z0-9+.-]{1,20}://)[^\s/@'\"]{1,200}@", re.IGNORECASE)
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}\b")
_KNOWN_FORMS = re.compile(
    r"\b(?:"
    r"sk-[\w-]{16,}|(?:sk|pk|rk)_(?:live|test)_\w{10,}"  # OpenAI and its like, Stripe
    r"|gh[oprsu]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"  # GitHub, GitLab
    r"|xox[abeoprs]-[\w-]{10,}|hf_\w{20,}"  # Slack, Hugging Face
    r"|[a-z]{3}_[A-Za-z0-9]{36}|[a-z]{4}-AgE[\w-]{20,}"  # package hosts
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|ya29\.[\w-]{20,}"  # AWS, Google
    r"|eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"  # JSON Web Token
    r")"
)
_HEX = re.compile(r"\b(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{32,}\b", re.IGNORECASE)
_RANDOM = re.compile(r"(?<![\w+/=-])[A-Za-z0-9+/_-]{32,}={0,2}(?![\w+/-])")


def mask_secrets(text: str, secret_values: Iterable[str] = ()) -> str:
    """The text with everything that looks secret replaced by `[masked]`."""
    for value in sorted(set(secret_values), key=len, reverse=True):
        if len(value) >= SHORTEST_SECRET_CHARS and value not in MASK:
            text = text.replace(value, MASK)
    text = _PRIVATE_KEY.sub(MASK, text)
    text = _ADDRESS_PASSWORD.sub(rf"\1{MASK}@", text)
    text = _AUTHORIZATION.sub(rf"\1 {MASK}", text)
    text = _NAMED_VALUE.sub(lambda found: found["name"] + MASK, text)
    text = _KNOWN_FORMS.sub(MASK, text)
    text = _EMAIL.sub(MASK, text)
    text = _HEX.sub(MASK, text)
    return _RANDOM.sub(lambda found: MASK if _is_random(found[0]) else found[0], text)


def find_secret_values(environment: Mapping[str, str]) -> list[str]:
    """The values of variables whose names say that they are secret."""
    return [
        value
        for name, value in environment.items()
        if len(value) >= SHORTEST_SECRET_CHARS and _SECRET_VARIABLE.search(name)
    ]


def _is_random(word: str) -> bool:
    """Upper and lower case and digits mixed, as no name or path that people write is: over four digits, few slashes."""
    kinds = (str.isupper, str.islower, str.isdigit)
    return all(any(map(kind, word)) for kind in kinds) and sum(map(str.isdigit, word)) > 4 and word.count("/") < 4
