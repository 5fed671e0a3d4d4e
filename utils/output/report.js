"use strict";

// Tables: a click on a heading sorts by its column, a second one the other way; what is missing comes last.
function sortBy(heading) {
  const table = heading.closest("table"), column = heading.cellIndex, body = table.tBodies[0];
  const ascending = heading.getAttribute("aria-sort") !== "ascending";
  const key = (row) => {
    const value = row.cells[column].dataset.value;
    return value === undefined ? row.cells[column].textContent : value === "" ? null : Number(value);
  };
  const compare = (one, other) => {
    const [a, b] = [key(one), key(other)];
    if (a === null || b === null) return (a === null) - (b === null);
    const order = typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
    return ascending ? order : -order;
  };
  body.append(...[...body.rows].sort(compare));
  for (const each of table.tHead.rows[0].cells) each.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
}
for (const button of document.querySelectorAll("thead button"))
  button.addEventListener("click", () => sortBy(button.closest("th")));

// The fan chart: history, observations, and the ensemble as median, 50 % and 90 % bands.
const fans = JSON.parse(document.getElementById("fans").textContent);
const LEFT = 70, RIGHT = 740, TOP = 12, BOTTOM = 290;

function add(parent, name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return parent.appendChild(element);
}

function niceTicks(low, high) {
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const ticks = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++) ticks.push(k * step);
  return ticks;
}

function drawFan(svg, unit, times, { history, observed, quantiles }) {
  const values = [history, observed, ...quantiles].flat().filter((value) => value !== null);
  let low = Math.min(...values), high = Math.max(...values);
  const margin = 0.04 * (high - low) || Math.abs(high) || 1;
  [low, high] = [low - margin, high + margin];
  const x = (step) => LEFT + (RIGHT - LEFT) * step / (times.length - 1);
  const y = (value) => BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low);
  const point = (value, step) => `${x(step).toFixed(1)} ${y(value).toFixed(1)}`;
  const path = (line, first) => line.map((value, k) => {  // a missing value leaves a gap, a lone one is a dot
    if (value === null) return "";
    return k && line[k - 1] !== null ? `L${point(value, first + k)}` : `M${point(value, first + k)}h0`;
  }).join("");
  const start = history.length;

  svg.replaceChildren();
  for (const tick of niceTicks(low, high)) {
    add(svg, "line", { class: "gridline", x1: LEFT, x2: RIGHT, y1: y(tick), y2: y(tick) });
    add(svg, "text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, Number(tick.toPrecision(6)));
  }
  const every = Math.ceil(times.length / 6);
  let shown = null;
  for (let step = 0; step < times.length; step += every) {  // the hour, and below it the day where it changes
    const [day, hour] = times[step].split(" ");
    add(svg, "text", { x: x(step), y: BOTTOM + 18, "text-anchor": "middle" }, hour ?? day);
    if (hour && day !== shown) add(svg, "text", { x: x(step), y: BOTTOM + 34, "text-anchor": "middle" }, day);
    shown = day;
  }
  add(svg, "text", { x: (LEFT + RIGHT) / 2, y: BOTTOM + 52, "text-anchor": "middle" }, "time");
  add(svg, "text", { transform: `translate(14 ${(TOP + BOTTOM) / 2}) rotate(-90)`, "text-anchor": "middle" }, unit);
  for (const [name, lower, upper] of [["wide-band", 0, 4], ["narrow-band", 1, 3]]) {
    const edge = (line) => line.map((value, k) => point(value, start + k));
    const around = [...edge(quantiles[lower]), ...edge(quantiles[upper]).reverse()];
    add(svg, "path", { class: name, d: `M${around.join("L")}Z` });
  }
  add(svg, "path", { class: "median", d: path(quantiles[2], start) });
  add(svg, "path", { class: "history", d: path(history, 0) });
  add(svg, "path", { class: "observed", d: path([history.at(-1), ...observed], start - 1) });
}

const node = document.getElementById("node"), time = document.getElementById("window");
fans.nodes.forEach(({ name }, k) => node.add(new Option(name, k)));
fans.windows.forEach(({ name }, k) => time.add(new Option(name, k)));
node.value = fans.first;

function show() {
  const chosen = fans.nodes[node.value], { name, times } = fans.windows[time.value], svg = document.getElementById("fan");
  drawFan(svg, fans.unit, times, chosen.windows[time.value]);
  svg.setAttribute("aria-label", `Fan chart of ${chosen.name}, window ${name}`);
  document.getElementById("fan-text").textContent = `${chosen.name}: ${chosen.text}`;
}
for (const select of [node, time]) select.addEventListener("change", show);
show();
