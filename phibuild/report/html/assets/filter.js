// Filters: which cells are meant, and which cards, grids and plots have any of them.
const form = find("#filters");

function matches(cell) {
  for (const name of FILTERS.slice(0, 5)) {
    if (state.filter[name] && cell[name] !== state.filter[name]) return false;
  }
  const text = (state.filter.text || "").toLowerCase();
  return !text || `${cell.id} ${cell.name} ${cell.why}`.toLowerCase().includes(text);
}

function isFiltered() {
  return FILTERS.some((name) => state.filter[name]);
}

// Hide what has no matching cell. What is beyond a group's limit waits for its button.
function applyToPlaces() {
  const places = new Set(state.matched.map((cell) => `${cell.model}\n${cell.device}`));
  const models = new Set(state.matched.map((cell) => cell.model));
  for (const group of all("[data-limit]")) {
    let left = group.dataset.whole ? Infinity : Number(group.dataset.limit);
    let more = 0;
    for (const child of all(":scope > [data-device], :scope > [data-model]", group)) {
      const { device, model } = child.dataset;
      const has = device === undefined ? models.has(model) : places.has(`${model}\n${device}`);
      child.hidden = !has || left <= 0;
      if (has && left <= 0) more += 1;
      if (has) left -= 1;
    }
    showMore(group, more);
  }
  for (const chip of all(".chip")) {
    chip.classList.toggle("dim", !state.keep.has(Number(chip.dataset.cell)));
  }
  for (const row of all(".grid tbody tr")) row.hidden = !find(".chip:not(.dim)", row);
}

function showMore(group, more) {
  let button = group.nextElementSibling;
  if (!button || !button.classList.contains("more")) {
    if (!more) return;
    button = element("button", { type: "button", class: "more" });
    button.addEventListener("click", () => {
      group.dataset.whole = "yes";
      applyFilters();
    });
    group.after(button);
  }
  button.textContent = `Show ${more.toLocaleString("en")} more`;
  button.hidden = !more;
}

function applyFilters() {
  state.matched = isFiltered() ? cells.filter(matches) : cells;
  state.keep = new Set(state.matched.map((cell) => cell.number));
  const of = `${state.matched.length.toLocaleString("en")} of ${cells.length.toLocaleString("en")} cells`;
  find("#matched").textContent = of;
  applyToPlaces();
  showTable();
  redrawPlots();
}

function setFilters(wanted) {
  for (const name of FILTERS) {
    state.filter[name] = wanted[name] || "";
    const field = form.elements[name];
    if (field && field.value !== state.filter[name]) field.value = state.filter[name];
  }
  state.shown = data.first;
  applyFilters();
}

// The filters stand in the fragment, so that a filtered page can be sent as a link.
function rememberFilters() {
  const parts = FILTERS.filter((name) => state.filter[name])
    .map((name) => `${name}=${encodeURIComponent(state.filter[name])}`);
  history.replaceState(null, "", parts.length ? `#${parts.join("&")}` : location.pathname + location.search);
}

function readForm() {
  const wanted = {};
  for (const name of FILTERS) wanted[name] = form.elements[name] ? form.elements[name].value : "";
  setFilters(wanted);
  rememberFilters();
}
