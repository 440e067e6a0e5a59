"use strict";
// Every table sorts by a click on a heading and follows the same filters; nothing is loaded and nothing is stored.
const query = document.querySelector("#query");
const selects = [...document.querySelectorAll("select[data-facet]")];
const tables = [...document.querySelectorAll("table.sortable")].map((node) => {
  const heads = [...node.tHead.rows[node.tHead.rows.length - 1].cells];
  const rows = [...node.tBodies[0].rows].map((row) => ({
    row,
    facets: JSON.parse(row.dataset.facets),
    words: row.textContent.toLowerCase(),
    values: [...row.cells].map((cell) => cell.dataset.sort ?? cell.textContent.trim()),
  }));
  return { node, heads, rows, shown: document.getElementById(node.dataset.shown) };
});

function filter() {
  const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const { rows, shown } of tables) {
    let count = 0;
    for (const entry of rows) {
      const chosen = selects.every((select) => !select.value || entry.facets[select.dataset.facet].includes(select.value));
      entry.row.hidden = !(chosen && words.every((word) => entry.words.includes(word)));
      count += !entry.row.hidden;
    }
    shown.textContent = count === rows.length ? `all ${count}` : `${count} of ${rows.length}`;
  }
}

function sort(table, place, descending) {
  const number = table.heads[place].classList.contains("number");
  const sign = descending ? -1 : 1;
  table.rows.sort((one, two) => {
    const [a, b] = [one.values[place], two.values[place]];
    if (a === "" || b === "") return (a === "") - (b === ""); // what is missing comes last either way
    return sign * (number ? Number(a) - Number(b) || 0 : a.localeCompare(b, "en", { numeric: true }));
  });
  table.node.tBodies[0].append(...table.rows.map((entry) => entry.row));
  table.heads.forEach((head, index) => {
    if (index === place) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
}

for (const table of tables) {
  table.heads.forEach((head, place) => {
    head.querySelector("button").addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const first = head.dataset.best === "1" ? "descending" : "ascending";
      const next = now === null ? first : now === "ascending" ? "descending" : "ascending";
      sort(table, place, next === "descending");
    });
  });
}
for (const box of document.querySelectorAll("input[data-group]")) {
  const show = () => tables.forEach(({ node }) => node.classList.toggle(`without-${box.dataset.group}`, !box.checked));
  if (box.dataset.narrow && matchMedia("(max-width: 760px)").matches) box.checked = false;
  box.addEventListener("change", show);
  show();
}
query.addEventListener("input", filter);
selects.forEach((select) => select.addEventListener("change", filter));
document.querySelector("#clear").addEventListener("click", () => {
  query.value = "";
  selects.forEach((select) => { select.value = ""; });
  filter();
});
filter();
