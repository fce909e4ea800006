"""`orcinus bench strategies`: loads, the strategies and the naive baselines that run them, and what they came to."""
