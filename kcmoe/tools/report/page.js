"use strict";
const root = document.documentElement, button = document.getElementById("language");
function setLanguage(name) { root.lang = name; button.textContent = button.dataset[name]; button.lang = name === "ko" ? "en" : "ko"; }
button.addEventListener("click", () => setLanguage(root.lang === "ko" ? "en" : "ko"));
setLanguage(root.lang);

// The values under the pointer; with the keyboard, the arrow keys go from point to point.
for (const script of document.querySelectorAll("figure > script")) {
  const figure = script.parentElement, svg = figure.querySelector("svg");
  const { plot, lines } = JSON.parse(script.textContent);
  const rule = document.createElementNS("http://www.w3.org/2000/svg", "path");
  rule.setAttribute("stroke", "#57606a");
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "status");
  let at = null;
  const show = (step) => {
    at = step;
    const words = [`step ${Math.round(step).toLocaleString("en-US")}`];
    for (const { name, x, y, low, high } of lines) {
      let best = 0;
      x.forEach((value, i) => { if (Math.abs(value - step) < Math.abs(x[best] - step)) best = i; });
      if (y[best] === null || y[best] === undefined || Math.abs(x[best] - step) > (plot.x1 - plot.x0) / 20) continue;
      const range = low && low[best] !== high[best] ? `  (${low[best]} … ${high[best]})` : "";
      words.push(`${name}  ${y[best]}${range}`);
    }
    const place = plot.left + (plot.right - plot.left) * (step - plot.x0) / (plot.x1 - plot.x0);
    rule.setAttribute("d", `M${place} ${plot.top}V${plot.bottom}`);
    svg.append(rule);
    tip.textContent = words.join("\n");
    figure.append(tip);
    const box = svg.getBoundingClientRect(), around = figure.getBoundingClientRect();
    const left = box.left - around.left + place * box.width / plot.width;
    tip.style.top = `${box.top - around.top + 4}px`;
    tip.style.left = left + tip.offsetWidth + 16 > figure.clientWidth ? `${Math.max(0, left - tip.offsetWidth - 8)}px` : `${left + 8}px`;
  };
  const hide = () => { rule.remove(); tip.remove(); };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const place = (event.clientX - box.left) * plot.width / box.width;
    const share = Math.min(1, Math.max(0, (place - plot.left) / (plot.right - plot.left)));
    show(plot.x0 + share * (plot.x1 - plot.x0));
  });
  svg.addEventListener("pointerleave", hide);
  svg.tabIndex = 0;
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const sign = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!sign) return;
    const xs = lines[0].x, now = at === null ? (sign > 0 ? -1 : xs.length) : xs.findIndex((x) => x >= at);
    show(xs[Math.min(xs.length - 1, Math.max(0, now + sign))]);
    event.preventDefault();
  });
}
