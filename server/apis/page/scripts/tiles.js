/* The numbers of the moment, each with a small graph of the last minute. */

import { at, setText, shortNumber, wholeNumber } from "./dom.js";

const WINDOW_S = 60;
const BIN_S = 0.5;
const [WIDTH, HEIGHT] = [120, 32];
const SVG = "http://www.w3.org/2000/svg";

export class Tiles {
  constructor(feed) {
    this.feed = feed;
    this.sparks = Object.fromEntries(
      ["tokens", "ttft", "itl", "waiting"].map(name => [name, new Spark(at(`${name}-graph`))]),
    );
    feed.addEventListener("news", () => this.#show());
  }

  #show() {
    const { samples, last } = this.feed;
    const recent = samples.filter(sample => sample.at_s > last.at_s - 1);
    const spanS = recent.reduce((sum, sample) => sum + sample.interval_s, 0);
    const tokens = recent.reduce((sum, sample) => sum + sample.tokens, 0);
    setText(at("tokens"), spanS ? wholeNumber(tokens / spanS) : "0");
    setText(at("ttft"), shortNumber(lastOf(samples, "ttft_ms")));
    setText(at("itl"), shortNumber(lastOf(samples, "itl_ms")));
    setText(at("waiting"), wholeNumber(last.waiting));
    this.sparks.tokens.draw(binned(samples, last.at_s, sample => sample.tokens / Math.max(sample.interval_s, 0.05), 0));
    this.sparks.ttft.draw(binned(samples, last.at_s, sample => sample.ttft_ms));
    this.sparks.itl.draw(binned(samples, last.at_s, sample => sample.itl_ms));
    this.sparks.waiting.draw(binned(samples, last.at_s, sample => sample.waiting, 0));
  }
}

function lastOf(samples, name) {
  for (let i = samples.length - 1; i >= 0; i--) if (samples[i][name] !== null) return samples[i][name];
  return NaN;
}

/* Returns the mean of each half second, the oldest first; where nothing was measured, what was measured last. */
export function binned(samples, nowS, valueOf, empty = null) {
  const bins = Array.from({ length: WINDOW_S / BIN_S }, () => []);
  for (const sample of samples) {
    const value = valueOf(sample);
    const index = bins.length - 1 - Math.floor((nowS - sample.at_s) / BIN_S);
    if (value !== null && index >= 0) bins[index].push(value);
  }
  let held = empty;
  return bins.map(values => {
    const mean = values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
    if (empty !== null) return mean ?? empty;
    held = mean ?? held;
    return held;
  });
}

class Spark {
  constructor(svg) {
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute("preserveAspectRatio", "none");
    this.area = document.createElementNS(SVG, "path");
    this.line = document.createElementNS(SVG, "path");
    this.area.setAttribute("class", "area");
    this.line.setAttribute("class", "line");
    svg.append(this.area, this.line);
  }

  draw(values) {
    const most = Math.max(...values.map(value => value ?? 0), 1e-9);
    const points = values
      .map((value, i) => [(i / (values.length - 1)) * WIDTH, HEIGHT - 2 - ((value ?? 0) / most) * (HEIGHT - 4), value])
      .filter(([, , value]) => value !== null);
    const line = points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
    this.line.setAttribute("d", line);
    const [first, last] = [points[0], points[points.length - 1]];
    this.area.setAttribute("d", line && `${line}L${last[0].toFixed(1)} ${HEIGHT}L${first[0].toFixed(1)} ${HEIGHT}Z`);
  }
}
