/* "Send 16 at once": continuous batching as it happens, beside what static batching would have taken. */

import { events, post, RefusedKey, shortId } from "./api.js";
import { at, fitted, prefersStillness, shortNumber } from "./dom.js";
import { themeColours } from "./lanes.js";
import { idleShare, staticBars, stepCosts, withPauses } from "./static_batches.js";

const QUESTIONS = [
  "Tell me a story.",
  "What is the capital of France?",
  "List the planets.",
  "What is 2 plus 3?",
  "What is the capital of Japan?",
  "Tell me a story about a dog.",
  "How many days are in a week?",
  "What is the capital of Italy?",
];
const MAX_TOKENS = 160;
const REPLAY_S = 3.5;
const MAX_HEIGHT_PX = 260;
const AXIS_PX = 20;
const SETTLE_S = 3; // for the last events to come

export class Race {
  #result = null;
  #frame = 0;
  #prompts = null;
  #isSizeChosen = false;

  constructor(feed, { onRefused, isReady }) {
    this.feed = feed;
    this.onRefused = onRefused;
    this.isReady = isReady;
    this.model = null;
    at("race").addEventListener("submit", event => this.#submit(event));
    at("race-size").addEventListener("change", () => {
      this.#isSizeChosen = true;
      this.#label();
    });
    feed.addEventListener("news", () => this.#chooseSize());
    addEventListener("resize", () => this.#draw(REPLAY_S));
  }

  redraw() {
    this.#draw(REPLAY_S);
  }

  forgetPrompts() {
    this.#prompts = null;
  }

  /* So many that slots have to be given on, until somebody chooses. */
  #chooseSize() {
    const numSlots = this.feed.server?.num_slots;
    if (!numSlots || this.#isSizeChosen) return;
    this.#isSizeChosen = true;
    const sizes = [...at("race-size").options].map(option => Number(option.value));
    at("race-size").value = sizes.find(size => size >= 2 * numSlots) ?? sizes.at(-1);
    this.#label();
  }

  #label() {
    at("race-send").textContent = `Send ${at("race-size").value} at once`;
  }

  async #submit(event) {
    event.preventDefault();
    if (at("race-send").disabled || !this.isReady(this.model)) return;
    at("race-send").disabled = true;
    at("race-verdict").textContent = "Running …";
    try {
      const run = await this.#send(Number(at("race-size").value));
      this.#result = this.#compare(run);
      this.#replay();
    } catch (error) {
      this.onRefused(error);
      at("race-verdict").textContent = error.message;
    }
    at("race-send").disabled = false;
  }

  /* Sends all as one request with many prompts: browsers open six connections to a server, and no more. */
  async #send(size) {
    this.#prompts ??= await this.#promptsOf();
    const prompt = Array.from({ length: size }, (_, i) => this.#prompts[i % this.#prompts.length]);
    const before = this.feed.last?.at_s ?? 0;
    const lengths = new Array(size).fill(0);
    const options = { model: this.model, max_tokens: MAX_TOKENS, stream: true, return_token_ids: true };
    let id = null;
    for await (const chunk of events(await post("v1/completions", { ...options, prompt }))) {
      if (chunk.error) throw new Error(chunk.error.message);
      if (id === null) this.feed.ownIds.add((id = shortId(chunk.id)));
      for (const choice of chunk.choices) lengths[choice.index] += choice.token_ids?.length ?? 0;
    }
    const stays = await this.#staysOf(id, size);
    return { lengths, stays, samples: this.feed.samples.filter(sample => sample.at_s > before) };
  }

  /* The questions as chats or, where the model knows no chats, as they are. */
  async #promptsOf() {
    try {
      return await Promise.all(QUESTIONS.map(question => this.#tokensOf(question)));
    } catch (error) {
      if (error instanceof RefusedKey) throw error;
      return QUESTIONS;
    }
  }

  async #tokensOf(question) {
    const messages = [{ role: "user", content: question }];
    const response = await post("tokenize", { model: this.model, messages });
    return (await response.json()).tokens;
  }

  /* Waits until the events have told of all that the answers have shown to be over. */
  async #staysOf(id, size) {
    const deadline = performance.now() + SETTLE_S * 1000;
    for (;;) {
      const stays = this.feed.stays.filter(stay => stay.id === id);
      const isOver = stays.length >= size && stays.every(stay => stay.end !== null);
      if (isOver) return stays;
      if (performance.now() > deadline) throw new Error("The events did not tell of all requests; try fewer at once.");
      await new Promise(resolve => setTimeout(resolve, 50));
    }
  }

