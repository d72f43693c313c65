// Bits to flip in chapter 00; docs/hooks/bits.py computes the first picture with the same formula.
const figure = document.getElementById("bits");

if (figure) {
  const row = (id) => [...figure.querySelectorAll(`#bits-${id} button`)];
  const pattern = (buttons) => parseInt(buttons.map((button) => button.textContent).join(""), 2);
  const minus = (text) => String(text).replaceAll("-", "−");

  const number = (value) => {
    const [digits, power] = String(Number(value.toPrecision(10))).split("e");
    if (power) return `${digits} x 10<sup>${minus(power)}</sup>`;
    if (value && value < 1e-4) {
      const exponent = Math.floor(Math.log10(value));
      return `${Number((value / 10 ** exponent).toPrecision(10))} x 10<sup>${minus(exponent)}</sup>`;
    }
    return digits;
  };

  const float16 = (bits) => {
    const sign = bits >> 15 ? "−" : "+", exponent = (bits >> 10) & 31, fraction = bits & 1023;
    if (exponent === 31) return `exponent 31 is reserved: <b>${fraction ? "not a number" : `${sign}infinity`}</b>`;
    const power = exponent ? exponent - 15 : -14, one = exponent ? "1 + " : "";
    const value = 2 ** power * ((exponent ? 1 : 0) + fraction / 1024);
    return `${sign} 2<sup>${minus(power)}</sup> x (${one}${fraction} / 1024) = <b>${bits >> 15 ? sign : ""}${number(value)}</b>`;
  };

  const int8 = (bits) => {
    const terms = [-128, 64, 32, 16, 8, 4, 2, 1].filter((_, place) => (bits >> (7 - place)) & 1);
    return minus(`${terms.join(" + ") || "0"} = <b>${terms.reduce((sum, term) => sum + term, 0)}</b>`);
  };

  const show = (id, meaning) => {
    for (const button of row(id)) button.setAttribute("aria-pressed", String(button.textContent === "1"));
    document.getElementById(`bits-${id}-meaning`).innerHTML = meaning(pattern(row(id)));
  };

  for (const [id, meaning] of [["float16", float16], ["int8", int8]])
    for (const button of row(id))
      button.addEventListener("click", () => {
        button.textContent = button.textContent === "1" ? "0" : "1";
        show(id, meaning);
      });

  for (const jump of figure.querySelectorAll("figcaption button"))
    jump.addEventListener("click", () => {
      const bits = Number(jump.dataset.pattern).toString(2).padStart(16, "0");
      row("float16").forEach((button, place) => (button.textContent = bits[place]));
      show("float16", float16);
    });
}
