/* Who holds how much: slots, tokens and KV blocks, by request or by key; how full the cache is; who waits. */

import { at, element, setText, wholeNumber } from "./dom.js";

const MAX_ROWS = 12;
const MAX_WAITING = 60;
const MAX_PARTS = 64;
const EVERY_MS = 250;

export class Holders {
  #isByKey = false;
  #lastDrawn = 0;

  constructor(feed) {
    this.feed = feed;
    at("by-request").addEventListener("click", () => this.#group(false));
    at("by-key").addEventListener("click", () => this.#group(true));
    feed.addEventListener("news", () => this.#show());
    this.#table();
  }

  #group(isByKey) {
    this.#isByKey = isByKey;
    at("by-request").setAttribute("aria-pressed", String(!isByKey));
    at("by-key").setAttribute("aria-pressed", String(isByKey));
    this.#table();
  }

  #show() {
    const { last, server } = this.feed;
    this.#cache(last.blocks_used, server?.num_blocks ?? 0);
    showQueue(last.waiting);
    if (performance.now() - this.#lastDrawn > EVERY_MS || !last.running) this.#table();
  }

  /* How full the cache is, in parts: the largest holders each, and all others as one. Blocks that several share count
     for each of them, so that the parts are cut down to what is in use. */
  #cache(used, total) {
    const share = total ? used / total : 0;
    setText(at("kv-text"), total ? `${wholeNumber(used)} of ${wholeNumber(total)} blocks` : "–");
    at("kv-meter").setAttribute("aria-valuenow", share.toFixed(3));
    at("kv-meter").setAttribute("aria-valuetext", `${used} of ${total} blocks`);
    const stays = [...this.feed.bySlot.values()].sort((a, b) => a.slot - b.slot).slice(0, MAX_PARTS);
    const held = stays.reduce((sum, stay) => sum + stay.held, 0);
    const scale = Math.min(1, used / Math.max(held, 1)) / Math.max(total, 1);
    const parts = stays.map(stay => ({ width: stay.held * scale, tone: this.#toneOf(stay) }));
    parts.push({ width: Math.max(0, share - held * scale), tone: "rest" });
    while (at("kv-meter").childElementCount < parts.length) at("kv-meter").append(element("span"));
    [...at("kv-meter").children].forEach((part, i) => {
      part.dataset.tone = parts[i]?.tone ?? "rest";
      part.style.inlineSize = `${(parts[i]?.width ?? 0) * 100}%`;
    });
  }

  #toneOf(stay) {
    return this.feed.ownIds.has(stay.id) ? `mine-${stay.tone % 2}` : String(stay.tone);
  }

  #table() {
    this.#lastDrawn = performance.now();
    const rows = this.#isByKey ? this.#byKey() : this.#byRequest();
    const columns = this.#isByKey
      ? ["Key", "Running", "Waiting", "Tokens", "Blocks"]
      : ["Request", "Slot", "Prompt", "Output", "Blocks"];
    at("holders-head").replaceChildren(element("tr", {}, ...columns.map(text => element("th", { text }))));
    const most = Math.max(...rows.map(row => row.held), 1);
    const shown = rows.slice(0, MAX_ROWS).map(row => tableRow(row, most));
    if (rows.length > MAX_ROWS) shown.push(restRow(rows.slice(MAX_ROWS)));
    if (!rows.length) shown.push(element("tr", {}, emptyCell()));
    at("holders").replaceChildren(...shown);
  }

  #byRequest() {
    return [...this.feed.bySlot.values()]
      .map(stay => ({
        name: stay.id,
        note: this.#keyName(stay.key),
        tone: this.#toneOf(stay),
        cells: [stay.slot + 1, Math.min(stay.prefill, stay.computed), Math.max(0, stay.computed - stay.prefill)],
        held: stay.held,
      }))
      .sort((a, b) => b.held - a.held || a.cells[0] - b.cells[0]);
  }

  #byKey() {
    const groups = new Map((this.feed.last?.by_key ?? []).map(([key, inFlight]) => [key, newGroup(inFlight)]));
    for (const stay of this.feed.bySlot.values()) {
      if (!groups.has(stay.key)) groups.set(stay.key, newGroup(0));
      const group = groups.get(stay.key);
      group.running += 1;
      group.tokens += stay.computed;
      group.held += stay.held;
    }
    return [...groups].map(([key, { inFlight, running, tokens, held }]) => ({
      name: this.#keyName(key) || "everybody",
      note: "",
      tone: "rest",
      cells: [running, Math.max(0, inFlight - running), tokens],
      held,
    }));
  }

  #keyName(key) {
    return key === null ? "" : (this.feed.keys[key] ?? "");
  }
}

const newGroup = inFlight => ({ inFlight, running: 0, tokens: 0, held: 0 });

function tableRow({ name, note, tone, cells, held }, most) {
  const swatch = element("span", { className: "swatch" });
  swatch.dataset.tone = tone;
  const head = element("th", { className: "name" }, swatch, name);
  head.scope = "row";
  if (note) head.append(element("small", { text: note }));
  const bar = element("span", { className: "bar-of" });
  bar.dataset.tone = tone;
  bar.style.inlineSize = `${(held / most) * 100}%`;
  const blocks = element("td", { className: "held" }, element("span", { className: "track" }, bar));
  blocks.append(element("span", { text: wholeNumber(held) }));
  return element("tr", {}, head, ...cells.map(cell => element("td", { text: wholeNumber(cell) })), blocks);
}

function restRow(rows) {
  const cell = element("td", { className: "rest", text: `and ${rows.length} more` });
  cell.colSpan = 5;
  return element("tr", {}, cell);
}

function emptyCell() {
  const cell = element("td", { className: "rest", text: "Nobody holds anything." });
  cell.colSpan = 5;
  return cell;
}

/* One mark for each request that waits, as far as there is room. */
function showQueue(waiting) {
  const queue = at("queue");
  const shown = Math.min(waiting, MAX_WAITING);
  if (!waiting && !queue.childElementCount) return;
  if (!waiting) return queue.replaceChildren();
  if (!queue.childElementCount) queue.append(element("span", { className: "queue-label", text: "Waiting" }));
  while (queue.querySelectorAll("i").length > shown) queue.querySelector("i:last-of-type").remove();
  while (queue.querySelectorAll("i").length < shown) queue.insertBefore(element("i"), queue.querySelector(".more"));
  let more = queue.querySelector(".more");
  if (!more) queue.append((more = element("span", { className: "more" })));
  setText(more, waiting > shown ? `+${waiting - shown}` : "");
}
