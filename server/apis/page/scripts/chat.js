/* The playground: a conversation, streamed, with the settings of a request. */

import { events, hasKey, post, shortId } from "./api.js";
import { at, element, shortNumber, toast } from "./dom.js";
import { asCurl, asPython } from "./snippets.js";

const FIELDS = { temperature: "temperature", "top-p": "top_p", "max-tokens": "max_tokens" };

export class Chat {
  #messages = [];
  #asking = null;

  constructor(feed, { onRefused, needsKey, isReady }) {
    this.feed = feed;
    this.model = null;
    this.onRefused = onRefused;
    this.isReady = isReady;
    this.needsKey = () => needsKey() || hasKey();
    at("ask").addEventListener("submit", event => this.#submit(event));
    at("question").addEventListener("keydown", event => this.#onKey(event));
    document.addEventListener("keydown", event => event.key === "Escape" && this.#asking?.abort());
    at("clear").addEventListener("click", () => this.#clear());
    at("copy-curl").addEventListener("click", () => this.#copy("curl", asCurl(this.#url(), this.#body(), this.needsKey())));
    at("copy-python").addEventListener("click", () =>
      this.#copy("Python", asPython(new URL("v1", location.href).href, this.#body(), this.needsKey())),
    );
    for (const suggestion of document.querySelectorAll(".suggestion"))
      suggestion.addEventListener("click", () => {
        at("question").value = suggestion.textContent;
        at("ask").requestSubmit();
      });
    at("settings").addEventListener("input", () => this.#sumUp());
  }

  #url() {
    return new URL("v1/chat/completions", location.href).href;
  }

  /* The request that would be sent now, without how it is streamed. */
  #body() {
    const draft = at("question").value.trim();
    const system = at("system").value.trim();
    const messages = [
      ...(system ? [{ role: "system", content: system }] : []),
      ...this.#messages,
      ...(draft ? [{ role: "user", content: draft }] : []),
    ];
    return { model: this.model, messages, ...chosenSettings() };
  }

  #onKey(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    at("ask").requestSubmit();
  }

  /* While an answer comes, the button ends it. */
  async #submit(event) {
    event.preventDefault();
    if (this.#asking !== null) return this.#asking.abort();
    if (!at("question").value.trim() || !this.isReady(this.model) || !settingsAreValid()) return;
    const body = this.#body();
    const messages = this.#messages; // another list, once the conversation is cleared
    this.#asking = new AbortController();
    at("send").textContent = "Stop";
    at("send").classList.add("is-stop");
    const answer = this.#begin(at("question").value.trim());
    at("question").value = "";
    let failure = null;
    try {
      await this.#stream(body, answer);
    } catch (error) {
      this.onRefused(error);
      failure = error;
    }
    if (messages === this.#messages) answer.end(failure);
    if (answer.text) messages.push(body.messages.at(-1), { role: "assistant", content: answer.text });
    this.#asking = null;
    at("send").textContent = "Send";
    at("send").classList.remove("is-stop");
  }

  #begin(question) {
    at("empty").hidden = true;
    at("answers").append(element("p", { className: "said", text: question }));
    return new Answer(at("answers"));
  }

  async #stream(body, answer) {
    const options = { stream: true, stream_options: { include_usage: true } };
    for await (const chunk of events(await post("v1/chat/completions", { ...body, ...options }, this.#asking.signal))) {
      if (chunk.error) throw new Error(chunk.error.message);
      this.feed.ownIds.add(shortId(chunk.id));
      answer.add(chunk);
    }
  }

  #clear() {
    this.#asking?.abort();
    this.#messages = [];
    at("answers").replaceChildren(at("empty"));
    at("empty").hidden = false;
    at("question").focus();
  }

  async #copy(kind, text) {
    try {
      await navigator.clipboard.writeText(text);
      toast(`Copied as ${kind}`);
    } catch {
      at("snippet-title").textContent = `As ${kind}`;
      at("snippet-text").value = text;
      at("snippet").showModal();
      at("snippet-text").select();
    }
  }

  #sumUp() {
    const chosen = Object.entries(chosenSettings()).map(([name, value]) => `${name.replace("_", " ")} ${value}`);
    if (at("system").value.trim()) chosen.unshift("system prompt");
    at("settings-summary").textContent = chosen.join(" · ") || "the model’s own";
  }
}

/* Only what somebody has chosen is sent. */
function chosenSettings() {
  const chosen = {};
  for (const [id, name] of Object.entries(FIELDS)) {
    const value = at(id).valueAsNumber;
    if (Number.isFinite(value)) chosen[name] = value;
  }
  return chosen;
}

function settingsAreValid() {
  const wrong = Object.keys(FIELDS).find(id => !at(id).checkValidity());
  if (wrong === undefined) return true;
  at("settings").open = true;
  at(wrong).reportValidity();
  return false;
}

/* An answer on its way: thoughts, text, and how long it took. */
class Answer {
  #reasoning = null;
  #started = performance.now();
  #first = null;
  #usage = null;

  constructor(log) {
    this.log = log;
    this.content = element("p", { className: "answer is-coming" });
    log.append(this.content);
    this.#scroll();
  }

  get text() {
    return this.content.textContent;
  }

  add(chunk) {
    this.#usage = chunk.usage ?? this.#usage;
    const delta = chunk.choices[0]?.delta ?? {};
    if (delta.content || delta.reasoning_content) this.#first ??= performance.now();
    if (delta.reasoning_content) this.#think(delta.reasoning_content);
    if (delta.content) this.content.append(delta.content);
    this.#scroll();
  }

  #think(text) {
    if (this.#reasoning === null) {
      this.#reasoning = element("p", { className: "reasoning" });
      this.content.before(this.#reasoning);
    }
    this.#reasoning.append(text);
  }

  /* `failure` is why it did not come to its end, if it did not. */
  end(failure) {
    this.content.classList.remove("is-coming");
    const note = failure?.name === "AbortError" ? "Stopped" : "";
    if (failure && !note) this.log.append(element("p", { className: "error", text: failure.message }));
    else this.log.append(element("p", { className: "timing", text: [note, this.#timing()].filter(Boolean).join(" · ") }));
    this.#scroll();
  }

  #timing() {
    if (this.#usage === null || this.#first === null) return "";
    const count = this.#usage.completion_tokens;
    const decodeS = (performance.now() - this.#first) / 1000;
    const pace = count > 1 && decodeS > 0 ? ` · ${shortNumber((count - 1) / decodeS)} tokens/s` : "";
    return `${count} tokens${pace} · first after ${shortNumber(this.#first - this.#started)} ms`;
  }

  #scroll() {
    this.log.scrollTop = this.log.scrollHeight;
  }
}
