// From here on the page answers.
function follow(byUser) {
  const wanted = asked();
  if (wanted === null) {
    if (panel.open) panel.close();
    return;
  }
  if (wanted.cell !== undefined) {
    showCell(wanted.cell, byUser);
    return;
  }
  if (panel.open) panel.close();
  else if (byUser || FILTERS.some((name) => wanted[name])) setFilters(wanted);
}

form.hidden = false;
form.addEventListener("input", readForm);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(readForm));
addEventListener("hashchange", () => follow(true));
addEventListener("beforeprint", () => {
  document.documentElement.classList.add("printing");
  drawAll();
  dispatchEvent(new Event("resize"));  // by which the plots take the width of the paper
});
addEventListener("afterprint", () => {
  document.documentElement.classList.remove("printing");
  dispatchEvent(new Event("resize"));
});
addEventListener("scroll", hideTip, { passive: true });

document.addEventListener("mouseover", (event) => {
  const chip = event.target.closest && event.target.closest(".chip");
  if (chip) showTip(event, cellTip(cells[Number(chip.dataset.cell)]));
  else if (!event.target.closest(".canvas")) hideTip();
});
document.addEventListener("focusin", (event) => {
  const chip = event.target.closest(".chip");
  if (!chip || !chip.matches(":focus-visible")) return;
  const { left, bottom } = chip.getBoundingClientRect();
  showTip({ clientX: left, clientY: bottom - 8 }, cellTip(cells[Number(chip.dataset.cell)]));
});
document.addEventListener("focusout", hideTip);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
document.addEventListener("toggle", (event) => {
  if (event.target.matches(".plot details") && event.target.open) fillData(event.target);
}, true);

const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting && !entry.target.hidden) {
      near.unobserve(entry.target);
      draw(entry.target);
    }
  }
}, { rootMargin: "300px" });

state.keep = new Set(cells.map((cell) => cell.number));
find("#matched").textContent = `${cells.length.toLocaleString("en")} cells`;
applyToPlaces();
if (cells.length > data.first) showTable();
follow(false);
for (const place of all(".plot")) near.observe(place);
(window.requestIdleCallback || setTimeout)(() => loadPlots());
