// What a formula's symbols mean, beside it: under the pointer, in focus, or touched. The meanings
// are those of the fold at the page's head; Escape puts them away.
document.addEventListener("DOMContentLoaded", () => {
  const note = Object.assign(document.createElement("div"), { id: "nl-note", className: "nl-note", hidden: true });
  note.setAttribute("role", "tooltip");
  document.body.append(note);
  let timer;
  const later = (act, wait) => { clearTimeout(timer); timer = setTimeout(act, wait); };
  const hide = () => { note.hidden = true; };

  function show(formula) {
    const list = document.createElement("ul");
    for (const row of formula.classList) {
      const meaning = row.startsWith("nl-row-") && document.querySelector(`.nl-symbols li.${row} p`);
      if (meaning) list.append(Object.assign(document.createElement("li"), { innerHTML: meaning.innerHTML }));
    }
    for (const inner of list.querySelectorAll("[tabindex]")) inner.removeAttribute("tabindex");
    note.replaceChildren(list);
    note.hidden = false;
    const at = formula.getBoundingClientRect(), width = document.documentElement.clientWidth;
    note.style.left = `${scrollX + Math.max(8, Math.min(at.left, width - note.offsetWidth - 8))}px`;
    note.style.top = `${scrollY + at.bottom + 4}px`;
  }

  for (const formula of document.querySelectorAll("article .math[class*='nl-row-']")) {
    formula.addEventListener("mouseenter", () => later(() => show(formula), 400));
    formula.addEventListener("mouseleave", () => later(hide, 300));
    formula.addEventListener("focusin", (event) => {
      event.target.setAttribute("aria-describedby", note.id);
      later(() => show(formula), 0);
    });
    formula.addEventListener("focusout", () => later(hide, 0));
  }
  note.addEventListener("mouseenter", () => clearTimeout(timer));
  note.addEventListener("mouseleave", () => later(hide, 300));
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
});
