// SPDX-License-Identifier: Apache-2.0
// The frame of the page: tabs, language, light and dark, and what model this is.

import { byId, get, showError } from "./client.js";
import { count, current, onLanguage, say, setLanguage, startLanguage, store, stored } from "./words.js";
import * as experts from "./experts.js";
import * as fill from "./fill.js";
import * as label from "./label.js";

const TABS = ["label", "fill", "experts"];
const THEMES = ["Auto", "Light", "Dark"];
let model = null;

function show(name, focus = false) {
  for (const tab of TABS) {
    const chosen = tab === name;
    byId(tab).hidden = !chosen;
    byId(`tab-${tab}`).setAttribute("aria-selected", String(chosen));
    byId(`tab-${tab}`).tabIndex = chosen ? 0 : -1;
  }
  if (focus) byId(`tab-${name}`).focus();
}

// A tab that was chosen is a place to come back to.
function go(name, focus = false) {
  if (location.hash !== `#${name}`) history.pushState(null, "", `#${name}`);
  show(name, focus);
}

function shown() { return TABS.find((tab) => !byId(tab).hidden) ?? TABS[0]; }

function startTabs() {
  for (const tab of TABS) byId(`tab-${tab}`).addEventListener("click", () => go(tab));
  byId("tabs").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const at = TABS.indexOf(shown());
    if (step) go(TABS[(at + step + TABS.length) % TABS.length], true);
    else if (event.key === "Home") go(TABS[0], true);
    else if (event.key === "End") go(TABS.at(-1), true);
    else return;
    event.preventDefault();
  });
  const named = () => TABS.find((tab) => `#${tab}` === location.hash);
  addEventListener("popstate", () => show(named() ?? TABS[0]));
  show(named() ?? TABS[0]);
}

function setTheme(theme) {
  store("kcmoe-theme", theme);
  if (theme === "Auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme.toLowerCase();
  byId("theme").textContent = say(`theme${theme}`);
  byId("theme").dataset.value = theme;
}

function showModel() {
  byId("language").textContent = say("otherLanguage");
  byId("language").lang = say("otherLanguageCode");
  setTheme(byId("theme").dataset.value ?? stored("kcmoe-theme") ?? "Auto");
  if (!model) return;
  const parameters = current() === "ko" && model.parameters >= 1e4
    ? (model.parameters >= 1e8 ? `${(model.parameters / 1e8).toFixed(1)}억` : `${count(Math.round(model.parameters / 1e4))}만`)
    : (model.parameters >= 1e6 ? `${count(Math.round(model.parameters / 1e6))} M` : count(model.parameters));
  const parts = [model.name, model.step ? say("step", { step: count(model.step) }) : "", say("parameters", { parameters })];
  byId("model").textContent = parts.filter(Boolean).join(" · ");
}

startTabs();
byId("language").addEventListener("click", () => setLanguage(say("otherLanguageCode")));
byId("theme").addEventListener("click", () =>
  setTheme(THEMES[(THEMES.indexOf(byId("theme").dataset.value) + 1) % THEMES.length]));
onLanguage(showModel);
startLanguage();
try {
  model = await get("v1/model");
  showModel();
  label.start(model);
  fill.start(model);
  experts.start(model);
  document.documentElement.dataset.ready = "yes";
} catch (problem) {
  for (const tab of TABS) showError(byId(`${tab}-status`), problem);
}
