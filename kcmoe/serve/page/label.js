// SPDX-License-Identifier: Apache-2.0
// Lines or a file to labels: one line is shown large, several as a table that can be sorted and saved.

import { bar, byId, cutWords, linesOf, make, notice, ofWhole, onSubmit, post, remember, sent, showError, write } from "./client.js";
import { count, examples, has, onLanguage, percent, say } from "./words.js";
import * as csv from "./csv.js";

const CHUNK = 128, MOST_LINES = 20000, MOST_BYTES = 20e6, SHOWN_AT_ONCE = 200;
let model, task, file = null, results = null, sort = { by: "number", down: false }, shown = SHOWN_AT_ONCE, running = null;

export function start(described) {
  model = described;
  onLanguage(() => { showTasks(); showColumns(); render(); });
  byId("label-task").addEventListener("change", () => choose(byId("label-task").value));
  byId("label-open").addEventListener("click", () => byId("label-file").click());
  byId("label-file").addEventListener("change", (event) => { open(event.target.files[0]); event.target.value = ""; });
  byId("label-example").addEventListener("click", insertExamples);
  onSubmit(byId("label-form"), byId("label-columns"), run);
  startDropping();
  if (!model.tasks.length) {
    byId("label-form").hidden = true;
    byId("label-status").replaceChildren(notice(say("noTask")));
    return;
  }
  showTasks();
  choose(model.default_task ?? model.tasks[0].name);
}

function columnName(column) { return has(`column_${column}`) ? say(`column_${column}`) : column; }

function showTasks() {
  const chosen = byId("label-task").value;
  const options = (learnt) => model.tasks.filter((one) => one.learnt === learnt).map((one) =>
    make("option", { value: one.name, selected: one.name === chosen }, `${one.name} (${one.labels.slice(0, 4).join(" · ")}${one.labels.length > 4 ? " …" : ""})`));
  const groups = [[true, "learnt"], [false, "otherTasks"]].map(([learnt, word]) => [options(learnt), word])
    .filter(([list]) => list.length).map(([list, word]) => make("optgroup", { label: say(word) }, ...list));
  byId("label-task").replaceChildren(...groups);
}

function choose(name) {
  task = model.tasks.find((one) => one.name === name);
  byId("label-task").value = name;
  file = null;
  showColumns();
}

function showColumns() {
  if (!task) return;
  byId("label-task-note").textContent = task.learnt ? "" : say("notLearnt");
  const before = [...byId("label-columns").querySelectorAll("textarea")].map((area) => area.value);
  const areas = task.columns.map((column, i) => {
    const id = `label-text-${i}`;
    const area = make("textarea", { id, rows: task.columns.length > 1 ? 3 : 5, spellcheck: "false" });
    area.value = before[i] ?? "";
    remember(area);
    return make("div", {}, make("label", { for: id, class: "block" }, columnName(column)), area);
  });
  byId("label-columns").replaceChildren(...(file ? [fileCard()] : areas));
}

function insertExamples() {
  file = null;
  showColumns();
  task.columns.forEach((column, i) => write(byId(`label-text-${i}`), examples(column).join("\n")));
  byId("label-text-0").focus();
}

// --- Files.

// Anywhere on the page: a file that is dropped beside a panel would otherwise replace the page.
function startDropping() {
  const zone = byId("label");
  let depth = 0;
  const over = (on) => { zone.classList.toggle("dropping", on); zone.dataset.drop = say("dropHere"); };
  const onFiles = (name, act) => document.addEventListener(name, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    if (!zone.hidden) act(event);
  });
  onFiles("dragenter", () => { depth++; over(true); });
  onFiles("dragleave", () => { depth--; if (depth <= 0) over(false); });
  onFiles("dragover", () => {});
  onFiles("drop", (event) => { depth = 0; over(false); open(event.dataTransfer.files[0]); });
}

