// The page "A real model": its controls, and what Python computes for them.
import { markup } from "./explore_picture.js";
import { Python } from "./python.js";

const { first, sources } = JSON.parse(document.getElementById("theatre-data").textContent);
const SECONDS = 30;
const $ = (id) => document.getElementById(id);
const controls = ["block", "column", "threshold", "factor"].map($);
const picture = $("picture"), status = $("status");
let shown = first, busy = false, again = false;

const python = new Python({ sources, module: "tutorials.explore" }, (state, message) => {
  status.dataset.state = state;
  status.textContent = {
    starting: "Starting Python in your browser. This takes some seconds.",
    ready: "Python is running in your browser.",
    failed: `Python did not start: ${message}. The page shows what was computed with the site.`,
  }[state];
  if (state === "ready") update();
});

const settings = () => ({
  block: Number($("block").value),
  column: Math.max(0, Math.min(575, Math.round(Number($("column").value)))),
  threshold: Number($("threshold").value),
  factor: 2 ** Number($("factor").value),
});

async function update() {
  const now = settings();
  for (const name of ["block", "column", "threshold"]) $(`${name}-value`).textContent = now[name];
  $("factor-value").textContent = now.factor;
  $("explore").classList.toggle("stale", JSON.stringify(now) !== JSON.stringify(shown.settings));
  if (!python.ready) return;
  if (busy) return (again = true);
  busy = true;
  const found = await python.ask("compute", now, SECONDS);
  busy = false;
  if (found) {
    shown = found;
    picture.innerHTML = markup(shown);
    $("explore").classList.toggle("stale", JSON.stringify(settings()) !== JSON.stringify(shown.settings));
  }
  if (again) {
    again = false;
    update();
  }
}

controls.forEach((control) => control.addEventListener("input", update));
document.querySelector(".controls").addEventListener("submit", (event) => event.preventDefault());

picture.addEventListener("click", (event) => {
  const chart = event.target.closest("svg");
  if (!chart) return;
  const box = chart.getBoundingClientRect();
  $("column").value = Math.floor(((event.clientX - box.left) / box.width) * 576);
  update();
});

for (const button of document.querySelectorAll("button.try"))
  button.addEventListener("click", () => {
    for (const [name, value] of Object.entries(JSON.parse(button.dataset.settings))) $(name).value = name === "factor" ? Math.log2(value) : value;
    update();
    $("explore").scrollIntoView({ behavior: "smooth", block: "start" });
  });
