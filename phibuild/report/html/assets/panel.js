// The panel of a cell, which the fragment #cell=ID opens and the browser's Back closes.
const panel = find("#panel");
let openedHere = false;
let detailsOfCells = null;

async function detailsOf(cell) {
  detailsOfCells = detailsOfCells || unpacked("details").then((text) => (text ? JSON.parse(text) : null));
  const found = await detailsOfCells.catch(() => null);
  return found && found[cell.number];
}

async function showCell(name, byUser) {
  const cell = byId.get(name);
  panel.replaceChildren(panelHead(cell, name));
  if (!panel.open) {
    openedHere = byUser;
    hideTip();
    panel.showModal();
  }
  panel.scrollTop = 0;
  if (!cell) return;
  const parts = await detailsOf(cell);
  if (!parts) {
    panel.append(element("p", {}, "This browser cannot unpack the rest; report.json has it."));
    return;
  }
  for (const [title, lines] of parts) {
    panel.append(element("h3", {}, title), element("dl", {}, ...lines.map(([label, text]) =>
      (label ? element("div", {}, element("dt", {}, label), element("dd", {}, text))
        : element("div", { class: "whole" }, element("dt", { class: "unseen" }, title), element("dd", {}, text))))));
  }
}

function panelHead(cell, name) {
  const close = element("button", { type: "button" }, "Close");
  close.addEventListener("click", closePanel);
  if (!cell) {
    return element("div", {}, element("header", {}, element("h2", { id: "panel-title" }, "No such cell"), close),
      element("p", { class: "id" }, name));
  }
  return element("div", {},
    element("header", {}, element("h2", { id: "panel-title" }, `${cell.backend} ${cell.name}`), close),
    element("p", { class: "id" }, cell.id),
    element("p", { class: "state" }, sign(cell.verdict),
      element("span", {}, `${data.verdicts[cell.verdict]}${cell.why ? `: ${cell.why}` : ""}`)));
}

function closePanel() {
  panel.close();
}

// Go back to where the cell was opened; a page that was opened at a cell has no such place.
panel.addEventListener("close", () => {
  if (asked()?.cell === undefined) return;
  if (openedHere) history.back();
  else history.replaceState(null, "", location.pathname + location.search);
});
panel.addEventListener("click", (event) => { if (event.target === panel) closePanel(); });
