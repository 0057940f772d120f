// Plots: drawn when they come into view, by Vega-Embed, which is unpacked when the page is shown.
const drawn = new Map();
let drawing = null;

function loadPlots() {
  drawing = drawing || unpacked("plot-script").then((script) => {
    if (script) document.head.append(element("script", {}, script));
    return typeof vegaEmbed === "function";
  }).catch(() => false);
  return drawing;
}

// The rows of a figure: its own, or those of the matching cells that it is about.
function rowsOf(figure) {
  if (figure.rows) return figure.rows;
  const found = state.matched.filter((cell) =>
    Object.entries(figure.where).every(([key, value]) => cell[key] === value)
    && figure.has.every((key) => cell[key] !== undefined)
    && (!figure.first || isFirst(cell)));
  const rank = (cell) => (cell.verdict === "ship" ? 0 : 1);
  const kept = found.sort((one, other) => rank(one) - rank(other) || one.number - other.number)
    .slice(0, figure.limit);
  if (figure.kind === "sizes") kept.sort((one, other) => other.size - one.size);
  return kept.map(labelled);
}

// What a cell is called beside others: its device too, where several have the name.
function labelled(cell, _, rows) {
  const same = rows.filter((one) => one.backend === cell.backend && one.name === cell.name);
  const place = same.length > 1 ? `${cell.device} ` : "";
  return { ...cell, label: `${place}${cell.backend} ${cell.name}` };
}

// Whether a cell speaks for its artifact: the first that has it, among those that match.
function isFirst(cell) {
  return Boolean(cell.first);
}

async function draw(place) {
  const figure = data.figures[Number(place.dataset.figure)];
  if (drawn.has(place)) return;
  drawn.set(place, null);
  const canvas = find(".canvas", place);
  if (typeof vegaEmbed !== "function" && !await loadPlots()) {
    canvas.replaceChildren(element("p", { class: "undrawn" },
      "Not drawn: this page has no script for plots, or this browser cannot unpack it."));
    return;
  }
  const spec = structuredClone(data.specs[figure.kind]);
  spec.params[0].value = figure.floor;
  spec.datasets = { rows: rowsOf(figure), ...structuredClone(figure.sets) };
  // The figure has a text, and its data as a table: its marks need no names of their own.
  const inner = element("div", { "aria-hidden": "true" });
  canvas.replaceChildren(inner);
  const made = await vegaEmbed(inner, spec, {
    actions: false, renderer: "svg", defaultStyle: false, mode: "vega-lite", tooltip: plotTip,
    logLevel: 1,
  });
  made.view.addEventListener("click", (event, item) => {
    if (item && item.datum && item.datum.id) location.hash = cellLink(item.datum);
  });
  drawn.set(place, made.view);
}

function redrawPlots() {
  for (const [place, view] of drawn) {
    const figure = data.figures[Number(place.dataset.figure)];
    if (view && !figure.rows) view.data("rows", rowsOf(figure)).resize().runAsync();
  }
  for (const details of all(".plot details[open]")) fillData(details);
}

function drawAll() {
  for (const place of all(".plot:not([hidden])")) draw(place);
}

const CELL_COLUMNS = [["id", "Cell"], ["size", "Size"], ["plan", "Planned"], ["kl", "KL, nats"],
  ["decode", "Decode t/s"], ["verdict", "Verdict"]];

// The table of a plot's data.
function fillData(details) {
  const figure = data.figures[Number(details.closest(".plot").dataset.figure)];
  const columns = figure.columns.length ? figure.columns : CELL_COLUMNS;
  const head = element("tr", {}, ...columns.map(([, title]) => element("th", { scope: "col" }, title)));
  const rows = rowsOf(figure).map((row) => element("tr", {}, ...columns.map(([key]) => dataField(row, key))));
  if (figure.kind === "positions") addPositions(head, rows, rowsOf(figure));
  const made = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
  const box = element("div", { class: "scroll", role: "group", tabindex: "0", "aria-label": "Data" }, made);
  find(".scroll", details)?.remove();
  details.append(box);
}

function dataField(row, key) {
  const value = row[key];
  if (key === "id") return element("td", {}, element("a", { href: cellLink(row) }, value));
  if (key === "verdict") return element("td", {}, data.verdicts[value]);
  if (value === undefined || value === null) return element("td", { class: "number" }, "-");
  const isCell = row.t !== undefined;
  let text = String(value);
  if (["size", "plan", "planned", "taken"].includes(key)) text = bytes(value);
  else if (isCell && (key === "kl" || key === "decode")) text = shownIn(row, key);
  else if (key === "kl" || key === "error") text = value.toFixed(5);
  return element("td", typeof value === "number" ? { class: "number" } : {}, text);
}

function addPositions(head, rows, found) {
  const starts = found[0]?.at || [];
  starts.forEach((start) => head.append(element("th", { scope: "col" }, `from ${start}`)));
  found.forEach((cell, number) => cell.pos.forEach((kl) =>
    rows[number].append(element("td", { class: "number" }, kl.toPrecision(3)))));
}

// -- what the pointer is over

function plotTip(event, item, value) {
  const datum = item && item.datum;
  if (!value || !datum) hideTip();
  else if (datum.id) showTip(event, cellTip(datum.number !== undefined ? cells[datum.number] : datum));
  else showTip(event, rowTip(datum));
}

function line(name, text) {
  return element("div", {}, element("span", {}, name), element("span", {}, text));
}

function cellTip(cell) {
  const lines = ["size", "kl", "top1", "decode", "memory"]
    .filter((key) => shownIn(cell, key) !== "-")
    .map((key) => line(data.columns.find((column) => column[0] === key)[1], shownIn(cell, key)));
  return [element("b", {}, `${cell.device}: ${cell.backend} ${cell.name}`), ...lines,
    element("p", {}, sign(cell.verdict), ` ${data.verdicts[cell.verdict]}${cell.why ? `: ${cell.why}` : ""}`)];
}

function rowTip(row) {
  if (row.step !== undefined) {
    return [element("b", {}, row.step), line("seconds", String(row.seconds)), line("CPU s", String(row.cpu)),
      line("memory planned", bytes(row.planned)), line("taken", row.taken === null ? "-" : bytes(row.taken))];
  }
  if (row.role !== undefined) {
    return [element("b", {}, `layer ${row.layer}, ${row.role}`),
      line("KL, nats", `${row.kl.toFixed(5)} ± ${row.error.toFixed(5)}`)];
  }
  if (row.planned !== undefined) {
    return [element("b", {}, `${row.start} s to ${row.end} s`), line("planned", bytes(row.planned)),
      line("taken", bytes(row.taken))];
  }
  return [element("b", {}, String(row.label || ""))];
}

function showTip(event, content) {
  const tip = find("#tip");
  tip.replaceChildren(...content);
  tip.hidden = false;
  const { clientX: x, clientY: y } = event;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, x + 14 + width > innerWidth ? x - width - 14 : x + 14)}px`;
  tip.style.top = `${Math.max(8, y + 14 + height > innerHeight ? y - height - 14 : y + 14)}px`;
}

function hideTip() {
  find("#tip").hidden = true;
}
