// What a page writes while it runs, in the language of the page: sentences are looked up by their shape, as when the site is built
// (tutorials/translation/sentences.py). The scripts that write them, and the checkers, stay as they are.
import { messages } from "./sentences.js";

const NUMBER = String.raw`(?<![\w.])[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?(?![\w]|\.\d)`;
const HOLE = /#|\{[A-Za-z_]\w*\}/g;
const WORD = /[A-Za-z]{2}/;
const SPOKEN = ["aria-label", "aria-valuetext", "alt", "title"];
/** What is no sentence of ours, however much it looks like one. */
const CODE = "code, script, style, textarea, .listing, .register, svg";

const escape = (text) => text.replace(/[.*+?^${}()|[\]\\/-]/g, "\\$&");
const plain = (message) => message.replace(HOLE, "");
const compiled = (message) => {
  const holes = message.match(HOLE) ?? [];
  const source = message.split(HOLE).map((part, n) => escape(part) + (n < holes.length ? (holes[n] === "#" ? `(${NUMBER})` : "(.*?)") : ""));
  return [new RegExp(`^${source.join("")}$`), message, holes];
};
const patterns = Object.keys(messages)
  .filter((message) => /\{[A-Za-z_]\w*\}/.test(message))
  .sort((a, b) => plain(b).length - plain(a).length)
  .map(compiled);
const known = new Map();

function filled(translation, numbers, named) {
  const own = new Set([...translation.matchAll(/\{(\d+)\}/g)].map((match) => Number(match[1])));
  const rest = numbers.filter((_, n) => !own.has(n + 1));
  return translation.replace(/#|\{(\w+)\}/g, (hole, name) => (hole === "#" ? rest.shift() : /^\d+$/.test(name) ? numbers[name - 1] : named[name]));
}

function find(words) {
  const shape = words.replace(new RegExp(NUMBER, "g"), "#");
  const numbers = words.match(new RegExp(NUMBER, "g")) ?? [];
  if (Object.hasOwn(messages, shape) && shape.split("#").length - 1 === numbers.length) return filled(messages[shape], numbers, {});
  for (const [pattern, message, holes] of patterns) {
    const match = words.match(pattern);
    if (!match) continue;
    const parts = match.slice(1);
    const named = Object.fromEntries(holes.map((hole, n) => [hole.slice(1, -1), say(parts[n]) ?? parts[n]]));
    return filled(messages[message], parts.filter((_, n) => holes[n] === "#"), named);
  }
  return null;
}

/** The translation of a sentence, or null. */
export function say(text) {
  const words = text.trim().replace(/\s+/g, " ");
  if (!WORD.test(words)) return null;
  if (!known.has(words)) known.set(words, find(words));
  const found = known.get(words);
  return found === null ? null : text.match(/^\s*/)[0] + found + text.match(/\s*$/)[0];
}

/** A text of several lines, each translated if it is known; null if none is. */
export function lines(text) {
  const found = text.split("\n").map(say);
  return found.every((line) => line === null) ? null : text.split("\n").map((line, n) => found[n] ?? line).join("\n");
}

function text(node) {
  if (node.parentElement?.closest(CODE)) return;
  const found = lines(node.data);
  if (found !== null && found !== node.data) node.data = found;
}

function attributes(element) {
  for (const name of SPOKEN) {
    const found = element.hasAttribute(name) && say(element.getAttribute(name));
    if (found) element.setAttribute(name, found);
  }
}

function all(node) {
  if (node.nodeType === Node.TEXT_NODE) return text(node);
  if (node.nodeType !== Node.ELEMENT_NODE) return;
  const walker = document.createTreeWalker(node, NodeFilter.SHOW_TEXT | NodeFilter.SHOW_ELEMENT);
  for (let next = node; next; next = walker.nextNode()) next.nodeType === Node.TEXT_NODE ? text(next) : attributes(next);
}

const page = globalThis.document?.querySelector("article:not([lang=en])");
if (page) {
  const options = { subtree: true, childList: true, characterData: true, attributes: true, attributeFilter: SPOKEN };
  new MutationObserver((changes) => {
    for (const { type, target, addedNodes } of changes)
      if (type === "childList") addedNodes.forEach(all);
      else type === "characterData" ? text(target) : attributes(target);
  }).observe(page, options);
  // What was written before this script ran; prose is left alone.
  page.querySelectorAll("#status, [role=status], .stage, #legend, form.prediction, canvas, .message").forEach(all);
}