async function open(chosen) {
  if (!chosen) return;
  const place = byId("label-status"), name = chosen.name;
  if (chosen.size > MOST_BYTES) {
    const size = (chosen.size / 1e6).toFixed(1);
    showError(place, new Error(say("fileLarge", { name, size, limit: MOST_BYTES / 1e6 })));
    return;
  }
  const read = csv.decode(new Uint8Array(await chosen.arrayBuffer()));
  if (!read) { showError(place, new Error(say("fileBad", { name }))); return; }
  let rows;
  try {
    rows = csv.rowsOf(name, read.text);
  } catch (problem) {
    showError(place, problem instanceof csv.OpenQuote ? new Error(say("fileQuote", { name, line: count(problem.line) })) : problem);
    return;
  }
  if (!rows.length) { showError(place, new Error(say("fileEmpty", { name }))); return; }
  const width = rows.reduce((most, row) => Math.max(most, row.length), 1);
  const header = width > 1 || task.columns.includes(rows[0]?.[0]);
  const guess = (column, i) => {
    const at = (rows[0] ?? []).indexOf(column);
    return at >= 0 ? at : Math.min(width - 1, width > 1 ? longestColumn(rows, width) + i : 0);
  };
  file = { name, rows, width, header, columns: task.columns.map(guess) };
  showColumns();
  const parts = [say("fileRead", { name })];
  if (read.korean) parts.push(say("fileKorean"));
  place.replaceChildren(notice(parts.join(" ")));
}

function longestColumn(rows, width) {
  const sums = Array.from({ length: width }, (_, i) => rows.slice(0, 200).reduce((sum, row) => sum + (row[i]?.length ?? 0), 0));
  return sums.indexOf(Math.max(...sums));
}

function namesOf({ width, header, rows }) {
  return Array.from({ length: width }, (_, i) => (header && rows[0][i]) || `${i + 1}`);
}

function fileCard() {
  const names = namesOf(file);
  const selects = task.columns.map((column, at) => {
    const select = make("select", { id: `label-column-${at}`, onchange: (event) => { file.columns[at] = Number(event.target.value); } },
      ...names.map((name, i) => make("option", { value: i, selected: i === file.columns[at] }, name.slice(0, 40))));
    return make("div", { class: "row" }, make("label", { for: select.id }, `${say("fileColumn")}: ${columnName(column)}`), select);
  });
  const box = make("input", { type: "checkbox", checked: file.header, onchange: (event) => { file.header = event.target.checked; showColumns(); } });
  const lines = file.rows.length - (file.header ? 1 : 0);
  return make("div", { class: "file" },
    make("p", {}, make("b", {}, file.name), " ", make("span", { class: "muted" }, say("fileSize", { lines: count(lines), width: file.width }))),
    lines > MOST_LINES ? make("p", { class: "small" }, say("fileLines", { lines: count(lines), limit: count(MOST_LINES) })) : null,
    ...selects,
    make("div", { class: "row" }, make("label", { class: "check" }, box, " ", say("fileHeader")),
      make("button", { type: "button", class: "quiet", onclick: () => { file = null; showColumns(); } }, say("closeFile"))));
}

// --- Asking.

function rowsToAsk() {
  if (file) {
    const rows = file.rows.slice(file.header ? 1 : 0).slice(0, MOST_LINES);
    return rows.map((row) => file.columns.map((i) => row[i] ?? ""));
  }
  const columns = task.columns.map((_, i) => linesOf(byId(`label-text-${i}`).value.replace(/\n+$/, "")));
  const counts = columns.map((lines) => lines.length);
  if (new Set(counts).size > 1) throw new Error(say("unequal", { counts: counts.join(", ") }));
  const rows = columns[0].map((_, i) => columns.map((lines) => lines[i]));
  const kept = rows.filter((row) => row.some((text) => text.trim()));
  return kept.slice(0, MOST_LINES);
}

