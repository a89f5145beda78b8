// The owner's page. The token stays in this tab; everything shown is text.

import { bars, histogram, intervals, stackedBars } from "./charts.js";
import { keepLanguage, loadTexts, translate } from "./texts.js";

const EVERY_MS = 5000;
const $ = (id) => document.getElementById(id);
const { code, names, say } = await loadTexts();
let token = sessionStorage.getItem("nava-owner") ?? "";
let survey = 0;
let drawn = "";

if (location.hash.length > 1) {
  token = decodeURIComponent(location.hash.slice(1));
  history.replaceState(null, "", location.pathname);
}

async function ask(path, options = {}) {
  const headers = { Authorization: `Bearer ${token}`, ...options.headers };
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) { login(say("owner_token_wrong")); throw new Error("token"); }
  if (!response.ok) throw new Error((await response.json().catch(() => ({}))).error ?? response.statusText);
  return response;
}

function post(path, body) {
  return ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
}

function login(word) {
  $("page").hidden = true;
  $("login").hidden = false;
  $("login-word").textContent = token ? word : "";
  $("token").focus();
}

async function open() {
  const found = await (await ask("/owner/surveys")).json();
  sessionStorage.setItem("nava-owner", token);
  $("login").hidden = true;
  $("page").hidden = false;
  survey ||= found.at(-1)?.id ?? 0;
  $("surveys").replaceChildren(...found.map((one) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = one.title || one.name;
    button.setAttribute("aria-current", String(one.id === survey));
    button.addEventListener("click", () => { survey = one.id; drawn = ""; $("made").hidden = true; open(); });
    return button;
  }));
  $("surveys").hidden = found.length < 2;
  await refresh();
}

async function refresh() {
  const text = await (await ask(`/owner/surveys/${survey}/results`)).text();
  if (text === drawn) return;
  drawn = text;
  draw(JSON.parse(text));
}

function draw(found) {
  $("title").textContent = found.title || found.survey;
  document.title = `${$("title").textContent} - ${say("owner_results")}`;
  const stats = found.statistics;
  $("banner").hidden = !found.simulated;
  $("banner").textContent = say("owner_simulated");
  drawNumbers(found, stats);
  const parts = stats ? stats.axes ?? { [stats.axis]: stats } : {};
  $("explain").textContent = stats
    ? say("owner_explain", { ours: found.ours })
    : found.reason;
  drawPairs(parts);
  drawRanking(parts, found);
  drawKinds(found);
  drawSettle(found);
  drawTimes(found);
  drawRaters(found, stats);
  drawQuality(stats);
  list("comments", found.comments.map((one) => `${one.rater}, ${one.case}: ${one.text}`), say("owner_no_comments"));
  $("warnings-card").hidden = !stats?.warnings.length;
  list("warnings", stats?.warnings ?? [], "");
  drawExports(found);
}

function drawNumbers(found, stats) {
  const done = found.raters.reduce((sum, rater) => sum + rater.done, 0);
  const of = found.raters.reduce((sum, rater) => sum + rater.of, 0);
  const numbers = [
    [done, say("owner_pairs", { of })],
    [found.raters.filter((rater) => rater.done).length, say("owner_began", { of: found.raters.length })],
    [stats ? stats.votes.counted : 0, say("owner_counted")],
    [found.seconds.median === null ? "–" : `${found.seconds.median.toFixed(0)} s`, say("owner_median")],
  ];
  $("numbers").replaceChildren(...numbers.map(([value, word]) => {
    const box = document.createElement("div");
    box.className = "card";
    const strong = document.createElement("strong");
    strong.textContent = value;
    box.append(strong, word);
    return box;
  }));
}

function rowsOf(parts) {
  const several = new Set(Object.values(parts).flatMap((part) => Object.keys(part.pairs))).size > 1;
  return Object.entries(parts).flatMap(([axis, part]) =>
    Object.entries(part.pairs).map(([baseline, pair]) => ({
      name: several ? say("owner_against", { name: say(`owner_${axis}`), baseline }) : say(`owner_${axis}`), pair,
    })));
}

function room(id) { return Math.max(240, $(id).clientWidth); }

function put(id, element) { $(id).replaceChildren(element ?? paragraph(say("owner_too_few"))); }

function paragraph(text) {
  const element = document.createElement("p");
  element.className = "quiet";
  element.textContent = text;
  return element;
}

