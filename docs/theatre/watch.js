// The page "Watch": recorded launches of the chapters' kernels, which need no Python.
import { Stage } from "./stage.js";

const { record, at } = JSON.parse(document.getElementById("theatre-data").textContent);
const select = document.getElementById("example");
const stage = new Stage(document.getElementById("stage"), record, at);
const records = { [select.value]: record };

async function change() {
  const name = select.value;
  records[name] ??= await (await fetch(`records/${name}.json`)).json();
  if (select.value === name) stage.show(records[name], records[name].opening);
  location.replace(`#${name}`);
}

select.addEventListener("change", change);
const asked = location.hash.slice(1);
if (asked !== select.value && [...select.options].some((option) => option.value === asked)) {
  select.value = asked;
  change();
}