async function run() {
  running?.abort();
  const mine = running = new AbortController();
  const place = byId("label-status"), asked = task;
  let rows;
  try {
    rows = rowsToAsk();
    if (!rows.length) throw new Error(say("nothing"));
  } catch (problem) { showError(place, problem); return; }
  results = { task: asked, file, rows: [], seconds: 0 };
  byId("label-result").setAttribute("aria-busy", "true");  // what is there answers an older question
  sort = { by: "number", down: false };
  shown = SHOWN_AT_ONCE;
  const stop = make("button", { type: "button", class: "quiet", onclick: () => mine.abort() }, say("stop"));
  const began = performance.now();
  try {
    for (const part of chunks(rows)) {
      const done = results.rows.length;
      const words = rows.length > CHUNK ? say("progress", { done: count(done), total: count(rows.length) }) : say("working");
      place.replaceChildren(make("p", { class: "busy" }, words, " ", stop));
      const texts = part.map((row) => row.map((text) => sent(text, model.limits))).map((row) => row.length === 1 ? row[0] : row);
      const answer = await post("classify", { texts, task: asked.name },
        { signal: mine.signal, status: (word) => place.replaceChildren(make("p", { class: "busy" }, word, " ", stop)) });
      answer.predictions.forEach((one, i) => results.rows.push({ number: done + i + 1, columns: part[i],
        ...(part[i].length === 1 ? ofWhole(one, part[i][0], model.limits) : one) }));
      results.seconds = (performance.now() - began) / 1000;
      if (rows.length > CHUNK) render();
    }
    place.replaceChildren();
  } catch (problem) {
    if (running !== mine) return;
    if (problem.name === "AbortError") place.replaceChildren(notice(say("stopped", { done: count(results.rows.length) })));
    else showError(place, problem);
  }
  render();
}

// Lines in order, each chunk small enough for the server's limits.
function* chunks(rows) {
  let part = [], size = 0;
  for (const row of rows) {
    const length = 4 * row.join("").length + 20;
    if (part.length === CHUNK || (part.length && size + length > model.limits.body_bytes * 0.8)) { yield part; part = []; size = 0; }
    part.push(row);
    size += length;
  }
  if (part.length) yield part;
}

// --- Showing.

function render() {
  const place = byId("label-result");
  place.removeAttribute("aria-busy");
  if (!results?.rows.length) { place.replaceChildren(); return; }
  place.replaceChildren(results.rows.length === 1 && !results.file ? single(results.rows[0]) : table());
}

function timing() {
  return make("p", { class: "muted small timing" },
    say("done", { lines: count(results.rows.length), seconds: results.seconds.toFixed(results.seconds < 1 ? 3 : 1) }));
}

function single(row) {
  const pairs = Object.entries(row.per_label ?? row.probabilities).sort((a, b) => b[1] - a[1]);
  const bars = pairs.slice(0, row.per_label ? 30 : 8).map(([word, share], i) => make("div", { class: `answer ${i ? "" : "best"}` },
    make("span", { class: "answer-word" }, word), bar(share), make("span", { class: "answer-number" }, percent(share, 2))));
  return make("article", { class: "card" }, make("p", { class: "big" }, row.label), ...bars,
    row.per_label ? make("p", { class: "small muted" }, say("perLabel")) : null, ...cutText(row), timing());
}

function cutText(row) {
  if (!row.cut) return [];
  const { character } = row.cut, words = notice(cutWords(row.cut));
  if (row.columns.length > 1) return [words];
  const text = [...row.columns[0]];
  const tail = text.slice(character);
  return [words, make("p", { class: "quote" }, character > 120 ? "… " : "", text.slice(Math.max(0, character - 120), character).join(""),
    make("del", { title: say("unread") }, tail.slice(0, 120).join("") + (tail.length > 120 ? " …" : "")))];
}

const COLUMNS = { number: (row) => row.number, text: (row) => row.columns.join("\t"), label: (row) => row.label,
  probability: (row) => row.probabilities[row.label], tokens: (row) => row.tokens };

function sorted() {
  const value = COLUMNS[sort.by], sign = sort.down ? -1 : 1;
  return [...results.rows].sort((a, b) => {
    const x = value(a), y = value(b);
    const order = typeof x === "string" ? x.localeCompare(y, "ko") : x - y;
    return sign * order || a.number - b.number;
  });
}

