"""What somebody would write into a name or a message to run a script where it is read; each runs where it is trusted.

`top.ran(1)` is the script. The page is `(place, payload)`: the markup the payload is made for, `{}` where it goes.
"""

from __future__ import annotations

from typing import Final

_TAGS: Final = (
    "<script>top.ran(1)</script>",
    "<<script>top.ran(1)</script>",
    "<script>\\u0074op.ran(1)</script>",
    "<script>top[`ran`](1)</script>",
    "<script type=module>top.ran(1)</script>",
    "<script src=x onerror=top.ran(1)></script>",
    '<script src="data:text/javascript,top.ran(1)"></script>',
    "<svg><script>top.ran(1)</script></svg>",
    "<svg onload=top.ran(1)>",
    "<svg/onload=top.ran(1)>",
    "<svg><animate onbegin=top.ran(1) attributeName=x dur=1s>",
    "<svg><set onbegin=top.ran(1) attributeName=x dur=1s>",
    "<svg><image href=x onerror=top.ran(1)></svg>",
    "<math><mtext><img src=x onerror=top.ran(1)></mtext></math>",
    "<img src=x onerror=top.ran(1)>",
    "<IMG SRC=x OnErRoR=top.ran(1)>",
    "<img/src='x'/onerror=top.ran(1)>",
    "<img src=x onerror=&#116;op.ran(1)>",
    "<img src=x onerror=top['r'+'an'](1)>",
    "<img src=x onerror=top.ran`1`>",
    "<img src=x onerror=eval(atob('dG9wLnJhbigxKQ=='))>",
    "<img srcset=x onerror=top.ran(1)>",
    "<picture><source srcset=x><img onerror=top.ran(1)></picture>",
    "<input type=image src=x onerror=top.ran(1)>",
    "<video src=x onerror=top.ran(1)></video>",
    "<video><source onerror=top.ran(1) src=x></video>",
    "<audio src=x onerror=top.ran(1)></audio>",
    "<style onload=top.ran(1)></style>",
    '<iframe srcdoc="<script>top.ran(1)</script>"></iframe>',
    '<iframe src="javascript:top.ran(1)"></iframe>',
    "<iframe onload=top.ran(1)></iframe>",
    "<body onload=top.ran(1)>",
    "<details open ontoggle=top.ran(1)>",
    "<input autofocus onfocus=top.ran(1)>",
    "<select autofocus onfocus=top.ran(1)></select>",
    "<textarea autofocus onfocus=top.ran(1)></textarea>",
    "<button autofocus onfocus=top.ran(1)>x</button>",
    "<xss autofocus tabindex=1 onfocus=top.ran(1)>x</xss>",
)
_BROKEN_OUT: Final = (
    ("<bdi>{}</bdi>", "</bdi><img src=x onerror=top.ran(1)>"),
    ('<b title="{}">x</b>', '"><script>top.ran(1)</script>'),
    ('<b title="{}">x</b>', '" autofocus tabindex=1 onfocus=top.ran(1) x="'),
    ("<b title='{}'>x</b>", "'><img src=x onerror=top.ran(1)>"),
    ("<b title='{}'>x</b>", "' autofocus tabindex=1 onfocus=top.ran(1) x='"),
    ("<b title={}>x</b>", "x autofocus tabindex=1 onfocus=top.ran(1)"),
    ("<textarea>{}</textarea>", "</textarea><script>top.ran(1)</script>"),
    ("<title>{}</title>", "</title><script>top.ran(1)</script>"),
    ("<style>{}</style>", "</style><script>top.ran(1)</script>"),
    ("<!-- {} -->", "--><script>top.ran(1)</script>"),
    ('<script>var a = "{}"</script>', '";top.ran(1);"'),
    ("<script>var a = '{}'</script>", "';top.ran(1);'"),
    ("<script>var a = `{}`</script>", "${top.ran(1)}"),
    ('<script>var a = "{}"</script>', "</script><script>top.ran(1)</script>"),
    ("<script>var a = {}</script>", "0;top.ran(1)"),
    ("<script type=module>const a = [{}]</script>", "(()=>top.ran(1))()"),
)
_LINKS: Final = (
    "javascript:top.ran(1)",
    "JaVaScRiPt:top.ran(1)",
    "java&#9;script:top.ran(1)",
    "&#106;avascript:top.ran(1)",
    "javascript://x%0atop.ran(1)",
    "javascript:top.ran(1)//https://example.org",
)
PLACES: Final = (
    *(("{}", tag) for tag in _TAGS),
    *_BROKEN_OUT,
    *(('<a href="{}">x</a>', link) for link in _LINKS),
)
PAYLOADS: Final = tuple(payload for _, payload in PLACES)

WATCH: Final = """
window.attempts = [];
if (window === top) {
  window.ran = () => window.attempts.push("a script ran");
  addEventListener("securitypolicyviolation", (one) =>
    window.attempts.push(`only the policy stopped it: ${one.violatedDirective} ${one.blockedURI} ${one.sample}`));
}
"""
"""For `add_init_script`: what ran, and what only the content security policy kept from running."""