  #compare({ lengths, stays, samples }) {
    const begin = Math.min(...stays.map(stay => stay.start));
    const bars = stays
      .toSorted((a, b) => a.start - b.start)
      .map(({ slot, start, end }, index) => ({ slot, index, start: start - begin, end: end - begin }));
    const end = Math.max(...bars.map(bar => bar.end));
    const numSlots = Math.min(this.feed.server.num_slots, lengths.length);
    const costs = costsOf(samples.filter(sample => sample.at_s > begin && sample.at_s - sample.interval_s < begin + end), end);
    const fixed = staticBars(lengths, numSlots, costs);
    return { lengths, numSlots, costs, continuous: { bars, end }, static: fixed };
  }

  /* Plays both sides at one pace, slow enough to be seen. */
  #replay() {
    cancelAnimationFrame(this.#frame);
    at("race-panels").hidden = false;
    this.#say();
    if (prefersStillness.matches) return this.#draw(REPLAY_S);
    const started = performance.now();
    const play = () => {
      const played = (performance.now() - started) / 1000;
      this.#draw(played);
      if (played < REPLAY_S) this.#frame = requestAnimationFrame(play);
    };
    play();
  }

  #say() {
    const { continuous, static: fixed, numSlots, lengths, costs } = this.#result;
    const idle = side => Math.round(idleShare(side.bars, numSlots, side.end) * 100);
    at("race-continuous").textContent = `${shortNumber(continuous.end)} s · slots idle ${idle(continuous)} %`;
    at("race-static").textContent = `${shortNumber(fixed.end)} s · slots idle ${idle(fixed)} %`;
    const longest = Math.max(...lengths);
    const verdict =
      lengths.length > numSlots
        ? `Static batching would have taken ${shortNumber(fixed.end / continuous.end)} times as long.`
        : `All ${lengths.length} fit into the ${numSlots} slots: nothing has to be replaced, and both take about as long.`;
    at("race-verdict").textContent = verdict;
    at("race-note").textContent =
      `The left side is what happened in the slots. The right side is computed, not run: ${lengths.length} answers of ` +
      `${Math.min(...lengths)} to ${longest} tokens, as measured, in batches of ${numSlots} in the order they were sent; ` +
      `${inWords(costs)}, as measured meanwhile.`;
  }

  #draw(played) {
    if (this.#result === null) return;
    const { continuous, static: fixed, numSlots } = this.#result;
    const span = Math.max(continuous.end, fixed.end);
    const until = Math.min(1, played / REPLAY_S) * span;
    drawSide(at("race-left"), continuous, { numSlots, span, until });
    drawSide(at("race-right"), fixed, { numSlots, span, until });
  }
}

/* What steps cost while the requests ran, which took `wallS`. Of many short steps, events tell the last ones alone. */
function costsOf(samples, wallS) {
  const told = samples.flatMap(sample => sample.step_times);
  const costs = stepCosts(told.map(([ms, rows, prefill]) => ({ rows, prefill, seconds: ms / 1000 })));
  const stepsS = samples.reduce((sum, sample) => sum + sample.step_s, 0);
  const toldS = told.reduce((sum, [ms]) => sum + ms / 1000, 0);
  return withPauses({ ...costs, prompts: costs.prompts * (toldS > 0 ? stepsS / toldS : 1) }, stepsS, wallS);
}

function inWords({ base, perRow, prompts }) {
  const perRequest = perRow > 0 ? `and ${shortNumber(perRow * 1000)} ms more for each request in it` : "whatever is in it";
  return `a step takes ${shortNumber(base * 1000)} ms ${perRequest}, and all prompts ${shortNumber(prompts * 1000)} ms, pauses included`;
}

function drawSide(canvas, side, { numSlots, span, until }) {
  const colours = themeColours();
  const lane = Math.max(2, Math.min(18, Math.floor(MAX_HEIGHT_PX / numSlots)));
  const height = numSlots * lane;
  const { context, width } = fitted(canvas, height + AXIS_PX);
  const x = seconds => (seconds / span) * width;
  const gap = lane > 4 ? 1 : 0;
  context.fillStyle = colours.lane;
  for (let slot = 0; slot < numSlots; slot++) context.fillRect(0, slot * lane, x(side.end), lane - gap);
  for (const bar of side.bars) {
    if (bar.start >= until) continue;
    const [from, to] = [x(bar.start), x(Math.min(bar.end, until))];
    context.fillStyle = colours.tones[bar.index % colours.tones.length];
    context.beginPath();
    context.roundRect(from, bar.slot * lane, Math.max(1, to - from - 1), lane - gap, Math.min(3, lane / 4));
    context.fill();
  }
  context.fillStyle = colours.muted;
  context.font = `11px ${colours.font}`;
  context.textBaseline = "middle";
  context.textAlign = "left";
  context.fillText("0", 0, height + 12);
  context.textAlign = "right";
  context.fillText(`${shortNumber(side.end)} s`, x(side.end), height + 12);
}
