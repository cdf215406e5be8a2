// SPDX-License-Identifier: Apache-2.0
// Talking to the server, and small tools to build the page from. Texts become text nodes, never HTML.

import { count, has, say, stored, store } from "./words.js";

export class ServerError extends Error {
  constructor(error) { super(error.what); this.error = error; }
}

async function request(path, options, status) {
  for (let attempt = 0; ; attempt++) {
    let response;
    try {
      response = await fetch(path, options);
    } catch (problem) {
      if (problem.name === "AbortError") throw problem;
      throw new ServerError({ what: say("cannotReach") });
    }
    const answer = await response.json().catch((problem) => { if (problem.name === "AbortError") throw problem; return null; });
    if (response.ok && answer !== null) return answer;
    const error = answer?.error ?? { status: response.ok ? "cut" : response.status, what: `HTTP ${response.status}` };
    const seconds = error.retry_after_s;
    if (seconds === undefined || attempt === 4) throw new ServerError(error);
    status?.(say("retry", { seconds }));
    await pause(1000 * seconds, options.signal);
  }
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); });
  });
}

export function get(path) { return request(path, {}); }

export function post(operation, body, { signal, status } = {}) {
  return request(`v1/${operation}`, {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal,
  }, status);
}

export function byId(id) { return document.getElementById(id); }

// An element: make("td", { class: "n", onclick: f }, "text", child, …)
export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, one] of Object.entries(value)) node.style.setProperty(key, one);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function bar(share, name) {
  const filled = make("span", { class: "bar-filled", style: { width: `${(100 * share).toFixed(2)}%` } });
  return make("span", { class: `bar ${name ?? ""}`, "aria-hidden": "true" }, filled);
}

export function showError(place, problem) {
  if (problem.name === "AbortError") { place.replaceChildren(); return; }
  const error = problem.error ?? { what: String(problem.message ?? problem) };
  // The server speaks English; the page says in its reader's language what that means, and shows it below.
  const known = has(`status_${error.status}`) && say(`status_${error.status}`);
  const listed = [["server", known && error.what], ["where", error.where], ["mend", error.mend]].filter(([, text]) => text);
  const rows = listed.map(([word, text]) => make("p", { class: "small" }, make("b", {}, `${say(word)}: `), make("span", { lang: "en" }, text)));
  place.replaceChildren(make("div", { class: "notice bad", role: "alert" }, make("p", {}, known || error.what), ...rows));
}

// What of a text is sent: of one longer than the server takes, more than the model reads of any.
export function sent(text, limits) {
  const whole = text.toWellFormed?.() ?? text;
  return whole.length <= limits.characters ? whole : [...whole].slice(0, limits.characters).join("");
}

// An answer to a text that was not sent whole, with what the server could not know of it.
export function ofWhole(answer, text, limits) {
  const characters = [...text];
  if (characters.length <= limits.characters) return answer;
  const cut = answer.cut ?? { character: limits.characters, kept_tokens: answer.tokens - 1,
    before: characters.slice(limits.characters - 20, limits.characters).join(""), after: characters.slice(limits.characters, limits.characters + 20).join("") };
  return { ...answer, cut: { ...cut, tokens: null, characters: characters.length } };
}

export function cutWords({ tokens, characters, kept_tokens: kept, character }) {
  return say(tokens === null ? "cutLong" : "cutOne", { characters: count(characters), tokens: count(tokens ?? 0), kept: count(kept), character: count(character + 1) });
}

// What is typed outlives a reload, and a way to another page and back.
export function remember(area) {
  const name = `kcmoe-${area.id}`;
  area.value = area.value || (stored(name, sessionStorage) ?? "");
  area.addEventListener("input", () => store(name, area.value, sessionStorage));
}

export function write(area, text) {
  area.value = text;
  area.dispatchEvent(new Event("input"));
  area.focus();
}

export function notice(...parts) { return make("p", { class: "notice" }, ...parts); }

export function linesOf(text) { return text.replace(/\r\n?/g, "\n").split("\n"); }

export function onSubmit(form, area, run) {
  form.addEventListener("submit", (event) => { event.preventDefault(); run(); });
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); run(); }
  });
}
