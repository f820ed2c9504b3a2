// Sorting, filtering, theme, copying and printing. Without it the page reads the same.
"use strict";
(() => {
  const make = (tag, props = {}, ...kids) => {
    const element = Object.assign(document.createElement(tag), props);
    element.append(...kids);
    return element;
  };
  const textOf = (cell) => (cell ? cell.textContent.trim() : "");
  const EMPTY = new Set(["", "\u2013", "-"]);
  const DIGITS = "([+-]?(?:\\d+(?:,\\d{3})*(?:\\.\\d*)?(?:e[+-]?\\d+)?|\u221e))";
  const NUMBER = new RegExp(`^[<>~]?\\s*${DIGITS}(?=$| [[(]|\\s*[%\u00b1]| of )`, "i");
  const INTERVAL = new RegExp(`^\\[${DIGITS}, ${DIGITS}\\]`, "i");

  // "78.3 +- 0.4", "1.2 (n = 3)", "[1.2, 3.4]" and "2 of 3" sort by their first number; null is no
  // number, as "3 diverged" is none: it counts something else than the column does.
  function numberIn(text) {
    const signed = text.replace(/\u2212/g, "-");
    const found = NUMBER.exec(signed) || INTERVAL.exec(signed);
    if (!found) return null;
    const digits = found[1].replace(/,/g, "");
    return digits.endsWith("\u221e") ? (digits[0] === "-" ? -Infinity : Infinity) : Number(digits);
  }

  const [NUMBERS, WORDS, NOTHING] = [0, 1, 2]; // in this order, whichever way a column is sorted
  function sortRows(table, column, direction) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    rows.forEach((row, index) => (row.dataset.order ??= index));
    const keyed = rows.map((row) => {
      const cell = row.cells[column];
      const text = textOf(cell?.querySelector("small") ? cell.firstChild : cell); // n is beside it
      const number = numberIn(text);
      const kind = EMPTY.has(text) ? NOTHING : number === null ? WORDS : NUMBERS;
      return { row, text, kind, number };
    });
    const collator = new Intl.Collator("en", { numeric: true });
    keyed.sort((a, b) => {
      const before = a.row.dataset.order - b.row.dataset.order;
      if (!direction) return before;
      if (a.kind !== b.kind) return a.kind - b.kind;
      const apart = a.kind === WORDS
        ? collator.compare(a.text, b.text)
        : a.number === b.number ? 0 : a.number < b.number ? -1 : 1;
      return direction * apart || before;
    });
    body.append(...keyed.map((key) => key.row));
  }

  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = make("button", { type: "button", className: "sort" }, ...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const next = { ascending: "descending", descending: null }[now];
        const order = next === undefined ? "ascending" : next;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (order) head.setAttribute("aria-sort", order);
        sortRows(table, column, { ascending: 1, descending: -1 }[order] || 0);
      });
    });
  }

  const CHOICES = ["Norm", "Batch", "Of", "Verdict", "Status"];
  function filterable(table) {
    const rows = [...table.tBodies[0].rows];
    if (rows.length < 6) return;
    const name = table.getAttribute("aria-label");
    const box = make("input", { type: "search", placeholder: "Filter rows" });
    box.setAttribute("aria-label", `Filter rows of ${name}`);
    const count = make("span", { className: "count" });
    count.setAttribute("aria-live", "polite");
    const selects = [];
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const title = textOf(head);
      if (!CHOICES.includes(title)) return;
      const values = [...new Set(rows.map((row) => textOf(row.cells[column])))];
      if (values.length < 2 || values.length > 40) return;
      values.sort(new Intl.Collator("en", { numeric: true }).compare);
      const select = make("select", {}, make("option", { value: "*" }, `${title}: all`));
      values.forEach((v) => select.append(make("option", { value: v }, `${title}: ${v || "none"}`)));
      select.setAttribute("aria-label", `${title} in ${name}`);
      selects.push([select, column]);
    });
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const apply = () => {
      const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, index) => {
        const fits = words.every((word) => texts[index].includes(word)) &&
          selects.every(([s, c]) => s.value === "*" || textOf(row.cells[c]) === s.value);
        row.hidden = !fits;
        shown += fits;
      });
      count.textContent = `${shown} of ${rows.length} rows`;
    };
    box.addEventListener("input", apply);
    selects.forEach(([select]) => select.addEventListener("change", apply));
    apply();
    table.closest(".scroll").before(
      make("div", { className: "tools" }, box, ...selects.map(([select]) => select), count));
  }

  function enhance(table) {
    filterable(table);
    sortable(table);
  }

  // A long table travels as columns of {values, which}, and becomes rows when it is opened.
  function unpack(holder) {
    const data = JSON.parse(holder.querySelector("script").textContent);
    const head = make("tr");
    data.columns.forEach((c) =>
      head.append(make("th", { scope: "col", className: c.numeric ? "n" : "" }, c.header)));
    const body = make("tbody");
    for (let row = 0; row < data.rows; row++) {
      const line = make("tr");
      data.columns.forEach((c) =>
        line.append(make("td", { className: c.numeric ? "n" : "" }, c.values[c.which ? c.which[row] : 0])));
      body.append(line);
    }
    const table = make("table", {}, make("thead", {}, head), body);
    table.setAttribute("aria-label", data.title);
    const scroll = make("div", { className: "scroll", tabIndex: 0 }, table);
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", data.title);
    holder.replaceChildren(scroll);
    enhance(table);
  }

  function theme() {
    const root = document.documentElement;
    const button = document.getElementById("theme");
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const now = () => root.dataset.theme || (dark.matches ? "dark" : "light");
    const show = () => (button.textContent = now() === "dark" ? "Light" : "Dark");
    try { // some browsers forbid storage to files
      const kept = localStorage.getItem("gnexp-theme");
      if (kept === "dark" || kept === "light") root.dataset.theme = kept;
    } catch { /* the choice then lasts as long as the page */ }
    button.addEventListener("click", () => {
      root.dataset.theme = now() === "dark" ? "light" : "dark";
      try { localStorage.setItem("gnexp-theme", root.dataset.theme); } catch { /* as above */ }
      show();
    });
    dark.addEventListener("change", show);
    button.hidden = false;
    show();
  }

  async function copy(text, box) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch { // not allowed to files: select it, so that the keyboard can copy
      getSelection().selectAllChildren(box);
      return document.execCommand("copy");
    }
  }

  document.querySelectorAll(".code").forEach((box) => {
    const pre = box.querySelector("pre");
    const button = make("button", { type: "button" }, "Copy");
    button.setAttribute("aria-live", "polite");
    button.addEventListener("click", async () => {
      button.textContent = (await copy(pre.textContent.trim(), pre)) ? "Copied" : "Selected";
      setTimeout(() => (button.textContent = "Copy"), 2000);
    });
    box.append(button);
  });
  document.querySelectorAll("table").forEach(enhance);
  document.querySelectorAll("[data-packed]").forEach((holder) => {
    const fold = holder.closest("details");
    if (!fold) return unpack(holder);
    fold.addEventListener("toggle", () => fold.open && holder.querySelector("script") && unpack(holder));
  });
  theme();

  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened = opened.filter((fold) => !fold.querySelector("[data-packed]"));
    opened.forEach((fold) => (fold.open = true));
  });
  addEventListener("afterprint", () => opened.forEach((fold) => (fold.open = false)));

  // A link into a folded part opens it.
  const reveal = () => {
    const fold = location.hash && document.getElementById(location.hash.slice(1))?.closest("details");
    if (fold) fold.open = true;
  };
  addEventListener("hashchange", reveal);
  reveal();
})();
