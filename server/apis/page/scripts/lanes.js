/* The slots as lanes: time goes to the left, a request is a bar for as long as it has its slot. */

import { at, fitted, prefersStillness, setText } from "./dom.js";

const WINDOW_S = 12;
const DELAY_S = 0.25; // so that what is drawn last has been told
const LABEL_PX = 26;
const AXIS_PX = 20;
const MAX_HEIGHT_PX = 420;

/* Returns the height of a lane: enough to read in where there are few, and a line where there are hundreds. */
function laneHeight(numSlots) {
  return Math.max(2, Math.min(30, Math.floor(MAX_HEIGHT_PX / Math.max(numSlots, 1))));
}

export class Lanes {
  #canvas = at("lanes");

  constructor(feed) {
    this.feed = feed;
    feed.addEventListener("news", () => this.#tell());
    if (!prefersStillness.matches) this.#animate();
    else feed.addEventListener("news", () => this.draw());
  }

  #animate() {
    this.draw();
    requestAnimationFrame(() => this.#animate());
  }

  draw() {
    const numSlots = this.feed.server?.num_shown_slots ?? 8;
    const lane = laneHeight(numSlots);
    const height = numSlots * lane + AXIS_PX;
    const { context, width } = fitted(this.#canvas, height);
    const end = this.feed.now() - DELAY_S;
    const left = lane >= 10 ? LABEL_PX : 0;
    const scale = { left, width, lane, x: timeS => left + ((timeS - end + WINDOW_S) / WINDOW_S) * (width - left) };
    drawGrid(context, themeColours(), { numSlots, scale, end });
    for (const stay of this.feed.stays) {
      if ((stay.end ?? end) < end - WINDOW_S || stay.start > end) continue;
      drawStay(context, themeColours(), { ...stay, end: Math.min(stay.end ?? end, end) }, scale, {
        isMine: this.feed.ownIds.has(stay.id),
        isOpen: stay.end === null || stay.end > end,
      });
    }
  }

  /* Says in words what the picture shows. */
  #tell() {
    const { running, waiting } = this.feed.last;
    const numSlots = this.feed.server?.num_slots ?? 0;
    setText(at("busy"), numSlots ? `${running} of ${numSlots} taken` : "–");
    at("idle").hidden = running > 0 || this.feed.stays.some(stay => stay.start > this.feed.now() - WINDOW_S);
    const label = running ? `${running} of ${numSlots} slots are taken, ${waiting} requests wait` : "No request is running";
    if (this.#canvas.getAttribute("aria-label") !== label) this.#canvas.setAttribute("aria-label", label);
  }
}

let colours = null; // of the theme that is used

export function forgetColours() {
  colours = null;
}

/* Returns the colours of the theme, as the style sheet has them and a canvas can take them. */
export function themeColours() {
  return (colours ??= readColours(at("lanes")));
}

function readColours(node) {
  const read = name => {
    node.style.color = `var(${name})`;
    return getComputedStyle(node).color;
  };
  return {
    tones: [0, 1, 2, 3, 4, 5].map(tone => read(`--tone-${tone}`)),
    mine: [read("--mine-0"), read("--mine-1")],
    prompt: read("--prompt"),
    line: read("--line"),
    lane: read("--lane"),
    muted: read("--muted"),
    onTone: read("--on-tone"),
    font: getComputedStyle(node).fontFamily,
  };
}

export function colourOf(colours, stay, isMine) {
  return isMine ? colours.mine[stay.tone % 2] : colours.tones[stay.tone];
}

function drawGrid(context, colours, { numSlots, scale, end }) {
  const { left, width, lane, x } = scale;
  const bottom = numSlots * lane;
  context.font = `11px ${colours.font}`;
  context.fillStyle = colours.lane;
  for (let slot = 0; slot < numSlots; slot++)
    if (lane >= 5) context.fillRect(left, slot * lane + 1, width - left, lane - 2);
  if (lane < 5) context.fillRect(left, 0, width - left, bottom);
  context.fillStyle = colours.muted;
  context.textBaseline = "middle";
  context.textAlign = "right";
  if (left) for (let slot = 0; slot < numSlots; slot++) context.fillText(slot + 1, left - 8, (slot + 0.5) * lane);
  for (let age = 2; age < WINDOW_S; age += 2) {
    context.fillStyle = colours.line;
    context.fillRect(Math.round(x(end - age)), 0, 1, bottom);
    context.fillStyle = colours.muted;
    context.textAlign = "center";
    if (age % 4 === 0) context.fillText(`−${age} s`, x(end - age), bottom + 12);
  }
  context.textAlign = "right";
  context.fillText("now", width, bottom + 12);
}

function drawStay(context, colours, stay, { lane, x, left }, { isMine, isOpen }) {
  const from = Math.max(x(stay.start), left);
  const to = Math.max(x(stay.end), from + 1);
  const [top, height] = lane >= 5 ? [stay.slot * lane + 1, lane - 2] : [stay.slot * lane, lane];
  const width = to - from - (to - from > 4 ? 1 : 0);
  const radius = Math.min(4, height / 3, width / 3);
  context.beginPath();
  context.roundRect(from, top, width, height, isOpen ? [radius, 0, 0, radius] : radius);
  context.fillStyle = colourOf(colours, stay, isMine);
  context.fill();
  const decodes = Math.min(Math.max(x(stay.decodes ?? stay.end), from), from + width);
  if (decodes > from) {
    context.save();
    context.clip();
    context.fillStyle = colours.prompt;
    context.fillRect(from, top, decodes - from, height);
    context.restore();
  }
  if (height >= 14) drawLabel(context, colours, stay, { from: decodes, to: from + width, middle: top + height / 2 });
}

/* Names a request, and says how many tokens it has, where there is room for it. */
function drawLabel(context, colours, stay, { from, to, middle }) {
  const numTokens = Math.max(0, stay.computed - stay.prefill);
  context.font = `500 11px ${colours.font}`;
  context.fillStyle = colours.onTone;
  context.textAlign = "left";
  context.textBaseline = "middle";
  const label = [`${stay.id}  ${numTokens} tokens`, stay.id].find(text => context.measureText(text).width < to - from - 14);
  if (label) context.fillText(label, from + 7, middle + 0.5);
}
