// Pictures of what the compiler made of a kernel, from the record docs/theatre/inside.json. Functions of the record alone: they also make
// the first pictures when the site is built (docs/hooks/theatre.py).

const LANES = 32;
/** Chunks of 16 bytes in a line of shared memory: all 32 banks of 4 bytes. */
const CHUNKS = 8;

const escape = (text) => String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
const number = (value) => value.toLocaleString("en");

function source(lines, now) {
  const shown = lines.map((line, n) => {
    const current = n + 1 === now;
    return `<span class="line${current ? " now" : ""}"${current ? ' aria-current="step"' : ""}><span class="number">${n + 1}</span>${escape(line) || " "}</span>`;
  });
  return `<div class="listing" tabindex="0" role="region" aria-label="Source of the kernel">${shown.join("")}</div>`;
}

const squares = (cells, columns, label) =>
  `<figure role="img" aria-label="${escape(label)}"><figcaption>${escape(label)}</figcaption><span class="block" style="--columns:${columns}">${cells.join("")}</span></figure>`;

// ---- One row ------------------------------------------------------------------------------------------------------------------

/** The load that gives each thread its entries. */
const loaded = (record) => record.steps.find((step) => step.kind === "load");

export function ofThread(record, thread) {
  const load = loaded(record);
  const first = load.first[load.threads.indexOf(thread)];
  return Array.from({ length: load.count }, (_, n) => first + n);
}

export function rowSentence(record, at, thread) {
  const step = record.steps[at];
  const mine = step.threads.includes(thread);
  const of = mine ? step.first?.[step.threads.indexOf(thread)] : null;
  const words = {
    load: () => `Each thread loads ${step.count} entries of ${step.buffer} at once, 16 bytes. Thread ${thread} holds ${step.buffer}[${of}] to ${step.buffer}[${of + step.count - 1}].`,
    exchange: () => `Each thread takes the larger of its maximum and that of thread t xor ${step.distance}. Thread ${thread} hears from thread ${thread ^ step.distance}.`,
    publish: () => `${step.threads.length === 1 ? "Thread 0 stores the maximum of the row" : "The first thread of each warp stores its warp's maximum"} to shared memory.`,
    collect: () => (step.threads.length === record.threads ? "Every thread loads the maximum of the row from shared memory: one word, without a conflict." : "The first threads load the maxima of the four warps."),
    store: () =>
      step.buffer === "scale" ? "Thread 0 stores the scale of the row." : `Each thread stores its ${step.count} codes at once.${mine ? ` Thread ${thread}: ${step.buffer}[${of}] to ${step.buffer}[${of + step.count - 1}].` : ""}`,
  }[step.kind]();
  return `Step ${at + 1} of ${record.steps.length}, ${step.opcode}${step.line ? `, line ${step.line}` : ", in tl.max"}. ${words}`;
}

export function rowPicture(record, at, thread) {
  const step = record.steps[at];
  const mine = new Set(ofThread(record, thread));
  const load = loaded(record);
  const owner = [];
  load.threads.forEach((t, n) => { for (let i = 0; i < load.count; i += 1) owner[load.first[n] + i] = t; });
  const partner = step.kind === "exchange" ? thread ^ step.distance : null;
  const theirs = new Set(partner === null ? [] : ofThread(record, partner));
  const entries = Array.from({ length: record.entries }, (_, n) =>
    `<i class="${mine.has(n) ? "stores" : theirs.has(n) ? "loads" : `warp${Math.floor(owner[n] / LANES)}`}"></i>`);
  const active = new Set(step.threads);
  const threads = Array.from({ length: record.threads }, (_, t) =>
    `<i class="${t === thread ? "stores" : t === partner ? "loads" : active.has(t) ? `warp${Math.floor(t / LANES)}` : ""}"></i>`);
  return (
    `<div class="stage-source">${source(record.source, step.line)}</div><div class="inside-pictures">` +
    squares(threads, LANES, `${record.threads} threads, a line per warp: ${active.size} take part; thread ${thread}${partner === null ? "" : ` and thread ${partner}`} marked`) +
    squares(entries, 64, `${record.entries} entries of the row by the warp that holds them; those of thread ${thread} marked`) +
    "</div>"
  );
}

// ---- One tile -----------------------------------------------------------------------------------------------------------------

/** What each chunk of shared memory holds after a step, and whether it is on its way, there, or being read. */
export function sharedAfter(record, at) {
  const chunks = Array.from({ length: record.chunks }, () => ({ state: "", holds: null }));
  record.steps.slice(0, at + 1).forEach((step, n) => {
    if (step.kind === "copy") step.chunks?.forEach((chunk, i) => (chunks[chunk] = { state: "pending", holds: [step.operand, step.rows[i], step.columns[i], step.block] }));
    if (step.kind === "wait") step.chunks.forEach((chunk) => (chunks[chunk].state = "arrived"));
    if (n === at && step.kind === "read") step.chunks.forEach((chunk) => (chunks[chunk].state = "reading"));
  });
  return chunks;
}

