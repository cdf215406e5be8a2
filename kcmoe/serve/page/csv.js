// SPDX-License-Identifier: Apache-2.0
// CSV as RFC 4180 has it, with commas or semicolons; tables with tabs; and texts in UTF-8, UTF-16 or CP949.

// {text, korean: read as CP949}, or null where it is none of them, or no text at all.
export function decode(bytes) {
  const mark = { "255,254": "utf-16le", "254,255": "utf-16be" }[bytes.subarray(0, 2).join()];
  if (mark) return { text: new TextDecoder(mark).decode(bytes), korean: false };
  if (bytes.includes(0)) return null;
  for (const [name, korean] of [["utf-8", false], ["euc-kr", true]]) {
    try {
      return { text: new TextDecoder(name, { fatal: true }).decode(bytes), korean };
    } catch { /* not this one */ }
  }
  return null;
}

export class OpenQuote extends Error {
  constructor(line) { super(); this.line = line; }
}

export function parse(text, separator) {
  const rows = [];
  let row = [], cell = "", quoted = false, opened = 0;
  const endRow = () => { row.push(cell); cell = ""; if (row.length > 1 || row[0] !== "") rows.push(row); row = []; };
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (quoted) {
      if (c === '"' && text[i + 1] === '"') { cell += '"'; i++; }
      else if (c === '"') quoted = false;
      else cell += c;
    } else if (c === '"' && cell === "") { quoted = true; opened = i; }
    else if (c === separator) { row.push(cell); cell = ""; }
    else if (c === "\n") { if (cell.endsWith("\r")) cell = cell.slice(0, -1); endRow(); }
    else cell += c;
  }
  if (quoted) throw new OpenQuote(text.slice(0, opened).split("\n").length);
  if (cell !== "" || row.length) endRow();
  return rows;
}

// Rows of a file, by its name: .txt has one text per line, unless there are tabs in the first one, as in NSMC.
export function rowsOf(name, content) {
  const text = content.includes("\n") ? content : content.replaceAll("\r", "\n");
  const head = text.slice(0, text.indexOf("\n") + 1 || undefined);
  const count = (c) => head.split(c).length;
  const plain = /\.txt$/i.test(name);
  const separator = /\.tsv$/i.test(name) || (plain && count("\t") > 1) ? "\t"
    : [",", "\t", ";"].reduce((best, c) => count(c) > count(best) ? c : best, ",");
  // Quotes of tables with tabs belong to the texts, unless a program put them around every name.
  const bare = separator === "\t" && !head.trim().split("\t").every((cell) => /^".*"$/.test(cell));
  if (!bare && !plain) return parse(text, separator);
  const lines = text.split("\n").map((line) => line.replace(/\r$/, "")).filter((line) => line);
  return lines.map((line) => separator === "\t" ? line.split("\t") : [line]);
}

export function write(rows) {
  const cell = (value) => /[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
  // The mark in front tells spreadsheets that this is UTF-8.
  return "\ufeff" + rows.map((row) => row.map((value) => cell(String(value))).join(",")).join("\r\n") + "\r\n";
}

export function download(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}
