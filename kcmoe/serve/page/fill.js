// SPDX-License-Identifier: Apache-2.0
// Hidden words filled in: the best beam inside the text, the others below with their probabilities.

import { bar, byId, cutWords, linesOf, make, notice, ofWhole, onSubmit, post, remember, sent, showError, write } from "./client.js";
import { count, examples, onLanguage, percent, say } from "./words.js";

const SENTINEL = /<(?:extra_id_|unused)(\d+)>/g;
let model, results = null, running = null;

export function start(described) {
  model = described;
  onLanguage(render);
  const options = (numbers, chosen) => numbers.map((n) => make("option", { value: n, selected: n === chosen }, n));
  byId("fill-beams").replaceChildren(...options(model.beams, 4));
  const usual = model.new_tokens.find((n) => n >= 32) ?? model.default_new_tokens;
  byId("fill-tokens").replaceChildren(...options(model.new_tokens, usual));
  byId("fill-hide").addEventListener("click", hide);
  byId("fill-text").addEventListener("keydown", (event) => {
    if (event.altKey && event.code === "KeyH") { event.preventDefault(); hide(); }
  });
  byId("fill-example").addEventListener("click", () => write(byId("fill-text"), examples("fill")));
  remember(byId("fill-text"));
  onSubmit(byId("fill-form"), byId("fill-text"), run);
}

// The selected words become the next sentinel; the sentinels of a line are numbered from left to right.
function hide() {
  const area = byId("fill-text"), { selectionStart: from, selectionEnd: to, value } = area;
  const chosen = value.slice(from, to);
  const begin = from + chosen.length - chosen.trimStart().length, end = to - (chosen.length - chosen.trimEnd().length);
  if (begin >= end || chosen.includes("\n")) {
    byId("fill-status").replaceChildren(notice(say("chooseFirst")));
    area.focus();
    return;
  }
  const marked = `${value.slice(0, begin)}<extra_id_999>${value.slice(end)}`;
  write(area, marked.split("\n").map((line) => { let n = 0; return line.replace(SENTINEL, () => `<extra_id_${n++}>`); }).join("\n"));
  byId("fill-status").replaceChildren();
}

async function run() {
  running?.abort();
  const mine = running = new AbortController();
  const place = byId("fill-status");
  const texts = linesOf(byId("fill-text").value).filter((line) => line.trim());
  if (!texts.length) { showError(place, new Error(say("nothing"))); return; }
  if (!texts.some((text) => text.match(SENTINEL))) { showError(place, new Error(say("noBlank"))); return; }
  const largest = Math.max(...texts.flatMap((text) => [...text.matchAll(SENTINEL)].map((match) => Number(match[1]))));
  if (largest >= model.sentinels) { showError(place, new Error(say("noSentinel", { number: largest, last: model.sentinels - 1 }))); return; }
  const stop = make("button", { type: "button", class: "quiet", onclick: () => mine.abort() }, say("stop"));
  place.replaceChildren(make("p", { class: "busy" }, say("working"), " ", stop));
  byId("fill-result").setAttribute("aria-busy", "true");  // what is there answers an older question
  const began = performance.now();
  try {
    const body = { texts: texts.map((text) => sent(text, model.limits)), beams: Number(byId("fill-beams").value), max_tokens: Number(byId("fill-tokens").value), fill: true };
    const answer = await post("generate", body, { signal: mine.signal });
    results = { texts, answers: answer.results.map((one, i) => ofWhole(one, texts[i], model.limits)), seconds: (performance.now() - began) / 1000 };
    place.replaceChildren();
  } catch (problem) {
    if (running !== mine) return;
    if (problem.name !== "AbortError") results = null;
    showError(place, problem);
  }
  render();
}

function filled(text, { fills, text: answer }) {
  if (answer && !Object.values(fills).some(Boolean)) {
    return [make("span", { class: "muted small" }, say("answered")), answer];
  }
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(SENTINEL)) {
    const word = fills[`<extra_id_${match[1]}>`];
    parts.push(text.slice(end, match.index), word ? make("mark", {}, word)
      : make("mark", { class: "empty", title: `<extra_id_${match[1]}>` }, say("emptyFill")));
    end = match.index + match[0].length;
  }
  return [...parts, text.slice(end)];
}

// Beams that put the same words into the blanks are one candidate here, the likeliest of them.
function distinct(text, beams) {
  const blanks = [...text.matchAll(SENTINEL)].map((match) => `<extra_id_${match[1]}>`), seen = new Set();
  return [...beams].sort((one, other) => other.log_likelihood - one.log_likelihood).filter((beam) => {
    const words = JSON.stringify(blanks.some((blank) => beam.fills[blank]) ? blanks.map((blank) => beam.fills[blank]) : beam.text);
    return !seen.has(words) && seen.add(words);
  });
}

function render() {
  byId("fill-result").removeAttribute("aria-busy");
  if (!results) { byId("fill-result").replaceChildren(); return; }
  const cards = results.texts.map((text, i) => {
    const { beams, cut } = results.answers[i];
    const most = Math.exp(Math.max(...beams.map((beam) => beam.log_likelihood)));
    const rows = distinct(text, beams).map((beam, n) => {
      const probability = Math.exp(beam.log_likelihood);
      return make("li", { class: n ? "" : "best" },
        make("p", { class: n ? "filled" : "filled big" }, ...filled(text, beam)),
        make("div", { class: "answer thin" }, bar(probability / most),
          make("span", { class: "answer-number" }, say("shareOf", { probability: exact(probability) })),
          beam.finished ? null : make("span", { class: "badge" }, say("unfinished"))),
        make("details", {}, make("summary", { class: "small muted" }, say("fillRaw")), make("code", {}, beam.text || say("emptyFill"))));
    });
    const warning = cut && notice(cutWords(cut));
    return make("article", { class: "card" }, warning || null, make("ol", { class: "beams" }, ...rows));
  });
  const seconds = results.seconds.toFixed(results.seconds < 1 ? 3 : 1);
  byId("fill-result").replaceChildren(make("p", { class: "muted small timing" },
    `${say("done", { lines: count(results.texts.length), seconds })} · ${say("wide")}`), ...cards);
}

// A sequence may be as unlikely as one in a billion: then a percentage says nothing.
function exact(probability) {
  if (probability >= 0.01) return percent(probability, 2);
  if (probability >= 1e-6) return `${Number((100 * probability).toPrecision(2))}%`;
  const [digits, power] = probability.toExponential(1).split("e");
  return `${digits} × 10${power.replace("-", "⁻").replace(/\d/g, (digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit])}`;
}
