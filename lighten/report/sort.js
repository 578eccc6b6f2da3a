for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending", sign = down ? -1 : 1;
      const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const order = (a, b) => Number(a) - Number(b) || String(a).localeCompare(String(b), "en", {numeric: true});
      const unknown = row => /^\u2013?$/.test(value(row)) ? 1 : 0;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...[...body.rows].sort((a, b) => unknown(a) - unknown(b) || sign * order(value(a), value(b))));
    });
  });
}
