"""The bits of a float16 and of an int8 to flip, in chapter 00; as they first stand they are computed here, with NumPy.

docs/javascripts/bits.js does the same arithmetic when a bit is flipped.
"""

import numpy as np
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

MARKER = "<!-- bits to flip, on the site -->"
#: What the figure shows at first.
FLOAT16, INT8 = 5.5, 22
#: Bits of each field.
FIELDS = {"sign": 1, "exponent": 5, "fraction": 10}
#: Patterns to jump to, by what the button says.
PATTERNS = {"1": 0x3C00, "65504, the largest": 0x7BFF, "the smallest": 0x0001, "infinity": 0x7C00, "no number": 0x7E00}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Puts the figure where the chapter has its marker."""
    return markdown.replace(MARKER, figure())


def figure() -> str:
    """Both numbers, with a button per bit, in HTML."""
    half, byte = f"{np.float16(FLOAT16).view(np.uint16):016b}", f"{np.int8(INT8).view(np.uint8):08b}"
    kinds = [kind for kind, width in FIELDS.items() for _ in range(width)]
    jumps = "".join(f'<button type="button" data-pattern="{pattern}">{name}</button>' for name, pattern in PATTERNS.items())
    return (
        '<figure class="bits" id="bits" markdown="0">'
        f'<p class="name">float16</p><p class="row" id="bits-float16" role="group" aria-label="The sixteen bits of a float16">'
        f"{_buttons(half, kinds)}</p>"
        f'<p class="meaning" id="bits-float16-meaning" role="status" aria-live="polite">{meaning(int(half, 2))}</p>'
        f'<p class="name">int8</p><p class="row" id="bits-int8" role="group" aria-label="The eight bits of an int8">'
        f"{_buttons(byte, ['int8'] * 8)}</p>"
        f'<p class="meaning" id="bits-int8-meaning" role="status" aria-live="polite">{counted(int(byte, 2))}</p>'
        f"<figcaption>Flip a bit. Or jump to {jumps} &nbsp;Can you make 12.70?</figcaption></figure>"
    )


def _buttons(bits: str, kinds: list[str]) -> str:
    return "".join(
        f'<button type="button" class="{kind}" aria-label="{kind} bit {place + 1}" aria-pressed="{"true" if bit == "1" else "false"}">'
        f"{bit}</button>"
        for place, (bit, kind) in enumerate(zip(bits, kinds, strict=True))
    )


def meaning(pattern: int) -> str:
    """How the value of a float16 comes about, in HTML."""
    sign, exponent, fraction = "−" if pattern >> 15 else "+", pattern >> 10 & 31, pattern & 1023
    if exponent == 31:
        return f"exponent 31 is reserved: <b>{f'{sign}infinity' if fraction == 0 else 'not a number'}</b>"
    power, one = (exponent - 15, "1 + ") if exponent else (-14, "")
    value = number(abs(float(np.uint16(pattern).view(np.float16))))
    return f"{sign} 2<sup>{power}</sup> x ({one}{fraction} / 1024) = <b>{sign if pattern >> 15 else ''}{value}</b>".replace("-", "−")


def number(value: float) -> str:
    """A number with ten digits, a very small one with its power of ten, in HTML."""
    digits, _, power = f"{value:.10g}".partition("e")
    return f"{digits} x 10<sup>{int(power)}</sup>" if power else digits


def counted(pattern: int) -> str:
    """What an int8's bits add up to, in HTML."""
    places = [-128, 64, 32, 16, 8, 4, 2, 1]
    terms = [str(place) for place, bit in zip(places, f"{pattern:08b}", strict=True) if bit == "1"] or ["0"]
    value = str(np.uint8(pattern).view(np.int8))
    return f"{' + '.join(terms)} = <b>{value}</b>".replace("-", "−")
