"""What secrets look like: formats that their issuers have given them, and where people put them.

Every rule is anchored: a short literal is looked for first, and the rule's expression is tried at
that place only. Expressions have no nested or adjoining repetitions of the same characters, and
one that could be tried again inside what it has read begins with `EDGE`, so that a scan takes time
in proportion to the text, whatever the text is.

The formats are those that the issuers document, and that public scanners (gitleaks,
detect-secrets, trufflehog) look for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from attrs import field, frozen, validators

from orchestra._core.secret_looks import is_credential, is_filled_in, is_password

__all__ = ("EDGE", "SECRET_RULES", "SecretRule")

EDGE = (
    r"(?:(?<![A-Za-z0-9_-])"
    r"|(?<=\\[nrt])"  # a line break in a JSON text
    r"|(?<=%[0-9A-Fa-f][0-9A-Fa-f])"  # something quoted in a URL
    r"|(?<=\x1b\[[0-9]m)|(?<=\x1b\[[0-9][0-9]m))"  # a colour
)
"""Where a token may begin: not inside a longer one."""


def _texts(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(texts)


def _compiled(pattern: str | re.Pattern[str]) -> re.Pattern[str]:
    return re.compile(pattern)


@frozen(kw_only=True)
class SecretRule:
    """One format of secrets.

    Attributes:
        kind: Its name in ``[redacted:kind]``: lower-case letters, digits and ``-``.
        description: What people call it, with an article: ``a GitHub token``.
        anchors: Literals, one of which every secret of the format has. Where one is found the
            pattern is tried.
        pattern: A regular expression, tried at the anchor. The secret is the first of its groups
            that took part, or the whole when it has none. It must not cross a line, and should
            have no repetition in a repetition.
        is_caseless: Whether the anchors, which are lower-case then, match in any case.
        offset: How many characters before the anchor the pattern begins.
        accepts: Whether what the pattern has found is really a secret.
    """

    kind: str = field(validator=validators.matches_re(r"[a-z0-9-]+"))
    description: str = field(validator=validators.min_len(1))
    anchors: tuple[str, ...] = field(
        converter=_texts,
        validator=validators.and_(
            validators.min_len(1), validators.deep_iterable(validators.min_len(2))
        ),
    )
    pattern: re.Pattern[str] = field(converter=_compiled)
    is_caseless: bool = False
    offset: int = field(default=0, validator=validators.ge(0))
    accepts: Callable[[str], bool] = is_filled_in


def _token(kind: str, description: str, pattern: str, *anchors: str) -> SecretRule:
    return SecretRule(
        kind=kind, description=description, anchors=anchors, pattern=f"{EDGE}(?:{pattern})"
    )


_GAP = r"(?:\s|\\[nr])"
_KEY_BODY = (
    # header lines, then whole lines of base64, then one that is shorter, if the end follows
    rf"(?:{_GAP}{{1,4}}[A-Za-z-]{{3,20}}: [^\n\\]{{0,100}}){{0,4}}"
    rf"{_GAP}{{1,8}}[A-Za-z0-9+/=]{{16,}}(?:{_GAP}{{1,4}}[A-Za-z0-9+/=]{{40,}})*"
    rf"(?:(?:{_GAP}{{1,4}}[A-Za-z0-9+/=]{{1,76}}){{0,2}}{_GAP}{{0,4}}"
    r"-----END [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----)?"
)

_QUOTE = r"(?:\\{0,3}[\"'`]\]?)?"
_SEPARATOR = r"[ \t]{0,3}(?::[ ]?[A-Za-z][\w.\[\]| ]{0,30}=|=>|:=|={1,3}|:)[ \t]{0,3}"
_BARE = r"[^\s\"'`,;(){}\[\]<>|\\&$]{6,}+"
_VALUE = (
    r"(?:[rbfu]{0,2}\\{0,3}[\"'`]([^\s\"'`\\]{4,}+)(?=\\{0,3}[\"'`])"
    # What is called or indexed is code. It is read all the same, so that it is read only once.
    rf"|({_BARE})(?![(\[{{])|{_BARE})"
)


def _assigned(keyword: str) -> str:
    name = f"(?i:{keyword})"
    # --token 123, also as two words of a list
    option = rf"(?<=-){name}(?:[ \t]{{1,2}}|\\{{0,3}}[\"'],[ \t]{{0,2}})"
    return rf"(?<!:)(?:{option}|{name}s?[0-9]{{0,2}}{_QUOTE}{_SEPARATOR}){_VALUE}"


SECRET_RULES: tuple[SecretRule, ...] = (
    SecretRule(
        kind="private-key",
        description="a private key",
        anchors=("-----BEGIN ",),
        pattern=rf"-----BEGIN [A-Z0-9 ]{{0,30}}PRIVATE KEY(?: BLOCK)?-----{_KEY_BODY}",
    ),
    SecretRule(
        kind="jwt",
        description="a JSON web token",
        anchors=("eyJ",),
        pattern=EDGE + r"eyJ[\w-]{10,}\.[\w-]*\.[\w-]{10,}(?:\.[\w-]*){0,2}",
    ),
    # --- clouds ---
    _token(
        "aws-access-key",
        "an AWS access key",
        r"(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}(?![A-Za-z0-9])",
        "AKIA",
        "ASIA",
        "ABIA",
        "ACCA",
    ),
    _token("google-key", "a Google key", r"AIza[0-9A-Za-z_-]{35}(?![A-Za-z0-9_-])", "AIza"),
    _token("google-client-secret", "a Google client secret", r"GOCSPX-[\w-]{20,}", "GOCSPX-"),
    _token("google-access-token", "a Google access token", r"ya29\.[\w-]{20,}", "ya29."),
    _token("google-refresh-token", "a Google refresh token", r"1//0[\w-]{30,}", "1//0"),
    SecretRule(
        kind="azure-client-secret",
        description="an Azure client secret",
        anchors=("Q~",),
        offset=4,
        pattern=r"(?:(?<![\w~.-])|(?<=\\[nrt]))[\w~.]{3}[0-9]Q~[\w~.-]{31,34}(?![\w~.-])",
    ),
    SecretRule(
        kind="azure-account-key",
        description="an Azure account key",
        anchors=("AccountKey=", "SharedAccessKey="),
        pattern=r"\w{10,20}=([A-Za-z0-9+/]{32,}={0,2})",
    ),
    SecretRule(
        kind="azure-signature",
        description="an Azure shared access signature",
        anchors=("sig=",),
        pattern=r"(?<=[?&;])sig=([A-Za-z0-9%+/]{40,100}(?:%3D|=))",
    ),
    _token(
        "digitalocean-token",
        "a DigitalOcean token",
        r"do[opr]_v1_[a-f0-9]{64}",
        "doo_v1_",
        "dop_v1_",
        "dor_v1_",
    ),
    _token("databricks-token", "a Databricks token", r"dapi[a-f0-9]{32}(?:-[0-9])?", "dapi"),
    _token("vault-token", "a Vault token", r"hv[bsr]\.[\w-]{24,}", "hvb.", "hvs.", "hvr."),
    # --- code and packages ---
    _token(
        "github-token",
        "a GitHub token",
        r"gh[opusr]_[A-Za-z0-9_]{36,}|github_pat_\w{60,}",
        "gho_",
        "ghp_",
        "ghu_",
        "ghs_",
        "ghr_",
        "github_pat_",
    ),
    _token(
        "gitlab-token",
        "a GitLab token",
        r"gl(?:agent|cbt|dt|ffct|ft|imt|oas|pat|ptt|rt|rtr|soat)-[\w.-]{20,}|GR1348941[\w-]{20,}",
        *(
            f"gl{name}-"
            for name in "agent cbt dt ffct ft imt oas pat ptt rt rtr soat".split()  # noqa: SIM905
        ),
        "GR1348941",
    ),
    _token("atlassian-token", "an Atlassian token", r"ATATT3[\w=-]{100,}", "ATATT3"),
    _token("npm-token", "an npm token", r"npm_[A-Za-z0-9]{36,}", "npm_"),
    _token("pypi-token", "a PyPI token", r"pypi-[\w-]{50,}", "pypi-"),
    _token("docker-token", "a Docker token", r"dckr_[op]at_[\w-]{20,}", "dckr_pat_", "dckr_oat_"),
    # --- models ---
    _token("anthropic-key", "an Anthropic key", r"sk-ant-[\w-]{20,}", "sk-ant-"),
    _token(
        "openai-key",
        "an OpenAI key",
        r"sk-(?!ant-)(?=[A-Za-z_-]{0,60}[0-9])(?:(?:proj|svcacct|admin)-[\w-]{20,}|[\w-]{32,})",
        "sk-",
    ),
    _token("huggingface-token", "a Hugging Face token", r"hf_[A-Za-z0-9]{30,}", "hf_"),
    _token("groq-key", "a Groq key", r"gsk_[A-Za-z0-9]{40,}", "gsk_"),
    _token("xai-key", "an xAI key", r"xai-[A-Za-z0-9]{40,}", "xai-"),
    # --- messages and money ---
    _token(
        "slack-token",
        "a Slack token",
        r"xox[abeoprs]-(?=[A-Za-z-]{0,20}[0-9])[0-9A-Za-z-]{20,}"
        r"|xoxe\.xox[bp]-[0-9A-Za-z-]{20,}|xapp-[0-9]-[0-9A-Za-z-]{20,}",
        *(f"xox{letter}-" for letter in "abeoprs"),
        "xoxe.",
        "xapp-",
    ),
    SecretRule(
        kind="slack-webhook",
        description="a Slack webhook",
        anchors=("hooks.slack.com/",),
        pattern=r"hooks\.slack\.com/(?:services|workflows|triggers)/([\w/+-]{20,})",
    ),
    _token(
        "stripe-key",
        "a Stripe key",
        r"[rs]k_(?:live|test|prod)_[A-Za-z0-9]{16,}|whsec_[A-Za-z0-9+/=]{32,}",
        "rk_live_",
        "rk_test_",
        "rk_prod_",
        "sk_live_",
        "sk_test_",
        "sk_prod_",
        "whsec_",
    ),
    SecretRule(
        kind="twilio-key",
        description="a Twilio key",
        anchors=("SK",),
        pattern=EDGE + r"SK[0-9a-f]{32}(?![A-Za-z0-9])",
    ),
    _token("sendgrid-key", "a SendGrid key", r"SG\.[\w-]{16,64}\.[\w-]{30,}", "SG."),
    # --- places ---
    SecretRule(
        kind="url-password",
        description="a password in a URL",
        anchors=("://",),
        pattern=r"://[^\s/@:\"'<>\[]{0,100}:([^\s/\"'<>\[\]]{1,200})@(?=[\w\[])",
        accepts=is_filled_in,
    ),
    SecretRule(
        kind="authorization",
        description="a credential of a header",
        anchors=("authorization",),
        is_caseless=True,
        pattern=rf"(?:(?<![A-Za-z])|(?<=\\[nrt]))(?i:authorization){_QUOTE}[ \t]{{0,3}}[:=][ \t]{{0,3}}(?:\\{{0,3}}[\"'`])?"
        r"(?i:(?:bearer|basic|token|apikey|digest|negotiate)[ \t]{1,3})?"
        r"(?:([A-Za-z0-9+/_=.~-]{8,}+)(?![(\[])|[A-Za-z0-9+/_=.~-]{8,}+)",
        accepts=is_credential,
    ),
    SecretRule(
        kind="bearer-token",
        description="a bearer token",
        anchors=("bearer ",),
        is_caseless=True,
        pattern=EDGE + r"(?i:bearer)[ \t]{1,3}([A-Za-z0-9+/_=.~-]{20,})",
        accepts=is_credential,
    ),
    SecretRule(
        kind="password",
        description="a password",
        anchors=("passw", "passphrase", "pwd"),
        is_caseless=True,
        pattern=_assigned(r"passw(?:or)?d|passphrase|pwd"),
        accepts=is_password,
    ),
    SecretRule(
        kind="credential",
        description="a credential",
        anchors=(
            "secret",
            "token",
            "api_key",
            "api-key",
            "apikey",
            "access_key",
            "access-key",
            "accesskey",
            "auth_key",
            "private_key",
            "signing_key",
            "encryption_key",
        ),
        is_caseless=True,
        pattern=_assigned(r"secret|token|(?:api|access|auth|private|signing|encryption)[_-]?key"),
        accepts=is_credential,
    ),
)
"""What is looked for by default, the more telling formats first."""
