"use strict";
// The switch between light and dark, the button that hides code, and the scorecard's table. Without
// this script every page still reads well.

const page = document.documentElement;

function remembered(theme) {
  try {
    if (theme) localStorage.setItem("theme", theme);
    return localStorage.getItem("theme");
  } catch {
    return null; // storage is refused: the choice holds for this page
  }
}

function darkness() {
  const wanted = page.dataset.theme;
  return wanted ? wanted === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

if (remembered()) page.dataset.theme = remembered(); // before anything is drawn

function themeSwitch(button) {
  const label = () => {
    button.textContent = darkness() ? "Light" : "Dark";
  };
  button.addEventListener("click", () => {
    page.dataset.theme = darkness() ? "light" : "dark";
    remembered(page.dataset.theme);
    label();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  label();
  button.hidden = false;
}

function codeSwitch(button) {
  button.addEventListener("click", () => {
    const open = button.textContent === "Show code";
    for (const source of document.querySelectorAll("details.source")) source.open = open;
    button.textContent = open ? "Hide code" : "Show code";
  });
  button.hidden = false;
}

function key(row, column) {
  const cell = row.cells[column];
  const text = (cell.dataset.sort ?? cell.textContent).trim();
  const number = Number(text);
  return text !== "" && Number.isFinite(number) ? number : text;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return a.localeCompare(b, "en", { numeric: true });
}

function sortable(table) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const descending = head.ariaSort === "ascending";
      const sign = descending ? -1 : 1;
      const rows = [...body.rows].sort((a, b) => sign * compare(key(a, column), key(b, column)));
      body.append(...rows);
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.ariaSort = descending ? "descending" : "ascending";
    });
  });
}

function filterable(table, form) {
  const rows = [...table.tBodies[0].rows];
  const selects = [...form.querySelectorAll("select")];
  const asked = new URLSearchParams(location.search);
  for (const field of [...selects, form.elements.text]) {
    const value = asked.get(field.name);
    if (value !== null) field.value = value;
    if (field.value === "" && field.matches("select")) field.selectedIndex = 0;
  }
  const show = () => {
    const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      // a claim run at several profiles has a verdict for each, in their order
      const fitsAt = (run) =>
        selects.every(({ name, value }) => {
          const own = row.dataset[name].split("|");
          return !value || (own[run] ?? own[0]) === value;
        });
      const runs = row.dataset.profile.split("|");
      const fits = words.every((word) => text.includes(word)) && runs.some((_, run) => fitsAt(run));
      row.hidden = !fits;
      shown += fits;
    }
    form.querySelector("output").textContent = `${shown} of ${rows.length} claims`;
  };
  form.addEventListener("input", show);
  form.addEventListener("reset", () => setTimeout(show)); // after the fields are empty
  form.addEventListener("submit", (event) => event.preventDefault());
  show();
  form.hidden = false;
}

document.addEventListener("DOMContentLoaded", () => {
  themeSwitch(document.querySelector("button.theme"));
  const code = document.querySelector("button.code");
  if (code) codeSwitch(code);
  const table = document.querySelector("table.claims");
  if (table) {
    sortable(table);
    filterable(table, document.querySelector("form.filters"));
  }
  const contents = document.querySelector(".contents details");
  if (contents && matchMedia("(max-width: 60rem)").matches) contents.open = false;
});
