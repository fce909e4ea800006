"""The inference engine. It knows nothing of HTTP. From a request to its text:

frontend      what a caller holds: streams of text (`AsyncEngine`), or `LLM` in this process
admission     may the request come in, and when else
supervision   the process that runs the core, watched and replaced
scheduler     which request runs how many tokens in the next step, and where its keys and values lie
runner        the step itself: flat tensors in, tokens out; with models, attention, cpu, kernels
sampling      logits to tokens, within what `grammar` allows
text          tokens to text, and back
startup       how all of it is built, once; `platform` is the machine

`core` is the loop's body. `messages`, `outputs`, `sampling_params` and `errors` are the words that all of them share.
"""
