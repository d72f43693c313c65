// The page "Write": editors, verdicts, and a picture of what the reader's own kernel loads and stores.
import { edits } from "./editor.js";
import { Python } from "./python.js";
import { Stage } from "./stage.js";

const { records, sources } = JSON.parse(document.getElementById("theatre-data").textContent);
const SECONDS = 20;
const status = document.getElementById("status");
const rungs = [...document.querySelectorAll(".rung")];

const python = new Python({ sources, module: "tutorials.ladder" }, (state, message) => {
  status.dataset.state = state;
  status.textContent = {
    starting: "Starting Python in your browser. This takes some seconds; you can read and write meanwhile.",
    ready: "Python is running in your browser.",
    failed: `Python did not start: ${message}.`,
  }[state];
});

// ---- Progress -----------------------------------------------------------------------------------------------------------------

const key = (name, what) => `rung-${name}-${what}`;

function progress() {
  const written = rungs.filter(({ dataset }) => localStorage.getItem(key(dataset.name, "passed")));
  document.getElementById("progress").textContent = `${written.length} of ${rungs.length} kernels written.`;
  for (const { dataset } of rungs) {
    const link = document.querySelector(`.ladder a[href="#${dataset.name}"]`);
    const passed = written.some((rung) => rung.dataset.name === dataset.name);
    link.classList.toggle("passed", passed);
    link.setAttribute("aria-label", `${link.dataset.title}${passed ? ", written" : ""}`);
  }
}

// ---- Rungs --------------------------------------------------------------------------------------------------------------------

for (const rung of rungs) {
  const { name } = rung.dataset;
  const editor = rung.querySelector("textarea"), message = rung.querySelector(".message"), run = rung.querySelector(".run");
  const stub = editor.value;
  const stage = new Stage(rung.querySelector(".stage"), records[name]);
  const report = (text, state) => {
    message.textContent = text;
    message.dataset.state = state;
  };

  editor.value = localStorage.getItem(key(name, "text")) ?? stub;
  editor.addEventListener("input", () => localStorage.setItem(key(name, "text"), editor.value));
  edits(editor);
  editor.addEventListener("keydown", (event) => (event.ctrlKey || event.metaKey) && event.key === "Enter" && run.click());

  rung.querySelector(".reset").addEventListener("click", () => {
    editor.value = stub;
    localStorage.removeItem(key(name, "text"));
    report("", "");
    stage.show(records[name]);
  });

  run.addEventListener("click", async () => {
    if (!python.ready) return report("Python is still loading. Try again in a few seconds.", "");
    run.disabled = true;
    report("Running…", "");
    const found = await python.ask("attempt", { name, text: editor.value }, SECONDS);
    run.disabled = false;
    if (!found) return report(`Stopped after ${SECONDS} seconds. Python is starting again.`, "wrong");
    report(found.text, found.passed ? "right" : "wrong");
    if (found.passed) localStorage.setItem(key(name, "passed"), "yes");
    if (found.record) stage.show(found.record, Math.max(0, found.record.error ? found.record.steps.length - 1 : 0));
    progress();
  });
}

progress();
