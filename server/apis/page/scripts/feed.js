/* What the server does, as its events tell it: the last minute, and now. */

import { ask, events, RefusedKey } from "./api.js";

const KEPT_S = 60;
const MAX_STAYS = 5000;
const NUM_TONES = 6;
const RETRY_MS = 1000;

/* A feed dispatches "news" after every event, "lost" where the server does not answer, and "refused" where it wants
   another key. Times are in seconds of the server's clock; `now()` is what that says now, as far as can be told. */
export class Feed extends EventTarget {
  server = null;
  keys = [];
  last = null; // event
  stays = []; // in slots, oldest first: {slot, id, key, prefill, start, end, decodes, computed, held, tone}
  bySlot = new Map(); // those that have not ended
  samples = []; // events without their columns
  ownIds = new Set(); // of requests that this page has sent
  #offset = null;
  #leaving = null;

  get isOn() {
    return this.#leaving !== null;
  }

  start() {
    if (this.isOn) return;
    this.#leaving = new AbortController();
    this.#follow(this.#leaving.signal);
  }

  stop() {
    this.#leaving?.abort();
    this.#leaving = null;
  }

  now() {
    return this.#offset === null ? 0 : performance.now() / 1000 - this.#offset;
  }

  async #follow(signal) {
    while (!signal.aborted) {
      try {
        const response = await ask("events", { signal });
        let isFirst = true;
        for await (const event of events(response)) {
          this.#apply(event, isFirst);
          isFirst = false;
        }
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof RefusedKey) {
          this.stop();
          this.dispatchEvent(new Event("refused"));
          return;
        }
        this.dispatchEvent(new Event("lost"));
      }
      await new Promise(resolve => setTimeout(resolve, RETRY_MS));
    }
  }

  #apply(event, isFirst) {
    this.#setClock(event.at_s);
    if (event.server) this.server = event.server;
    if (event.keys) this.keys = event.keys;
    if (isFirst) this.#endUnlessTold(event);
    for (const move of event.moves) this.#move(...move);
    for (const [slot, stay] of this.bySlot) {
      stay.computed = event.computed[slot] ?? stay.computed;
      stay.held = event.held[slot] ?? stay.held;
    }
    this.#forget(event.at_s);
    const { moves, computed, held, ...sample } = event;
    this.samples.push(sample);
    this.last = event;
    this.dispatchEvent(new Event("news"));
  }

  /* Events are late by what the network takes: the quickest tell the time best. */
  #setClock(atS) {
    const offset = performance.now() / 1000 - atS;
    this.#offset = this.#offset === null ? offset : Math.min(offset, this.#offset + 0.0005);
  }

  /* A stream that begins anew tells of everybody: who is not among them has gone meanwhile. */
  #endUnlessTold(event) {
    const told = new Set(event.moves.map(([slot, , start, id]) => `${slot} ${start} ${id}`));
    for (const [slot, stay] of this.bySlot)
      if (!told.has(`${slot} ${stay.start} ${stay.id}`)) this.#move(slot, "left", event.at_s);
  }

  #move(slot, kind, atS, id, key, prefill) {
    const before = this.bySlot.get(slot);
    if (kind === "decodes") {
      if (before) before.decodes = atS;
      return;
    }
    if (before && before.id === id && before.start === atS) return; // told again
    if (before) before.end = atS;
    this.bySlot.delete(slot);
    if (kind === "left") return;
    const tone = ((before?.tone ?? slot) + 1 + (parseInt(id, 16) % (NUM_TONES - 1) || 0)) % NUM_TONES;
    const stay = { slot, id, key, prefill, start: atS, end: null, decodes: null, computed: 0, held: 0, tone };
    this.bySlot.set(slot, stay);
    this.stays.push(stay);
  }

  #forget(nowS) {
    const isOver = stay => stay.end !== null && stay.end < nowS - KEPT_S;
    if (this.stays.length > MAX_STAYS || (this.stays.length && isOver(this.stays[0])))
      this.stays = this.stays.filter(stay => !isOver(stay)).slice(-MAX_STAYS);
    while (this.samples.length && this.samples[0].at_s < nowS - KEPT_S) this.samples.shift();
  }
}
