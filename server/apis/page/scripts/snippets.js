/* A request as a command and as a program. Keys are named, and never shown. */

export function asCurl(url, body, needsKey) {
  const json = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  const key = needsKey ? `  -H "Authorization: Bearer $ORCINUS_API_KEY" \\\n` : "";
  return `curl '${url}' \\\n  -H 'Content-Type: application/json' \\\n${key}  -d '${json}'\n`;
}

export function asPython(baseUrl, body, needsKey) {
  const { messages, ...options } = body;
  const key = needsKey ? 'os.environ["ORCINUS_API_KEY"]' : '"none"';
  const lines = messages.map(message => `    ${pythonDict(message)},`);
  const settings = Object.entries(options).map(([name, value]) => `    ${name}=${JSON.stringify(value)},`);
  return [
    ...(needsKey ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(baseUrl)}, api_key=${key})`,
    "messages = [",
    ...lines,
    "]",
    "stream = client.chat.completions.create(",
    "    messages=messages,",
    ...settings,
    "    stream=True,",
    ")",
    "for chunk in stream:",
    '    print(chunk.choices[0].delta.content or "", end="", flush=True)',
    "print()",
    "",
  ].join("\n");
}

const pythonDict = entries =>
  `{${Object.entries(entries)
    .map(([name, value]) => `${JSON.stringify(name)}: ${JSON.stringify(value)}`)
    .join(", ")}}`;
