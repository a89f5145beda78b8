// The rater's page: one pair at a time.

import { Player } from "./player.js";
import { keepLanguage, loadTexts, translate } from "./texts.js";
import { Sender } from "./votes.js";

const LINK = location.pathname.replace(/\/$/, "");
const CHOICES = ["left", "tie", "right"];
const $ = (id) => document.getElementById(id);
const { code, names, say } = await loadTexts();

let state = null;
let current = 0; // question
let startedAt = 0;
let busy = true;
let said = "";
let trouble = "";
const player = new Player($("left"), $("right"), draw);
const sender = new Sender(LINK, (word) => { trouble = word; draw(); });
const reference = new Audio();

async function load(notice = "") {
  busy = true;
  said = notice;
  state = await fetchState();
  if (!state) return;
  $("title").textContent = state.title || say("title");
  document.title = $("title").textContent;
  drawProgress();
  if (!state.task) return finish();
  player.reset();
  prepare();
  const [left, right] = await Promise.all([fetchClip(state.task.left), fetchClip(state.task.right)]);
  await player.show(left, right);
  $("side-left").parentElement.style.setProperty("--shape", `${$("left").videoWidth} / ${$("left").videoHeight}`);
  show("work");
  startedAt = performance.now();
  busy = false;
  draw();
}

async function fetchState() {
  for (;;) {
    try {
      const response = await fetch(`${LINK}/state`);
      if (response.status === 404 || response.status === 410) { location.reload(); return null; }
      if (response.ok) return await response.json();
    } catch { /* no connection */ }
    await wait("load_failed");
  }
}

async function fetchClip(path) {
  for (;;) {
    try {
      const response = await fetch(`${LINK}/${path}`);
      if (response.ok) return await response.blob();
    } catch { /* no connection */ }
    await wait("load_failed");
  }
}

async function wait(word) {
  $("waiting").firstElementChild.textContent = say(word);
  trouble = "retrying";
  await new Promise((resolve) => setTimeout(resolve, 1500));
  trouble = "";
}

function show(id) { for (const one of ["work", "finished", "waiting"]) $(one).hidden = one !== id; }

function finish() {
  $("done-text").textContent = say("done_text", { of: state.of });
  $("undo-end").hidden = !state.last;
  show("finished");
  busy = false;
}

function prepare() {
  $("prompt").replaceChildren(...state.task.prompt.map((part) => {
    const element = document.createElement(part.spoken ? "mark" : "span");
    element.textContent = part.text;
    if (part.spoken) element.title = say("spoken");
    return element;
  }));
  drawReferences();
  $("questions").replaceChildren(...state.axes.map(question));
  $("comment").value = "";
  current = 0;
}

function drawReferences() {
  const paths = state.task.references;
  const label = document.createElement("span");
  label.textContent = say(paths.length > 1 ? "references" : "reference");
  const buttons = paths.map((path, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `♪ ${say("reference_number", { n: paths.length > 1 ? index + 1 : "" }).trim()}`;
    button.addEventListener("click", () => {
      player.pause();
      reference.src = `${LINK}/${path}`;
      reference.play().catch(() => {});
    });
    return button;
  });
  $("references").replaceChildren(label, ...buttons);
  $("references").hidden = !paths.length;
}

function question(axis, index) {
  const field = document.createElement("fieldset");
  field.dataset.axis = axis;
  const legend = document.createElement("legend");
  legend.textContent = say(axis === "voice" && !state.task.references.length ? "voice_alone" : axis);
  const choices = document.createElement("div");
  choices.className = "choices";
  CHOICES.forEach((choice, place) => {
    const label = document.createElement("label");
    const input = document.createElement("input");
    Object.assign(input, { type: "radio", name: axis, value: choice });
    input.addEventListener("change", () => { current = index; draw(); });
    const word = document.createElement("span");
    const key = document.createElement("kbd");
    key.textContent = String(place + 1);
    key.setAttribute("aria-hidden", "true");
    word.append(key, say(`choice_${choice}`));
    label.append(input, word);
    choices.append(label);
  });
  field.append(legend, choices);
  return field;
}

function answers() {
  const found = {};
  for (const axis of state.axes) {
    const chosen = document.querySelector(`input[name="${axis}"]:checked`);
    if (chosen) found[axis] = chosen.value;
  }
  return found;
}

function isComplete() { return Object.keys(answers()).length === state.axes.length; }

