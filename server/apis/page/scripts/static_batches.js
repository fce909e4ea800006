/* What static batching would have taken, from what was measured. Pure arithmetic: knows nothing of the page. */

/* Returns what steps take: `base` seconds, and `perRow` more for each request in them, a line through the measured steps
   without prompts by least squares; `prompts`: seconds that prompts took beyond that, all together.

   `steps` are [{rows, prefill, seconds}]. Where there is no line to be drawn (all steps had as many requests, or more
   requests took less time), a step takes the mean, whatever is in it. */
export function stepCosts(steps) {
  const plain = steps.filter(step => step.prefill === 0 && step.rows > 0);
  const line = lineThrough(plain.length > 1 ? plain : steps);
  const prompts = steps
    .filter(step => step.prefill > 0)
    .reduce((sum, step) => sum + Math.max(0, step.seconds - line.base - line.perRow * step.rows), 0);
  return { ...line, prompts };
}

/* Returns the same costs for a clock by which all steps, which took `stepsS` together, went by in `wallS`: the engine has
   more to do than steps. With less than that, others had some of the steps, and nothing is known of the pauses. */
export function withPauses(costs, stepsS, wallS) {
  const factor = stepsS > 0 ? Math.max(1, wallS / stepsS) : 1;
  return { base: costs.base * factor, perRow: costs.perRow * factor, prompts: costs.prompts * factor };
}

function lineThrough(steps) {
  const n = steps.length;
  const sum = valueOf => steps.reduce((total, step) => total + valueOf(step), 0);
  const [x, y] = [sum(step => step.rows), sum(step => step.seconds)];
  const spread = n * sum(step => step.rows ** 2) - x * x;
  const perRow = spread > 0 ? (n * sum(step => step.rows * step.seconds) - x * y) / spread : 0;
  const base = n ? (y - perRow * x) / n : 0;
  return perRow > 0 && base >= 0 ? { base, perRow } : { base: n ? y / n : 0, perRow: 0 };
}

/* Returns the bars of requests with `lengths` tokens in their order: batches of `numSlots`, of which each begins when
   the longest request of the one before has ended. A batch begins with its share of the time for `prompts`. A request
   that has ended costs its batch nothing more, and keeps its slot. */
export function staticBars(lengths, numSlots, costs) {
  const bars = [];
  let start = 0;
  for (let first = 0; first < lengths.length; first += numSlots) {
    const batch = lengths.slice(first, first + numSlots);
    const promptsS = costs.prompts * (batch.length / lengths.length);
    const ends = endsOf(batch, costs, start + promptsS);
    ends.forEach((end, slot) => bars.push({ slot, index: first + slot, start, end }));
    start = Math.max(...ends);
  }
  return { bars, end: start };
}

/* Returns when each request of a batch ends that decodes from `startS` on. */
function endsOf(lengths, { base, perRow }, startS) {
  const order = lengths.map((_, i) => i).sort((a, b) => lengths[a] - lengths[b]);
  const ends = new Array(lengths.length);
  let [time, done] = [startS, 0];
  order.forEach((i, numEnded) => {
    time += (lengths[i] - done) * (base + perRow * (lengths.length - numEnded));
    done = lengths[i];
    ends[i] = time;
  });
  return ends;
}

/* Returns the share of slot time, until all is over, in which no request is computed. */
export function idleShare(bars, numSlots, end) {
  const busy = bars.reduce((sum, bar) => sum + bar.end - bar.start, 0);
  return end > 0 ? Math.max(0, 1 - busy / (numSlots * end)) : 0;
}
