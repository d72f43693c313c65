// The page "Look inside": steps through what the compiler made of a row kernel and of a product tile.
import { markup, rowPicture, rowSentence, tilePicture, tileSentence } from "./inside_pictures.js";

const { record, opening, thread } = JSON.parse(document.getElementById("theatre-data").textContent);
const slider = document.getElementById("thread");
const WARPS = ["#4a90d9", "#3fa36b", "#9a72d0", "#b08a2e"];
const chosen = () => Number(slider.value);

class Stepper {
  constructor(root, part, kind, at) {
    Object.assign(this, { root, part, kind, at });
    this.root.innerHTML = markup(part, at, kind, thread);
    root.addEventListener("click", ({ target }) => {
      const to = { first: 0, back: this.at - 1, step: this.at + 1 }[target.dataset.action];
      if (to !== undefined) this.go(to);
    });
    root.addEventListener("input", ({ target }) => target.className === "at" && this.go(Number(target.value)));
    root.addEventListener("keydown", (event) => {
      const to = { ArrowRight: this.at + 1, ArrowLeft: this.at - 1, Home: 0 }[event.key];
      if (to === undefined || !event.target.closest(".listing")) return;
      event.preventDefault();
      this.go(to);
    });
  }

  go(at) {
    this.at = Math.max(0, Math.min(this.part.steps.length - 1, at));
    const [sentence, picture] = this.kind === "row" ? [rowSentence, rowPicture] : [tileSentence, tilePicture];
    const focused = this.root.querySelector(".stage-picture").contains(document.activeElement);
    this.root.querySelector(".at").value = this.at;
    this.root.querySelector(".stage-sentence").textContent = sentence(this.part, this.at, chosen());
    this.root.querySelector(".stage-picture").innerHTML = picture(this.part, this.at, chosen());
    if (focused) this.root.querySelector(".listing").focus({ preventScroll: true });
  }
}

const row = new Stepper(document.getElementById("row"), record.row, "row", 0);
new Stepper(document.getElementById("tile"), record.tile, "tile", opening);

// ---- Which thread holds which entry of the tile -------------------------------------------------------------------------------

const canvas = document.getElementById("owners");

function owners() {
  const { side } = record.tile;
  const mine = record.tile.owners.flatMap((owner, n) => (owner === chosen() ? [n] : []));
  const width = canvas.clientWidth || 320, dpr = window.devicePixelRatio || 1, cell = width / side;
  canvas.width = canvas.height = Math.round(width * dpr);
  const context = canvas.getContext("2d");
  context.scale(dpr, dpr);
  record.tile.owners.forEach((owner, n) => {
    context.globalAlpha = owner === chosen() ? 1 : 0.3;
    context.fillStyle = owner === chosen() ? "#e0862b" : WARPS[Math.floor(owner / 32)];
    context.fillRect((n % side) * cell, Math.floor(n / side) * cell, cell - 0.5, cell - 0.5);
  });
  const unique = (values) => [...new Set(values)].join(", ");
  const words = `Thread ${chosen()} holds ${mine.length} entries of the tile: rows ${unique(mine.map((n) => Math.floor(n / side)))}; columns ${unique(mine.map((n) => n % side))}.`;
  document.getElementById("owned").textContent = words;
  canvas.setAttribute("aria-label", `The tile of ${side} by ${side} by the warp that holds each entry. ${words}`);
}

slider.addEventListener("input", () => {
  document.getElementById("thread-value").textContent = chosen();
  row.go(row.at);
  owners();
});
new ResizeObserver(owners).observe(canvas);
owners();
