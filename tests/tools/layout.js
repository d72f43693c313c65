// What of a page is cut off, too small or too faint, as tests/test_site_layout.py asks for it. Returns sentences; none is good.
({ clipping, labels }) => {
  const complaints = [];
  const article = document.querySelector("article");
  const shown = (element) => element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  const name = (element) => {
    const text = (element.innerText ?? element.textContent ?? "").trim().replace(/\s+/g, " ").slice(0, 50);
    return `<${element.tagName.toLowerCase()} class="${element.getAttribute("class") ?? ""}"> "${text}"`;
  };

  // ---- Clipping: nothing is cut off, and only what says so scrolls ----------------------------------------------------------------
  const SCROLLS = ".columns code, div.arithmatex, .scrolls";
  if (clipping) {
    const width = document.documentElement.clientWidth;
    for (const element of article.querySelectorAll("*")) {
      if (element.matches("svg *, textarea, input, select, option, .katex *") || element.clientWidth <= 1 || !shown(element)) continue;
      const scrolling = element.closest(SCROLLS);
      const { overflowX } = getComputedStyle(element);
      if (element.scrollWidth > element.clientWidth + 2 && overflowX !== "visible" && overflowX !== "" && !(scrolling === element && clipping === "phone"))
        complaints.push(`cut: ${element.scrollWidth} of ${element.clientWidth} px: ${name(element)}`);
      else if (!scrolling && element.getBoundingClientRect().right > width + 1) complaints.push(`beyond the page: ${name(element)}`);
    }
  }

  // ---- Labels of figures: large enough to read ------------------------------------------------------------------------------------
  if (labels)
    for (const text of article.querySelectorAll(".drawing text")) {
      if (!shown(text) || !text.textContent.trim()) continue;
      const { a, b, c, d } = text.getScreenCTM();
      const sizes = [text, ...text.querySelectorAll("tspan")].filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()));
      const size = Math.max(...sizes.map((e) => parseFloat(getComputedStyle(e).fontSize))) * Math.sqrt(Math.abs(a * d - b * c));
      if (size < labels) complaints.push(`label of ${size.toFixed(1)} px: "${text.textContent.trim()}"`);
    }

  // ---- Labels of figures: inside of their figure, and not on top of each other --------------------------------------------------------
  for (const svg of clipping ? article.querySelectorAll(".drawing svg") : []) {
    if (!shown(svg)) continue;
    const { left, right } = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].filter((text) => text.textContent.trim()).map((text) => [text.textContent.trim(), text.getBoundingClientRect()]);
    for (const [i, [text, box]] of texts.entries()) {
      if (box.left < left - 2 || box.right > right + 2) complaints.push(`label out of its figure: "${text}"`);
      for (const [other, b] of texts.slice(i + 1)) {
        const shared = Math.max(0, Math.min(box.right, b.right) - Math.max(box.left, b.left)) * Math.max(0, Math.min(box.bottom, b.bottom) - Math.max(box.top, b.top));
        if (shared > 0.35 * Math.min(box.width * box.height, b.width * b.height)) complaints.push(`labels on top of each other: "${text}", "${other}"`);
      }
    }
  }

  // ---- Contrast: text on what lies below it ---------------------------------------------------------------------------------------
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
  const colours = new Map();
  const colour = (css) => {
    if (!colours.has(css)) {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = css;
      canvas.fillRect(0, 0, 1, 1);
      const [r, g, b] = canvas.getImageData(0, 0, 1, 1).data;
      const alpha = css.match(/[,/]\s*([\d.]+)\s*\)$/);
      colours.set(css, [r, g, b, css === "transparent" ? 0 : css.startsWith("rgba") || css.includes("/") ? Number(alpha?.[1] ?? 1) : 1]);
    }
    return colours.get(css);
  };
  const over = ([r, g, b, alpha], below, opacity = 1) => [r, g, b].map((v, i) => v * alpha * opacity + below[i] * (1 - alpha * opacity));
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const grounds = new Map();
  const ground = (element) => {
    if (!element) return over(colour(getComputedStyle(document.body).backgroundColor), [255, 255, 255]);
    if (!grounds.has(element)) {
      const below = element === document.body ? ground(null) : ground(element.parentElement);
      const style = getComputedStyle(element);
      // A box that scrolls has the page's colour in its middle; its edges are shades.
      grounds.set(element, element instanceof SVGElement ? below : over(colour(style.backgroundColor), below, Number(style.opacity)));
    }
    return grounds.get(element);
  };
  const opacity = (element) => {
    let product = 1;
    for (let e = element; e && e !== document.body; e = e.parentElement) product *= Number(getComputedStyle(e).opacity);
    return product;
  };
  const visible = (shape, svg) => { // where a shape is, within what it is clipped to
    const { left, right, top, bottom } = shape.getBoundingClientRect();
    const id = shape.closest("[clip-path]")?.getAttribute("clip-path").match(/#([^)"]+)/)?.[1];
    const rect = id && document.getElementById(id)?.querySelector("rect");
    if (!rect) return { left, right, top, bottom };
    const at = (x, y) => new DOMPoint(x, y).matrixTransform(svg.getScreenCTM());
    const [x, y, width, height] = ["x", "y", "width", "height"].map((key) => rect[key].baseVal.value);
    const [from, to] = [at(x, y), at(x + width, y + height)];
    return { left: Math.max(left, from.x), right: Math.min(right, to.x), top: Math.max(top, from.y), bottom: Math.min(bottom, to.y) };
  };
  const fills = new Map(); // by drawing: the filled shapes in their order, with their boxes
  const filled = (svg) => {
    if (!fills.has(svg))
      fills.set(svg, [...svg.querySelectorAll("path, rect, circle, use")].flatMap((shape) => {
        const style = getComputedStyle(shape);
        if (style.fill === "none" || shape.closest("clipPath, defs")) return [];
        return [{ shape, box: visible(shape, svg), fill: colour(style.fill), opacity: Number(style.fillOpacity) * Number(style.opacity) }];
      }));
    return fills.get(svg);
  };
  const faint = new Map();
  const judge = (element, text, ink, below) => {
    const key = `${ink.map(Math.round)} ${below.map(Math.round)}`;
    if (faint.has(key)) return;
    const ratio = contrast(ink, below);
    faint.set(key, ratio);
    if (ratio < 4.5) complaints.push(`contrast ${ratio.toFixed(2)}, rgb(${ink.map(Math.round)}) on rgb(${below.map(Math.round)}): ${name(element)}`);
  };
  const walker = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  const seen = new Map();
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || element.closest("script, style, title, option, .katex-mathml, .headerlink, .md-nav")) continue;
    const svg = element.closest("svg");
    if (!svg && seen.has(element)) continue;
    seen.set(element, true);
    if (!shown(element)) continue;
    const style = getComputedStyle(element);
    const strength = opacity(element);
    if (strength < 0.1) continue;
    if (!svg) {
      const below = ground(element);
      judge(element, node.data, over(colour(style.color), below, strength), below);
      continue;
    }
    const box = element.getBoundingClientRect();
    const [x, y] = [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
    const below = filled(svg)
      .filter(({ shape, box: b }) => b.left <= x && x <= b.right && b.top <= y && y <= b.bottom && shape.compareDocumentPosition(element) & Node.DOCUMENT_POSITION_FOLLOWING)
      .reduce((colourBelow, { fill, opacity: strengthOfFill }) => over(fill, colourBelow, strengthOfFill), ground(svg.parentElement));
    judge(element, node.data, over(colour(style.fill), below, strength), below);
  }
  return complaints;
}
