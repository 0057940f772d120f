// The table of cells: sorted by a column's figures, so many rows at first.
const table = find("#table");

function compared(one, other, key) {
  const [a, b] = [one[key], other[key]];
  // What has no figure comes last, whichever way it is sorted.
  if (a === undefined || b === undefined) return a === b ? 0 : (a === undefined) ? Infinity : -Infinity;
  if (typeof a === "number") return a - b;
  if (key === "verdict") return order(a) - order(b);
  return a.localeCompare(b, "en", { numeric: true });
}

function order(verdict) {
  return Object.keys(data.verdicts).indexOf(verdict);
}

function sorted(rows) {
  if (!state.sort) return rows;
  const way = state.descending ? -1 : 1;
  return rows.slice().sort((one, other) => {
    const found = compared(one, other, state.sort);
    return Number.isFinite(found) ? way * found : found > 0 ? 1 : -1;
  });
}

function tableRow(cell) {
  const row = element("tr");
  data.columns.forEach(([key, , , numeric], place) => {
    const field = element("td", { class: `k-${key}${numeric ? " number" : ""}` });
    if (key === "verdict") {
      field.append(element("a", { class: `verdict ${cell.verdict}`, href: cellLink(cell) },
        sign(cell.verdict), ` ${data.verdicts[cell.verdict]}`));
    } else {
      field.textContent = cell.t[place];
    }
    row.append(field);
  });
  return row;
}

function showTable() {
  const rows = sorted(state.matched);
  const shown = rows.slice(0, state.shown);
  find("tbody", table).replaceChildren(...shown.map(tableRow));
  const line = find("#more-rows");
  line.replaceChildren();
  if (!rows.length) line.append("No cell matches.");
  if (shown.length < rows.length) {
    line.append(`${shown.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} cells.`);
    for (const count of [state.shown + 400, rows.length]) {
      if (count > rows.length) continue;
      const text = count === rows.length ? "Show all" : "Show 400 more";
      const button = element("button", { type: "button" }, text);
      button.addEventListener("click", () => { state.shown = count; showTable(); });
      line.append(button);
    }
  }
}

function sortBy(header) {
  const { key } = header.dataset;
  state.descending = state.sort === key ? !state.descending : false;
  state.sort = key;
  for (const other of all("th[aria-sort]", table)) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
  showTable();
  say(`Sorted by ${header.textContent.trim()}, ${state.descending ? "largest" : "smallest"} first.`);
}

for (const header of all("thead th", table)) {
  const button = find("button", header);
  button.disabled = false;
  button.addEventListener("click", () => sortBy(header));
}
