(() => {
  const missing = "–";
  const words = new Intl.Collator(undefined, {numeric: true});
  const number = text => parseFloat(text.replaceAll("−", "-").replace(/^\+/, ""));

  function button(label, text, action) {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.setAttribute("aria-label", label);
    made.addEventListener("click", action);
    return made;
  }

  // Rows move within their tbody, so a group keeps its heading; a third press restores the order of the report.
  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    const bodies = [...table.tBodies].map(body => [body, [...body.rows].filter(row => !row.querySelector(".group"))]);
    heads.forEach((head, column) => {
      const sorter = document.createElement("button");
      sorter.type = "button";
      sorter.append(...head.childNodes);
      head.append(sorter);
      head.setAttribute("aria-sort", "none");
      sorter.addEventListener("click", () => {
        const next = {none: "ascending", ascending: "descending", descending: "none"}[head.getAttribute("aria-sort")];
        heads.forEach(other => other.setAttribute("aria-sort", other === head ? next : "none"));
        const sign = next === "descending" ? -1 : 1;
        for (const [body, rows] of bodies) {
          const keyed = rows.map(row => [row, row.cells[column].textContent.trim()]);
          const numeric = keyed.every(([, text]) => text === missing || !isNaN(number(text)));
          if (next !== "none") keyed.sort(([, a], [, b]) =>
            (a === missing) - (b === missing)
            || sign * (a === missing ? 0 : numeric ? number(a) - number(b) : words.compare(a, b)));
          body.append(...keyed.map(([row]) => row));
        }
      });
    });
  }

  function zoomable(report) {
    const dialog = document.createElement("dialog");
    const view = document.createElement("div");
    let scale = 1, opener = null;
    const to = wanted => {
      scale = Math.min(6, Math.max(1, wanted));
      view.firstChild.style.width = `${100 * scale}%`;
    };
    const bar = document.createElement("div");
    const title = document.createElement("strong");
    bar.className = "bar";
    bar.append(title, button("Smaller", "−", () => to(scale / 1.5)), button("Larger", "+", () => to(scale * 1.5)),
      button("Close", "Close", () => dialog.close()));
    view.className = "view";
    view.tabIndex = 0;
    dialog.append(bar, view);
    dialog.addEventListener("keydown", event => {
      if (event.key === "+" || event.key === "=") to(scale * 1.5);
      if (event.key === "-") to(scale / 1.5);
    });
    dialog.addEventListener("close", () => opener.focus());
    report.append(dialog);
    for (const figure of report.querySelectorAll("figure")) {
      const picture = figure.querySelector("img");
      const open = () => {
        opener = enlarge;
        title.textContent = picture.alt;
        dialog.setAttribute("aria-label", picture.alt);
        const shown = picture.cloneNode();
        shown.addEventListener("click", () => to(scale > 1 ? 1 : 2.25));
        view.replaceChildren(shown);
        to(1);
        dialog.showModal();
        view.focus();
      };
      const enlarge = button(`Enlarge: ${picture.alt}`, "Enlarge", open);
      enlarge.className = "enlarge";
      picture.addEventListener("click", open);
      figure.querySelector("figcaption").prepend(enlarge);
    }
  }

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  }

  function copyable(report) {
    for (const item of report.querySelectorAll("[data-copy]")) {
      const said = document.createElement("span");
      said.setAttribute("role", "status");
      const place = item.querySelector(".copies");
      for (const [text, name] of [[item.dataset.copy, "Copy"], [item.dataset.latex, "Copy as LaTeX"]]) {
        if (!text) continue;
        place.append(button(name, name, async () => {
          await copy(text);
          said.textContent = "Copied";
          setTimeout(() => { said.textContent = ""; }, 1500);
        }));
      }
      place.append(said);
    }
  }

  for (const report of document.querySelectorAll(".kdx-report:not([data-ready])")) {
    report.dataset.ready = "";
    report.querySelectorAll("table.sortable").forEach(sortable);
    zoomable(report);
    copyable(report);
    const closed = () => report.querySelectorAll("details:not([open])");
    addEventListener("beforeprint", () => closed().forEach(part => { part.dataset.closed = ""; part.open = true; }));
    addEventListener("afterprint", () => report.querySelectorAll("[data-closed]").forEach(part => {
      part.open = false;
      delete part.dataset.closed;
    }));
  }
})();
