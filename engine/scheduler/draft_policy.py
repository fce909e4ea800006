"""How many drafts a step tries: as many as make the tokens come faster, which may be none.

Two things are learnt while requests run: how likely drafts of a request are right, by what they are based on and by
their position, and how much longer a step takes for so many more rows. A proposal that is not tried tells the first as
well as one that is, once the tokens in its place are known, so nothing is spent on finding out. Deals in numbers,
request ids and token ids alone.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from orcinus.engine.messages import DraftBasis, Proposal
from orcinus.engine.scheduler.step_time import StepTimeModel

# Positions that are told apart; those behind share the last one.
_NUM_POSITIONS = 8
# What is thought of first drafts that nothing is known of, and how many observations that weighs as much as.
_FIRST_RATES: dict[DraftBasis, float] = {
    "long match": 0.9,
    "short match": 0.65,
    "substitution": 0.5,
    "realignment": 0.5,
    "head": 0.5,
}
_PRIOR_WEIGHT = 2
# A request's rates follow its latest observations, and those of all requests, with which its own begin, theirs.
_MEMORY = 10
_MEMORY_OF_ALL = 50
# A draft less likely than this is no use at any cost that a row can have.
_MIN_PROBABILITY = 0.05
# What a step with drafts has to promise over one without: predictions err to both sides.
_MIN_GAIN = 1.05
# Rows beyond the most that were seen: a step tries twice as many, or so many at first.
_GROWTH = 2
_FIRST_TRIAL = 4
# Where drafts would pay if rows cost less, what they cost is looked at again after so many steps; then twice as many.
_PATIENCE = 8
_MAX_PATIENCE = 1024
# Beside so many decodes it counts what looking for drafts takes: after so many steps in which they brought less than
# that they are looked for in every second step, then in every fourth, and so on.
_MANY_DECODES = 8
_WORTH_LOOKING = 1.02
_FRUITLESS_STEPS = 8
_MAX_INTERVAL = 8
# What decodes take alone is worked out anew after so many steps.
_KEPT_STEPS = 8
# What drafts bring, over no drafts, is a running average of so many steps.
_MEMORY_OF_GAIN = 4


class DraftPolicy:
    """Chooses among the drafts of a step. Used by one thread.

    `max_drafts` limits those of a step, as each needs logits. No step is to take longer than `target_itl_s` for them.
    """

    def __init__(self, max_drafts: int, target_itl_s: float | None = None) -> None:
        self._max_drafts = max_drafts
        self._target_itl_s = target_itl_s
        self._costs: dict[int, _Costs] = {}  # by about how many requests decode
        self.forget_all()
        self._num_fruitless = 0  # steps in a row whose proposals brought next to nothing
        self._interval = 1  # of steps in which drafts are looked for
        self._num_skipped = 0

    def observe_step(self, num_decodes: int, num_drafts: int, seconds: float) -> None:
        """Learn from a step of decodes alone, with drafts or without."""
        self._costs_beside(num_decodes).observe(num_decodes, num_drafts, seconds)

    def observe_tokens(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Learn from what came next in a request whether its drafts, tried or not, were right."""
        record = self._records.get(request_id)
        if record is None:
            return
        for token_id in token_ids:
            if record.num_seen == len(record.expected):
                return
            position, is_right = record.num_seen, token_id == record.expected[record.num_seen]
            record.rates[record.basis].observe(position, is_right=is_right)
            self._all[record.basis].observe(position, is_right=is_right)
            record.num_seen = position + 1 if is_right else len(record.expected)

    def forget(self, request_id: str) -> None:
        """Drop what is known of a request that ends."""
        self._records.pop(request_id, None)

    def forget_all(self) -> None:
        """Drop what is known of how likely drafts are right, but not what steps take."""
        self._records: dict[str, _Record] = {}
        self._all = {
            basis: _Rates([rate] + [0.0] * (_NUM_POSITIONS - 1), _MEMORY_OF_ALL) for basis, rate in _FIRST_RATES.items()
        }
        self._gain, self._num_gains = 1.0, 0

    def tokens_per_s(self, num_decodes: int) -> float | None:
        """Return what steps of so many requests bring with the drafts chosen lately; None where it is not known."""
        alone_s = self._costs_beside(num_decodes).alone_s(num_decodes)
        return self._gain * num_decodes / alone_s if alone_s > 0.0 else None

    def wants_proposals(self, num_decodes: int) -> bool:
        """Return whether drafts are to be looked for in the next step, beside about so many requests that decode.

        Where many do and nothing comes of it, looking at each step would cost more than finding out a little later.
        """
        if num_decodes < _MANY_DECODES:
            return True
        self._num_skipped += 1
        if self._num_skipped < self._interval:
            return False
        self._num_skipped = 0
        self._num_fruitless += 1  # as far as is known yet
        if self._num_fruitless > _FRUITLESS_STEPS:
            self._num_fruitless, self._interval = 0, min(_MAX_INTERVAL, 2 * self._interval)
        return True

    def choose(self, proposals: Mapping[str, Proposal], num_decodes: int) -> dict[str, list[int]]:
        """Return the drafts to try beside so many requests that decode, by request; those with none are left out."""
        ranked: list[tuple[float, str]] = []
        for request_id, proposal in proposals.items():
            rates = self._expect(request_id, proposal)
            ranked.extend((probability, request_id) for probability in rates.of_drafts(len(proposal.token_ids)))
        if not ranked:
            self._observe_gain(1.0)
            return {}
        ranked.sort(reverse=True)
        del ranked[self._max_drafts :]
        num_tried, gain = self._costs_beside(num_decodes).num_worth_it(
            [probability for probability, _ in ranked], num_decodes, self._target_itl_s
        )
        self._observe_gain(gain)
        if num_tried and self._gain >= _WORTH_LOOKING:
            self._num_fruitless, self._interval = 0, 1
        counts = Counter(request_id for _, request_id in ranked[:num_tried])
        return {request_id: proposals[request_id].token_ids[:count] for request_id, count in counts.items()}

    def _expect(self, request_id: str, proposal: Proposal) -> "_Rates":
        """Hold what comes next in a request against these drafts, if it is not held against earlier ones still.

        Returns the request's rates of such drafts.
        """
        record = self._records.get(request_id)
        if record is None:
            record = self._records[request_id] = _Record()
        basis = proposal.basis
        if basis not in record.rates:
            record.rates[basis] = _Rates(self._all[basis].all_positions(), _MEMORY)
        if record.num_seen == len(record.expected):
            record.expected, record.basis, record.num_seen = proposal.token_ids, basis, 0
        return record.rates[basis]

    def _observe_gain(self, gain: float | None) -> None:
        if gain is not None:
            self._num_gains = min(_MEMORY_OF_GAIN, self._num_gains + 1)
            self._gain += (gain - self._gain) / self._num_gains

    def _costs_beside(self, num_decodes: int) -> "_Costs":
        return self._costs.setdefault(num_decodes.bit_length(), _Costs())


