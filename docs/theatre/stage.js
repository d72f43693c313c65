// Draws one step of a recorded launch, and steps through it. `markup` is a function of the record alone: it also makes the first picture
// when the site is built (docs/hooks/theatre.py), so that both are the same.

/** Columns from which on a strip of rows shows entries as squares, without their numbers. */
const WIDE = 13;
/** Entries in a line of a vector. */
const WRAPPED = 8;
/** Lanes in a line of the picture of an access, where the block has one axis. */
const LINE = 32;
const RUN_MILLISECONDS = 600;

const escape = (text) => String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
const entries = (count) => (count === 1 ? "1 entry" : `${count.toLocaleString("en")} entries`);
const programName = (ids) => (ids.length === 1 ? String(ids[0]) : `(${ids.join(", ")})`);

// ---- What is where after a step -----------------------------------------------------------------------------------------------

function stateAfter(record, at) {
  const memory = record.buffers.map((buffer) => ({ values: [...buffer.values], touched: new Map() }));
  let registers = {};
  record.steps.slice(0, at + 1).forEach((step, n) => {
    if (n && String(step.program) !== String(record.steps[n - 1].program)) registers = {};
    for (const access of step.accesses ?? []) {
      let taken = 0;
      access.offsets.forEach((offset, lane) => {
        if (access.mask[lane] === "0") return;
        const place = memory[access.buffer];
        if (access.stores) place.values[offset] = access.values[taken++];
        else place.touched.set(offset, (place.touched.get(offset) ?? 0) + 1);
      });
    }
    Object.assign(registers, step.registers ?? {});
  });
  return { memory, registers };
}

// ---- The picture --------------------------------------------------------------------------------------------------------------

/** The whole picture of a step, as HTML. */
export function picture(record, at) {
  const step = record.steps[at] ?? null;
  const { memory, registers } = stateAfter(record, at);
  const accesses = step?.accesses ?? [];
  const strips = record.buffers.map((buffer, n) => strip(buffer, memory[n], accesses.filter((access) => access.buffer === n)));
  return (
    `<div class="stage-source">${source(record, step)}</div>` +
    `<div class="stage-memory">${strips.join("")}</div>` +
    `<div class="stage-lanes">${accesses.map((access) => lanes(record, access)).join("") || "<p>No load or store on this line.</p>"}</div>` +
    `<div class="stage-bytes">${counters(record, step)}</div>` +
    `<div class="stage-registers">${held(registers, step)}</div>`
  );
}

function source(record, step) {
  const [first, last] = record.statements[step?.line] ?? [0, 0];
  const lines = record.source.map((line, n) => {
    const now = n + 1 >= first && n + 1 <= last;
    return `<span class="line${now ? " now" : ""}"${now ? ' aria-current="step"' : ""}><span class="number">${n + 1}</span>${escape(line) || " "}</span>`;
  });
  return `<div class="listing" tabindex="0" role="region" aria-label="Source of the kernel">${lines.join("")}</div>`;
}

function strip(buffer, { values, touched }, accesses) {
  const marks = new Map();
  let outside = 0;
  for (const access of accesses)
    access.offsets.forEach((offset, lane) => {
      const active = access.mask[lane] === "1";
      if (offset < 0 || offset >= values.length) outside += 1;
      else if (active) marks.set(offset, access.stores ? "stores" : "loads");
      else if (!marks.has(offset)) marks.set(offset, "masked");
    });
  const wide = buffer.rows > 1 && buffer.stride >= WIDE;
  const length = buffer.rows > 1 ? buffer.stride : Math.min(WRAPPED, buffer.columns);
  const rows = [];
  for (let start = 0; start < values.length; start += length) {
    const cells = values.slice(start, start + length).map((value, n) => {
      const offset = start + n;
      const padding = buffer.rows > 1 ? n >= buffer.columns || offset >= buffer.rows * buffer.stride : offset >= buffer.columns;
      const kinds = [marks.get(offset), touched.has(offset) ? "seen" : "", padding ? "padding" : ""];
      return `<i class="${["cell", ...kinds].filter(Boolean).join(" ")}">${wide ? "" : escape(value)}</i>`;
    });
    rows.push(`<span class="row" style="--columns:${length}">${cells.join("")}</span>`);
  }
  const wanted = buffer.wanted ? target(buffer, values, length, wide) : "";
  const role = buffer.writable ? "result" : "input";
  const shape = buffer.rows > 1 ? `${buffer.rows} × ${buffer.columns}` : `${buffer.columns}`;
  const stride = buffer.stride > buffer.columns ? `, rows ${buffer.stride} apart` : "";
  const now = accesses.map((access) => happening(access, buffer)).join(" ");
  const beyond = outside ? ` ${plural(outside, "lane")} outside of ${buffer.name}, masked.` : "";
  const equal = buffer.wanted?.filter((value, n) => values[n] === value).length;
  const reached = buffer.wanted ? ` ${equal} of ${buffer.wanted.length} entries are as wanted.` : "";
  const label = `${buffer.name}, ${role}, ${shape} ${buffer.dtype}${stride}. ${now}${beyond}${reached}`;
  return (
    `<figure class="strip${wide ? " wide" : ""}${accesses.length ? " busy" : ""}" role="img" aria-label="${escape(label)}">` +
    `<figcaption><b>${escape(buffer.name)}</b> <small>${shape} ${buffer.dtype}${stride}${outside ? `; ${plural(outside, "masked lane")} outside` : ""}</small></figcaption>` +
    `<span class="cells">${rows.join("")}</span>${wanted}</figure>`
  );
}

