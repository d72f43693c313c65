// The playground's page: it draws what Python has computed, and computes nothing itself. The first picture comes with the page.
const { first, sources, suggestions } = JSON.parse(document.getElementById("playground-data").textContent);
const $ = (id) => document.getElementById(id);
const controls = ["outlier", "threshold", "granularity", "quantizer"].map($);
const MAPS = ["x", "int8-codes", "int8-error", "decomposed-codes", "decomposed-error"];
const POSITIVE = [74, 144, 217], NEGATIVE = [224, 134, 43], WRONG = [217, 87, 78];
const EXERCISE_SECONDS = 20;

let shown = first;
let cursor = null;

// ---- Python -------------------------------------------------------------------------------------------------------------------

const LOADING = "Starting Python in your browser. This takes some seconds.";
let worker, isReady, waiting, nextId = 0;
let busy = false, again = false;

function startPython() {
  worker = new Worker(new URL("worker.js", import.meta.url));
  isReady = busy = false;
  say(LOADING, "starting");
  waiting = new Map();
  worker.addEventListener("message", ({ data }) => {
    if (data.failed) return say(`Python did not start: ${data.failed}. The page shows ${where(shown.settings)}, computed with the site.`, "failed");
    if (data.ready) {
      isReady = true;
      say("Python is running in your browser.", "ready");
      return update();
    }
    waiting.get(data.id)?.(data.result);
    waiting.delete(data.id);
  });
  worker.addEventListener("error", (event) => say(`Python did not start: ${event.message}`, "failed"));
  worker.postMessage({ sources, module: "play" });
}

function ask(request) {
  return new Promise((resolve) => {
    const id = nextId++;
    waiting.set(id, resolve);
    worker.postMessage({ id, request });
  });
}

function say(text, state) {
  $("status").textContent = text;
  $("status").dataset.state = state;
}

const where = ({ outlier, threshold, granularity, quantizer }) =>
  `outlier size ${outlier}, threshold ${threshold}, ${granularity}, ${quantizer}`;

// The controls can be moved before Python is ready: the numbers below then belong to other settings, and the page says so.
function markStale() {
  const stale = where(settings()) !== where(shown.settings);
  document.querySelector(".play").classList.toggle("stale", stale);
  if (!isReady && $("status").dataset.state === "starting")
    say(stale ? `${LOADING} Until then the page shows ${where(shown.settings)}.` : LOADING, "starting");
}

// ---- Controls -----------------------------------------------------------------------------------------------------------------

const settings = () => ({
  outlier: Number($("outlier").value),
  threshold: Number($("threshold").value),
  granularity: $("granularity").value,
  quantizer: $("quantizer").value,
});

async function update() {
  $("outlier-value").textContent = $("outlier").value;
  $("threshold-value").textContent = $("threshold").value;
  markStale();
  if (!isReady) return;
  if (busy) return (again = true);
  busy = true;
  shown = await ask({ function: "compute", arguments: settings() });
  busy = false;
  show();
  markStale();
  if (again) {
    again = false;
    update();
  }
}

controls.forEach((control) => control.addEventListener("input", update));
document.querySelector(".controls").addEventListener("submit", (event) => event.preventDefault());

for (const button of document.querySelectorAll("button.try"))
  button.addEventListener("click", () => {
    for (const control of controls) control.value = suggestions[button.dataset.try][control.id];
    update();
    document.querySelector(".play").scrollIntoView({ behavior: "smooth", block: "start" });
  });

// ---- Drawing ------------------------------------------------------------------------------------------------------------------

const percent = (value) => `${(100 * value).toFixed(2)} %`;

function show() {
  const { quantizer, granularity } = shown.settings;
  const mine = shown.methods.find((m) => m.quantizer === quantizer && m.granularity === granularity);
  const top = Math.max(...shown.methods.flatMap((m) => [m.int8, m.decomposed]));
  for (const kind of ["int8", "decomposed"]) {
    $(`error-${kind}`).textContent = percent(mine[kind]);
    $(`distinct-${kind}`).textContent = shown[kind].distinct;
  }
  $("outlier-columns").textContent = shown.outliers.length;
  for (const m of shown.methods) {
    const row = document.querySelector(`tr[data-method="${m.quantizer}, ${m.granularity}"]`);
    row.classList.toggle("chosen", m === mine);
    for (const kind of ["int8", "decomposed"]) {
      const cell = row.querySelector(`[data-kind=${kind}]`);
      cell.querySelector(".bar").style.setProperty("--share", top ? m[kind] / top : 0);
      cell.querySelector(".value").textContent = percent(m[kind]);
    }
  }
  draw();
  readEntry();
}

const values = (map) => (map === "x" ? shown.x : shown[map.split("-")[0]][map.split("-")[1]]);

function draw() {
  const peak = Math.max(...shown.x.flat().map(Math.abs));
  const worst = Math.max(...shown.int8.error.flat(), ...shown.decomposed.error.flat()) || 1;
  for (const map of MAPS) {
    const [strength, colour] =
      map === "x" ? [(v) => Math.log1p(Math.abs(v)) / Math.log1p(peak), (v) => (v < 0 ? NEGATIVE : POSITIVE)]
      : map.endsWith("codes") ? [(v) => Math.min(1, Math.abs(v) / 127), (v) => (v < 0 ? NEGATIVE : POSITIVE)]
      : [(v) => v / worst, () => WRONG];
    paint(map, values(map), strength, colour);
    $(`map-${map}`).setAttribute("aria-label", describe(map, worst));
  }
  $("legend").innerHTML =
    `<span><i class="positive"></i> positive</span> <span><i class="negative"></i> negative</span> <span><i class="wrong"></i> error, up to ${worst.toFixed(3)}</span>` +
    `<span><i class="sixteen"></i> outlier column</span>`;
}

