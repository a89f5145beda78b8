// The owner's page. The token stays in this tab; everything shown is text.

import { bars, histogram, intervals, stackedBars } from "./charts.js";

const EVERY_MS = 5000;
const $ = (id) => document.getElementById(id);
const AXES = { overall: "overall", sync: "sync", voice: "voice", picture: "picture" };
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
  if (response.status === 401) { login("The token is missing or wrong."); throw new Error("token"); }
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
  document.title = `${$("title").textContent} - results`;
  const stats = found.statistics;
  $("banner").hidden = !found.simulated;
  $("banner").textContent = "Simulated votes: a program voted, no person was asked.";
  drawNumbers(found, stats);
  const parts = stats ? stats.axes ?? { [stats.axis]: stats } : {};
  $("explain").textContent = stats
    ? `Good: ${found.ours} preferred. Attention checks, repeats and raters who fail the rule are not counted.`
    : found.reason;
  drawPairs(parts);
  drawRanking(parts, found);
  drawKinds(found);
  drawSettle(found);
  drawTimes(found);
  drawRaters(found, stats);
  list("comments", found.comments.map((one) => `${one.rater}, ${one.case}: ${one.text}`), "No comments.");
  $("warnings-card").hidden = !stats?.warnings.length;
  list("warnings", stats?.warnings ?? [], "");
  drawExports(found);
}

function drawNumbers(found, stats) {
  const done = found.raters.reduce((sum, rater) => sum + rater.done, 0);
  const of = found.raters.reduce((sum, rater) => sum + rater.of, 0);
  const numbers = [
    [done, `of ${of} pairs voted`],
    [found.raters.filter((rater) => rater.done).length, `of ${found.raters.length} raters began`],
    [stats ? stats.votes.counted : 0, "answers counted"],
    [found.seconds.median === null ? "–" : `${found.seconds.median.toFixed(0)} s`, "median per pair"],
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
      name: several ? `${AXES[axis]}: against ${baseline}` : AXES[axis], pair,
    })));
}

function room(id) { return Math.max(240, $(id).clientWidth); }

function put(id, element) { $(id).replaceChildren(element ?? paragraph("Not enough votes yet.")); }

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
  const said = rows.map(({ name, pair }) => `${name}: ${pair.good} good, ${pair.same} same, ${pair.bad} bad`).join("; ");
  put("bars", rows.length ? stackedBars(counts, room("bars"), said) : null);
  const ranges = rows.map(({ name, pair }) => ({ name, value: pair.gsb, low: pair.gsb_low, high: pair.gsb_high }));
  const heard = ranges.map((row) => `${row.name}: ${row.value.toFixed(2)} from ${row.low.toFixed(2)} to ${row.high.toFixed(2)}`);
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
  const chart = intervals(rows, Math.min(-0.5, ...ends), Math.max(0.5, ...ends), room("ranking"), `${axis}: ${label}`);
  put("ranking", chart);
  $("ranking").append(paragraph(`Strength (log) on ${axis}, ${found.ours} fixed at 0.`));
  const agreed = Object.entries(parts).filter(([, one]) => one.agreement);
  const measured = agreed.flatMap(([name, one]) => [
    { name: `${name}: α`, value: one.agreement.krippendorff_alpha },
    { name: `${name}: AC1`, value: one.agreement.gwet_ac1 },
  ]);
  const words = measured.map((row) => `${row.name} ${row.value === null ? "undefined" : row.value.toFixed(2)}`);
  put("agreement", measured.length ? bars(measured, 1, room("agreement"), words.join("; ")) : null);
  $("agreement").append(paragraph("Krippendorff's α and Gwet's AC1: 1 is perfect, 0 is chance."));
}

function drawKinds(found) {
  const rows = Object.entries(found.kinds).flatMap(([kind, summary]) => {
    const part = summary.axes ? summary.axes[summary.axis] : summary;
    return Object.entries(part.pairs).map(([baseline, pair]) => ({
      name: found.models.length > 2 ? `${kind}: against ${baseline}` : kind,
      value: pair.gsb, low: pair.gsb_low, high: pair.gsb_high,
    }));
  });
  $("kinds-card").hidden = !rows.length;
  if (rows.length) put("kinds", intervals(rows, -1, 1, room("kinds"), rows.map((row) => `${row.name} ${row.value.toFixed(2)}`).join("; ")));
}

function drawSettle(found) {
  const entries = Object.entries(found.to_settle).flatMap(([axis, pairs]) =>
    Object.entries(pairs).map(([baseline, more]) => ({ name: found.models.length > 2 ? `${axis}: ${baseline}` : axis, value: more })));
  const most = Math.max(1, ...entries.map((row) => row.value ?? 0));
  const label = entries.map((row) => `${row.name} ${row.value ?? "unknown"}`).join("; ");
  put("settle", entries.length ? bars(entries, most, room("settle"), label, (value) => String(value)) : null);
  $("settle").append(paragraph("Further votes until the interval leaves 0 with 80 % probability, if GSB stays as it is."));
}

function drawTimes(found) {
  const each = found.seconds.each;
  put("times", each.length ? histogram(each, room("times"), `median ${found.seconds.median.toFixed(1)} s of ${each.length} pairs`, "s") : null);
}

function cell(row, text, numeric = false, tag = "td") {
  const element = document.createElement(tag);
  if (numeric) element.className = "n";
  element.textContent = text;
  row.append(element);
  return element;
}

function drawRaters(found, stats) {
  const checks = Object.fromEntries((stats?.raters ?? []).map((check) => [check.user_id, check]));
  const table = document.createElement("table");
  const head = document.createElement("tr");
  for (const [index, word] of ["rater", "pairs", "s per pair", "attention", "repeats", "left", "", ""].entries())
    cell(head, word, index > 0 && index < 6, "th");
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
    cell(row, [rater.closed ? "closed" : "", check?.dropped ? `dropped: ${check.dropped}` : ""].filter(Boolean).join(", "));
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = rater.closed ? "Open" : "Close";
    button.setAttribute("aria-label", `${button.textContent} the link of ${rater.name}`);
    button.addEventListener("click", async () => {
      await post(`/owner/surveys/${survey}/raters/${rater.id}`, { closed: !rater.closed });
      await refresh();
    });
    cell(row, "").append(button);
    table.append(row);
  }
  $("raters").replaceChildren(found.raters.length ? table : paragraph("No links yet."));
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