/** The right result of a buffer, beside what it holds. */
function target(buffer, values, length, wide) {
  const rows = [];
  for (let start = 0; start < buffer.wanted.length; start += length) {
    const cells = buffer.wanted.slice(start, start + length).map((value, n) => {
      return `<i class="cell ${values[start + n] === value ? "reached" : "missing"}">${wide ? "" : escape(value)}</i>`;
    });
    rows.push(`<span class="row" style="--columns:${length}">${cells.join("")}</span>`);
  }
  return `<small class="wanted">wanted</small><span class="cells">${rows.join("")}</span>`;
}

const active = (access) => [...access.mask].filter((bit) => bit === "1").length;
const happening = (access, buffer) => `${access.stores ? "Stores" : "Loads"} ${entries(active(access))} of ${buffer.name}, ${access.bytes} bytes.`;

function lanes(record, access) {
  const { shape } = access;
  const columns = shape.length === 2 ? shape[1] : Math.min(LINE, shape[0] ?? 1);
  const buffer = record.buffers[access.buffer];
  const count = active(access);
  const masked = access.mask.length - count;
  const cells = [...access.mask].map((bit) => `<i class="${bit === "1" ? (access.stores ? "stores" : "loads") : "masked"}"></i>`).join("");
  const block = shape.length ? `a block of ${shape.join(" × ")}` : "one pointer";
  const words = `${access.stores ? "tl.store to" : "tl.load from"} ${buffer.name}: ${block}, ${plural(count, "lane")} active, ${masked} masked`;
  return `<figure role="img" aria-label="${escape(words)}"><figcaption>${escape(words)}</figcaption><span class="block" style="--columns:${columns}">${cells}</span></figure>`;
}

function counters(record, step) {
  const [loaded, again, stored] = step?.bytes ?? [0, 0, 0];
  const rows = [
    ["loaded", loaded],
    ["of these loaded before", again],
    ["stored", stored],
  ];
  const counted = rows.map(([what, bytes]) => `<tr><th scope="row">${what}</th><td>${bytes.toLocaleString("en")}</td></tr>`).join("");
  const formula = (record.formula ?? []).map(
    ([what, symbols, bytes]) => `<tr><th scope="row">${escape(what)}</th><td>${escape(symbols)}</td><td>${bytes.toLocaleString("en")}</td></tr>`,
  );
  const whole = formula.length
    ? `<table class="formula"><caption>Bytes of the whole launch, by formula${sizes(record)}</caption><tbody>${formula.join("")}</tbody></table>`
    : "";
  return `<table class="counters"><caption>Bytes so far</caption><tbody>${counted}</tbody></table>${whole}`;
}

function sizes(record) {
  const found = Object.entries(record.sizes).filter(([name]) => /^[MNK]$/.test(name)).map(([name, value]) => `${name} = ${value}`);
  return found.length ? `: ${found.join(", ")}` : "";
}

function held(registers, step) {
  const cards = Object.entries(registers).map(([name, { dtype, shape, corner }]) => {
    const more = shape.some((size) => size > 4);
    const rows = corner.map((row) => `<tr>${row.map((value) => `<td>${escape(value)}</td>`).join("")}${more ? "<td>…</td>" : ""}</tr>`).join("");
    const fresh = step?.registers && name in step.registers;
    return `<table class="register${fresh ? " fresh" : ""}"><caption>${escape(name)} <small>${dtype}${shape.length ? `, ${shape.join(" × ")}` : ""}</small></caption><tbody>${rows}</tbody></table>`;
  });
  if (!cards.length) return "";
  return `<details open><summary>Registers of this program</summary><div class="cards">${cards.join("")}</div></details>`;
}

