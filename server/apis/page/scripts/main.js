/* Puts the parts of the page together: what is served, the key, the theme, and when the page looks. */

import { ask, hasKey, keepKey, RefusedKey } from "./api.js";
import { Chat } from "./chat.js";
import { at, setText, toast } from "./dom.js";
import { Feed } from "./feed.js";
import { Holders } from "./holders.js";
import { forgetColours, Lanes } from "./lanes.js";
import { Race } from "./race.js";
import { Tiles } from "./tiles.js";

const RETRY_MS = 1000;
const HIDDEN_MS = 5000; // after which a page that nobody sees asks for nothing
const THEMES = ["auto", "light", "dark"];

let isKeyNeeded = false;
let isKeyRefused = false; // until another one is given
const feed = new Feed();
const lanes = new Lanes(feed);
const parts = { onRefused: askForKeyIfRefused, needsKey: () => isKeyNeeded, isReady };
const chat = new Chat(feed, parts);
const race = new Race(feed, parts);
new Tiles(feed);
new Holders(feed);

/* --- what is served --- */

async function showModel() {
  try {
    await ask("ready");
    const { data } = await (await ask("v1/models")).json();
    useModel(data[0].id);
    feed.start();
  } catch (error) {
    if (error instanceof RefusedKey) return askForKey();
    showStatus("waiting", error.message);
    setTimeout(showModel, RETRY_MS);
  }
}

/* Another server may have taken the place of the one before; then its prompts have other tokens, too. */
function useModel(name) {
  if (chat.model === name) return;
  chat.model = race.model = name;
  race.forgetPrompts();
}

/* Whether requests can be sent; where a key is missing for that, it is asked for. */
function isReady(model) {
  if (isKeyRefused) askForKey();
  else if (model === null) toast("The server is not ready yet");
  return !isKeyRefused && model !== null;
}

function showStatus(status, text) {
  if (at("dot").dataset.status !== status) at("dot").dataset.status = status;
  setText(at("model"), text);
}

feed.addEventListener("news", () => {
  const { model, max_model_len: context } = feed.server;
  const { status } = feed.last;
  useModel(model);
  const size = context ? ` · context ${context.toLocaleString("en")}` : "";
  showStatus(status, `${model}${size}${status === "ready" ? "" : ` · ${status}`}`);
});
feed.addEventListener("lost", () => showStatus("lost", "The server does not answer"));
feed.addEventListener("refused", askForKey);

/* --- the key --- */

function askForKeyIfRefused(error) {
  if (error instanceof RefusedKey) askForKey();
}

function askForKey() {
  isKeyNeeded = isKeyRefused = true;
  at("change-key").hidden = false;
  showStatus("waiting", hasKey() ? "This API key is not valid here." : "This server needs an API key.");
  at("login-title").textContent = hasKey() ? "This API key is not valid here" : "This server needs an API key";
  if (!at("login").open) at("login").showModal();
  at("key").focus();
}

at("login-form").addEventListener("submit", event => {
  event.preventDefault();
  keepKey(at("key").value.trim());
  isKeyRefused = false;
  at("key").value = "";
  at("login").close();
  feed.stop();
  showModel();
});
at("login-cancel").addEventListener("click", () => at("login").close());
at("change-key").addEventListener("click", () => {
  at("login-title").textContent = "Use another API key";
  at("login").showModal();
});

/* --- the theme --- */

function useTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  at("theme").setAttribute("aria-label", `Theme: ${theme}`);
  setText(at("theme-name"), theme[0].toUpperCase() + theme.slice(1));
  forgetColours();
  lanes.draw();
  race.redraw();
}

at("theme").addEventListener("click", () => {
  const theme = THEMES[(THEMES.indexOf(localStorage.getItem("theme") ?? "auto") + 1) % THEMES.length];
  localStorage.setItem("theme", theme);
  useTheme(theme);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => useTheme(localStorage.getItem("theme") ?? "auto"));
useTheme(localStorage.getItem("theme") ?? "auto");

/* --- while nobody looks --- */

let hiding = null;
document.addEventListener("visibilitychange", () => {
  clearTimeout(hiding);
  if (document.hidden) hiding = setTimeout(() => feed.stop(), HIDDEN_MS);
  else if (chat.model !== null) feed.start();
});

showModel();