/** Of each block of K: the steps at which it sets out, has arrived, is read and is multiplied. */
export function timeline(record) {
  const blocks = [];
  let reading = 0;
  record.steps.forEach((step, n) => {
    if (step.kind === "copy" && step.bytes) (blocks[step.block] ??= { out: n, arrived: null, used: [] }).last = n;
    if (step.kind === "wait") {
      const here = new Set(step.chunks.map((chunk) => sharedAfter(record, n)[chunk].holds?.[3]));
      blocks.forEach((block, b) => here.has(b) && (block.arrived ??= n));
    }
    if (step.kind === "read") (reading = step.block), blocks[step.block].used.push(n);
    if (step.kind === "multiply") blocks[reading].used.push(n);
  });
  return blocks;
}

export function tileSentence(record, at) {
  const step = record.steps[at];
  const waiting = timeline(record).map((block, b) => [block, b]).filter(([block]) => block.out <= at && at < block.arrived).map(([, b]) => b);
  const flying = waiting.length ? ` On its way: block${waiting.length > 1 ? "s" : ""} ${waiting.join(" and ")} of K.` : " Nothing is on its way.";
  const words = {
    copy: () => (step.bytes ? `Block ${step.block} of ${step.operand} sets out: ${number(step.bytes)} bytes, 16 per thread and copy, past the registers.` : "No block of K is left: the mask is off for every thread, and the copy fetches nothing."),
    commit: () => "The copies since the last commit become one group.",
    wait: () => `All groups but the last ones have to be there: ${number(16 * step.chunks.length)} bytes have arrived.`,
    read: () => `ldmatrix brings block ${step.block} of ${step.operand} to the registers: ${step.wavefronts} wavefronts; without the swizzle ${step.unswizzled}.`,
    multiply: () => `${step.count} products of 16 x 32 by 32 x 8 per warp.`,
    load: () => `The scales, ${number(step.bytes)} bytes with what several threads load.`,
    exchange: () => "The tile goes through shared memory, so that each thread gets 16 bytes of a row.",
    store: () => `The tile is stored: ${number(step.bytes)} bytes, 16 per thread and instruction.`,
  }[step.kind]();
  return `Step ${at + 1} of ${record.steps.length}, ${step.opcode}, line ${step.line}. ${words}${flying}`;
}

export function tilePicture(record, at) {
  const step = record.steps[at];
  const chunks = sharedAfter(record, at);
  const size = record.chunks / 4;
  const panels = ["a, first half", "a, second half", "b, first half", "b, second half"].map((name, p) => {
    const mine = chunks.slice(p * size, (p + 1) * size);
    const cells = mine.map(({ state, holds }, n) => {
      const first = step.first?.includes(p * size + n) ? " first" : "";
      return `<i class="${state}${first}">${holds ? holds[2] % 4 : ""}</i>`;
    });
    const block = mine[0].holds ? `block ${mine[0].holds[3]} of K` : "empty";
    const states = { pending: "on its way", arrived: "arrived", reading: "being read", "": "empty" };
    const label = `Shared memory, ${name}: ${block}, ${states[mine[0].state]}`;
    return `<figure class="panel" role="img" aria-label="${label}"><figcaption><b>${name}</b> <small>${block}${mine[0].state ? `, ${states[mine[0].state]}` : ""}</small></figcaption><span class="block" style="--columns:${CHUNKS}">${cells.join("")}</span></figure>`;
  });
  return (
    `<div class="stage-source">${source(record.source, step.line)}</div><div class="inside-pictures">${chart(record, at)}` +
    `<p class="key"><i class="pending"></i> on its way <i class="arrived"></i> arrived <i class="reading"></i> read or multiplied <i class="first"></i> eight rows of one matrix</p></div>` +
    `<div class="panels">${panels.join("")}</div>`
  );
}

function chart(record, at) {
  const rows = timeline(record).map((block, b) => {
    const cells = record.steps.map((_, n) => {
      const state = block.used.includes(n) ? "reading" : n >= block.out && n < block.arrived ? "pending" : n >= block.arrived && n < block.used.at(-1) ? "arrived" : "";
      return `<i class="${state}${n === at ? " cursor" : ""}"></i>`;
    });
    return `<span class="line-of-block"><b>${b}</b>${cells.join("")}</span>`;
  });
  const words = timeline(record).map((block, b) => `block ${b} sets out at step ${block.out + 1}, has arrived at ${block.arrived + 1}, is multiplied at ${block.used.at(-1) + 1}`);
  return `<figure class="chart" role="img" aria-label="Blocks of K over the steps: ${words.join("; ")}."><figcaption>Blocks of K, step by step</figcaption><span style="--columns:${record.steps.length}">${rows.join("")}</span></figure>`;
}

/** The controls and the picture of one of both. */
export function markup(record, at, kind, thread) {
  const [sentence, picture] = kind === "row" ? [rowSentence, rowPicture] : [tileSentence, tilePicture];
  const button = (action, text, label) => `<button class="md-button" type="button" data-action="${action}" aria-label="${label}">${text}</button>`;
  return (
    `<div class="stage-controls" role="group" aria-label="Stepping">${button("first", "Start", "To the first step")}${button("back", "◀", "One step back")}${button("step", "Step ▶", "One step on")}` +
    `<input class="at" type="range" min="0" max="${record.steps.length - 1}" value="${at}" aria-label="Step"></div>` +
    `<p class="stage-sentence" role="status" aria-live="polite">${escape(sentence(record, at, thread))}</p>` +
    `<div class="stage-picture inside">${picture(record, at, thread)}</div>`
  );
}