class _Rates:
    """Estimates the share of drafts that are right where those before them are: a running average for each position.

    A position of which nothing is known begins with `prior`, or with the share of the one before it if that is more:
    what goes on as it did before mostly does so for a while.
    """

    __slots__ = ("_counts", "_memory", "_shares")

    def __init__(self, prior: Sequence[float], memory: int) -> None:
        self._shares = [*prior]
        self._counts = [0] * _NUM_POSITIONS
        self._memory = memory

    def observe(self, position: int, *, is_right: bool) -> None:
        position = min(position, _NUM_POSITIONS - 1)
        counts, shares = self._counts, self._shares
        if not counts[position]:
            counts[position] = _PRIOR_WEIGHT
            shares[position] = max(shares[max(0, position - 1) : position + 1])
        count = counts[position] = min(self._memory, counts[position] + 1)
        shares[position] += (is_right - shares[position]) / count

    def of_drafts(self, count: int) -> list[float]:
        """Return the probability that each of so many drafts is accepted, as far as it is worth a thought."""
        probabilities: list[float] = []
        probability, share = 1.0, 0.0
        for position in range(count):
            if position < _NUM_POSITIONS:
                share = self._share(position, share)
            probability *= share
            if probability < _MIN_PROBABILITY:
                break
            probabilities.append(probability)
        return probabilities

    def all_positions(self) -> list[float]:
        """Return what is thought of each position."""
        shares = [self._share(0, 0.0)]
        for position in range(1, _NUM_POSITIONS):
            shares.append(self._share(position, shares[-1]))
        return shares

    def _share(self, position: int, before: float) -> float:
        share = self._shares[position]
        return share if share >= before or self._counts[position] else before