function paint(map, matrix, strength, colour) {
  const canvas = $(`map-${map}`);
  const width = canvas.clientWidth || 320, dpr = window.devicePixelRatio || 1;
  const columns = matrix[0].length, side = width / columns, height = side * matrix.length;
  canvas.width = Math.round(width * dpr);
  canvas.height = Math.round(height * dpr);
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(dpr, dpr);
  matrix.forEach((row, i) => row.forEach((value, j) => {
    context.fillStyle = `rgba(${colour(value)}, ${strength(value)})`;
    context.fillRect(j * side, i * side, side - 0.5, side - 0.5);
  }));
  if (map === "x" || map.startsWith("decomposed")) {
    context.strokeStyle = "#9a72d0";
    context.lineWidth = 1.5;
    for (const j of shown.outliers) context.strokeRect(j * side + 0.25, 0.75, side - 1, height - 1.5);
  }
  if (cursor) {
    context.strokeStyle = getComputedStyle(canvas).color;
    context.lineWidth = 2;
    context.strokeRect(cursor.column * side, cursor.row * side, side, side);
  }
}

function describe(map, worst) {
  const size = `${shown.x.length} tokens by ${shown.x[0].length} features`;
  const [kind, what] = map.split("-");
  const how = kind === "int8" ? "int8 alone" : "LLM.int8()";
  if (map === "x") return `Heat map of X, ${size}. The columns ${shown.outliers.join(", ") || "(none)"} are outliers.`;
  if (what === "codes") return `Heat map of the codes by ${how}, ${size}. The ordinary columns use ${shown[kind].distinct} different codes.`;
  const most = Math.max(...shown[kind].error.flat());
  return `Heat map of the error of X by ${how}, ${size}: at most ${most.toFixed(3)}, on a scale up to ${worst.toFixed(3)}.`;
}

// ---- Reading single entries ---------------------------------------------------------------------------------------------------

function readEntry() {
  if (!cursor) return;
  const { row, column } = cursor;
  const at = (matrix) => matrix[row][column];
  const kept = shown.outliers.includes(column) ? "not quantized, no error" : `code ${at(shown.decomposed.codes)}, error ${at(shown.decomposed.error).toFixed(4)}`;
  $("probe").textContent =
    `Token ${row}, feature ${column}: x = ${at(shown.x).toFixed(4)}. Int8 alone: code ${at(shown.int8.codes)}, error ${at(shown.int8.error).toFixed(4)}. LLM.int8(): ${kept}.`;
}

function moveTo(row, column) {
  const clamp = (value, size) => Math.max(0, Math.min(size - 1, value));
  cursor = { row: clamp(row, shown.x.length), column: clamp(column, shown.x[0].length) };
  draw();
  readEntry();
}

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

for (const map of MAPS) {
  const canvas = $(`map-${map}`);
  canvas.addEventListener("pointermove", ({ offsetX, offsetY }) => {
    const side = canvas.clientWidth / shown.x[0].length;
    moveTo(Math.floor(offsetY / side), Math.floor(offsetX / side));
  });
  canvas.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step) return;
    event.preventDefault();
    cursor ? moveTo(cursor.row + step[0], cursor.column + step[1]) : moveTo(0, 0);
  });
}

// ---- Exercises ----------------------------------------------------------------------------------------------------------------

for (const section of document.querySelectorAll(".exercise")) {
  const editor = section.querySelector("textarea"), message = section.querySelector(".message"), button = section.querySelector(".run");
  const key = `exercise-${section.dataset.name}`, stub = editor.value;
  let leaving = false;
  editor.value = localStorage.getItem(key) ?? stub;
  editor.addEventListener("input", () => localStorage.setItem(key, editor.value));
  editor.addEventListener("keydown", (event) => {
    const line = editor.value.slice(0, editor.selectionStart).split("\n").pop();
    if (event.key === "Tab" && !event.shiftKey && !leaving) insert(event, "    ");
    if (event.key === "Enter") insert(event, `\n${line.match(/^ */)[0]}${line.trimEnd().endsWith(":") ? "    " : ""}`);
    leaving = event.key === "Escape";
  });
  function insert(event, text) {
    event.preventDefault();
    editor.setRangeText(text, editor.selectionStart, editor.selectionEnd, "end");
    editor.dispatchEvent(new Event("input"));
  }
  section.querySelector(".reset").addEventListener("click", () => {
    editor.value = stub;
    localStorage.removeItem(key);
    report("", "");
  });
  button.addEventListener("click", async () => {
    if (!isReady) return report("Python is still loading. Try again in a few seconds.", "");
    button.disabled = true;
    report("Running…", "");
    const timer = setTimeout(() => {
      worker.terminate();
      startPython();
      button.disabled = false;
      report(`Stopped after ${EXERCISE_SECONDS} seconds. Python is starting again.`, "wrong");
    }, 1000 * EXERCISE_SECONDS);
    const { text, passed } = await ask({ function: "run", arguments: { code: editor.value } });
    clearTimeout(timer);
    button.disabled = false;
    report(text, passed ? "right" : passed === false ? "wrong" : "");
  });
  function report(text, state) {
    message.textContent = text;
    message.dataset.state = state;
  }
}

// -------------------------------------------------------------------------------------------------------------------------------

new ResizeObserver(draw).observe(document.querySelector(".maps"));
show();
startPython();
