// Predictions: the reader's guess first, then the result, with both compared. The answers come with the page, computed by the
// chapter's own cells; guesses are kept in this browser and go nowhere.

const UNITS = { k: 1e3, thousand: 1e3, million: 1e6, billion: 1e9 };

/** A number as people write it: 0.5, 0,5, 1/2, 2^14, 12 %, 8.8 million, 1,024. NaN if it is none. */
export function parse(text) {
  let rest = text.trim().toLowerCase().replace(/^(about|around|~|≈)\s*/, "").replace(/[−–]/g, "-");
  rest = /^[-+]?\d{1,3}(,\d{3})+(\.\d+)?(?!\d)/.test(rest) ? rest.replace(/,/g, "") : rest.replace(",", ".");
  const match = rest.match(/^([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*(?:(\/|\^|\*\*)\s*([-+]?\d+\.?\d*))?\s*(.*)$/);
  if (!match) return NaN;
  const [, first, operator, second, unit] = match;
  const a = Number(first), b = Number(second);
  const value = !operator ? a : operator === "/" ? a / b : a ** b;
  return value * (UNITS[unit.split(/\s/)[0]] ?? 1);
}

/** What is compared of a short text: its words and numbers. */
export const words = (text) => text.toLowerCase().replace(/[−–]/g, "-").match(/-?\d+(?:\.\d+)?|[a-z_]+/g)?.map((w) => (isNaN(w) ? w : String(Number(w)))).join(" ") ?? "";

/** How a guess compares with the answer: a state (right, close, off) and a sentence. */
export function compare({ kind, answer, shown }, guess) {
  if (kind !== "number") {
    const right = kind === "choice" ? guess === answer : words(guess) === words(answer);
    return right ? ["right", `Right: ${shown}.`] : ["off", `You said ${guess}. Computed: ${shown}.`];
  }
  const value = Number(answer), mine = parse(guess);
  const decimals = (answer.split("e")[0].split(".")[1] ?? "").length;
  const digits = answer.replace(/^-?[0.]*|[.]/g, "").length; // to one digit, rounding would make too much right
  const off = Math.abs(mine - value);
  if (mine === value || (digits > 1 && !answer.includes("e") && Number(mine.toFixed(decimals)) === value)) return ["right", `Right: ${shown}.`];
  const said = `You said ${guess.trim()}. Computed: ${shown}.`;
  if (off <= 0.1 * Math.abs(value)) return ["close", `${said} Close: off by ${((100 * off) / Math.abs(value)).toPrecision(2)} %.`];
  if (value !== 0 && mine / value > 0) {
    const factor = Math.max(mine / value, value / mine);
    return ["off", `${said} ${Number(factor.toPrecision(factor < 100 ? 2 : 3)).toLocaleString("en")} times too ${Math.abs(mine) > Math.abs(value) ? "large" : "small"}.`];
  }
  return ["off", said];
}

function store(key, value) {
  try {
    if (value === null) localStorage.removeItem(key);
    else if (value !== undefined) localStorage.setItem(key, JSON.stringify(value));
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null; // a browser that keeps nothing
  }
}

function start(form, result) {
  const fields = [...form.querySelectorAll(".field")];
  const key = `prediction ${form.dataset.name.split("-")[0]} ${fields.map((field) => field.querySelector("label, legend").textContent).join("; ")}`;
  const button = form.querySelector("button"), advice = form.querySelector(".advice");
  const inputs = (field) => [...field.querySelectorAll("input")];
  const answerOf = (field) => JSON.parse(field.dataset.field);
  const guessOf = (field) => {
    const chosen = answerOf(field).kind === "choice" ? field.querySelector(":checked") : inputs(field)[0];
    return chosen?.value.trim() ?? "";
  };

  function show(guesses) {
    fields.forEach((field, i) => {
      const [state, text] = compare(answerOf(field), guesses[i]);
      for (const input of inputs(field))
        if (input.type === "radio") [input.checked, input.disabled] = [input.value === guesses[i], true];
        else [input.value, input.readOnly] = [guesses[i], true];
      Object.assign(field.querySelector(".compared"), { textContent: text }).dataset.state = state;
    });
    advice.textContent = "";
    button.textContent = "Guess again";
    form.dataset.state = "compared";
    result.open = true;
  }

  function clear() {
    store(key, null);
    for (const input of form.querySelectorAll("input"))
      if (input.type === "radio") [input.checked, input.disabled] = [false, false];
      else [input.value, input.readOnly] = ["", false];
    for (const output of form.querySelectorAll(".compared")) output.textContent = "";
    button.textContent = "Compare";
    delete form.dataset.state;
    result.open = false;
    inputs(fields[0])[0].focus();
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (form.dataset.state) return clear();
    const guesses = fields.map(guessOf);
    const wrong = fields.findIndex((field, i) => !guesses[i] || (answerOf(field).kind === "number" && isNaN(parse(guesses[i]))));
    if (wrong >= 0) {
      advice.textContent = guesses[wrong] ? "Write a number, such as 0.5, 1/2 or 2^14." : "Answer first. A rough guess is enough.";
      return inputs(fields[wrong])[0].focus();
    }
    store(key, guesses);
    show(guesses);
  });

  const kept = store(key);
  if (Array.isArray(kept) && kept.length === fields.length) show(kept);
}

const results = document.querySelectorAll("details.prediction");
document.querySelectorAll("form.prediction").forEach((form, i) => start(form, results[i]));
