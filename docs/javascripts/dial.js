// The dial of the home page: it shows one of the positions that were computed when the site was built (docs/hooks/home.py).
const data = document.getElementById("dial-data");

if (data) {
  const { positions } = JSON.parse(data.textContent);
  const factor = document.getElementById("dial-factor");
  const marks = [...document.querySelectorAll("#dial svg circle")];
  const said = (value) => (value > 1000 ? Math.round(value).toLocaleString("en-US") : value.toFixed(1));
  const minus = (text) => text.replace("-", "−");

  const show = () => {
    const number = Number(factor.value);
    const { factor: times, perplexity, row, codes } = positions[number];
    factor.setAttribute("aria-valuetext", `${times} times`);
    document.getElementById("dial-value").textContent = times;
    document.getElementById("dial-int8").textContent = said(perplexity["int8 alone"]);
    document.getElementById("dial-decomposed").textContent = said(perplexity["LLM.int8()"]);
    const at = document.getElementById("dial-at");
    for (const end of ["x1", "x2"]) at.setAttribute(end, marks[number].getAttribute("cx"));
    marks.forEach((mark, i) => mark.setAttribute("r", i % positions.length === number ? 7 : 4));
    document.querySelectorAll("#dial .entries td").forEach((cell, i) => (cell.textContent = minus(row[i])));
    for (const line of document.querySelectorAll("#dial tr[data-method]"))
      line.querySelectorAll("td").forEach((cell, i) => {
        cell.textContent = codes[line.dataset.method][i];
        cell.classList.toggle("sixteen", cell.textContent === "16 bits");
      });
  };

  factor.addEventListener("input", show);
  show(); // a browser may restore the position after a reload
}
