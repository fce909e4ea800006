"""The inference engine. It knows nothing of HTTP. From a request to its text:

frontend      what a caller holds: streams of text (`AsyncEngine`), or `LLM` in this process
admission     may the request come in, and when else
supervision   the process that runs the core, watched and replaced
scheduler     which request runs how many tokens in the next step, and where its keys and values lie
runner        the step itself: flat tensors in, tokens out
models        transformers' models as tokens to hidden states to logits
attention     attention over the paged KV cache, a module for each backend
recurrent     layers that keep a state for each sequence, in slots
cpu, kernels  layers as they run on a CPU; native code
sampling      logits to tokens
grammar       which tokens a schema, a regex or a grammar allows next
text          text to tokens, and back
startup       how all of it is built, once
platform      the machine: devices, memory, child processes

`core` is the loop's body. `messages`, `outputs`, `sampling_params` and `errors` are the words that all of them share.
"""
