// SPDX-License-Identifier: Apache-2.0
// The map: which experts took each piece of a text, layer by layer; and what each expert likes.

import { bar, byId, cutWords, get, make, notice, ofWhole, onSubmit, post, remember, sent, showError, write } from "./client.js";
import { count, examples, onLanguage, percent, say } from "./words.js";

let model, running = null, map = null, tastes = null, chosenExpert = null, at = [0, 0];

export function start(described) {
  model = described;
  onLanguage(() => { renderMap(); renderTastes(); });
  if (!model.experts) {
    byId("experts-form").hidden = true;
    byId("experts-status").replaceChildren(notice(say("noExperts")));
    return;
  }
  byId("experts-prompt").disabled = !oneColumn();
  byId("experts-prompt").checked = oneColumn();
  byId("experts-example").addEventListener("click", () => write(byId("experts-text"), examples("experts")));
  remember(byId("experts-text"));
  onSubmit(byId("experts-form"), byId("experts-text"), run);
  renderTastes();
}

function oneColumn() {
  const task = model.tasks.find((one) => one.name === model.default_task);
  return task !== undefined && task.columns.length === 1;
}

async function run() {
  running?.abort();
  const mine = running = new AbortController();
  const place = byId("experts-status"), text = byId("experts-text").value.trim();
  if (!text) { showError(place, new Error(say("nothing"))); return; }
  const stop = make("button", { type: "button", class: "quiet", onclick: () => mine.abort() }, say("stop"));
  place.replaceChildren(make("p", { class: "busy" }, say("working"), " ", stop));
  byId("experts-result").setAttribute("aria-busy", "true");  // what is there answers an older question
  try {
    const task = byId("experts-prompt").checked ? { task: model.default_task } : {};
    map = ofWhole(await post("experts", { text: sent(text, model.limits), ...task }, { signal: mine.signal }), text, model.limits);
    const first = map.pieces.findIndex((piece) => !piece.prompt);
    at = [0, Math.max(0, first)];
    chosenExpert = null;
    place.replaceChildren();
  } catch (problem) {
    if (running !== mine) return;
    if (problem.name !== "AbortError") map = null;
    showError(place, problem);
  }
  renderMap();
}

function shownPiece(piece) {
  if (piece.piece === "</s>") return "⏎";
  if (/^<0x/.test(piece.piece)) return piece.text || piece.piece.slice(3, 5);
  return piece.piece.replace(/▁/g, "␣");
}

function renderMap() {
  byId("experts-result").removeAttribute("aria-busy");
  if (!map) { byId("experts-result").replaceChildren(); return; }
  const blocks = map.layers.map((layer, l) => {
    const used = new Set(layer.chosen.flat());
    const number = Number(layer.layer.split("_").at(-1)) + 1;
    const pieces = map.pieces.map((piece, p) => pieceButton(layer, piece, l, p));
    return make("section", { class: "layer", "aria-label": say("layer", { number }) },
      make("h3", {}, say("layer", { number }), " ",
        make("span", { class: "muted small" }, say("layerNote", { name: layer.layer, experts: map.num_experts, used: used.size }))),
      make("div", { class: "pieces", role: "group" }, ...pieces), experts(layer));
  });
  const all = map.layers.flatMap((layer) => layer.dropped.flat());
  const lost = all.filter(Boolean).length, c = map.capacity;
  const capacity = say("capacity", { rows: count(c.rows), tokens: count(c.tokens), groups: count(c.groups), places: count(c.places_per_expert),
    all: count(all.length), lost: count(lost), share: percent(all.length ? lost / all.length : 0) });
  const cut = map.cut && notice(cutWords(map.cut));
  byId("experts-result").replaceChildren(make("article", { class: "card", onkeydown: move }, cut || null, legend(),
    make("p", { id: "piece-detail", class: "detail", "aria-live": "polite" }, say("pieceHelp")), ...blocks,
    make("p", { class: "small muted" }, capacity)));
}

function pieceButton(layer, piece, l, p) {
  const cells = layer.chosen[p].map((expert, k) => make("span", {
    class: `cell ${layer.dropped[p][k] ? "dropped" : ""}`, style: { "--weight": shade(layer.weights[p][k]) },
    ...strength(layer.weights[p][k]) }, expert));
  const faded = chosenExpert !== null && !(chosenExpert[0] === l && layer.chosen[p].includes(chosenExpert[1]));
  return make("button", { type: "button", class: `piece ${piece.prompt ? "prompt" : ""} ${faded ? "faded" : ""}`,
    id: `piece-${l}-${p}`, tabindex: at[0] === l && at[1] === p ? 0 : -1, "aria-label": detail(l, p),
    onfocus: () => { at = [l, p]; tell(l, p); }, onmouseenter: () => tell(l, p), onclick: () => tell(l, p) },
  make("span", { class: "piece-text", "aria-hidden": "true" }, shownPiece(piece)), make("span", { class: "cells", "aria-hidden": "true" }, ...cells));
}

