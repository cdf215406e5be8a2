// SPDX-License-Identifier: Apache-2.0
// CSV as RFC 4180 has it, with commas, semicolons or tabs; and texts in UTF-8 or CP949.

// {text, korean: read as CP949}, or null where it is neither, or no text at all.
export function decode(bytes) {
  if (bytes.includes(0)) return null;
  for (const [name, korean] of [["utf-8", false], ["euc-kr", true]]) {
    try {
      return { text: new TextDecoder(name, { fatal: true }).decode(bytes), korean };
    } catch { /* not this one */ }
  }
  return null;
}

export function parse(text, separator) {
  const rows = [];
  let row = [], cell = "", quoted = false;
  const endRow = () => { row.push(cell); cell = ""; if (row.length > 1 || row[0] !== "") rows.push(row); row = []; };
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (quoted) {
      if (c === '"' && text[i + 1] === '"') { cell += '"'; i++; }
      else if (c === '"') quoted = false;
      else cell += c;
    } else if (c === '"' && cell === "") quoted = true;
    else if (c === separator) { row.push(cell); cell = ""; }
    else if (c === "\n") { if (cell.endsWith("\r")) cell = cell.slice(0, -1); endRow(); }
    else cell += c;
  }
  if (cell !== "" || row.length) endRow();
  return rows;
}

// Rows of a file, by its name: .txt has one text per line.
export function rowsOf(name, text) {
  if (/\.txt$/i.test(name)) return text.split("\n").map((line) => [line.replace(/\r$/, "")]).filter(([line]) => line);
  if (/\.tsv$/i.test(name)) return parse(text, "\t");
  const head = text.slice(0, text.indexOf("\n") + 1 || undefined);
  const count = (c) => head.split(c).length;
  return parse(text, [",", "\t", ";"].reduce((best, c) => count(c) > count(best) ? c : best, ","));
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
