"use strict";
// Sort a table by the column whose header is pressed: numbers by value, text by the reader's language, gaps last.
document.querySelectorAll("table.sortable").forEach((table) => {
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    if (!head.firstElementChild) return;
    head.firstElementChild.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const numeric = head.classList.contains("number");
      const rows = Array.from(table.tBodies[0].rows).map((row) => [row.cells[column].textContent.trim(), row]);
      const order = new Intl.Collator(undefined, { numeric: true });
      rows.sort(([a], [b]) => {
        if (numeric && (a === "n/a" || b === "n/a")) return (a === "n/a") - (b === "n/a");
        const difference = numeric ? Number(a) - Number(b) : order.compare(a, b);
        return down ? -difference : difference;
      });
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
});
// Show only the classes whose name holds what is typed, where there are more than a screenful.
const find = document.querySelector(".find");
const classes = Array.from(document.querySelector("table.sortable").tBodies[0].rows, (row) => [row.cells[0].textContent.toLowerCase(), row]);
find.hidden = classes.length <= 20;
find.firstElementChild.addEventListener("input", (event) => {
  const wanted = event.target.value.trim().toLowerCase();
  classes.forEach(([name, row]) => { row.hidden = !name.includes(wanted); });
});
