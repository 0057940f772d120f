// What all parts of the page share: the data, what is filtered, elements, the fragment.
const unpackedData = await unpacked("data");
if (!unpackedData) return;  // a browser from before 2023: the page stays as it was written
const data = JSON.parse(unpackedData);
const cells = data.cells;
cells.forEach((cell, number) => { cell.number = number; });
const byId = new Map(cells.map((cell) => [cell.id, cell]));
const FILTERS = ["model", "device", "backend", "precision", "verdict", "text"];
const state = { filter: {}, matched: cells, sort: null, descending: false, shown: data.first };

function find(selector, from = document) {
  return from.querySelector(selector);
}

function all(selector, from = document) {
  return Array.from(from.querySelectorAll(selector));
}

// Text is only ever set as text: no name in a report becomes markup.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function sign(verdict) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("class", `sign ${verdict}`);
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#sign-${verdict}`);
  svg.append(use);
  return svg;
}

function cellLink(cell) {
  return `#cell=${encodeURIComponent(cell.id)}`;
}

// The text of a cell in a column of the table.
function shownIn(cell, key) {
  return cell.t[data.columns.findIndex((column) => column[0] === key)];
}

// What the fragment asks for: {cell: ...} or filters; null where it names a section.
function asked() {
  const text = location.hash.slice(1);
  if (text && !text.includes("=")) return null;
  const found = {};
  for (const part of text.split("&").filter(Boolean)) {
    const [name, ...value] = part.split("=");
    try {
      found[name] = decodeURIComponent(value.join("="));
    } catch {
      found[name] = value.join("=");
    }
  }
  return found;
}

function bytes(value) {
  for (const [unit, factor] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (value >= factor * 0.9995) {
      const number = value / factor;
      return `${number.toFixed(number < 9.995 ? 2 : number < 99.95 ? 1 : 0)} ${unit}`;
    }
  }
  return `${value} B`;
}

function say(text) {
  find("#said").textContent = text;
}

// Unpack what is gzipped in base64 in an element; null where the browser cannot.
async function unpacked(id) {
  const text = document.getElementById(id).textContent.trim();
  if (!text || typeof DecompressionStream === "undefined") return null;
  const raw = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}