function drawPairs(parts) {
  const rows = rowsOf(parts);
  const counts = rows.map(({ name, pair }) => ({
    name, parts: [{ value: pair.good, kind: "good" }, { value: pair.same, kind: "tie" }, { value: pair.bad, kind: "bad" }],
  }));
  const said = rows.map(({ name, pair }) => say("owner_said", { name, ...pair })).join("; ");
  put("bars", rows.length ? stackedBars(counts, room("bars"), said) : null);
  const ranges = rows.map(({ name, pair }) => ({ name, value: pair.gsb, low: pair.gsb_low, high: pair.gsb_high }));
  const heard = ranges.map((row) => say("owner_range", { name: row.name, value: row.value.toFixed(2), low: row.low.toFixed(2), high: row.high.toFixed(2) }));
  put("intervals", rows.length ? intervals(ranges, -1, 1, room("intervals"), heard.join("; ")) : null);
}

function drawRanking(parts, found) {
  const [axis, part] = Object.entries(parts)[0] ?? [];
  const fit = part?.davidson;
  if (!fit) { put("ranking", null); put("agreement", null); return; }
  const errors = fit.standard_error.strength;
  const rows = Object.entries(fit.strength)
    .map(([name, value]) => ({ name, value, low: value - 1.96 * errors[name], high: value + 1.96 * errors[name] }))
    .sort((a, b) => b.value - a.value);
  const ends = rows.flatMap((row) => [row.low, row.high]);
  const label = rows.map((row) => `${row.name} ${row.value.toFixed(2)}`).join(", ");
  const chart = intervals(rows, Math.min(-0.5, ...ends), Math.max(0.5, ...ends), room("ranking"), `${say(`owner_${axis}`)}: ${label}`);
  put("ranking", chart);
  $("ranking").append(paragraph(say("owner_strength", { axis: say(`owner_${axis}`), ours: found.ours })));
  const agreed = Object.entries(parts).filter(([, one]) => one.agreement);
  const measured = agreed.flatMap(([name, one]) => [
    { name: `${say(`owner_${name}`)}: α`, value: one.agreement.krippendorff_alpha },
    { name: `${say(`owner_${name}`)}: AC1`, value: one.agreement.gwet_ac1 },
  ]);
  const words = measured.map((row) => `${row.name} ${row.value === null ? say("owner_undefined") : row.value.toFixed(2)}`);
  put("agreement", measured.length ? bars(measured, 1, room("agreement"), words.join("; ")) : null);
  $("agreement").append(paragraph(say("owner_agreement_text")));
}

function drawKinds(found) {
  const rows = Object.entries(found.kinds).flatMap(([kind, summary]) => {
    const part = summary.axes ? summary.axes[summary.axis] : summary;
    return Object.entries(part.pairs).map(([baseline, pair]) => ({
      name: found.models.length > 2 ? say("owner_against", { name: kind, baseline }) : kind,
      value: pair.gsb, low: pair.gsb_low, high: pair.gsb_high,
    }));
  });
  $("kinds-card").hidden = !rows.length;
  if (rows.length) put("kinds", intervals(rows, -1, 1, room("kinds"), rows.map((row) => `${row.name} ${row.value.toFixed(2)}`).join("; ")));
}

function drawSettle(found) {
  const entries = Object.entries(found.to_settle).flatMap(([axis, pairs]) =>
    Object.entries(pairs).map(([baseline, more]) => ({ name: found.models.length > 2 ? `${say(`owner_${axis}`)}: ${baseline}` : say(`owner_${axis}`), value: more })));
  const most = Math.max(1, ...entries.map((row) => row.value ?? 0));
  const label = entries.map((row) => `${row.name} ${row.value ?? say("owner_unknown")}`).join("; ");
  put("settle", entries.length ? bars(entries, most, room("settle"), label, (value) => String(value)) : null);
  $("settle").append(paragraph(say("owner_settle_text")));
}

function drawTimes(found) {
  const each = found.seconds.each;
  put("times", each.length ? histogram(each, room("times"), say("owner_times_said", { median: found.seconds.median.toFixed(1), count: each.length }), "s") : null);
}

function cell(row, text, numeric = false, tag = "td") {
  const element = document.createElement(tag);
  if (numeric) element.className = "n";
  element.textContent = text;
  row.append(element);
  return element;
}

const COLUMNS = ["owner_rater", ...["pairs", "seconds", "attention", "repeats", "left", "state", "link"].map((word) => `owner_column_${word}`)];

