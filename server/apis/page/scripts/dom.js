/* What all parts of the page use of the document. */

export const at = id => document.getElementById(id);

export function element(name, { className = "", text = "" } = {}, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

/* Changes the document only where there is something to change, so that nothing is read out or drawn again. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

let hiding = null;

export function toast(text) {
  at("toast").textContent = text;
  at("toast").classList.add("is-shown");
  clearTimeout(hiding);
  hiding = setTimeout(() => at("toast").classList.remove("is-shown"), 2500);
}

export const prefersStillness = matchMedia("(prefers-reduced-motion: reduce)");

/* Three digits where that is enough: 0.82, 14.2, 128, 1,240. */
export function shortNumber(value) {
  if (!Number.isFinite(value)) return "–";
  const digits = value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export const wholeNumber = value => Math.round(value).toLocaleString("en");

/* Makes a canvas as sharp as the screen, and returns what to draw with, in CSS pixels. */
export function fitted(canvas, height) {
  const ratio = devicePixelRatio || 1;
  const width = canvas.clientWidth;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width };
}
