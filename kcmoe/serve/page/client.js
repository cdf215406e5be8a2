// SPDX-License-Identifier: Apache-2.0
// Talking to the server, and small tools to build the page from. Texts become text nodes, never HTML.

import { say } from "./words.js";

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
    const answer = await response.json().catch(() => ({ error: { what: response.statusText } }));
    if (response.ok) return answer;
    const seconds = answer.error?.retry_after_s;
    if (seconds === undefined || attempt === 4) throw new ServerError(answer.error ?? { what: String(response.status) });
    status?.(say("retry", { seconds }));
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
  }
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
  const rows = [["where", error.where], ["mend", error.mend]].filter(([, text]) => text)
    .map(([word, text]) => make("p", { class: "small" }, make("b", {}, `${say(word)}: `), text));
  place.replaceChildren(make("div", { class: "notice bad", role: "alert" }, make("p", {}, error.what), ...rows));
}

export function notice(...parts) { return make("p", { class: "notice" }, ...parts); }

export function linesOf(text) { return text.replace(/\r\n?/g, "\n").split("\n"); }

export function onSubmit(form, area, run) {
  form.addEventListener("submit", (event) => { event.preventDefault(); run(); });
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); run(); }
  });
}