// Weights are often small beside 1 / experts; the square root keeps them apart.
function shade(weight) { return `${Math.round(100 * Math.sqrt(weight))}%`; }

// Where dark letters stop being legible on the colour in the light theme, and light ones in the dark theme.
function strength(weight) { return { "data-strong": weight > 0.48, "data-bright": weight > 0.3 }; }

function detail(l, p) {
  const layer = map.layers[l], piece = map.pieces[p];
  const choices = layer.chosen[p].map((expert, k) => say("choice", { expert, weight: percent(layer.weights[p][k]) })).join(", ");
  const lost = layer.dropped[p].flatMap((gone, k) => gone ? [say(k < 2 ? `which${k}` : "whichN", { n: k + 1 })] : []);
  const parts = [say("detail", { piece: piece.piece === "</s>" ? say("end") : shownPiece(piece), choices }),
    say("entropy", { entropy: layer.entropy[p].toFixed(2), most: Math.log(map.num_experts).toFixed(2) })];
  if (lost.length) parts.push(say("wouldDrop", { which: lost.join(", ") }));
  if (piece.prompt) parts.push(say("promptPiece"));
  return parts.join(" · ");
}

function tell(l, p) {
  byId("piece-detail").textContent = detail(l, p);
  for (const old of document.querySelectorAll(".piece.now")) old.classList.remove("now");
  byId(`piece-${l}-${p}`)?.classList.add("now");
}

function move(event) {
  const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
  if (!step || !event.target.classList.contains("piece")) return;
  const l = Math.min(map.layers.length - 1, Math.max(0, at[0] + step[0]));
  const p = Math.min(map.pieces.length - 1, Math.max(0, at[1] + step[1]));
  byId(`piece-${at[0]}-${at[1]}`).tabIndex = -1;
  at = [l, p];
  byId(`piece-${l}-${p}`).tabIndex = 0;
  byId(`piece-${l}-${p}`).focus();
  event.preventDefault();
}

// How often each expert was chosen here; pressing one leaves only its pieces bright.
function experts(layer) {
  const l = map.layers.indexOf(layer), times = new Map();
  for (const pair of layer.chosen) for (const expert of pair) times.set(expert, (times.get(expert) ?? 0) + 1);
  const listed = [...times].sort((a, b) => b[1] - a[1]);
  return make("div", { class: "chosen" }, ...listed.map(([expert, n]) => {
    const pressed = chosenExpert !== null && chosenExpert[0] === l && chosenExpert[1] === expert;
    return make("button", { type: "button", class: "chip", id: `expert-${l}-${expert}`, "aria-pressed": String(pressed),
      onclick: () => { chosenExpert = pressed ? null : [l, expert]; renderMap(); byId(`expert-${l}-${expert}`).focus(); } },
    `${say("taste", { expert })} × ${n}`);
  }));
}

function legend() {
  const steps = [0.02, 0.1, 0.25, 0.5, 0.9].map((weight) =>
    make("span", { class: "cell", style: { "--weight": shade(weight) }, ...strength(weight) }, percent(weight, 0)));
  return make("div", { class: "legend small", "aria-hidden": "true" }, make("span", {}, say("weight")), ...steps,
    make("span", { class: "cell dropped", style: { "--weight": shade(0.1) } }, "7"), make("span", {}, say("dropped")),
    make("span", { class: "signs" }, `␣ ${say("space")} · ⏎ ${say("end")}`));
}

function renderTastes() {
  const place = byId("tastes");
  if (!model?.experts) return;
  if (!tastes) {
    const button = make("button", { type: "button", id: "tastes-show", onclick: async () => {
      button.disabled = true;
      button.textContent = say("working");
      try { tastes = await get("v1/experts/preferences"); renderTastes(); } catch (problem) { showError(place, problem); }
    } }, say("showTastes"));
    place.replaceChildren(button);
    return;
  }
  const layers = tastes.layers.map((layer) => {
    const most = Math.max(...layer.experts.map((one) => one.share));
    const cards = layer.experts.map((one) => make("li", { class: "taste" },
      make("div", { class: "row" }, make("b", {}, say("taste", { expert: one.expert })), make("span", { class: "grow" }),
        make("span", { class: "muted small" }, say("share", { share: percent(one.share) }))),
      bar(one.share / most, "slim"),
      one.pieces.length ? make("p", { class: "likes" }, ...one.pieces.map((piece) =>
        make("span", { class: "like", title: say("times", { times: count(piece.times), of: count(piece.of) }) }, shownPiece({ ...piece, text: "" }))))
        : make("p", { class: "muted small" }, say("unused"))));
    const number = Number(layer.layer.split("_").at(-1)) + 1;
    return make("section", {}, make("h3", {}, say("layer", { number })), make("ul", { class: "tastes" }, ...cards));
  });
  place.replaceChildren(make("article", { class: "card" }, make("h2", {}, say("tastes")),
    make("p", { class: "muted small" }, say("tastesLead", { comments: count(tastes.comments) })), ...layers));
}