function drawRaters(found, stats) {
  const checks = Object.fromEntries((stats?.raters ?? []).map((check) => [check.user_id, check]));
  const table = document.createElement("table");
  const head = document.createElement("tr");
  for (const [index, word] of COLUMNS.entries())
    cell(head, say(word), index > 0 && index < 6, "th");
  table.append(head);
  for (const rater of found.raters) {
    const row = document.createElement("tr");
    const check = checks[rater.name];
    cell(row, rater.name);
    cell(row, `${rater.done} / ${rater.of}`, true);
    cell(row, rater.median_s === null ? "–" : rater.median_s.toFixed(1), true);
    cell(row, check?.attention_checks ? `${check.attention_passed} / ${check.attention_checks}` : "–", true);
    cell(row, check?.swapped_repeats ? `${check.same_answer} / ${check.swapped_repeats}` : "–", true);
    cell(row, check && check.left_share !== null ? `${Math.round(100 * check.left_share)} %` : "–", true);
    cell(row, [rater.closed ? say("owner_closed") : "", check?.dropped ? say("owner_dropped", { why: check.dropped }) : ""].filter(Boolean).join(", "));
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = say(rater.closed ? "owner_open" : "owner_close");
    button.setAttribute("aria-label", say(rater.closed ? "owner_open_of" : "owner_close_of", { name: rater.name }));
    button.addEventListener("click", async () => {
      await post(`/owner/surveys/${survey}/raters/${rater.id}`, { closed: !rater.closed });
      await refresh();
    });
    cell(row, "").append(button);
    table.append(row);
  }
  $("raters").replaceChildren(found.raters.length ? table : paragraph(say("owner_no_links")));
}

const WORST = 20; // raters in the plot

function drawQuality(stats) {
  const rows = (stats?.raters ?? []).filter((rater) => rater.attention_checks + rater.swapped_repeats)
    .map((rater) => ({
      name: rater.user_id,
      value: (rater.attention_passed + rater.same_answer) / (rater.attention_checks + rater.swapped_repeats),
    }))
    .sort((a, b) => a.value - b.value).slice(0, WORST);
  $("quality-card").hidden = !rows.length;
  if (!rows.length) return;
  const label = rows.map((row) => `${row.name} ${Math.round(100 * row.value)} %`).join("; ");
  put("quality", bars(rows, 1, room("quality"), label, (value) => `${Math.round(100 * value)} %`));
  $("quality").append(paragraph(say("owner_quality_text", { most: WORST })));
}

function list(id, texts, empty) {
  $(id).replaceChildren(...(texts.length ? texts : [empty]).filter(Boolean).map((text) => {
    const item = document.createElement("li");
    item.textContent = text;
    return item;
  }));
}

function drawExports(found) {
  $("exports").replaceChildren(...["votes.jsonl", "results.csv", "results.json"].map((name) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", async () => {
      const blob = await (await ask(`/owner/surveys/${survey}/${name}`)).blob();
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = `${found.survey}-${name}`;
      link.click();
      URL.revokeObjectURL(link.href);
    });
    return button;
  }));
}

translate(document, say);
$("language").replaceChildren(...Object.entries(names).map(([value, name]) => new Option(name, value, false, value === code)));
$("language").addEventListener("change", (event) => { keepLanguage(event.target.value); location.reload(); });
$("login").addEventListener("submit", (event) => { event.preventDefault(); token = $("token").value.trim(); open().catch(() => {}); });
$("make").addEventListener("submit", async (event) => {
  event.preventDefault();
  const made = await (await post(`/owner/surveys/${survey}/links`, { count: Number($("count").value) })).json();
  $("links").value = made.map((one) => `${one.name}\t${location.origin}${one.path}`).join("\n");
  $("made").hidden = false;
  await refresh();
});
$("copy").addEventListener("click", () => { $("links").select(); navigator.clipboard?.writeText($("links").value); });
setInterval(() => { if (token && survey && !$("page").hidden) refresh().catch(() => {}); }, EVERY_MS);
const kept = $("kept"); // results in the page itself, without a server
if (kept) {
  $("page").hidden = false;
  document.querySelectorAll("#make, #exports, #raters").forEach((part) => { part.closest("section").hidden = true; });
  draw(JSON.parse(kept.textContent));
} else if (token) open().catch(() => {});
else login("");