/** One sentence on a step, for those who do not see the picture as well. */
export function sentence(record, at) {
  const step = record.steps[at];
  if (!step) return record.error ? `Stopped: ${record.error}` : "Nothing has run.";
  const what = (step.accesses ?? []).map((access) => happening(access, record.buffers[access.buffer])).join(" ");
  const line = record.source[step.line - 1].trim();
  const end = at === record.steps.length - 1 ? (record.error ? ` Stopped: ${record.error}` : " The last step.") : "";
  return `Step ${at + 1} of ${record.steps.length}: program ${programName(step.program)}, line ${step.line}: ${line} ${what}${end}`;
}

/** The controls and the picture, as HTML. */
export function markup(record, at) {
  const button = (action, text, label) => `<button class="md-button" type="button" data-action="${action}" aria-label="${label}">${text}</button>`;
  return (
    `<div class="stage-controls" role="group" aria-label="Stepping">` +
    button("first", "Start", "To the first step") +
    button("back", "◀", "One step back") +
    button("step", "Step ▶", "One step on") +
    button("access", "Next access", "To the next load or store") +
    button("program", "Next program", "To the next program") +
    button("run", "Play", "Play or pause") +
    `<input type="range" min="0" max="${Math.max(0, record.steps.length - 1)}" value="${at}" aria-label="Step"></div>` +
    `<p class="stage-sentence" role="status" aria-live="polite">${escape(sentence(record, at))}</p>` +
    `<div class="stage-picture">${picture(record, at)}</div>`
  );
}

// ---- Stepping -----------------------------------------------------------------------------------------------------------------

const KEYS = { ArrowRight: "step", ArrowLeft: "back", Home: "first", PageDown: "program", a: "access" };

export class Stage {
  /** Shows `record` in `root`, which may hold its markup already. */
  constructor(root, record, at = 0) {
    this.root = root;
    root.addEventListener("click", ({ target }) => target.dataset.action && this.act(target.dataset.action));
    root.addEventListener("input", ({ target }) => target.type === "range" && this.go(Number(target.value)));
    root.addEventListener("keydown", (event) => {
      if (event.target.closest(".stage-controls, summary, textarea") || !KEYS[event.key]) return;
      event.preventDefault();
      this.act(KEYS[event.key]);
    });
    this.show(record, at);
  }

  show(record, at = 0) {
    this.pause();
    this.record = record;
    this.at = at;
    this.root.innerHTML = markup(record, at);
    this.reveal();
  }

  go(at) {
    this.at = Math.max(0, Math.min(this.record.steps.length - 1, at));
    const open = this.root.querySelector("details")?.open ?? true;
    const focused = this.root.querySelector(".stage-picture").contains(document.activeElement);
    this.root.querySelector("input[type=range]").value = this.at;
    this.root.querySelector(".stage-sentence").textContent = sentence(this.record, this.at);
    this.root.querySelector(".stage-picture").innerHTML = picture(this.record, this.at);
    const details = this.root.querySelector("details");
    if (details) details.open = open;
    if (focused) this.root.querySelector(".listing").focus({ preventScroll: true });
    this.reveal();
  }

  /** Scrolls the source, not the page, to the current line. */
  reveal() {
    const line = this.root.querySelector(".line.now");
    const box = line?.closest(".listing");
    if (box) box.scrollTop = line.offsetTop - box.offsetTop - box.clientHeight / 3;
  }

  act(action) {
    if (action === "run") return this.timer ? this.pause() : this.run();
    this.pause();
    const { steps } = this.record;
    const next = (test) => {
      const found = steps.findIndex((step, n) => n > this.at && test(step));
      return found < 0 ? steps.length - 1 : found;
    };
    const here = String(steps[this.at]?.program);
    if (action === "first") this.go(0);
    if (action === "back") this.go(this.at - 1);
    if (action === "step") this.go(this.at + 1);
    if (action === "access") this.go(next((step) => step.accesses));
    if (action === "program") this.go(next((step) => String(step.program) !== here));
  }

  run() {
    if (this.at >= this.record.steps.length - 1) this.go(0);
    this.root.querySelector("[data-action=run]").textContent = "Pause";
    this.timer = setInterval(() => {
      this.go(this.at + 1);
      if (this.at >= this.record.steps.length - 1) this.pause();
    }, RUN_MILLISECONDS);
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    const button = this.root.querySelector("[data-action=run]");
    if (button) button.textContent = "Play";
  }
}
