"use strict";

// Definitions: shown at once, also by keyboard and touch.
const tip = document.getElementById("tip");
function place(box, x, y) {
  box.hidden = false;
  const { width, height } = box.getBoundingClientRect();
  const right = document.documentElement.clientWidth - width - 8;
  box.style.left = `${Math.max(8, Math.min(x, right))}px`;
  box.style.top = `${y + height + 8 > innerHeight ? Math.max(8, y - height - 32) : y}px`;
}
for (const word of document.querySelectorAll("abbr[title]")) {
  const text = word.title;
  word.removeAttribute("title");
  word.setAttribute("aria-description", text);
  const show = () => {
    tip.textContent = text;
    const { left, bottom } = word.getBoundingClientRect();
    place(tip, left, bottom + 6);
  };
  for (const event of ["pointerenter", "focus"]) word.addEventListener(event, show);
  for (const event of ["pointerleave", "blur"]) word.addEventListener(event, () => (tip.hidden = true));
}

// Tables: sorted by a click on a heading; a third click restores their order.
const plain = (cell) => cell.textContent.trim().replaceAll("\u2212", "-");
function number(text) {
  const found = /^[[<]?\s*([+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)(?![\w.-]*[a-z]\w*\d)/i.exec(text);
  return found ? Number(found[1].replaceAll(",", "")) : NaN;
}
function sortBy(table, column, heading) {
  const body = table.tBodies[0];
  const now = heading.getAttribute("aria-sort");
  const next = { none: "descending", descending: "ascending", ascending: "none" }[now];
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", next);
  const rows = table.original.slice();
  const texts = rows.map((row) => plain(row.cells[column]));
  const known = texts.filter((text) => text && text !== "-");
  const numeric = known.every((text) => !Number.isNaN(number(text)));
  const sign = next === "ascending" ? 1 : -1;
  const compare = (a, b) => {
    const [x, y] = [plain(a.cells[column]), plain(b.cells[column])];
    const missing = (x === "-" || !x) - (y === "-" || !y); // last, in both orders
    if (missing) return missing;
    return sign * (numeric ? number(x) - number(y) : x.localeCompare(y, "en", { numeric: true }));
  };
  if (next !== "none") rows.sort(compare);
  body.append(...rows);
}

// What is copied: CSV with plain numbers, LaTeX for the booktabs package.
const lines = (table) => [...table.rows].map((row) => [...row.cells].map(plain));
const csv = (table) =>
  lines(table)
    .map((row) => row.map((cell) => (/[",\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell)))
    .map((row) => row.join(","))
    .join("\n") + "\n";
const escapes = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}" };
Object.assign(escapes, { "<": "$<$", ">": "$>$", "\u00b1": "$\\pm$" });
const tex = (cell) =>
  cell
    .split(/((?<![\w.,-])[+-]?\d[\d.,]*(?![\w-]))/)
    .map((part, i) =>
      i % 2 && /^[+-]/.test(part)
        ? `$${part}$`
        : part.replace(/[\\~^<>\u00b1&%$#_{}]/g, (c) => escapes[c] ?? `\\${c}`)
    )
    .join("");
function latex(table) {
  const [header, ...rows] = lines(table).map((row) => row.map(tex).join(" & ") + " \\\\");
  const columns = "l" + "r".repeat(table.rows[0].cells.length - 1);
  return [`\\begin{tabular}{${columns}}`, "\\toprule", header, "\\midrule", ...rows]
    .concat("\\bottomrule", "\\end{tabular}", "")
    .join("\n");
}
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // A page that did not come from a file or over https has no clipboard.
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}
function button(label, text) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = label;
  made.addEventListener("click", async () => {
    await copy(text());
    made.textContent = "copied";
    setTimeout(() => (made.textContent = label), 1500);
  });
  return made;
}
for (const table of document.querySelectorAll("table")) {
  table.original = [...table.tBodies[0].rows];
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    heading.setAttribute("aria-sort", "none");
    heading.tabIndex = heading.querySelector("abbr") ? -1 : 0;
    heading.addEventListener("click", () => sortBy(table, column, heading));
    heading.addEventListener("keydown", (event) => {
      if (event.key === "Enter") sortBy(table, column, heading);
    });
  });
  const tools = document.createElement("div");
  tools.className = "tools";
  tools.append(button("copy LaTeX", () => latex(table)), button("copy CSV", () => csv(table)));
  table.closest(".table").append(tools);
}
for (const code of document.querySelectorAll("pre code")) {
  code.parentElement.append(button("copy", () => code.textContent));
}

// Scatter plots: the nearest circle shows its photograph, in all plots.
const card = document.getElementById("card");
if (card) {
  const { photographs, panels } = JSON.parse(document.getElementById("panels").textContent);
  const near = 14; // pixels
  let shown = null;
  const show = (i, panel, x, y) => {
    if (i !== shown) {
      for (const old of document.querySelectorAll("circle.on")) old.classList.remove("on");
      shown = i;
      if (i === null) return (card.hidden = true);
      for (const c of document.querySelectorAll(`circle[data-photo="${i}"]`)) c.classList.add("on");
      card.querySelector(".picture").className = `picture photo-${i}`;
      card.querySelector("p").textContent = photographs[i].image;
      const entries = [["MOS", photographs[i].mos, false]];
      panels.forEach((p, k) => entries.push([p.title, p.scores[i], k === panel]));
      card.querySelector("dl").replaceChildren(
        ...entries.flatMap(([name, value, on]) => {
          const [title, score] = [document.createElement("dt"), document.createElement("dd")];
          [title.textContent, score.textContent] = [name, value === undefined ? "-" : value.toFixed(1)];
          title.classList.toggle("on", on);
          return [title, score];
        })
      );
    }
    if (i !== null) place(card, x + 18, y + 18);
  };
  for (const plot of document.querySelectorAll("svg.scatter")) {
    const circles = [...plot.querySelectorAll("circle")];
    const look = ({ clientX, clientY }) => {
      let [best, least] = [null, near];
      for (const circle of circles) {
        const box = circle.getBoundingClientRect();
        const away = Math.hypot(clientX - box.x - box.width / 2, clientY - box.y - box.height / 2);
        if (away < least) [best, least] = [circle.dataset.photo, away];
      }
      show(best, Number(plot.dataset.panel), clientX, clientY);
    };
    plot.addEventListener("pointermove", look);
    plot.addEventListener("pointerdown", look);
    // A finger that is lifted leaves as well: then the photograph stays until the next touch.
    plot.addEventListener("pointerleave", (event) => event.pointerType === "touch" || show(null));
  }
  document.addEventListener("pointerdown", (event) => event.target.closest("svg.scatter") || show(null));
}
