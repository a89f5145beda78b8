// Small charts in SVG. Each has a sentence for those who do not see it.

const SPACE = "http://www.w3.org/2000/svg";

export function node(name, attributes = {}, text = "") {
  const element = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== "") element.textContent = text;
  return element;
}

function chart(width, height, label) {
  return node("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
}

const ROW = 34; // pixels, as widths are
const LETTER = 7;

// Room for the names of rows, and the names cut to it.
function labels(rows, width) {
  const room = Math.min(width * 0.4, Math.max(...rows.map((row) => row.name.length)) * LETTER + 18);
  const most = Math.floor((room - 12) / LETTER);
  return { room, cut: (text) => (text.length > most ? `${text.slice(0, most - 1)}…` : text) };
}

// rows: [{name, parts: [{value, kind}]}]
export function stackedBars(rows, width, label) {
  const svg = chart(width, rows.length * ROW + 4, label);
  const { room, cut } = labels(rows, width);
  rows.forEach((row, index) => {
    const y = index * ROW + 4;
    svg.append(node("text", { x: 0, y: y + 17 }, cut(row.name)));
    const total = row.parts.reduce((sum, part) => sum + part.value, 0) || 1;
    let x = room;
    for (const part of row.parts) {
      const length = ((width - room) * part.value) / total;
      svg.append(node("rect", { x, y, width: Math.max(0, length - 2), height: 24, class: part.kind, rx: 3 }));
      if (length > 24) svg.append(node("text", { x: x + length / 2, y: y + 17, "text-anchor": "middle", class: "on" }, part.value));
      x += length;
    }
  });
  return svg;
}

// rows: [{name, value, low, high}], on an axis from `least` to `most`
export function intervals(rows, least, most, width, label) {
  const svg = chart(width, rows.length * ROW + 26, label);
  const { room, cut } = labels(rows, width);
  const at = (value) => room + 8 + ((width - room - 70) * (value - least)) / (most - least || 1);
  const bottom = rows.length * ROW + 4;
  for (const tick of ticks(least, most)) {
    svg.append(node("line", { x1: at(tick), x2: at(tick), y1: 0, y2: bottom, class: "line", "stroke-width": tick === 0 ? 2 : 1 }));
    svg.append(node("text", { x: at(tick), y: bottom + 16, "text-anchor": "middle", class: "quiet" }, tick));
  }
  rows.forEach((row, index) => {
    const y = index * ROW + 16;
    svg.append(node("text", { x: 0, y: y + 5 }, cut(row.name)));
    svg.append(node("line", { x1: at(row.low), x2: at(row.high), y1: y, y2: y, class: "mark", "stroke-width": 3, "stroke-linecap": "round" }));
    svg.append(node("circle", { cx: at(row.value), cy: y, r: 6, class: "mark" }));
    const shown = row.value.toFixed(2);
    svg.append(node("text", { x: width, y: y + 5, "text-anchor": "end" }, row.value > 0 ? `+${shown}` : shown));
  });
  return svg;
}

function ticks(least, most) {
  const step = [0.25, 0.5, 1, 2, 5, 10].find((one) => (most - least) / one <= 6) ?? 20;
  const found = [];
  for (let tick = Math.ceil(least / step) * step; tick <= most + 1e-9; tick += step) found.push(Number(tick.toFixed(2)));
  return found;
}

// rows: [{name, value}], value null where there is none
export function bars(rows, most, width, label, shown = (value) => value.toFixed(2)) {
  const svg = chart(width, rows.length * ROW + 4, label);
  const { room, cut } = labels(rows, width);
  const length = width - room - 60;
  rows.forEach((row, index) => {
    const y = index * ROW + 4;
    svg.append(node("text", { x: 0, y: y + 17 }, cut(row.name)));
    if (row.value !== null)
      svg.append(node("rect", { x: room, y: y + 3, width: Math.max(0, (length * row.value) / (most || 1)), height: 18, class: "bar", rx: 3 }));
    const x = room + 8 + Math.max(0, (length * (row.value ?? 0)) / (most || 1));
    svg.append(node("text", { x, y: y + 17 }, row.value === null ? "–" : shown(row.value)));
  });
  return svg;
}

export function histogram(values, width, label, unit) {
  const most = Math.max(...values);
  const part = [1, 2, 5, 10, 20, 60, 120, 300, 600].find((one) => most / one <= 14) ?? Math.ceil(most / 14);
  const counts = new Array(Math.floor(most / part) + 1).fill(0);
  for (const value of values) counts[Math.floor(value / part)] += 1;
  const highest = Math.max(...counts);
  const svg = chart(width, 150, label);
  const step = width / counts.length;
  counts.forEach((count, index) => {
    const height = (110 * count) / highest;
    svg.append(node("rect", { x: index * step + 2, y: 120 - height, width: Math.max(1, step - 4), height, class: "bar", rx: 2 }));
  });
  svg.append(node("line", { x1: 0, x2: width, y1: 120, y2: 120, class: "line" }));
  svg.append(node("text", { x: 0, y: 140, class: "quiet" }, `0 ${unit}`));
  svg.append(node("text", { x: width, y: 140, "text-anchor": "end", class: "quiet" }, `${counts.length * part} ${unit}`));
  return svg;
}
