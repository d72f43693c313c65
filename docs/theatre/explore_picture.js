// The picture of a layer of a real model, from what tutorials/explore.py computed. A function of that alone: it also makes the first
// picture when the site is built (docs/hooks/theatre.py).

const WIDTH = 576, HEIGHT = 150, TOP = 12;

const percent = (value) => `${(100 * value).toFixed(2)} %`;
const decimals = (value) => value.toFixed(1);

/** Magnitudes are shown by their logarithms, from 1/4 to 4096. */
const height = (value) => Math.max(0, Math.min(1, (Math.log2(Math.max(value, 1e-9)) + 2) / 14)) * (HEIGHT - TOP);

export function sentence({ settings, outliers, errors, share, distinct }) {
  const { block, column, threshold, factor } = settings;
  const dial = factor > 1 ? `, column ${column} times ${factor}` : "";
  const columns = outliers.length ? `${outliers.length === 1 ? "column" : "columns"} ${outliers.length > 12 ? `${outliers.slice(0, 12).join(", ")}, …` : outliers.join(", ")}` : "no column";
  return (
    `Block ${block}, threshold ${threshold}${dial}. Error of Y in int8 alone: <strong class="bad">${percent(errors[0])}</strong>; by LLM.int8(): ` +
    `<strong class="good">${percent(errors[1])}</strong>, with ${outliers.length} of 576 columns in 16 bits (${percent(share)}): ${columns}. ` +
    `The other entries of a position use ${decimals(distinct[0])} different codes in int8 alone, ${decimals(distinct[1])} by LLM.int8().`
  );
}

function columnsChart({ settings, outliers, peaks }) {
  const bar = (k, kind) => `<line class="${kind}" x1="${k + 0.5}" x2="${k + 0.5}" y1="${HEIGHT}" y2="${(HEIGHT - height(peaks[k])).toFixed(1)}"/>`;
  const ordinary = peaks.map((peak, k) => `M${k + 0.5} ${HEIGHT}V${(HEIGHT - height(peak)).toFixed(1)}`).join("");
  const line = (HEIGHT - height(settings.threshold)).toFixed(1);
  const marks = [1, 4, 16, 64, 256, 1024].map((value) => `<span style="bottom:${((100 * height(value)) / HEIGHT).toFixed(1)}%">${value}</span>`);
  const words = `The largest magnitude of each of the 576 columns, logarithmic. Column ${settings.column} has ${peaks[settings.column]}. ${outliers.length} reach the threshold ${settings.threshold}.`;
  return (
    `<figure><figcaption>Largest magnitude of each column; the line is the threshold</figcaption>` +
    `<div class="chart-of-columns">${marks.join("")}<svg class="columns" viewBox="0 0 ${WIDTH} ${HEIGHT}" preserveAspectRatio="none" role="img" aria-label="${words}"><path d="${ordinary}"/>` +
    outliers.map((k) => bar(k, "outlier")).join("") +
    bar(settings.column, "chosen") +
    `<line class="threshold" x1="0" x2="${WIDTH}" y1="${line}" y2="${line}"/></svg></div></figure>`
  );
}

function column({ settings, values, alone, kept }) {
  const strip = (title, cells) => `<tr><th scope="row">${title}</th>${cells.map((cell) => `<td>${cell}</td>`).join("")}</tr>`;
  const shown = 8;
  const tables = [];
  for (let start = 0; start < values.length; start += shown) {
    const part = (list) => list.slice(start, start + shown);
    tables.push(
      `<table class="codes"><thead><tr><th scope="col">position</th>${part(values).map((_, n) => `<th scope="col">${start + n}</th>`).join("")}</tr></thead><tbody>` +
        strip("x", part(values)) +
        strip("int8 alone", part(alone)) +
        strip("LLM.int8()", kept ? part(kept) : part(values).map(() => "16 bit")) +
        "</tbody></table>",
    );
  }
  return `<p><b>Column ${settings.column}: values and codes</b></p><div class="scrolls" tabindex="0" role="region" aria-label="Values and codes of column ${settings.column}">${tables.join("")}</div>`;
}

export const markup = (result) => `<p class="verdict" role="status" aria-live="polite">${sentence(result)}</p>${columnsChart(result)}${column(result)}`;