function table() {
  const cut = results.rows.filter((row) => row.cut).length;
  const heads = Object.keys(COLUMNS).map((name) => {
    const state = sort.by === name ? (sort.down ? "descending" : "ascending") : "none";
    const mark = { ascending: "▲", descending: "▼", none: "" }[state];
    const button = make("button", { type: "button", class: "head", id: `sort-${name}`, title: say("sortBy", { column: say(name) }),
      onclick: () => { sort = { by: name, down: sort.by === name && !sort.down }; render(); byId(`sort-${name}`).focus(); } },
    say(name), make("span", { class: "mark", "aria-hidden": "true" }, mark));
    return make("th", { scope: "col", "aria-sort": state, class: `c-${name}` }, button);
  });
  const rows = sorted(), visible = rows.slice(0, shown);
  const body = visible.map((row) => {
    const share = row.probabilities[row.label];
    const mark = row.cut && make("span", { class: "badge", title: cutWords(row.cut) }, say("cut"));
    const where = row.cut && make("span", { class: "small muted cut-at" }, `…${row.cut.before}`, make("del", {}, row.cut.after), "…");
    const long = row.columns.map((text) => text.length > 300 ? `${text.slice(0, 300)}…` : text);
    return make("tr", {}, make("td", { class: "c-number" }, row.number),
      make("td", { class: "c-text" }, ...long.flatMap((text, i) => i ? [make("br"), text] : [text]), mark ? " " : null, mark, where),
      make("td", { class: "c-label" }, row.label),
      make("td", { class: "c-probability" }, bar(share, "slim"), make("span", { class: "answer-number" }, percent(share))),
      make("td", { class: "c-tokens" }, row.tokens));
  });
  const more = rows.length > shown && make("button", { type: "button", onclick: () => { shown += 1000; render(); } },
    say("more", { count: count(Math.min(1000, rows.length - shown)) }));
  return make("article", { class: "card wide" },
    make("div", { class: "row" }, timing(), make("span", { class: "grow" }),
      make("button", { type: "button", id: "label-save", onclick: save }, say("save"))),
    cut ? notice(say("cutMany", { lines: count(cut) })) : null, summary(),
    make("div", { class: "scroll" }, make("table", { id: "label-table" }, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...body))),
    more || null);
}

// Where several labels may be right, an answer names them with a comma between.
function labelsOf(row) { return results.task.several ? row.label.split(", ") : [row.label]; }

function summary() {
  const counts = new Map(results.task.labels.map((word) => [word, 0]));
  for (const row of results.rows) for (const word of labelsOf(row)) counts.set(word, (counts.get(word) ?? 0) + 1);
  const listed = [...counts].filter(([, n]) => n).sort((a, b) => b[1] - a[1]).slice(0, 6);
  return make("div", { class: "summary", role: "group", "aria-label": say("summary") }, ...listed.map(([word, n]) =>
    make("div", { class: "answer" }, make("span", { class: "answer-word" }, word), bar(n / results.rows.length),
      make("span", { class: "answer-number" }, `${count(n)} · ${percent(n / results.rows.length)}`))));
}

// All columns of a file stay; the answers stand behind them, called otherwise where it has such columns.
function save() {
  const { file: from, task: { columns, labels, name } } = results, own = from ? namesOf(from) : columns;
  const given = (row) => from ? own.map((_, i) => from.rows[row.number - 1 + (from.header ? 1 : 0)][i] ?? "") : row.columns;
  const added = ["label", ...labels.map((word) => `p(${word})`), "tokens", "read_characters"];
  const head = [...own, ...added.map((column) => own.some((one) => added.includes(one)) ? `kcmoe_${column}` : column)];
  const rows = sorted().map((row) => [...given(row), row.label, ...labels.map((word) => (row.per_label ?? row.probabilities)[word]),
    row.tokens, row.cut ? row.cut.character : ""]);
  csv.download(`kcmoe-${name}.csv`, csv.write([head, ...rows]));
}
