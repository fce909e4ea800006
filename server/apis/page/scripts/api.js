/* How the server is asked: with the key of this tab, if there is one. */

/* Headers take bytes: a key beyond ASCII is sent as UTF-8. */
export function headers() {
  const key = sessionStorage.getItem("key");
  if (!key) return {};
  return { Authorization: "Bearer " + String.fromCharCode(...new TextEncoder().encode(key)) };
}

export const hasKey = () => Boolean(sessionStorage.getItem("key"));

export const keepKey = key => sessionStorage.setItem("key", key);

export class RefusedKey extends Error {}

/* Returns an answer that is a success. `onRefused` is told where a key is missing or wrong. */
export async function ask(path, options = {}) {
  const response = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  if (response.ok) return response;
  const message = await messageOf(response);
  throw response.status === 401 ? new RefusedKey(message) : new Error(message);
}

export function post(path, body, signal) {
  return ask(path, {
    method: "POST",
    signal,
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
}

async function messageOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `${response.status} ${response.statusText}`;
  }
}

/* Server-sent events of an answer to any request, which EventSource cannot read, nor send a key. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts)
      if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
  }
}

/* The end of an answer's id, by which it is known in the slots. */
export const shortId = id => id.slice(-6);
