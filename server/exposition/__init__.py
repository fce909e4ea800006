"""What /metrics is written from, besides the counting itself (`server.metrics`).

`declarations`: every metric; `families`: numbers as prometheus-client takes them; `vllm_names`: the same numbers by the
names of vLLM; `cpu_energy`: what the processor's own meters say.
"""