class _Record:
    """Holds a request's rates, and drafts that its next tokens are held against: `num_seen` of them are judged."""

    __slots__ = ("basis", "expected", "num_seen", "rates")

    def __init__(self) -> None:
        self.rates: dict[DraftBasis, _Rates] = {}
        self.expected: list[int] = []
        self.basis: DraftBasis = "long match"
        self.num_seen = 0


class _Costs:
    """Judges what drafts cost beside about so many decodes."""

    def __init__(self) -> None:
        self.step_time = StepTimeModel()  # in which drafts are what prompts are elsewhere
        self._is_being_seen = False  # what decodes take alone, in the step that is about to be observed
        self._num_refused = 0  # in a row
        self._patience = _PATIENCE
        self._alone_s: dict[int, float] = {}  # by decodes, of some steps ago at most
        self._num_steps_alone = 0
        self._rows_s: list[float] = []  # by drafts, one less

    def observe(self, num_decodes: int, num_drafts: int, seconds: float) -> None:
        """Learn from a step how long it took."""
        self.step_time.observe(num_decodes, num_drafts, seconds)
        if num_drafts:
            self._rows_s.clear()
        self._num_steps_alone += not num_drafts
        if num_drafts or self._num_steps_alone % _KEPT_STEPS == 1:
            self._alone_s.clear()

    def num_worth_it(
        self, probabilities: Sequence[float], num_decodes: int, target_s: float | None
    ) -> tuple[int, float | None]:
        """Return how many drafts, the likeliest first, bring most tokens a second; 0 where none do better.

        Now and then it is 0, because what decodes take alone has to be seen, and more, because drafts have. Beside it
        how many times as many tokens a second that makes as no drafts, if that is known.
        """
        if not self.step_time.knows_decodes(num_decodes) and not self._is_being_seen:
            self._is_being_seen = self.alone_s(num_decodes) > 0.0
            return 0, None
        self._is_being_seen = False
        alone_s, rows_s = self.alone_s(num_decodes), self._rows(len(probabilities))
        most = _GROWTH * self.step_time.chunks.most_tokens or _FIRST_TRIAL
        best, highest, gained = 0, 0.0, 0.0
        for count, probability in enumerate(probabilities, 1):
            gained += probability
            step_s = alone_s + rows_s[count - 1]
            if target_s is not None and step_s > target_s:
                break
            if (rate := (num_decodes + gained) / max(step_s, 1e-9)) > highest:
                best, highest = count, rate
        if best and highest * alone_s >= _MIN_GAIN * num_decodes:
            self._num_refused, self._patience = 0, _PATIENCE
            return min(best, most), highest * alone_s / num_decodes
        if best and num_decodes + gained >= _MIN_GAIN * num_decodes and self._is_due():
            return min(len(probabilities), most), 1.0
        return 0, 1.0

    def alone_s(self, num_decodes: int) -> float:
        """Return how long decodes take without drafts; 0 where nothing is known."""
        if num_decodes not in self._alone_s:
            self._alone_s[num_decodes] = self.step_time.decode_s(num_decodes)
        return self._alone_s[num_decodes]

    def _rows(self, count: int) -> list[float]:
        """Return how much longer a step takes for 1, 2, … `count` drafts or more."""
        first = len(self._rows_s) + 1
        self._rows_s += [self.step_time.chunks.seconds_for(drafts) for drafts in range(first, count + 1)]
        return self._rows_s

    def _is_due(self) -> bool:
        """Count a refusal; return whether it is time to see again what drafts cost."""
        self._num_refused += 1
        if self._num_refused < self._patience:
            return False
        self._num_refused, self._patience = 0, min(_MAX_PATIENCE, 2 * self._patience)
        return True