function draw() {
  if (!state?.task) return;
  for (const side of ["left", "right"]) {
    const on = player.on === side;
    const played = player.played[side];
    $(`side-${side}`).classList.toggle("on", on);
    set($(`sound-${side}`), on ? `♪ ${say("sound_on")}` : say("sound_off"));
    $(`sound-${side}`).setAttribute("aria-pressed", String(on));
    $(`sound-${side}`).setAttribute("aria-label", say(`listen_${side}`));
    set($(`heard-${side}`), played ? `✓ ${say("heard")}` : say("unheard"));
    $(`heard-${side}`).classList.toggle("yes", played);
  }
  set($("play"), player.playing ? `❚❚ ${say("pause")}` : `▶ ${say(player.allPlayed ? "replay" : "play")}`);
  $("time").style.width = `${100 * player.share}%`;
  const open = player.allPlayed && !busy;
  document.querySelectorAll("fieldset").forEach((field, index) => {
    field.disabled = !open;
    field.classList.toggle("current", open && index === current && state.axes.length > 1);
  });
  $("next").disabled = !open || !isComplete();
  $("undo").disabled = busy || !state.last;
  const word = trouble || said || (busy ? "loading" : player.allPlayed ? "now_answer" : "play_first");
  set($("status"), say(word));
  $("status").classList.toggle("warn", Boolean(trouble));
}

function set(element, text) { if (element.textContent !== text) element.textContent = text; }

function drawProgress() {
  $("filled").style.width = `${state.of ? (100 * state.done) / state.of : 0}%`;
  $("bar").setAttribute("aria-valuenow", state.done);
  $("bar").setAttribute("aria-valuemax", state.of);
  $("count").textContent = say("progress", { done: state.done, of: state.of });
}

function answer(choice) {
  if (busy || !player.allPlayed) return;
  const axis = state.axes[current];
  document.querySelector(`input[name="${axis}"][value="${choice}"]`).checked = true;
  current = Math.min(current + 1, state.axes.length - 1);
  said = "";
  draw();
}

async function save() {
  if (busy || !state?.task || !player.allPlayed || !isComplete()) return;
  busy = true;
  said = "saving";
  player.pause();
  draw();
  const seconds = (performance.now() - startedAt) / 1000;
  const body = { task: state.task.id, answers: answers(), seconds, comment: $("comment").value.slice(0, 2000) };
  const reply = await sender.send("votes", body);
  if (reply.status === 409 && reply.code === "unseen") return load("play_first");
  await load(reply.status === 409 ? "elsewhere" : reply.status < 300 ? "saved" : "load_failed");
  document.activeElement?.blur();
}

async function undo() {
  if (busy || !state?.last) return;
  busy = true;
  player.pause();
  const reply = await sender.send("undo", { task: state.last });
  await load(reply.status < 300 ? "undone" : "elsewhere");
}

const KEYS = {
  "1": () => answer("left"),
  "2": () => answer("tie"),
  "3": () => answer("right"),
  " ": () => player.toggle(),
  ArrowLeft: () => player.hear("left"),
  ArrowRight: () => player.hear("right"),
  ArrowUp: () => { current = Math.max(0, current - 1); draw(); },
  ArrowDown: () => { current = Math.min(state.axes.length - 1, current + 1); draw(); },
  Enter: save,
  u: undo,
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const target = event.target;
  const typing = target.matches?.("textarea, select, input:not([type=radio])");
  const own = target.matches?.("button, summary, input:not(:checked)") && (event.key === " " || event.key === "Enter");
  const moves = target.matches?.("input[type=radio]") && event.key.startsWith("Arrow");
  const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (typing || own || moves || !action || !state) return;
  event.preventDefault();
  action();
}

function listen() {
  document.addEventListener("keydown", onKey);
  $("play").addEventListener("click", () => player.toggle());
  for (const side of ["left", "right"]) {
    $(`sound-${side}`).addEventListener("click", () => player.hear(side));
    $(side).addEventListener("click", () => player.start(side));
  }
  $("form").addEventListener("submit", (event) => { event.preventDefault(); save(); });
  $("undo").addEventListener("click", undo);
  $("undo-end").addEventListener("click", undo);
  $("language").addEventListener("change", (event) => { keepLanguage(event.target.value); location.reload(); });
  // another tab may have voted in the meantime
  window.addEventListener("focus", () => { if (!busy) refresh(); });
  window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
}

async function refresh() {
  try {
    const found = await (await fetch(`${LINK}/state`)).json();
    if (!busy && (found.task?.id !== state.task?.id || found.done !== state.done)) await load("elsewhere");
  } catch { /* no connection */ }
}

translate(document, say);
$("language").replaceChildren(...Object.entries(names).map(([value, name]) => new Option(name, value, false, value === code)));
listen();
if (await sender.flush()) said = "saved";
await load(said);
